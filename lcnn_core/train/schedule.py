"""Learning rates over a run, as data. ``SCHEDULES`` lists them; the published ones carry weight decay too."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol


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
