"""The spectrum as a picture: accuracy against counted speedup, the Pareto front marked, published points beside it."""

from __future__ import annotations

import io
import textwrap
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from lcnn_analyze.render import words
from lcnn_analyze.render.numbers import safe
from lcnn_analyze.render.palette import INK, MUTED, OWN, PUBLISHED
from lcnn_analyze.render.ticks import accuracy_bounds, bounds, log_ticks
from lcnn_analyze.report import Report
from lcnn_analyze.spectrum import Panel
from lcnn_core import ConfigError

STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "text.parse_math": False,  # names from files are text, "$" too
    "svg.hashsalt": "lcnn",
    "svg.fonttype": "none",
}


def render(report: Report, format: str = "png") -> bytes:
    """PNG or SVG with one plot per panel of the spectrum. Raises ConfigError when no model carries an accuracy."""
    panels = report.spectrum
    if not panels:
        raise ConfigError(
            "there is no spectrum to draw, since no model carries an accuracy; "
            "save one with `lcnn evaluate`, or leave out the plot"
        )
    stream = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        figure = _figure(report, panels)
        # Without a date and a version, the same report gives the same bytes.
        metadata: dict[str, Any] = {"Software": None} if format == "png" else {"Date": None, "Creator": None}
        figure.savefig(stream, format=format, dpi=150, metadata=metadata)
    return stream.getvalue()


def render_svg(report: Report) -> bytes:
    """The picture as SVG, text as text."""
    return render(report, "svg")


def _figure(report: Report, panels: tuple[Panel, ...]) -> Figure:
    note = "\n".join(textwrap.fill(fact, 140) for fact in report.facts)
    foot = 0.15 + 0.14 * (note.count("\n") + 1 if note else 0)
    height = 4.6 * len(panels) + foot
    figure = Figure(figsize=(8, height))
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(panels), 1, squeeze=False)[:, 0]
    for axis, panel in zip(axes, panels, strict=True):
        _draw(axis, panel)
    figure.text(0.02, 0.12 / height, note, fontsize=7.5, color=MUTED, va="bottom")
    figure.tight_layout(rect=(0, foot / height, 1, 1))
    return figure


def _draw(axis: Axes, panel: Panel) -> None:
    speedups = [point.speedup for point in panel.points] + [speedup for _, speedup in panel.lines]
    low, high = bounds(speedups)
    axis.set_xscale("log")
    axis.set_xlim(low, high)
    axis.set_xticks(log_ticks(low, high))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}x"))
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.grid(True, color=MUTED, alpha=0.18, linewidth=0.8)
    axis.tick_params(colors=INK)
    axis.set_title(safe(panel.dataset), loc="left", color=INK, fontweight="bold")
    axis.set_xlabel(safe(f"{panel.kind} speedup over {words.against(panel)}  (log scale)"))
    axis.set_ylabel(safe(f"{panel.metric} accuracy, %"))
    published = panel.published
    if published:
        axis.plot(
            [point.speedup for point in published], [point.accuracy for point in published], "D", linestyle="none",
            markersize=6, markerfacecolor="none", markeredgecolor=PUBLISHED, markeredgewidth=1.4,
            label="published (paper)",
        )  # fmt: skip
    if panel.front:
        axis.plot(
            [point.speedup for point in panel.front], [point.accuracy for point in panel.front], "o-", color=OWN,
            linewidth=1.6, label="Pareto front of these models",
        )  # fmt: skip
    for point in panel.own:
        filled = OWN if point in panel.front else "white"
        axis.plot(point.speedup, point.accuracy, "o", markersize=8, markerfacecolor=filled, markeredgecolor=OWN)
        # The front falls from left to right: above right and below left of a point are free.
        right = point.speedup > (low * high**3) ** 0.25
        axis.annotate(
            safe(point.label), (point.speedup, point.accuracy), xytext=(-9, -13) if right else (7, 7),
            textcoords="offset points", color=INK, ha="right" if right else "left",
        )  # fmt: skip
    for label, speedup in panel.lines:
        axis.axvline(speedup, color=OWN, linestyle="--", linewidth=1.4)
        axis.annotate(
            safe(f"{label} (accuracy not known)"), (speedup, 1), xycoords=("data", "axes fraction"), rotation=90,
            xytext=(-4, -4), textcoords="offset points", ha="right", va="top", color=OWN,
        )  # fmt: skip
    axis.set_ylim(accuracy_bounds([point.accuracy for point in panel.points]))
    if published or panel.front:
        axis.legend(frameon=False, loc="lower left", labelcolor=INK)
