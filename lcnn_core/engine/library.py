"""Finds the native library for this processor and wraps a loaded plan. One call runs a whole segment."""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from lcnn_core.errors import CheckpointError, ConfigError

_X86 = ("avx512", "avx512_wide", "avx2", "baseline")
ISAS = {"x86_64": _X86, "AMD64": _X86, "aarch64": ("neon",)}
_NOT_BUILT = "no native library was built for this machine; reinstall lcnn where a C++ compiler is present"
_FLOATS = ctypes.POINTER(ctypes.c_void_p)


def _folders() -> list[Path]:
    here = Path(__file__).parent
    given = os.environ.get("LCNN_LIBRARY_FOLDER")  # such as the build with sanitizers
    return [Path(given)] if given else [here, here.parent.parent / "build"]  # installed, or built in the checkout


def library_folder() -> Path:
    """Where liblcnn.so and the libraries of the instruction sets lie. Raises ConfigError where none was built."""
    for folder in _folders():
        if (folder / "liblcnn.so").exists():
            return folder
    raise ConfigError(_NOT_BUILT)


def libraries(folder: str | os.PathLike[str] | None = None) -> dict[str, Any]:
    """Every native library that this processor can run, best first; empty where none was built.

    folder: of another build; None: those of this installation. Raises ConfigError where ``folder`` has none, and for a
    file that is no library of this engine.
    """
    found = _open(tuple(_folders() if folder is None else [Path(folder).resolve()]))
    if folder is not None and not found:
        raise ConfigError(f"{str(folder)!r} has no native library that runs here; expected a folder of liblcnn_*.so")
    return found


@cache
def _open(folders: tuple[Path, ...]) -> dict[str, Any]:
    found, ranks = {}, {}
    for isa in ISAS.get(platform.machine(), ("baseline",)):
        path = next((p for folder in folders if (p := folder / f"liblcnn_{isa}.so").exists()), None)
        if path is None:
            continue
        try:
            library = _declare(ctypes.CDLL(str(path)))
        except (OSError, AttributeError) as error:
            raise ConfigError(f"{path} is no library of this engine ({error}); build it again") from error
        if rank := library.lcnn_supported():
            found[isa], ranks[isa] = library, rank
    return {isa: found[isa] for isa in sorted(found, key=lambda isa: -ranks[isa])}


def _declare(library: Any) -> Any:
    library.lcnn_load.restype = ctypes.c_void_p
    library.lcnn_load.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_char_p, ctypes.c_int64]
    library.lcnn_free.argtypes = [ctypes.c_void_p]
    library.lcnn_run.argtypes = [ctypes.c_void_p, _FLOATS, _FLOATS, ctypes.c_int64, ctypes.c_int]
    library.lcnn_profile.argtypes = [ctypes.c_void_p, _FLOATS, _FLOATS, ctypes.c_int64, ctypes.c_void_p]
    library.lcnn_probe.restype = ctypes.c_double
    library.lcnn_probe.argtypes = [ctypes.c_int, ctypes.c_double]
    library.lcnn_read_rate.restype = ctypes.c_double
    library.lcnn_read_rate.argtypes = [ctypes.c_int64, ctypes.c_double]
    for name, more in {"inputs": [], "outputs": [], "memory": [ctypes.c_int]}.items():
        function = getattr(library, f"lcnn_{name}")
        function.restype = ctypes.c_int64
        function.argtypes = [ctypes.c_void_p, *more]
    for name in ("input_shape", "output_shape"):
        getattr(library, f"lcnn_{name}").argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.POINTER(ctypes.c_int64)]
    library.lcnn_isa.restype = ctypes.c_char_p
    return library


def choose(isa: str | None = None, folder: str | os.PathLike[str] | None = None) -> Any | None:
    """The library for ``isa``, or the best one, unless LCNN_ISA in the environment names another. None without any."""
    isa = isa or os.environ.get("LCNN_ISA")
    available = libraries(folder)
    if isa is None:
        return next(iter(available.values()), None)
    if isa not in available:
        raise ConfigError(
            f"instruction set {isa!r} is not available; this machine can run {', '.join(available) or 'none'}"
        )
    return available[isa]


def library_in_use() -> str | None:
    """The instruction set of the library that ``compile`` and ``load`` take by themselves; None without any."""
    library = choose()
    return None if library is None else library.lcnn_isa().decode()


class NativePlan:
    """A packed plan, loaded. Safe to use from several threads; the GIL is released while it runs."""

    def __init__(self, packed: bytes, isa: str | None = None, folder: str | os.PathLike[str] | None = None):
        library = choose(isa, folder)
        if library is None:
            raise ConfigError(_NOT_BUILT)
        self._library = library
        buffer = np.frombuffer(packed, np.uint8)
        message = ctypes.create_string_buffer(300)
        self._handle = library.lcnn_load(buffer.ctypes.data, len(packed), message, 300)
        if not self._handle:
            raise CheckpointError(f"packed plan refused: {message.value.decode()}")
        self.steps = int.from_bytes(packed[5 * 8 : 6 * 8], "little")

    def __del__(self) -> None:
        if getattr(self, "_handle", None):
            self._library.lcnn_free(self._handle)

    @property
    def isa(self) -> str:
        return self._library.lcnn_isa().decode()

    def memory(self) -> dict[str, int]:
        """Bytes of packed weights, of one image's activations, of one thread's scratch."""
        return {
            name: self._library.lcnn_memory(self._handle, i)
            for i, name in enumerate(("weights", "activations", "scratch"))
        }

    def run(self, inputs: Any, outputs: Any, images: int, threads: int) -> None:
        """``inputs`` and ``outputs``: ``addresses`` of dense float32 arrays, images first."""
        if self._library.lcnn_run(self._handle, inputs, outputs, images, threads):
            raise MemoryError(f"not enough memory to run {images} images; use a smaller batch")

    def divide(self, parts: Sequence[float]) -> None:
        """Fix which part of one image, from 0 to 1, each of so many threads takes; not while a thread runs the plan."""
        given = (ctypes.c_double * len(parts))(*parts)
        if self._library.lcnn_divide(ctypes.c_void_p(self._handle), given, len(parts)):
            raise ConfigError(f"parts {list(parts)} of an image; expected numbers from 0 to 1")

    def profile(self, inputs: Any, outputs: Any, images: int) -> list[float]:
        """Seconds of each step, on one thread; as ``run``."""
        seconds = (ctypes.c_double * self.steps)()
        self._library.lcnn_profile(self._handle, inputs, outputs, images, seconds)
        return list(seconds)

    def shapes(self) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
        """Shapes of one image of each input and of each output."""
        lib, handle = self._library, self._handle

        def read(count: int, shape_of: Any) -> list[tuple[int, ...]]:
            room = (ctypes.c_int64 * 3)()
            return [tuple(room[: shape_of(handle, i, room)]) for i in range(count)]

        return (
            read(lib.lcnn_inputs(handle), lib.lcnn_input_shape),
            read(lib.lcnn_outputs(handle), lib.lcnn_output_shape),
        )


_ONE = ctypes.c_void_p * 1


def addresses(values: list[int]) -> Any:
    """The array of pointers that C takes."""
    return _ONE(*values) if len(values) < 2 else (ctypes.c_void_p * len(values))(*values)


PROBES = ("matrix_gmacs", "lookup_l1_gmacs", "lookup_l1_aligned_gmacs", "lookup_l2_gmacs")


def peaks(seconds: float = 0.2, isa: str | None = None) -> dict[str, float]:
    """Measured peaks of one core: GMAC/s of the matrix and lookup kernels."""
    library = _measurable(isa)
    return {name: library.lcnn_probe(i, seconds) for i, name in enumerate(PROBES)}


def read_rate(size: int, seconds: float = 0.1, isa: str | None = None) -> float:
    """Measured GB/s of one core that reads the same ``size`` bytes again and again, as a network reads its weights."""
    return _measurable(isa).lcnn_read_rate(size, seconds)


def _measurable(isa: str | None) -> Any:
    library = choose(isa)
    if library is None:
        raise ConfigError("no native library was built for this machine, so there is nothing to measure")
    return library
