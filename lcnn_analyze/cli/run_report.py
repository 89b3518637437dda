"""What a run leaves beside its checkpoints: the resolved configuration, a report with curves, TensorBoard's files."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lcnn_analyze.cli.output import write_file
from lcnn_analyze.cli.study import facts
from lcnn_core import (
    BatchFinished,
    ConfigError,
    EpochFinished,
    Event,
    Listener,
    RunFiles,
    TrainingFinished,
)

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

REDRAWN_AFTER = 60.0
"""Seconds between two reports of a run that is not finished."""


def save_config(files: RunFiles, settings: Mapping[str, Any]) -> None:
    """Write the settings as a file that ``--config`` takes."""
    import yaml

    text = yaml.safe_dump(dict(settings), sort_keys=False, allow_unicode=True)
    write_file(files.config, f"# lcnn train --config {files.config.name}\n{text}".encode(), quiet=True)


class RunReport:
    """Draws accuracy and speedup over the epochs, and writes the tables, as the run goes on and at its end."""

    def __init__(self, files: RunFiles, title: str, history: Sequence[Mapping[str, Any]], command: str) -> None:
        self.files, self.title, self.command = files, title, command
        self.history = list(history)
        self.drawn = time.monotonic()

    def __call__(self, event: Event) -> None:
        if isinstance(event, EpochFinished):
            self.history.append(asdict(event))
        due = isinstance(event, EpochFinished) and time.monotonic() - self.drawn > REDRAWN_AFTER
        if self.history and (due or isinstance(event, TrainingFinished)):
            self.write()

    def write(self) -> None:
        from lcnn_analyze.render import training

        self.drawn = time.monotonic()
        write_file(self.files.curves, training.curves(self.title, self.history), quiet=True)
        settings = f"{self.files.config.name}, which lcnn train --config takes; choices were made on validation images"
        made = (*facts(self.command), ("settings", settings))
        text = training.markdown(self.title, self.history, self.files.curves.name, made)
        write_file(self.files.report, text.encode(), quiet=True)


@contextmanager
def tensorboard(folder: Path) -> Iterator[Listener]:
    """A listener that writes TensorBoard's event files. Raises ConfigError where it is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ConfigError("TensorBoard is not there; install it with: pip install 'lcnn[tensorboard]'") from error
    with SummaryWriter(str(folder)) as writer:
        yield lambda event: _scalars(writer, event)


def _scalars(writer: SummaryWriter, event: Event) -> None:
    if isinstance(event, BatchFinished):
        step = (event.epoch - 1) * event.batches + event.batch
        writer.add_scalar("batch/loss", event.loss, step)
        writer.add_scalar("batch/learning_rate", event.learning_rate, step)
    elif isinstance(event, EpochFinished):
        values = {
            "epoch/loss": event.loss,
            "epoch/train_top1": event.train_accuracy,
            "epoch/validation_top1": event.validation.top1,
            "epoch/validation_top5": event.validation.top5,
            "epoch/validation_loss": event.validation.loss,
            "epoch/counted_speedup": event.counted_speedup,
            **{f"density/{name}": density for name, density in event.densities.items()},
        }
        for name, value in values.items():
            writer.add_scalar(name, value, event.epoch)
