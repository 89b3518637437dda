"""Learning rates over a run, as data. ``SCHEDULES`` lists them; the published ones carry weight decay too."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Protocol

from lcnn_core.errors import ConfigError


class Schedule(Protocol):
    """Learning rate and weight decay at any moment of a run.

    ``peak`` is the rate that the schedule was made for; asking for another rate scales the whole schedule.
    """

    @property
    def peak(self) -> float: ...

    def rate(self, epoch: float, epochs: int) -> float:
        """Learning rate after ``epoch`` epochs (0 at the start, fractions within one) of a run of ``epochs``."""

    def weight_decay(self, epoch: float) -> float:
        """Weight decay in that epoch, for a user who chose none."""


@dataclass(frozen=True)
class Row:
    """A line of a published table: from epoch ``first`` (counted from 1) to the next row, or for good."""

    first: int
    rate: float
    weight_decay: float = 0.0


@dataclass(frozen=True)
class Table:
    """A published table: epochs are those of the table, however long the run; the last row goes on."""

    rows: tuple[Row, ...]

    def __str__(self) -> str:
        """The rows as :func:`find_schedule` takes them."""
        return ",".join(f"{row.first}:{row.rate!r}:{row.weight_decay!r}" for row in self.rows)

    @property
    def peak(self) -> float:
        return max(row.rate for row in self.rows)

    def row(self, epoch: float) -> Row:
        return [row for row in self.rows if row.first <= math.floor(epoch) + 1][-1]

    def rate(self, epoch: float, epochs: int) -> float:
        return self.row(epoch).rate

    def weight_decay(self, epoch: float) -> float:
        return self.row(epoch).weight_decay


@dataclass(frozen=True)
class Constant:
    """The same rate from beginning to end."""

    peak: float = 0.05

    def rate(self, epoch: float, epochs: int) -> float:
        return self.peak

    def weight_decay(self, epoch: float) -> float:
        return 0.0


@dataclass(frozen=True)
class Cosine:
    """Rises to ``peak`` over the first ``warmup`` of the run, then falls along a cosine, to zero at its end.

    ``start`` is the share of the peak at which the rise begins. A long warm-up makes it the one-cycle schedule.
    """

    peak: float = 0.05
    warmup: float = 0.05
    start: float = 0.04
    decay: float = 5e-4

    def rate(self, epoch: float, epochs: int) -> float:
        progress = epoch / epochs
        if progress < self.warmup:
            return self.peak * (self.start + (1 - self.start) * _half_cosine(progress / self.warmup))
        return self.peak * (1 - _half_cosine((progress - self.warmup) / (1 - self.warmup)))

    def weight_decay(self, epoch: float) -> float:
        return self.decay


@dataclass(frozen=True)
class WarmUp:
    """``schedule``, its rates rising to their own along a line over the first ``epochs``."""

    schedule: Schedule
    epochs: float

    @property
    def peak(self) -> float:
        return self.schedule.peak

    def rate(self, epoch: float, epochs: int) -> float:
        start = Cosine.start
        return self.schedule.rate(epoch, epochs) * min(1.0, start + (1 - start) * epoch / self.epochs)

    def weight_decay(self, epoch: float) -> float:
        return self.schedule.weight_decay(epoch)


def warm_up(schedule: Schedule, warmup: float, epochs: int) -> Schedule:
    """``schedule`` with a rise of ``warmup`` of its ``epochs``; a cosine's own rise becomes that long."""
    return replace(schedule, warmup=warmup / epochs) if isinstance(schedule, Cosine) else WarmUp(schedule, warmup)


def find_schedule(text: str) -> Schedule:
    """A name in ``SCHEDULES``, a table as text, "1:0.1:5e-4,8:0.03,17:0.01", or a file with such rows.

    A row is first epoch (from 1), rate and, where there is any, weight decay. Raises ConfigError for all else.
    """
    if text in SCHEDULES:
        return SCHEDULES[text]
    rows = text
    if ":" not in text:
        try:
            rows = Path(text).read_text(encoding="utf-8")
        except (OSError, ValueError):
            raise ConfigError(
                f"schedule is {text!r}; expected one of {', '.join(SCHEDULES)}, rows such as 1:0.1,8:0.03:5e-4 "
                "(epoch:rate:weight decay), or a file with such rows"
            ) from None
    lines = [line.split("#")[0].strip() for line in rows.replace(",", "\n").splitlines()]
    return Table(_rows(text, [line for line in lines if line]))


def _rows(text: str, lines: list[str]) -> tuple[Row, ...]:
    rows = []
    for line in lines:
        try:
            first, rate, *decay = line.split(":")
            rows.append(Row(int(first), float(rate), *map(float, decay)))
        except (TypeError, ValueError):
            raise ConfigError(f"schedule {text!r}: row {line!r} is not epoch:rate or epoch:rate:weight decay") from None
    starts = [row.first for row in rows]
    if not rows or starts[0] != 1 or any(a >= b for a, b in pairwise(starts)):
        raise ConfigError(f"schedule {text!r} has rows for the epochs {starts}; expected them to rise from 1")
    if any(not 0 < row.rate < math.inf or not 0 <= row.weight_decay < math.inf for row in rows):
        raise ConfigError(f"schedule {text!r} has a rate that is not above 0 or a weight decay below 0")
    return tuple(rows)


def _half_cosine(share: float) -> float:
    """0 at 0, 1 at 1, level at both."""
    return (1 - math.cos(math.pi * min(share, 1.0))) / 2


SCHEDULES: dict[str, Schedule] = {
    # Paper and released settings; an epoch there is 10,000 batches, of 128 images (AlexNet) or 256 (ResNet).
    "alexnet": Table((Row(1, 1e-2), Row(19, 5e-3), Row(30, 1e-3), Row(44, 5e-4), Row(53, 1e-4))),
    "resnet": Table((Row(1, 0.1, 5e-4), Row(8, 0.03, 5e-4), Row(17, 0.01), Row(26, 0.003), Row(31, 0.001))),
    "constant": Constant(),
    "cosine": Cosine(),
    "one-cycle": Cosine(warmup=0.3),
}
