"""Tables for a terminal, from 80 columns up: fewer columns where it is narrow, plain text where there is no colour."""

from __future__ import annotations

import io
from collections.abc import Sequence

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from lcnn_analyze.cost import LayerCost
from lcnn_analyze.render import words
from lcnn_analyze.render.numbers import (
    ABSENT,
    Column,
    columns,
    count_text,
    counted_layers,
    dictionary_text,
    kernel_text,
    layer_name,
    ratio_text,
    safe,
    shapes_text,
)
from lcnn_analyze.report import ModelReport, Report
from lcnn_analyze.spectrum import Panel

WIDE = 120
"""From this width on, shapes and the less important metrics are shown too."""


def render(report: Report, width: int = 100, color: bool = False) -> bytes:
    """The report as text of at most ``width`` columns; with ANSI colours if ``color``."""
    stream = io.StringIO()
    console = Console(
        file=stream, width=width, force_terminal=color, no_color=not color, color_system="standard" if color else None,
        markup=False, highlight=False, emoji=False, legacy_windows=False,
    )  # fmt: skip
    for part in _parts(report, width):
        console.print(part)
    lines = (line.rstrip() for line in stream.getvalue().splitlines())
    return ("\n".join(lines).strip("\n") + "\n").encode()


def _parts(report: Report, width: int) -> list[RenderableType]:
    parts: list[RenderableType] = []
    for model in report.models:
        parts += [_heading(model), _layers(model, report, width), _facts(words.totals(model) + words.more(model)), ""]
    if len(report.models) > 1:
        parts += [Text("Comparison", style="bold"), _comparison(report), ""]
    for panel in report.spectrum:
        parts += [_panel(panel), ""]
    if report.spectrum:
        parts += [_facts([("note", fact) for fact in report.facts]), ""]
    parts += [_facts(words.provenance(report)), ""]
    # Last, where a terminal's reader looks first.
    parts += [_text(words.verdict(model, report), "bold") for model in report.models]
    return parts


def _text(value: str, style: str = "") -> Text:
    """Text that rich neither interprets nor obeys: names come from files."""
    return Text(safe(value), style=style)


def _heading(model: ModelReport) -> Text:
    shape = " x ".join(map(str, model.costs.input_shape))
    named = "" if model.architecture == model.name else f" ({model.architecture})"
    return _text(f"{model.name}{named}, {shape} input", "bold")


def _layers(model: ModelReport, report: Report, width: int) -> Table:
    wide = width >= WIDE
    shown = columns(report, model, most=2 if wide else 1)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False, show_footer=True, collapse_padding=True)
    table.add_column("layer", footer="total", overflow="fold", min_width=8, max_width=32 if wide else 20)
    if wide:
        table.add_column("kernel", no_wrap=True)
        table.add_column("in → out", overflow="fold")
    table.add_column("k", justify="right")
    for column in shown:
        table.add_column(
            _header(column), justify="right", no_wrap=True, footer=column.text(model.costs.totals.get(column.metric.name))
        )
    rows = counted_layers(model)
    for layer in rows:
        extra = [_text(kernel_text(layer)), _text(shapes_text(layer))] if wide else []
        style = "" if layer.identity or layer.dictionary_size is not None else "dim"
        table.add_row(_text(layer_name(layer)), *extra, dictionary_text(layer), *_cells(shown, layer), style=style)
    left_out = len(model.costs.layers) - len(rows)
    if left_out:
        table.caption = f"{left_out} calls without multiplications (norm, activation, pooling) are not listed"
        table.caption_justify = "left"
    return table


def _header(column: Column) -> Text:
    title = {"counted speedup": "counted\nspeedup", "density of P": "density\nof P", "dense twin": "dense\ntwin"}
    return _two_lines(title.get(column.metric.title, f"\n{column.metric.title}"), column.unit)


def _two_lines(title: str, unit: str) -> Text:
    return Text(f"{title}\n", style="bold").append(unit, style="not bold dim")


def _cells(shown: Sequence[Column], layer: LayerCost) -> list[str]:
    return [column.of(layer) for column in shown]


def _facts(lines: Sequence[tuple[str, str]]) -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True, style="dim")
    grid.add_column(overflow="fold")
    for name, text in lines:
        grid.add_row(_text(name), _text(text))
    return grid


def _comparison(report: Report) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False, collapse_padding=True)
    baselines = words.compared_with(report)
    table.add_column("model", overflow="fold", min_width=12)
    table.add_column(_two_lines("total", "MACs"), justify="right")
    for name in baselines:
        table.add_column(_two_lines("counted speedup", f"x {safe(name)}"), justify="right")
    table.add_column(_two_lines("storage", "values"), justify="right")
    table.add_column("accuracy", overflow="fold")
    front = {point.label for panel in report.spectrum for point in panel.front}
    for model in report.models:
        speedups = {baseline.name: ratio_text(baseline.speedup).removesuffix("x") for baseline in model.baselines}
        table.add_row(
            _text(model.name),
            count_text(model.costs.totals["macs"] or 0),
            *(speedups.get(name, ABSENT) for name in baselines),
            count_text(model.costs.totals["storage"] or 0),
            _text("; ".join(map(words.accuracy_text, model.accuracy)) + (" ◆" if model.name in front else "")),
        )
    if front:
        table.caption = words.FRONT
        table.caption_justify = "left"
    return table


def _panel(panel: Panel) -> Group:
    """The spectrum as a list, fastest last."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False, collapse_padding=True)
    table.add_column(_two_lines("counted speedup", "x"), justify="right")
    table.add_column(_two_lines(panel.metric, "%"), justify="right")
    table.add_column("")
    table.add_column("model", overflow="fold")
    for point in panel.points:
        speedup, accuracy = ratio_text(point.speedup).removesuffix("x"), f"{point.accuracy:.1f}"
        style = "dim" if point.published else ""
        table.add_row(speedup, accuracy, words.mark(point, panel), _text(words.point_text(point)), style=style)
    return Group(_text(f"Spectrum: {words.panel_title(panel)}", "bold"), table, Text(words.MARKS, style="dim"))
