"""Accuracy against counted speedup: points, panels and the Pareto front. Pure; standard library only.

Points are compared only with points of the same panel: same data set, same accuracy metric, same kind of speedup.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Literal

Kind = Literal["counted", "measured"]

PUBLISHED_FACTS = (
    "37.6x and 3.2x compare two different networks: the narrower alexnet-lcnn against the wider alexnet. The width "
    "alone gives 1.59x. On the same backbone they are about 23.7x and 2.0x (computed).",
    "With the published counting rule and the published ResNet-18 dictionary sizes, 29.2x and 5.0x cannot be reached: "
    "dictionaries, shortcuts and classifier alone cap the speedup at 18.8x and 2.9x (computed). The closest reading "
    "found, dictionary counted at output resolution with shortcuts and classifier left out, caps at 38.9x and 4.87x: "
    "still short of 5.0x before any lookup.",
)
"""Stated wherever a published point is shown."""


@dataclass(frozen=True)
class Point:
    """One network on the spectrum. ``accuracy`` in percent, of ``metric``, on ``dataset``."""

    label: str
    speedup: float
    accuracy: float
    metric: str
    dataset: str
    baseline: str
    """What ``speedup`` is against."""
    source: str
    """Where the two numbers come from."""
    kind: Kind = "counted"
    published: bool = False
    """A number from the paper, not from this report's models."""


@dataclass(frozen=True)
class Panel:
    """Points that may share two axes, own points by rising speedup, with the own points on the Pareto front."""

    dataset: str
    metric: str
    kind: Kind
    points: tuple[Point, ...]
    front: tuple[Point, ...]
    lines: tuple[tuple[str, float], ...] = ()
    """(label, speedup) of models without an accuracy, which have a place on one axis only."""

    @property
    def own(self) -> tuple[Point, ...]:
        return tuple(point for point in self.points if not point.published)

    @property
    def published(self) -> tuple[Point, ...]:
        return tuple(point for point in self.points if point.published)

    @property
    def baselines(self) -> tuple[str, ...]:
        """What the own speedups are against; every own point's, each name once."""
        return tuple(dict.fromkeys(point.baseline for point in self.own or self.points))


def pareto_front(points: Iterable[Point]) -> tuple[Point, ...]:
    """The points that no other point beats: none is at least as good in both and better in one; rising speedup.

    Equal points are all kept. O(n log n).
    """
    ordered = sorted(points, key=lambda point: (-point.speedup, -point.accuracy))
    front: list[Point] = []
    best = float("-inf")
    for point in ordered:
        ties = front and (point.speedup, point.accuracy) == (front[-1].speedup, front[-1].accuracy)
        if point.accuracy > best or ties:
            front.append(point)
            best = point.accuracy
    return tuple(reversed(front))


def panels(points: Sequence[Point]) -> tuple[Panel, ...]:
    """Sort points into panels, in the order in which their panels first occur."""
    grouped: dict[tuple[str, str, Kind], list[Point]] = {}
    for point in points:
        grouped.setdefault((point.dataset, point.metric, point.kind), []).append(point)
    return tuple(
        Panel(
            *key,
            points=tuple(sorted(members, key=lambda point: point.speedup)),
            front=pareto_front(point for point in members if not point.published),
        )
        for key, members in grouped.items()
    )


@cache
def published_points() -> tuple[Point, ...]:
    """The counted points of the paper's tables and figure (top-1), as packaged in data/published.csv.

    Rows whose speedup is not a count of multiplications (binary operations, GPU timings) are left out.
    """
    text = files("lcnn_analyze").joinpath("data/published.csv").read_text(encoding="utf-8")
    return tuple(
        Point(
            label=f"{row['architecture']} {row['model']}",
            speedup=float(row["claimed_speedup"]),
            accuracy=float(row["top1_percent"]),
            metric="top-1",
            dataset=row["dataset"],
            baseline=row["architecture"] if row["baseline"] == "itself" else row["baseline"],
            source=f"{row['source']}, {row['how_read']}",
            published=True,
        )
        for row in csv.DictReader(text.splitlines())
        if row["speedup_kind"] in ("counted", "none")
    )
