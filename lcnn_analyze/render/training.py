"""A training run as a picture and as tables: accuracy, counted speedup and every lookup layer over the epochs."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from lcnn_analyze.render.markdown import escape
from lcnn_analyze.render.numbers import safe
from lcnn_analyze.render.palette import INK, MUTED, OWN, PUBLISHED
from lcnn_analyze.render.plots import STYLE

Epochs = Sequence[Mapping[str, Any]]
"""One record of plain data for each epoch, as the log's ``EpochFinished`` lines hold them."""


def curves(title: str, epochs: Epochs) -> bytes:
    """PNG: accuracies above, counted speedup below, over the epochs."""
    numbers = [epoch["epoch"] for epoch in epochs]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8, 6))
        FigureCanvasAgg(figure)
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
        for label, color, style, values in (
            ("training top-1", MUTED, "-", [epoch["train_accuracy"] for epoch in epochs]),
            ("validation top-1", OWN, "-", [epoch["validation"]["top1"] for epoch in epochs]),
            ("validation top-5", OWN, ":", [epoch["validation"]["top5"] for epoch in epochs]),
        ):
            above.plot(numbers, [100 * v for v in values], style, color=color, marker="o", markersize=3, label=label)
        best = [epoch for epoch in epochs if epoch["best"]]
        if best:
            top = 100 * best[-1]["validation"]["top1"]
            above.plot(
                best[-1]["epoch"], top, "D", color=PUBLISHED, label=f"best: epoch {best[-1]['epoch']}, {top:.2f} %"
            )
        below.plot(numbers, [epoch["counted_speedup"] for epoch in epochs], "-o", color=OWN, markersize=3)
        above.set_title(safe(title), loc="left", color=INK, fontweight="bold")
        above.set_ylabel("accuracy, %")
        above.legend(frameon=False, loc="lower right", labelcolor=INK)
        below.set_ylabel("counted speedup")
        below.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}x"))
        below.set_xlabel("epoch")
        below.xaxis.set_major_locator(MaxNLocator(integer=True))
        for axis in (above, below):
            axis.grid(True, color=MUTED, alpha=0.18, linewidth=0.8)
        figure.subplots_adjust(0.1, 0.09, 0.97, 0.94, hspace=0.1)
        stream = io.BytesIO()
        figure.savefig(stream, format="png", dpi=120, metadata={"Software": None})
    return stream.getvalue()


def confusion(title: str, matrix: Sequence[Sequence[int]], names: Sequence[str]) -> bytes:
    """PNG of a confusion matrix, each row in shares of its class; figures in the cells where there are few classes."""
    shares = [[value / max(1, sum(row)) for value in row] for row in matrix]
    count = len(names)
    size = min(14.0, max(5.0, 0.55 * count + 2))
    with matplotlib.rc_context({**STYLE, "axes.spines.right": True, "axes.spines.top": True}):
        figure = Figure(figsize=(size, size))
        FigureCanvasAgg(figure)
        axis = figure.subplots()
        axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        axis.set_title(safe(title), loc="left", color=INK, fontweight="bold", fontsize=10)
        axis.set_xlabel("answer")
        axis.set_ylabel("class")
        if count <= 50:
            axis.set_xticks(range(count), [safe(name)[:20] for name in names], rotation=90)
            axis.set_yticks(range(count), [safe(name)[:20] for name in names])
        if count <= 20:
            for row, values in enumerate(matrix):
                for column, value in enumerate(values):
                    if value:
                        dark = shares[row][column] > 0.5
                        axis.text(
                            column,
                            row,
                            str(value),
                            ha="center",
                            va="center",
                            color="white" if dark else INK,
                            fontsize=8,
                        )
        figure.tight_layout()
        stream = io.BytesIO()
        figure.savefig(stream, format="png", dpi=150, metadata={"Software": None})
    return stream.getvalue()


def markdown(title: str, epochs: Epochs, picture: str, facts: Sequence[tuple[str, str]]) -> str:
    """Tables: one row for each epoch; then density and counted speedup of each lookup layer at the last.

    facts: name and value of how it was made, which stand at the end.
    """
    lines = [
        f"# {safe(title)}",
        "",
        f"![accuracy and counted speedup over the epochs]({picture})",
        "",
        "| epoch | learning rate | loss | training top-1 | validation top-1 | top-5 | counted speedup | best |",
        "|---:|---:|---:|---:|---:|---:|---:|---|",
    ]
    for epoch in epochs:
        validation = epoch["validation"]
        lines.append(
            f"| {epoch['epoch']} | {epoch['learning_rate']:.4g} | {epoch['loss']:.4f} | {epoch['train_accuracy']:.2%} "
            f"| {validation['top1']:.2%} | {validation['top5']:.2%} | {epoch['counted_speedup']:.2f}x "
            f"| {'best so far' if epoch['best'] else ''} |"
        )
    last = epochs[-1]
    if last["densities"]:
        lines += ["", f"Lookup layers after epoch {last['epoch']} (convention `published`, one image):", ""]
        lines += ["| layer | density of P | counted speedup over its dense twin |", "|---|---:|---:|"]
        lines += [
            f"| {safe(name)} | {density:.2%} | {last['speedups'][name]:.2f}x |"
            for name, density in last["densities"].items()
        ]
    if last["unreadable"]:
        lines += ["", f"{last['unreadable']} images could not be read and were passed over."]
    lines += ["", *(f"- {escape(name)}: {escape(value)}" for name, value in facts)]
    return "\n".join(lines) + "\n"
