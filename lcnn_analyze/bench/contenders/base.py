"""What a contender is given, and what it gives back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from torch import Tensor, nn

from lcnn_core import export_onnx


class UnavailableError(Exception):
    """Why a contender cannot run here: a package that is not installed, a layer that it does not cover."""


@dataclass(frozen=True)
class Work:
    """One network to run: float32, in evaluation mode, on one batch.

    folder: the network's own, for files that several contenders read.
    """

    model: nn.Module
    x: Tensor
    threads: int
    folder: Path

    def onnx_file(self) -> Path:
        """The network as an ONNX file, any batch, written once. Its input is called "input"."""
        path = self.folder / "model.onnx"
        if not path.exists():
            require("onnx", "onnxscript")
            export_onnx(self.model, self.x[:1], path)
        return path


@dataclass(frozen=True)
class StepTime:
    """One step of a contender's own plan: seconds for the whole batch, and the MACs it executes per image."""

    name: str
    kind: str
    seconds: float
    macs: int


@dataclass(frozen=True)
class Ready:
    """A prepared contender. ``run`` computes the batch once and returns what the runtime returns; nothing else."""

    run: Callable[[], object]
    output: Callable[[], Tensor]
    """Runs once and gives the outputs as a tensor."""
    detail: str = ""
    """Which of its ways it took: an instruction set, a layout."""
    steps: Callable[[], tuple[StepTime, ...]] | None = field(default=None, compare=False)
    """Seconds of every step, where the contender can tell."""


@dataclass(frozen=True)
class Contender:
    """One way to run a network, listed in ``CONTENDERS``.

    role: "engine", this project's; "dense", a baseline for the twin and the reference; "stock", what a user of lookup
    layers has without the engine. package: the distribution whose version names it.
    """

    name: str
    title: str
    role: Literal["engine", "dense", "stock"]
    package: str
    prepare: Callable[[Work], Ready]
    """Raises UnavailableError, with the reason, where it cannot run."""
    precision: Literal["float32", "bfloat16", "int8"] = "float32"
    release: Callable[[], None] = lambda: None
    """Frees what the runtime itself keeps of networks that nobody runs any more."""


def require(*packages: str) -> None:
    """Raise UnavailableError unless all ``packages`` are installed."""
    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        raise UnavailableError(f"{' and '.join(missing)} {verb} not installed (pip install 'lcnn[bench]')")
