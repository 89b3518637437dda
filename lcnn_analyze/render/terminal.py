"""Tables for a terminal, from 80 columns up: fewer columns where it is narrow, plain text where there is no colour."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from lcnn_analyze.cost import LayerCost
from lcnn_analyze.render import words
from lcnn_analyze.render.numbers import (
    ABSENT,
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

_LONGEST_NAME = 32
_ROOMY = 100
"""From this width on, two spaces stand between columns."""


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
    if report.changes:
        parts += [_text(f"{report.models[0].name} → {report.models[1].name}", "bold"), _changes(report), ""]
    panels = words.panels_to_show(report)
    for panel in panels:
        parts += [_panel(panel), ""]
    if panels and report.facts:
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
    rows = counted_layers(model)
    names = [layer_name(layer) for layer in rows]
    gap = 2 if width >= _ROOMY else 1
    room = width - min(max(map(len, names), default=0), _LONGEST_NAME) - gap
    shown = _fitting(_candidates(model, report, rows), room, gap)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, gap - 1), pad_edge=False, show_footer=True, collapse_padding=True)
    table.add_column("layer", footer="total", overflow="fold", min_width=8, max_width=_LONGEST_NAME)
    for column in shown:
        table.add_column(_two_lines(*column.header), footer=column.total, justify=column.justify, no_wrap=True)
    for place, layer in enumerate(rows):
        style = "" if layer.identity or layer.dictionary_size is not None else "dim"
        table.add_row(_text(names[place]), *(_text(column.cells[place]) for column in shown), style=style)
    left_out = len(model.costs.layers) - len(rows)
    if left_out:
        table.caption = f"{left_out} calls without multiplications (norm, activation, pooling) are not listed"
        table.caption_justify = "left"
    return table


@dataclass(frozen=True)
class _Candidate:
    """A column that is shown if there is room; the higher ``importance``, the sooner it goes."""

    header: tuple[str, str]
    cells: list[str]
    total: str
    importance: int
    justify: Literal["left", "right"] = "right"

    @property
    def width(self) -> int:
        texts = [*self.header[0].split("\n"), self.header[1], self.total, *self.cells]
        return max(map(len, texts))


def _candidates(model: ModelReport, report: Report, rows: Sequence[LayerCost]) -> list[_Candidate]:
    """Every column that a terminal may show, from left to right."""
    found = [
        _Candidate(("\n", "kernel"), [kernel_text(layer) for layer in rows], "", 12, "left"),
        _Candidate(("\n", "in → out"), [shapes_text(layer) for layer in rows], "", 11, "left"),
        _Candidate(("\n", "k"), [dictionary_text(layer) for layer in rows], "", 1),
    ]
    for place, column in enumerate(columns(report, model, most=2)):
        metric = column.metric
        found.append(
            _Candidate(
                (_TWO_LINES.get(metric.title, f"\n{metric.title}"), column.unit),
                [column.of(layer) for layer in rows],
                column.text(model.costs.totals.get(metric.name)),
                # Of equal ranks the ones further right go first.
                importance=20 + place if metric.rank > 1 else 2 + place if metric.unit == "fraction" else 1,
            )
        )
    return found


def _fitting(candidates: Sequence[_Candidate], room: int, gap: int) -> list[_Candidate]:
    kept = list(candidates)
    while sum(column.width + gap for column in kept) > room and any(column.importance > 1 for column in kept):
        kept.remove(max(kept, key=lambda column: column.importance))
    return kept


_TWO_LINES = {
    "counted speedup": "counted\nspeedup",
    "measured speedup": "measured\nspeedup",
    "density of P": "density\nof P",
    "dense twin": "dense\ntwin",
}


def _two_lines(title: str, unit: str) -> Text:
    plain = not title.strip()
    return Text(f"{title}\n", style="bold").append(unit, style="bold" if plain else "not bold dim")


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
            _text("; ".join(map(words.accuracy_text, model.headline)) + (" ◆" if model.name in front else "")),
        )
    if front:
        table.caption = words.FRONT
        table.caption_justify = "left"
    return table


def _changes(report: Report) -> Table:
    changed, same = words.shown_changes(report)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False, collapse_padding=True)
    table.add_column("layer", overflow="fold", min_width=8)
    for title, unit in (("before", "MACs"), ("after", "MACs"), ("difference", "MACs"), ("storage", "difference")):
        table.add_column(_two_lines(title, unit), justify="right", no_wrap=True)
    table.add_column("what changed", overflow="fold", min_width=16)
    for change in changed:
        storage = words.before_after(change.storage)[-1]
        cells = (*words.before_after(change.macs), storage)
        table.add_row(_text(words.change_name(change)), *cells, _text(words.change_text(change)))
    table.caption = f"{same} layers are the same in both"
    table.caption_justify = "left"
    return table


def _panel(panel: Panel) -> Group:
    """The spectrum as a list, fastest last."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False, collapse_padding=True)
    table.add_column(_two_lines(f"{panel.kind} speedup", "x"), justify="right")
    table.add_column(_two_lines(panel.metric, "%"), justify="right")
    table.add_column("")
    table.add_column("model", overflow="fold")
    for point in panel.points:
        speedup, accuracy = ratio_text(point.speedup).removesuffix("x"), f"{point.accuracy:.1f}"
        style = "dim" if point.published else ""
        table.add_row(speedup, accuracy, words.mark(point, panel), _text(words.point_text(point)), style=style)
    return Group(_text(f"Spectrum: {words.panel_title(panel)}", "bold"), table, Text(words.MARKS, style="dim"))
