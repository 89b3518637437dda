"""Curves with intervals, as inline SVG that follows light and dark, and as PNG."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import matplotlib
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lcnn_analyze.render.numbers import safe
from lcnn_analyze.render.palette import EIGHTH, FOURTH, INK, LOOKUPS, MUTED, OWN, PLAIN, PUBLISHED, SIXTH
from lcnn_analyze.render.plots import STYLE
from lcnn_analyze.render.svg import picture
from lcnn_analyze.render.ticks import linear_ticks, log_ticks

HEIGHT, TOP, FLOOR = 340, 34, 40
LOOKS = (
    ("own", OWN, "-"),
    ("other", PUBLISHED, "--"),
    ("third", LOOKUPS, ":"),
    ("fourth", FOURTH, "-."),
    ("fifth", INK, "--"),
    ("sixth", SIXTH, ":"),
    ("seventh", PLAIN, "-"),
    ("eighth", EIGHTH, "-."),
)
"""Of the first curve, the second and so on: the class in the page, the colour and the stroke in the picture."""
MOST = len(LOOKS)
"""Curves that a chart can tell apart."""
BESIDE = 0.012
"""How far apart marks stand that would cover each other, as a share of the axis."""


@dataclass(frozen=True)
class Mark:
    """A point of a curve, with the ends of its interval where it has one."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None
    hollow: bool = False


@dataclass(frozen=True)
class Curve:
    """Marks in rising order of x. joined: by lines; else the marks alone are drawn. look: which of ``LOOKS``, where
    several charts show the same; otherwise that of its place in the chart."""

    label: str
    marks: tuple[Mark, ...]
    joined: bool = True
    look: int | None = None


@dataclass(frozen=True)
class Chart:
    """Up to ``MOST`` curves on one pair of axes. Places on x are even steps for ``even``, else to scale or to the
    logarithm's.

    ends: of what y can be, such as 0 and 100; an interval that goes on is cut there. unit: behind the numbers on x.
    level: (label, y) of a line across. named: the places on x that are named, where round numbers will not do.
    """

    title: str
    x_label: str
    y_label: str
    curves: tuple[Curve, ...]
    even: bool = False
    ends: tuple[float, float] = (-math.inf, math.inf)
    log: bool = False
    unit: str = ""
    level: tuple[str, float] | None = None
    named: tuple[float, ...] = ()

    @property
    def xs(self) -> list[float]:
        """Every x there is, rising."""
        return sorted({mark.x for curve in self.curves for mark in curve.marks})

    @property
    def y_bounds(self) -> tuple[float, float]:
        """Ends of the y axis, with room for what is drawn."""
        values = [v for c in self.curves for m in c.marks for v in (m.y, *self.spread(m))]
        values += [self.level[1]] if self.level else []
        room = max((max(values) - min(values)) * 0.08, 0.5)
        return min(values) - room, max(values) + room

    def spread(self, mark: Mark) -> tuple[float, float]:
        """The interval as it is drawn; the mark itself where it has none."""
        low, high = (mark.y if end is None else end for end in (mark.low, mark.high))
        return max(low, self.ends[0]), min(high, self.ends[1])

    @property
    def description(self) -> str:
        """The ends of the curves in words."""
        return "; ".join(
            f"{c.label}: {c.marks[0].y:.1f} at {c.marks[0].x:g} to {c.marks[-1].y:.1f} at {c.marks[-1].x:g}"
            for c in self.curves
        )

    def place(self, x: float) -> float:
        """Where x stands on its axis, from 0 to 1, with room at both ends."""
        xs = self.xs
        if self.even:
            return 0.08 + 0.84 * xs.index(x) / max(1, len(xs) - 1)
        low, high, at = (math.log(v) if self.log else v for v in (xs[0], xs[-1], x))
        if self.log:  # a factor of 3 at least, so that what is hardly apart does not look so
            room = max(0.0, math.log(3) - (high - low)) / 2
            low, high = low - room, high + room
        return 0.03 + 0.94 * (at - low) / ((high - low) or 1)

    @property
    def ticks(self) -> Sequence[float]:
        """Places on x that are named."""
        if self.even or self.named:
            return self.named or self.xs
        low, high = self.xs[0], self.xs[-1]
        return (log_ticks(low, high) or [low]) if self.log else linear_ticks(low, high, 8)


def looks_of(chart: Chart) -> list[tuple[str, str, str]]:
    """The entry of ``LOOKS`` of each of its curves."""
    return [LOOKS[place if curve.look is None else curve.look] for place, curve in enumerate(chart.curves[:MOST])]


def alike(charts: Sequence[Chart]) -> tuple[Chart, ...]:
    """The same charts, curves of one label looking the same in all of them, if all labels together are few enough."""
    labels = list(dict.fromkeys(curve.label for chart in charts for curve in chart.curves))
    if len(labels) > MOST:
        return tuple(charts)
    return tuple(
        replace(chart, curves=tuple(replace(curve, look=labels.index(curve.label)) for curve in chart.curves))
        for chart in charts
    )


def inline(chart: Chart, name: str) -> Markup:
    """The chart for an HTML page; widths in percent, colours by class."""
    bottom, top = chart.y_bounds

    def x(place: float) -> str:
        return f"{7 + 91 * place:.2f}%"

    def y(value: float) -> float:
        return round(TOP + (HEIGHT - FLOOR - TOP) * (top - value) / (top - bottom), 1)

    drawn = [
        f'<line class="grid" x1="0" x2="100%" y1="{y(tick)}" y2="{y(tick)}"/>'
        f'<text class="tick" y="{y(tick) - 3}">{tick:g}</text>'
        for tick in linear_ticks(bottom, top)
    ]
    drawn += [
        f'<text class="tick middle" x="{x(chart.place(tick))}" y="{HEIGHT - FLOOR + 18}">{tick:g}{chart.unit}</text>'
        for tick in chart.ticks
    ]
    if chart.level:
        label, level = chart.level
        drawn.append(
            f'<line class="level" x1="4%" x2="100%" y1="{y(level)}" y2="{y(level)}"/>'
            f'<text class="axis value" x="100%" y="{y(level) - 5}">{escape(safe(label))}</text>'
        )
    for curve, at, (style, _, _) in zip(chart.curves, _places(chart), looks_of(chart), strict=False):
        drawn += _inline_curve(chart, curve, style, list(map(x, at)), y)
    drawn.append(
        f'<text class="axis" y="12">{escape(chart.y_label)}</text>'
        f'<text class="axis value" x="100%" y="{HEIGHT - 4}">{escape(chart.x_label)}</text>'
    )
    return picture(drawn, chart.title, chart.description, name, HEIGHT)


def _inline_curve(chart: Chart, curve: Curve, style: str, at: Sequence[str], y: Callable[[float], float]) -> list[str]:
    """``at``: where its marks lie along x."""
    ends = list(zip(at, curve.marks, strict=True))
    drawn = [
        f'<line class="curve {style}" x1="{left}" y1="{y(a.y)}" x2="{right}" y2="{y(b.y)}"/>'
        for (left, a), (right, b) in pairwise(ends)
        if curve.joined
    ]
    for x, mark in ends:
        text = f"{curve.label}, {mark.x:.4g}{chart.unit}: {mark.y:.2f}"
        if mark.low is not None and mark.high is not None:
            text += f" ({mark.low:.2f} to {mark.high:.2f})"
            low, high = chart.spread(mark)
            drawn.append(f'<line class="spread {style}" x1="{x}" x2="{x}" y1="{y(low)}" y2="{y(high)}"/>')
        drawn.append(
            f'<circle class="mark {style}{" hollow" if mark.hollow else ""}" cx="{x}" cy="{y(mark.y)}" r="4.5">'
            f"<title>{escape(safe(text))}</title></circle>"
        )
    return drawn


def _places(chart: Chart) -> list[list[float]]:
    """Where the marks of each curve lie along x, as shares of the axis.

    Each at its own value, but marks of several curves that would cover each other, or each other's spread: those
    stand side by side around it.
    """
    left = [(place, number) for place, curve in enumerate(chart.curves) for number in range(len(curve.marks))]
    left.sort(key=lambda one: (chart.curves[one[0]].marks[one[1]].x, one))
    moved = [[chart.place(mark.x) for mark in curve.marks] for curve in chart.curves]
    while left:
        group = [left.pop(0)]
        for one in group:  # which grows meanwhile
            for other in list(left):
                if other[0] not in dict(group) and _covers(chart, group[0], one, other):
                    group.append(other)
                    left.remove(other)
        for rank, (place, number) in enumerate(sorted(group)):
            moved[place][number] += (rank - (len(group) - 1) / 2) * BESIDE
    return moved


def _covers(chart: Chart, first: tuple[int, int], one: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether ``other`` is as far along x as the ``first`` of a group, and would cover ``one`` of it."""
    near = 0.02 * (chart.y_bounds[1] - chart.y_bounds[0])
    start, mark, beside = (chart.curves[place].marks[number] for place, number in (first, one, other))
    (low, high), (bottom, top) = (
        (m.y, m.y) if m.low is None or m.high is None else chart.spread(m) for m in (mark, beside)
    )
    alike = abs(chart.place(start.x) - chart.place(beside.x)) < BESIDE
    return alike and bottom - near <= high and low - near <= top


def png(charts: Sequence[Chart]) -> bytes:
    """The charts one below the other."""
    stream = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8, 4.2 * len(charts)))
        FigureCanvasAgg(figure)
        for axis, chart in zip(figure.subplots(len(charts), 1, squeeze=False)[:, 0], charts, strict=True):
            _draw(axis, chart)
        figure.tight_layout()
        figure.savefig(stream, format="png", dpi=150, metadata={"Software": None})
    return stream.getvalue()


def _draw(axis: Axes, chart: Chart) -> None:
    if chart.level:
        axis.axhline(chart.level[1], color=MUTED, linestyle="--", linewidth=1, label=safe(chart.level[0]))
    places = _places(chart)
    for place, (curve, (_, color, stroke)) in enumerate(zip(chart.curves, looks_of(chart), strict=False)):
        at = places[place]
        spread = [[abs(m.y - chart.spread(m)[end]) for m in curve.marks] for end in (0, 1)]
        axis.errorbar(
            at, [m.y for m in curve.marks], spread, color=color, linestyle=stroke if curve.joined else "none",
            marker="o", capsize=3, label=safe(curve.label),
        )  # fmt: skip
        hollow = [(x, m.y) for x, m in zip(at, curve.marks, strict=True) if m.hollow]
        axis.plot(*zip(*hollow, strict=True), "o", color=color, markerfacecolor="white", zorder=3) if hollow else None
    axis.set_xticks([chart.place(x) for x in chart.ticks], [f"{x:g}{chart.unit}" for x in chart.ticks])
    axis.set_ylim(chart.y_bounds)
    axis.grid(True, color=MUTED, alpha=0.18, linewidth=0.8)
    axis.tick_params(colors=INK)
    axis.set_title(safe(chart.title), loc="left", color=INK, fontweight="bold")
    axis.set_xlabel(chart.x_label)
    axis.set_ylabel(chart.y_label)
    axis.legend(loc="upper left", bbox_to_anchor=(0, -0.17), ncols=3, labelcolor=INK, frameon=False)
