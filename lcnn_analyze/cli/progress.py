"""What a training run looks like on stderr: a bar while it runs, and lines that stay.

Commands import this file inside their bodies: it needs the events' classes, which bring torch.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

from lcnn_core import (
    BatchFinished,
    EpochFinished,
    Event,
    LayerDied,
    Listener,
    Preparing,
    TrainingFinished,
    TrainingStarted,
)

REFRESH = 0.1
"""Seconds between two redraws: drawing must not cost the run anything."""
RATE_OVER = 50
"""Batches over which the rate is taken."""
FILE_WIDTH = 160
"""Characters in a line where stderr is no terminal, so that an epoch's figures stay on one."""
PATIENCE = 10.0
"""Seconds of preparing after which a line says how far it is, where there is no bar."""
WORTH_SAYING = 0.05
"""Share of the time spent waiting for images from which on it is shown."""


@contextmanager
def progress(
    title: str, quiet: bool = False, epochs: bool = False, console: Console | None = None
) -> Iterator[Listener]:
    """Yield a listener for training that shows the run under ``title``; ``quiet`` shows nothing.

    On a terminal a bar moves while the run lasts. A table stays for each epoch where ``epochs`` is set, otherwise
    one line for the whole run; where stderr is no terminal these lines are all there is.
    """
    if quiet:
        yield lambda event: None
        return
    console = console or Console(stderr=True, highlight=False, soft_wrap=True)
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=10),
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
        self.said = time.monotonic()
        self.validated = ""
        self.recent: deque[tuple[int, float, float]] = deque(maxlen=RATE_OVER)
        self.last: EpochFinished | None = None

    def __call__(self, event: Event) -> None:
        match event:
            case Preparing():
                self.bars.update(self.task, total=event.total, completed=event.done, state=event.what)
                if not self.console.is_terminal and time.monotonic() - self.said >= PATIENCE:
                    self.said = time.monotonic()
                    self.console.print(f"{self.title}: {event.what}, {event.done} of {event.total}")
            case TrainingStarted():
                self.bars.update(self.task, total=event.epochs * event.batches, completed=event.steps_done, state="")
            case BatchFinished():
                self.recent.append((event.images, event.seconds, event.waited))
                if time.monotonic() - self.drawn >= REFRESH:
                    self.drawn = time.monotonic()
                    state = f"loss {event.loss:.3f} train {event.running_accuracy:.0%}{self.validated} {self.rate()}"
                    done = (event.epoch - 1) * event.batches + event.batch
                    self.bars.update(self.task, completed=done, state=state)
            case EpochFinished():
                self.last = event
                self.validated = f" val {event.validation.top1:.1%} {event.counted_speedup:.1f}x"
                if self.epochs:
                    width = self.console.width if self.console.is_terminal else FILE_WIDTH
                    self.console.print("\n".join(epoch_table(event, self.rate(), width)))
            case LayerDied():
                self.console.print(
                    f"warning: after epoch {event.epoch} no entry of P is left in layer {event.name!r}, which answers "
                    "the same for every image; lower its l1_scale or its threshold_scale"
                )
            case TrainingFinished() if self.last and not self.epochs:
                accuracy, speedup = self.last.validation.top1, self.last.counted_speedup
                self.console.print(
                    f"{self.title}: {self.last.epoch} epochs in {event.seconds:.0f} s, "
                    f"validation top-1 {accuracy:.1%}, counted speedup {speedup:.2f}x"
                )

    def rate(self) -> str:
        """Images a second over the last batches, and the share of the time spent waiting for them."""
        images, seconds, waited = (
            (sum(values) for values in zip(*self.recent, strict=True)) if self.recent else (0, 0, 0)
        )
        if not seconds:
            return ""
        share = waited / seconds
        speed, alone = (_rate(images / time) for time in (seconds, seconds - waited))
        waiting = f", {alone} without {share:.0%} waiting" if share >= WORTH_SAYING else ""
        return f"{speed} images/s{waiting}"


def _rate(speed: float) -> str:
    return f"{speed:,.0f}" if speed >= 10 else f"{speed:.2g}"


def epoch_table(event: EpochFinished, rate: str, width: int) -> list[str]:
    """One epoch in plain lines of at most ``width`` characters: the network's figures, then those of its layers.

    Layers are those with lookups, read downwards: share of P that is not zero, counted speedup over the dense twin.
    """
    figures = [
        f"epoch {event.epoch:>{len(str(event.epochs))}}/{event.epochs}",
        f"loss {event.loss:.4f}",
        f"train {event.train_accuracy:6.2%}",
        f"validation top-1 {event.validation.top1:6.2%} top-5 {event.validation.top5:6.2%}",
        f"counted {event.counted_speedup:.2f}x",
        *(["best"] if event.best else []),
        *([f"{event.unreadable} unreadable"] if event.unreadable else []),
        f"{event.seconds:.1f} s",
        *([rate] if rate else []),
    ]
    return [*_filled(figures, width), *_layers(event, width)]


def _filled(figures: Sequence[str], width: int) -> list[str]:
    """As many on each line as fit; those that follow the first line are indented."""
    lines = [figures[0]]
    for figure in figures[1:]:
        if len(lines[-1]) + 2 + len(figure) > width:
            lines.append(" ")
        lines[-1] += f"  {figure}"
    return lines


def _layers(event: EpochFinished, width: int) -> list[str]:
    """As many columns of layers as fit, under a header."""
    if not event.densities:
        return []
    name = max(len("layer"), *map(len, event.densities))
    header = f"    {'layer':<{name}}  P, %  counted"
    cells = [
        f"    {layer:<{name}}  {100 * density:4.{0 if density == 1 else 1}f}  {_times(event.speedups[layer]):>6}x"
        for layer, density in event.densities.items()
    ]
    columns = min(len(cells), max(1, width // len(header)))
    rows = -(-len(cells) // columns)
    columns = -(-len(cells) // rows)
    return ["".join([header] * columns), *("".join(cells[row::rows]) for row in range(rows))]


def _times(factor: float) -> str:
    return f"{factor:.2f}" if factor < 1000 else f"{factor:,.0f}"
