"""The bench as a picture: for each case, how long every contender takes; for several, counted against measured."""

from __future__ import annotations

import io
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from lcnn_analyze.bench.report import BenchCase, BenchReport, Entry, case_title
from lcnn_analyze.bench.rows import ms_text
from lcnn_analyze.render.numbers import ratio_text
from lcnn_analyze.render.palette import INK, LOOKUPS, MUTED, OWN, PLAIN
from lcnn_analyze.render.plots import STYLE
from lcnn_core import ConfigError

ROW = 0.36
"""Inches for a bar."""


def draw(report: BenchReport, format: str = "png") -> bytes:
    """PNG or SVG. Raises ConfigError where nothing was timed."""
    cases = [case for case in report.cases if any(entry.latency for entry in case.entries)]
    if not cases:
        raise ConfigError("there is nothing to draw, since no contender was timed; leave out --plot")
    stream = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        figure = _latency_figure(report, cases[0]) if len(cases) == 1 else _speedup_figure(report, cases)
        metadata: dict[str, Any] = {"Software": None} if format == "png" else {"Date": None, "Creator": None}
        figure.savefig(stream, format=format, dpi=150, metadata=metadata)
    return stream.getvalue()


def _figure(rows: int, foot: str) -> tuple[Figure, Axes]:
    height = 1.7 + ROW * rows
    figure = Figure(figsize=(9, height))
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    figure.text(0.015, 0.1 / height, foot, fontsize=7.5, color=MUTED, va="bottom")
    figure.subplots_adjust(left=0.36, right=0.93, top=1 - 0.75 / height, bottom=0.85 / height)
    axis.tick_params(axis="y", length=0)
    axis.spines["left"].set_visible(False)
    axis.grid(True, axis="x", color=MUTED, alpha=0.18, linewidth=0.8)
    axis.set_axisbelow(True)
    return figure, axis


def _latency_figure(report: BenchReport, case: BenchCase) -> Figure:
    entries = sorted((e for e in case.entries if e.latency), key=lambda e: e.latency.median if e.latency else 0.0)
    figure, axis = _figure(len(entries), _foot(report))
    scale = 1e3 / case.batch
    longest = max(entry.latency.p90 for entry in entries if entry.latency) * scale
    for place, entry in enumerate(entries):
        assert entry.latency is not None
        median = entry.latency.median * scale
        axis.barh(place, median, height=0.7, color=_color(entry))
        axis.plot([entry.latency.p10 * scale, entry.latency.p90 * scale], [place, place], color=INK, linewidth=1.2)
        axis.annotate(
            ms_text(median), (max(median, entry.latency.p90 * scale), place), xytext=(4, 0),
            textcoords="offset points", va="center", color=INK, fontsize=9,
        )  # fmt: skip
    axis.set_yticks(range(len(entries)), [_label(case, entry) for entry in entries])
    axis.invert_yaxis()
    axis.set_xlim(0, longest * 1.1)
    axis.set_xlabel("ms per image, median; the line spans the 10th to the 90th percentile")
    main = case.main
    title = case_title(case)
    if main is not None:
        title += (
            f"\n{ratio_text(main.counted)} counted, {ratio_text(main.measured)} measured over "
            f"{case.network(main.baseline).name} in {main.fastest}"
        )
    axis.set_title(title, loc="left", x=-0.5, color=INK, fontweight="bold", fontsize=10.5)
    return figure


def _speedup_figure(report: BenchReport, cases: list[BenchCase]) -> Figure:
    shown = [case for case in cases if case.main is not None]
    figure, axis = _figure(len(shown), _foot(report))
    for place, case in enumerate(shown):
        main = case.main
        assert main is not None
        axis.plot([1, main.measured], [place, place], color=OWN, linewidth=7, solid_capstyle="butt")
        axis.plot(main.counted, place, "D", markersize=7, markerfacecolor="none", markeredgecolor=LOOKUPS,
                  markeredgewidth=1.8)  # fmt: skip
        least = report.least(case)
        if least is not None:
            axis.plot([least * main.counted] * 2, [place - 0.35, place + 0.35], color=INK, linewidth=1.6)
        axis.annotate(
            f"{main.efficiency:.2f}", (max(main.counted, main.measured), place), xytext=(10, 0),
            textcoords="offset points", va="center", color=INK, fontsize=9,
        )  # fmt: skip
    axis.set_yticks(range(len(shown)), [case_title(case) for case in shown])
    axis.invert_yaxis()
    _log_axis(axis, [s for case in shown if case.main for s in (case.main.counted, case.main.measured)])
    axis.set_xlabel("speedup over the fastest dense float32 of the baseline (log scale)")
    axis.set_title(
        "Bar: measured. Diamond: counted. Stroke: at least. Number: efficiency",
        loc="left", x=-0.5, color=INK, fontweight="bold", fontsize=10.5,
    )  # fmt: skip
    return figure


def _log_axis(axis: Axes, values: list[float]) -> None:
    axis.set_xscale("log")
    low, high = min([1.0, *values]), max([2.0, *values])
    axis.set_xlim(low * 0.95, high * 1.35)
    steps = [step * 10**power for power in range(-2, 4) for step in (1, 2, 5)]
    axis.set_xticks([tick for tick in steps if low * 0.95 <= tick <= high * 1.35])
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}x"))
    axis.xaxis.set_minor_formatter(NullFormatter())


def _color(entry: Entry) -> str:
    return {"engine": OWN, "stock": LOOKUPS, "dense": PLAIN}[entry.role]


def _label(case: BenchCase, entry: Entry) -> str:
    precision = "" if entry.precision == "float32" else f" {entry.precision}"
    return f"{entry.title}{precision}" + ("" if entry.network == "lcnn" else f", {case.network(entry.network).name}")


def _foot(report: BenchReport) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in report.machine.versions.items())
    return f"{report.machine.processor}, {report.machine.cores} cores; {versions}"
