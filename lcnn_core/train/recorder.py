"""A run's folder: its log, its last and best checkpoint, its state. A listener writes them; each is always whole.

One writer at a time: the log is locked, and the lock dies with its process.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from torch import nn

from lcnn_core import checkpoint
from lcnn_core.checkpoint import Checkpoint
from lcnn_core.errors import CheckpointError, ConfigError
from lcnn_core.layers import LookupLayer
from lcnn_core.train.events import BatchFinished, EpochFinished, Event, Preparing, StateReached, TrainingStarted
from lcnn_core.train.state import save_state

Metrics = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class RunFiles:
    """Where a run writes."""

    best: Path
    last: Path
    state: Path
    """What it takes to go on."""
    log: Path
    config: Path
    report: Path
    curves: Path

    @classmethod
    def at(cls, path: str | os.PathLike[str]) -> RunFiles:
        """Files in the folder ``path`` or, where it ends as a checkpoint does, that checkpoint and files beside it."""
        path = Path(path)
        if path.suffix in checkpoint.FORMATS and not path.is_dir():
            stem = str(path.with_suffix(""))
            first, last = path, Path(f"{stem}-last{path.suffix}")
            rest = [Path(f"{stem}-{name}") for name in _NAMES]
        elif path.suffix in (".pth", ".ckpt", ".t7", ".onnx"):
            suffixes = " or ".join(checkpoint.FORMATS)
            raise ConfigError(f"output {str(path)!r} ends in {path.suffix}; expected {suffixes}, or a folder")
        else:
            first, last, rest = path / "best.pt", path / "last.pt", [path / name for name in _NAMES]
        return cls(first, last, *rest)

    def made(self) -> list[Path]:
        """Those that hold trained weights and exist."""
        return [path for path in (self.state, self.best) if path.exists()]


_NAMES = ("state.pt", "log.jsonl", "config.yaml", "report.md", "curves.png")


class RunLog:
    """The log, JSON lines, open and locked."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path, self.file = path, file

    def write(self, event: str, fields: Mapping[str, Any]) -> None:
        """One line, handed to the system when this returns. Raises OSError that names the log."""
        plain = {k: dataclasses.asdict(v) if dataclasses.is_dataclass(v) else v for k, v in fields.items()}  # type: ignore[arg-type]
        rest = json.dumps({"event": event, **plain}).encode() + b"\n"
        try:
            while rest:  # the system may take a part, and say why not all of it the next time
                rest = rest[self.file.write(rest) :]
        except OSError as error:
            raise OSError(error.errno, f"cannot write {str(self.path)!r}: {error.strerror}; free some space") from error

    def position(self) -> int:
        """Bytes so far, on the disk when this returns."""
        os.fsync(self.file.fileno())
        return self.file.seek(0, os.SEEK_END)

    def cut(self, position: int) -> None:
        """Forget what follows ``position``. Raises CheckpointError where the log is not that long."""
        size = self.file.seek(0, os.SEEK_END)
        if size < position:
            raise CheckpointError(f"{self.path} has {size} bytes, the state knows of {position}; put the log back")
        self.file.truncate(position)


@contextmanager
def open_log(path: Path) -> Iterator[RunLog]:
    """Open and lock the log at ``path``, its folder made where it is missing; nothing in it changes yet.

    An empty log that nothing was written to is removed. Raises OSError when it cannot be written, ConfigError when
    another process is writing it.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("ab", buffering=0)  # a line that failed must not be tried again by close
    except OSError as error:
        raise OSError(error.errno, f"cannot write {str(path)!r}: {error.strerror}; choose another -o") from error
    with file:
        _lock(path, file)
        try:
            yield RunLog(path, file)
        finally:
            if file.seek(0, os.SEEK_END) == 0:
                path.unlink(missing_ok=True)


def _lock(path: Path, file: BinaryIO) -> None:
    if sys.platform == "win32":  # it has no flock, and refuses to replace files in use by itself
        return
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ConfigError(f"another process is writing {path.parent}; wait for its end, or choose another -o") from None


class Recorder:
    """Writes down what a run's events say: the log, the state, the last epoch's checkpoint, and the best one's."""

    def __init__(
        self,
        files: RunFiles,
        log: RunLog,
        snapshot: Callable[[nn.Module, Metrics, int], Checkpoint],
        dataset: str,
        header: Mapping[str, Any],
        settings: Mapping[str, Any],
        log_every: int | None = None,
    ) -> None:
        """snapshot: (model, metrics, epoch) -> what is saved; header: the log's first line, ``Configured``; settings:
        plain data kept with the state; log_every: batches between two lines of loss and densities."""
        self.files, self.log, self.snapshot, self.dataset = files, log, snapshot, dataset
        self.header, self.settings, self.log_every = header, settings, log_every
        self.epoch = 0
        self.begun = False
        """Whether training has; before that nothing is written."""

    def __call__(self, event: Event) -> None:
        match event:
            case TrainingStarted():
                self.start(event)
            case BatchFinished():
                if self.log_every and event.batch % self.log_every == 0:
                    self.log.write("BatchFinished", {**vars(event), "densities": self.densities()})
            case StateReached():
                extra = {"log": self.log.position(), "settings": dict(self.settings), "header": dict(self.header)}
                save_state(self.files.state, {**event.state, **extra})
            case EpochFinished():
                self.log.write("EpochFinished", vars(event))
                self.keep(event)
            case Preparing():  # nothing of the run is there yet
                pass
            case _:
                self.log.write(type(event).__name__, vars(event))

    def start(self, event: TrainingStarted) -> None:
        """Begin a log, or go on with it; before the first step, so that a full disk costs no training."""
        self.model = event.model
        for path in vars(self.files).values():
            for left in path.parent.glob(f".{path.name}.*.tmp"):  # by a writer that was killed
                left.unlink(missing_ok=True)
        if event.steps_done:
            self.epoch = event.steps_done // event.batches
            self.begun = True
            return
        checkpoint.save(self.files.last, self.snapshot(self.model, (), 0))  # first: there may be no space for it
        self.log.cut(0)
        for old in (self.files.best, self.files.state, self.files.report, self.files.curves):
            old.unlink(missing_ok=True)
        self.log.write("Configured", self.header)
        self.begun = True
        self.log.write("TrainingStarted", {k: v for k, v in vars(event).items() if k not in ("model", "steps_done")})

    def keep(self, event: EpochFinished) -> None:
        """The last checkpoint, and the best one where this epoch's is."""
        validation = event.validation
        metrics = [
            {
                **{"name": name, "value": value, "dataset": f"{self.dataset} (validation)"},
                **{"count": validation.count, "epoch": event.epoch},
            }
            for name, value in (("top1", validation.top1), ("top5", validation.top5))
        ]
        taken = self.snapshot(self.model, metrics, event.epoch)
        checkpoint.save(self.files.last, taken)
        self.epoch = event.epoch
        if event.best:
            checkpoint.save(self.files.best, taken)

    def densities(self) -> dict[str, float]:
        """nnz(P) / size of P, for each lookup layer, now."""
        layers = {name: layer for name, layer in self.model.named_modules() if isinstance(layer, LookupLayer)}
        return {
            name: float(layer.effective_coefficients().count_nonzero()) / layer.coefficients.numel()
            for name, layer in layers.items()
        }
