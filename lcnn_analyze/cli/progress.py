"""What a training run looks like on stderr: a bar while it runs, and lines that stay.

Commands import this file inside their bodies: it needs the events' classes, which bring torch.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

from lcnn_core import BatchFinished, EpochFinished, Event, Listener, TrainingFinished, TrainingStarted

REFRESH = 0.1
"""Seconds between two redraws: drawing must not cost the run anything."""


@contextmanager
def progress(
    title: str, quiet: bool = False, epochs: bool = False, console: Console | None = None
) -> Iterator[Listener]:
    """Yield a listener for training that shows the run under ``title``; ``quiet`` shows nothing.

    On a terminal a bar moves while the run lasts. One line stays for each epoch where ``epochs`` is set, otherwise
    one for the whole run; where stderr is no terminal these lines are all there is.
    """
    if quiet:
        yield lambda event: None
        return
    console = console or Console(stderr=True, highlight=False, soft_wrap=True)
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TextColumn("{task.fields[state]}"),
        TimeRemainingColumn(compact=True),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        yield _Display(title, epochs, console, bars)


class _Display:
    """Turns events into redraws of one bar and into lines."""

    def __init__(self, title: str, epochs: bool, console: Console, bars: Progress) -> None:
        self.title, self.epochs, self.console, self.bars = title, epochs, console, bars
        self.task = bars.add_task(title, total=None, state="")
        self.drawn = 0.0
        self.validated = ""
        self.last: EpochFinished | None = None

    def __call__(self, event: Event) -> None:
        match event:
            case TrainingStarted():
                self.bars.update(self.task, total=event.epochs * event.batches)
            case BatchFinished() if time.monotonic() - self.drawn >= REFRESH:
                self.drawn = time.monotonic()
                state = f"loss {event.loss:.3f}, train {event.running_accuracy:.1%}{self.validated}"
                done = (event.epoch - 1) * event.batches + event.batch
                self.bars.update(self.task, completed=done, state=state)
            case EpochFinished():
                self.last = event
                self.validated = f", validation {event.validation.top1:.1%}, {event.counted_speedup:.1f}x"
                if self.epochs:
                    self.console.print(epoch_line(event))
            case TrainingFinished() if self.last and not self.epochs:
                accuracy, speedup = self.last.validation.top1, self.last.counted_speedup
                self.console.print(
                    f"{self.title}: {self.last.epoch} epochs in {event.seconds:.0f} s, "
                    f"validation top-1 {accuracy:.1%}, counted speedup {speedup:.2f}x"
                )


def epoch_line(event: EpochFinished) -> str:
    """One epoch in one line of plain text; density is the range over the lookup layers' P."""
    parts = [
        f"epoch {event.epoch:>{len(str(event.epochs))}}/{event.epochs}",
        f"loss {event.loss:.4f}",
        f"train {event.train_accuracy:6.2%}",
        f"validation top-1 {event.validation.top1:6.2%} top-5 {event.validation.top5:6.2%}",
        f"counted {event.counted_speedup:.2f}x",
    ]
    if event.densities:
        parts.append(f"density of P {min(event.densities.values()):.1%} to {max(event.densities.values()):.1%}")
    parts.append(f"lr {event.learning_rate:.2g}")
    parts.append(f"{event.seconds:.1f} s")
    return "  ".join(parts) + ("  best" if event.best else "")
