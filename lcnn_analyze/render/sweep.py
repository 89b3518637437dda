"""A study as a picture and as a page: accuracy against counted speedup, bars for what seeds differ by."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from lcnn_analyze.render.palette import INK, MUTED
from lcnn_analyze.render.plots import STYLE
from lcnn_analyze.study import Mean, State, Trial

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7d8590")
MARKERS = "osD^vPX"


def picture(title: str, points: Sequence[Mean], dense: float, format: str = "png") -> bytes:
    """PNG or SVG; ``dense`` is the dense network's accuracy in percent, drawn as a line."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8, 5))
        FigureCanvasAgg(figure)
        axis = figure.subplots()
        axis.axhline(dense, color=MUTED, linestyle="--", linewidth=1, label=f"dense network, {dense:.2f} %")
        for index, method in enumerate(dict.fromkeys(point.method for point in points)):
            own = sorted((point for point in points if point.method == method), key=lambda point: point.speedup)
            axis.errorbar(
                [point.speedup for point in own],
                [point.accuracy for point in own],
                [point.error or 0 for point in own],
                color=COLORS[index % len(COLORS)],
                marker=MARKERS[index % len(MARKERS)],
                capsize=3,
                label=method,
            )
        axis.set_xscale("log")
        ticks = sorted({point.target for point in points})
        axis.set_xticks(ticks)
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}x"))
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.set_xlabel("counted speedup over the dense network")
        axis.set_ylabel("top-1 on test images, %")
        axis.set_title(title, loc="left", color=INK, fontweight="bold")
        axis.grid(True, color=MUTED, alpha=0.18, linewidth=0.8)
        axis.legend(frameon=False, labelcolor=INK)
        figure.tight_layout()
        stream = io.BytesIO()
        metadata: dict[str, Any] = {"Software": None} if format == "png" else {"Date": None, "Creator": None}
        figure.savefig(stream, format=format, dpi=150, metadata=metadata)
    return stream.getvalue()


def page(
    title: str,
    points: Sequence[Mean],
    states: Sequence[tuple[Trial, State]],
    dense: float,
    commands: Mapping[str, str],
) -> str:
    """Markdown: picture, table, Pareto front, the command behind each trial, and what failed or is missing."""
    timed = any(point.latency is not None for point in points)
    lines = [f"# {title}", "", "![Accuracy against counted speedup](spectrum.png)", ""]
    lines += [
        f"The dense network has {dense:.2f} % top-1. Bars and figures behind ± are standard errors over seeds; a point",
        "on the front is matched by no other in both accuracy and counted speedup.",
        "",
        "| method | target | counted speedup | top-1, % | of dense | seeds | front |"
        + (" engine, ms |" if timed else ""),
        "|---|---|---|---|---|---|---|" + ("---|" if timed else ""),
    ]
    for point in sorted(points, key=lambda point: (point.target, -point.accuracy)):
        spread = "" if point.error is None else f" ± {point.error:.2f}"
        cells = [point.method, f"{point.target:g}x", f"{point.speedup:.2f}x", f"{point.accuracy:.2f}{spread}"]
        cells += [f"{point.accuracy - dense:+.2f}", str(len(point.seeds)), "yes" if point.front else ""]
        cells += [f"{1000 * point.latency:.3f}" if point.latency is not None else ""] if timed else []
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "## Each point again", "", "```"]
    lines += [commands[trial.name] for trial, state in states if state.status == "done"]
    lines.append("```")
    for status, heading in (("failed", "Failed"), ("running", "Still running"), ("waiting", "Not begun")):
        rest = [(trial, state) for trial, state in states if state.status == status]
        if rest:
            lines += ["", f"## {heading}", ""]
            lines += [f"- {trial.name}{': ' + state.reason if state.reason else ''}" for trial, state in rest]
    return "\n".join(lines) + "\n"
