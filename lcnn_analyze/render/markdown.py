"""Tables for a README or a pull request (GitHub's markdown); names are escaped, so that they stay text."""

from __future__ import annotations

import re
from collections.abc import Sequence

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


def render(report: Report) -> bytes:
    """Verdict first, then the comparison and spectrum of several models, the layers, and how it was counted."""
    parts = [f"# {escape(report.title)}"]
    parts += [escape(words.verdict(model, report)) for model in report.models]
    if len(report.models) > 1:
        parts += ["## Comparison", _comparison(report)]
    if report.changes:
        parts += [f"## {escape(report.models[0].name)} → {escape(report.models[1].name)}", _changes(report)]
    panels = words.panels_to_show(report)
    for panel in panels:
        parts += _panel(panel)
    if panels:
        parts += [f"> {escape(fact)}" for fact in report.facts]
    for model in report.models:
        parts += _model(model, report)
    parts += ["## How it was counted", _list(words.provenance(report))]
    return ("\n\n".join(parts) + "\n").encode()


def escape(text: str) -> str:
    """Text that markdown shows as it is: no markup, no table cells, no control characters."""
    return re.sub(r"([\\`*_\[\]<>|#~&])", r"\\\1", safe(text))


def prose(text: str) -> str:
    """The same of a sentence of ours, in which backticks in pairs mark code."""
    parts = text.split("`")
    if len(parts) % 2 == 0:
        return escape(text)
    return "".join(f"`{safe(part)}`" if place % 2 else escape(part) for place, part in enumerate(parts))


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], text_columns: Sequence[int] = (0,)) -> str:
    rule = ["---" if place in text_columns else "---:" for place in range(len(header))]
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, rule, *rows))


def _list(lines: Sequence[tuple[str, str]]) -> str:
    return "\n".join(f"- {escape(name)}: {escape(text)}" for name, text in lines)


def _comparison(report: Report) -> str:
    baselines = words.compared_with(report)
    front = {point.label for panel in report.spectrum for point in panel.front}
    header = ["model", "total, MACs", *(f"counted speedup, x {escape(name)}" for name in baselines), "storage, values"]
    rows = []
    for model in report.models:
        speedups = {baseline.name: ratio_text(baseline.speedup).removesuffix("x") for baseline in model.baselines}
        accuracy = "; ".join(map(words.accuracy_text, model.headline)) + (" ◆" if model.name in front else "")
        rows.append(
            [
                escape(model.name),
                count_text(model.costs.totals["macs"] or 0),
                *(speedups.get(name, ABSENT) for name in baselines),
                count_text(model.costs.totals["storage"] or 0),
                escape(accuracy) or ABSENT,
            ]
        )
    table = _table([*header, "accuracy"], rows, text_columns=(0, len(header)))
    return f"{table}\n\n{words.FRONT}" if front else table


def _changes(report: Report) -> str:
    changed, same = words.shown_changes(report)
    header = ["layer", "before, MACs", "after, MACs", "difference, MACs", "storage, difference", "what changed"]
    rows = [
        [
            escape(words.change_name(change)),
            *words.before_after(change.macs),
            words.before_after(change.storage)[-1],
            escape(words.change_text(change)),
        ]
        for change in changed
    ]
    return f"{_table(header, rows, text_columns=(0, 5))}\n\n{same} layers are the same in both"


def _panel(panel: Panel) -> list[str]:
    header = ["", "model", f"{panel.kind} speedup, x", f"{escape(panel.metric)}, %"]
    rows = [
        [
            words.mark(point, panel),
            escape(words.point_text(point)),
            ratio_text(point.speedup).removesuffix("x"),
            f"{point.accuracy:.1f}",
        ]
        for point in panel.points
    ]
    return [f"## {escape(words.panel_title(panel))}", _table(header, rows, text_columns=(0, 1)), words.MARKS]


def _model(model: ModelReport, report: Report) -> list[str]:
    shown = columns(report, model, most=2)
    header = ["layer", "kernel", "in → out", "k", *(f"{escape(c.metric.title)}, {c.unit}" for c in shown)]
    rows = [
        [
            escape(layer_name(layer)),
            kernel_text(layer),
            shapes_text(layer),
            dictionary_text(layer),
            *(column.of(layer) for column in shown),
        ]
        for layer in counted_layers(model)
    ]
    totals = [f"**{column.text(model.costs.totals.get(column.metric.name))}**" for column in shown]
    rows.append(["**total**", "", "", "", *totals])
    named = "" if model.architecture == model.name else f" ({model.architecture})"
    parts = [f"## {escape(model.name + named)}", _table(header, rows, text_columns=(0, 1, 2))]
    return [*parts, _list(words.totals(model) + words.more(model))]
