"""Plans as files (native/FORMAT.md): what `lcnn export` writes, and C programs and ``load`` run without the model."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lcnn_core.engine.compiled import CompiledModel, PlainModel, check_inputs
from lcnn_core.engine.library import NativePlan, library_folder
from lcnn_core.engine.results import Results, run_native
from lcnn_core.errors import CheckpointError, ConfigError
from lcnn_core.files import atomic_write


class LoadedModel(nn.Module):
    """A plan from a file: call it as the model that it was made from. Made by :func:`load`."""

    def __init__(self, packed: bytes, threads: int | None, isa: str | None, folder: str | os.PathLike[str] | None):
        super().__init__()
        self._native = NativePlan(packed, isa, folder)
        self._threads = threads
        self.input_shapes, self.output_shapes = self._native.shapes()
        """Of one image, without the batch."""
        self._results = Results(self.output_shapes)

    def __deepcopy__(self, memo: dict[int, Any]) -> LoadedModel:
        return copy.copy(self)

    def forward(self, *inputs: Tensor) -> Any:
        """The outputs for any batch size: a tensor, or a tuple of them. Raises as ``CompiledModel`` does."""
        batch = check_inputs(inputs, self.input_shapes)
        threads = self._threads or torch.get_num_threads()
        results = run_native(self._native, inputs, self._results, batch, threads)
        return results[0] if len(results) == 1 else tuple(results)


def save(compiled: nn.Module, path: str | os.PathLike[str]) -> None:
    """Write the plan of a compiled model; the file runs on every instruction set, with or without Python.

    Raises ConfigError where a step runs in PyTorch, OSError when the file cannot be written.
    """
    if not isinstance(compiled, CompiledModel):
        reason = compiled.plan.steps[0].name if isinstance(compiled, PlainModel) else "not made by lcnn_core.compile"
        raise ConfigError(f"{type(compiled).__name__} has no native plan to write: {reason}")
    packed = compiled.packed()
    with atomic_write(path) as file:
        file.write(packed)


def load(
    path: str | os.PathLike[str],
    *,
    threads: int | None = None,
    isa: str | None = None,
    folder: str | os.PathLike[str] | None = None,
) -> LoadedModel:
    """Read a plan that :func:`save` or ``lcnn export`` wrote. Every number in it is checked.

    threads: None is ``torch.get_num_threads()``. isa: as in ``compile``. folder: of native libraries, such as another
    build's; None: this installation's. Raises CheckpointError for a file that cannot be read or is damaged, ConfigError
    without a native library.
    """
    try:
        return LoadedModel(Path(path).read_bytes(), threads, isa, folder)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}; check the path") from error
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}; export it again") from error


def c_flags() -> str:
    """Compiler flags to build a C program with ``lcnn_engine.h`` and ``liblcnn.so``; see native/example.c.

    Raises ConfigError without a native library.
    """
    libraries = library_folder()
    header = Path(__file__).parent / "native"
    return f"-I{header} -L{libraries} -Wl,-rpath,{libraries} -llcnn"
