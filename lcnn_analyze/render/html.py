"""One self-contained page: no request leaves it, it works without JavaScript, and names from files stay text."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from lcnn_analyze.cost import LayerCost
from lcnn_analyze.render import svg, words
from lcnn_analyze.render.numbers import (
    ABSENT,
    Column,
    columns,
    count_text,
    dictionary_text,
    kernel_text,
    layer_name,
    ratio_text,
    safe,
    shapes_text,
)
from lcnn_analyze.report import ModelReport, Report


def render(report: Report) -> bytes:
    """The report as an HTML page, the report's JSON inside it."""
    page = environment().get_template("report.html.j2")
    return page.render(
        report=report,
        words=words,
        verdicts=[(model.name, words.verdict(model, report)) for model in report.models],
        tiles=_tiles(report.models[0]) if len(report.models) == 1 else [],
        comparison=_comparison(report) if len(report.models) > 1 else None,
        changes=_changes(report) if report.changes else None,
        totals=svg.total_bars(report),
        lookups=any(model.has_lookups for model in report.models),
        baselines=bool(svg.baselines_to_draw(report)),
        panels=[(panel, svg.spectrum(panel, f"spectrum{n}")) for n, panel in enumerate(words.panels_to_show(report))],
        models=[_model(model, report, f"m{n}") for n, model in enumerate(report.models)],
        style=asset("report.css"),
        script=asset("report.js"),
        data=_embedded(report),
    ).encode()


@cache
def environment() -> Environment:
    """Of the pages' templates: strict, everything escaped."""
    loader = PackageLoader("lcnn_analyze", "render/templates")
    made = Environment(
        loader=loader,
        autoescape=True,
        undefined=StrictUndefined,
        finalize=lambda value: safe(value) if type(value) is str else value,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters["prose"] = _prose
    return made


def _prose(text: str) -> Markup:
    """A sentence of ours, in which backticks in pairs mark code."""
    parts = safe(text).split("`")
    if len(parts) % 2 == 0:
        return escape(safe(text))
    marked = (Markup("<code>{}</code>").format(part) if place % 2 else escape(part) for place, part in enumerate(parts))
    return Markup("").join(marked)


@cache
def asset(name: str) -> Markup:
    """A file beside the templates."""
    # Ours, not a file's: may be put into the page as it is.
    return Markup(files("lcnn_analyze").joinpath("render", "templates", name).read_text(encoding="utf-8"))


def _embedded(report: Report) -> Markup:
    """The report's JSON for a script element: no character that could end the element or open a comment."""
    text = report.to_json(indent=None)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _tiles(model: ModelReport) -> list[tuple[str, str]]:
    """The few figures that a reader takes home, as (figure, what it is)."""
    totals = model.costs.totals
    tiles = [(count_text(totals["macs"] or 0), "MACs per image")]
    if model.has_lookups:
        for baseline in words.shown_baselines(model):
            name = "the dense twin" if baseline.kind == "twin" else baseline.name
            tiles.append((ratio_text(baseline.speedup), f"counted speedup over {name}"))
    tiles.append((count_text(totals["storage"] or 0), "values to store"))
    return tiles + [(f"{a.percent:.1f} %", f"{a.metric} on {a.dataset}") for a in model.headline]


def _comparison(report: Report) -> dict[str, Any]:
    baselines = words.compared_with(report)
    front = {point.label for panel in report.spectrum for point in panel.front}
    rows = []
    for model in report.models:
        totals = model.costs.totals
        speedups = {baseline.name: baseline.speedup for baseline in model.baselines}
        cells = [(totals["macs"] or 0, count_text(totals["macs"] or 0))]
        cells += [
            (speedups.get(name) or 0, ratio_text(speedups[name]).removesuffix("x") if name in speedups else ABSENT)
            for name in baselines
        ]
        cells.append((totals["storage"] or 0, count_text(totals["storage"] or 0)))
        accuracy = "; ".join(map(words.accuracy_text, model.headline)) or ABSENT
        rows.append((model.name, cells, accuracy, model.name in front))
    headers = [("total", "MACs"), *(("counted speedup", f"x {name}") for name in baselines), ("storage", "values")]
    rules = labels("compare", [("model", ""), *headers, ("accuracy", "")])
    return {"headers": headers, "labels": rules, "rows": rows, "front": bool(front)}


def _changes(report: Report) -> dict[str, Any]:
    changed, same = words.shown_changes(report)
    headers = [("before", "MACs"), ("after", "MACs"), ("difference", "MACs"), ("storage", "difference")]
    rows = []
    for change in changed:
        before, after = (value or 0 for value in change.macs)
        values = (before, after, after - before, (change.storage[1] or 0) - (change.storage[0] or 0))
        texts = [*words.before_after(change.macs), words.before_after(change.storage)[-1]]
        rows.append((words.change_name(change), list(zip(values, texts, strict=True)), words.change_text(change)))
    rules = labels("changes", [("layer", ""), *headers, ("what changed", "")])
    return {"headers": headers, "labels": rules, "rows": rows, "same": same}


def _model(model: ModelReport, report: Report, name: str) -> dict[str, Any]:
    shown = columns(report, model)
    picture, left_out = svg.layer_bars(model, f"{name}-bars")
    headers = [("layer", ""), ("kind", ""), ("kernel", ""), ("in → out", ""), ("k", "rows of D")]
    headers += [(column.metric.title, column.unit) for column in shown]
    return {
        "id": name,
        "model": model,
        "bars": picture,
        "bars_left_out": left_out,
        "headers": headers,
        "docs": [(column.metric.title, column.unit, column.metric.doc) for column in shown],
        "labels": labels(name, headers),
        "minor": [len(headers) - len(shown) + place for place, column in enumerate(shown, 1) if column.metric.rank > 2],
        "rows": [_row(layer, shown) for layer in model.costs.layers],
        "totals": [column.text(model.costs.totals.get(column.metric.name)) for column in shown],
        "facts": words.totals(model) + words.more(model),
        "free": sum(1 for layer in model.costs.layers if _free(layer)),
        "legend": model.has_lookups,
    }


def _row(layer: LayerCost, shown: list[Column]) -> dict[str, Any]:
    return {
        "name": layer_name(layer),
        "free": _free(layer),
        "texts": [layer.kind.replace("_", " "), kernel_text(layer), shapes_text(layer)],
        "k": (layer.dictionary_size or 0, dictionary_text(layer)),
        "cells": [(layer.values.get(column.metric.name), column.of(layer)) for column in shown],
    }


def _free(layer: LayerCost) -> bool:
    return not (layer.values.get("dense_macs") or layer.values.get("macs"))


def labels(table: str, headers: list[tuple[str, str]]) -> Markup:
    """Style rules that write each column's header beside its cells, for phones, where rows become cards."""
    rules = []
    for place, (title, unit) in enumerate(headers, 1):
        text = "".join(f"\\{ord(c):06x}" for c in (f"{title}, {unit}" if unit else title))
        rules.append(f'#{table} td:nth-child({place})::before{{content:"{text}"}}')
    return Markup("".join(rules))
