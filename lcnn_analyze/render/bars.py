"""Horizontal bars as pictures: durations with their spread, and measured values against expected ones."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from lcnn_analyze.render.palette import INK, LOOKUPS, MUTED, OWN, PLAIN
from lcnn_analyze.render.plots import STYLE

ROW = 0.36
"""Inches for a bar."""

COLORS = {"own": OWN, "other": PLAIN, "stock": LOOKUPS}


@dataclass(frozen=True)
class Duration:
    """A bar from zero to ``value`` with a line from ``low`` to ``high`` and ``text`` at its end."""

    label: str
    value: float
    low: float
    high: float
    text: str
    color: str
    """A key of ``COLORS``."""


@dataclass(frozen=True)
class Ratio:
    """A bar from 1 to ``value``, a diamond at ``expected``, a stroke at ``least`` if given, and ``text`` at the end."""

    label: str
    value: float
    expected: float
    least: float | None
    text: str


def draw_durations(rows: Sequence[Duration], title: str, axis_label: str, foot: str, format: str) -> bytes:
    """PNG or SVG of ``rows``, the first on top, on a linear axis from zero."""
    with matplotlib.rc_context(STYLE):
        figure, axis = _figure(rows, title, axis_label, foot)
        for place, row in enumerate(rows):
            axis.barh(place, row.value, height=0.7, color=COLORS[row.color])
            axis.plot([row.low, row.high], [place, place], color=INK, linewidth=1.2)
            _annotate(axis, row.text, max(row.value, row.high), place)
        axis.set_xlim(0, max(max(row.value, row.high) for row in rows) * 1.1)
        return _bytes(figure, format)


def draw_ratios(rows: Sequence[Ratio], title: str, axis_label: str, foot: str, format: str) -> bytes:
    """PNG or SVG of ``rows``, the first on top, on a logarithmic axis."""
    with matplotlib.rc_context(STYLE):
        figure, axis = _figure(rows, title, axis_label, foot)
        for place, row in enumerate(rows):
            axis.plot([1, row.value], [place, place], color=OWN, linewidth=7, solid_capstyle="butt")
            axis.plot(
                row.expected, place, "D", markersize=7, markerfacecolor="none", markeredgecolor=LOOKUPS,
                markeredgewidth=1.8,
            )  # fmt: skip
            if row.least is not None:
                axis.plot([row.least] * 2, [place - 0.35, place + 0.35], color=INK, linewidth=1.6)
            _annotate(axis, row.text, max(row.value, row.expected) * 1.03, place)
        _log_axis(axis, [value for row in rows for value in (row.value, row.expected)])
        return _bytes(figure, format)


def _figure(rows: Sequence[Duration | Ratio], title: str, axis_label: str, foot: str) -> tuple[Figure, Axes]:
    height = 1.7 + ROW * len(rows)
    figure = Figure(figsize=(9, height))
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    figure.text(0.015, 0.1 / height, foot, fontsize=7.5, color=MUTED, va="bottom")
    figure.subplots_adjust(left=0.36, right=0.93, top=1 - 0.75 / height, bottom=0.85 / height)
    axis.tick_params(axis="y", length=0)
    axis.tick_params(labelcolor=INK)
    axis.spines["left"].set_visible(False)
    axis.grid(True, axis="x", color=MUTED, alpha=0.18, linewidth=0.8)
    axis.set_axisbelow(True)
    axis.set_yticks(range(len(rows)), [row.label for row in rows])
    axis.invert_yaxis()
    axis.set_xlabel(axis_label)
    axis.set_title(title, loc="left", x=-0.5, color=INK, fontweight="bold", fontsize=10.5)
    return figure, axis


def _annotate(axis: Axes, text: str, x: float, place: int) -> None:
    axis.annotate(text, (x, place), xytext=(5, 0), textcoords="offset points", va="center", color=INK, fontsize=9)


def _log_axis(axis: Axes, values: Sequence[float]) -> None:
    low, high = min([1.0, *values]) * 0.95, max([2.0, *values]) * 1.35
    axis.set_xscale("log")
    axis.set_xlim(low, high)
    ticks = [step * 10.0**power for power in range(-2, 4) for step in (1, 2, 5)]
    axis.set_xticks([tick for tick in ticks if low <= tick <= high])
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}x"))
    axis.xaxis.set_minor_formatter(NullFormatter())


def _bytes(figure: Figure, format: str) -> bytes:
    stream = io.BytesIO()
    # Without a date and a version, the same rows give the same bytes.
    metadata: dict[str, Any] = {"Software": None} if format == "png" else {"Date": None, "Creator": None}
    figure.savefig(stream, format=format, dpi=150, metadata=metadata)
    return stream.getvalue()
