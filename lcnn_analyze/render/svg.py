"""The pictures inside the HTML page: bars and the spectrum as inline SVG.

Widths are in percent and heights in pixels, so that a phone gets the same text size as a wide screen. Colours are
CSS classes, so that they follow light and dark. Every picture has a title and a description.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from lcnn_analyze.cost import Baseline
from lcnn_analyze.cost.metrics import Values
from lcnn_analyze.render import words
from lcnn_analyze.render.numbers import count_text, counted_layers, layer_name, percent_text, ratio_text, safe
from lcnn_analyze.render.ticks import accuracy_bounds, bounds, linear_ticks, log_ticks
from lcnn_analyze.report import ModelReport, Report
from lcnn_analyze.spectrum import Panel, Point

MOST_BARS = 40
_ROW, _BAR = 38, 12
_HEIGHT, _TOP, _FLOOR = 380, 36, 40
_LABELLED = 8
_LONGEST_LABEL = 22


@dataclass(frozen=True)
class Bar:
    """One row of a bar chart: a label, what stands at the right, and parts (class, length, name) end to end."""

    label: str
    value: str
    parts: tuple[tuple[str, float, str], ...]


def bars(rows: Sequence[Bar], title: str, description: str, name: str) -> Markup:
    """Horizontal bars on one scale that starts at zero."""
    longest = max((sum(length for _, length, _ in row.parts) for row in rows), default=0) or 1
    drawn = []
    for place, row in enumerate(rows):
        y = place * _ROW
        drawn.append(
            f'<text y="{y + 14}">{_short(row.label)}</text>'
            f'<text class="value" x="100%" y="{y + 14}">{_text(row.value)}</text>'
        )
        start = 0.0
        for style, length, part in row.parts:
            if length:
                width = length / longest * 100
                drawn.append(
                    f'<rect class="{style}" x="{start:.2f}%" y="{y + 20}" width="{width:.2f}%" height="{_BAR}">'
                    f"<title>{_text(part)}</title></rect>"
                )
                start += width
    return picture(drawn, title, description, name, len(rows) * _ROW)


def total_bars(report: Report) -> Markup:
    """Every model's total under the baselines, largest first, on one scale; a network drawn once is not drawn again."""
    rows = []
    for baseline in baselines_to_draw(report):
        text = f"{count_text(baseline.macs)} MACs"
        rows.append(Bar(baseline.name, text, (("twin", baseline.macs, text),)))
    for model in report.models:
        totals = model.costs.totals
        rows.append(Bar(model.name, f"{count_text(totals['macs'] or 0)} MACs", _parts(totals)))
    longest = max(sum(length for _, length, _ in row.parts) for row in rows)
    sentence = f"MACs of each network; the longest bar is {count_text(longest)} MACs."
    return bars(rows, "Multiplications for one image", sentence, "totals")


def baselines_to_draw(report: Report) -> list[Baseline]:
    """The baselines that no dense model of the report stands for already, each once, the costliest first."""
    dense = {model.costs.totals["macs"] for model in report.models if not model.has_lookups}
    found: dict[int, Baseline] = {}
    for model in report.models:
        for baseline in words.shown_baselines(model):
            if baseline.macs not in dense:
                found.setdefault(baseline.macs, baseline)
    return sorted(found.values(), key=lambda baseline: -baseline.macs)


def layer_bars(model: ModelReport, name: str) -> tuple[Markup, int]:
    """The layers that multiply, in call order, and how many were left out: beyond ``MOST_BARS`` the smallest are."""
    layers = counted_layers(model)
    largest = sorted(layers, key=lambda layer: -(layer.values["macs"] or 0))[:MOST_BARS]
    kept = {id(layer) for layer in largest}
    rows = []
    for layer in layers:
        if id(layer) in kept:
            macs, speedup = layer.values["macs"] or 0, layer.values.get("speedup")
            text = f"{count_text(macs)} · {percent_text(layer.values.get('share'))} %"
            text += f" · {ratio_text(speedup)}" if model.has_lookups else ""
            rows.append(Bar(layer_name(layer), text, _parts(layer.values)))
    description = f"MACs of the {len(rows)} largest of {len(layers)} layers, by what they are spent on."
    return bars(rows, f"Where {model.name} spends its multiplications", description, name), len(layers) - len(rows)


def spectrum(panel: Panel, name: str) -> Markup:
    """Accuracy over the logarithm of the speedup: own points, their Pareto front, published points."""
    xs = [point.speedup for point in panel.points] + [speedup for _, speedup in panel.lines]
    low, high = bounds(xs)
    frame = _Frame(low, high, *accuracy_bounds([point.accuracy for point in panel.points]))
    drawn = _grid(frame)
    drawn += [_line(a, b, frame) for a, b in zip(panel.front, panel.front[1:], strict=False)]
    drawn += [_published(point, frame) for point in panel.published]
    labelled = panel.own if len(panel.own) <= _LABELLED else panel.front
    drawn += [_own(point, frame, point in panel.front, point in labelled) for point in panel.own]
    for label, speedup in panel.lines:
        x = frame.x(speedup)
        shift = 'dx="-6" text-anchor="end"' if frame.share(speedup) > 0.5 else 'dx="6"'
        drawn.append(
            f'<line class="known" x1="{x}" x2="{x}" y1="0" y2="{_HEIGHT - _FLOOR}"/>'
            f'<text class="label" x="{x}" y="{_HEIGHT - _FLOOR - 8}" {shift}>{_short(label)}: accuracy not known</text>'
        )
    drawn.append(
        f'<text class="axis" y="12">{_text(panel.metric)}, %</text>'
        f'<text class="axis value" x="100%" y="{_HEIGHT - 4}">'
        f"{_text(panel.kind)} speedup over {_text(words.against(panel))}, log scale</text>"
    )
    best = ", ".join(f"{p.label} {p.accuracy:.1f} % at {ratio_text(p.speedup)}" for p in panel.front)
    description = f"Pareto front: {best}." if best else "Published points only."
    return picture(drawn, words.panel_title(panel), description, name, _HEIGHT)


@dataclass(frozen=True)
class _Frame:
    low: float
    high: float
    bottom: float
    top: float

    def share(self, speedup: float) -> float:
        return math.log(speedup / self.low) / math.log(self.high / self.low)

    def x(self, speedup: float) -> str:
        # The left end holds the labels of the accuracy axis.
        return f"{9 + 87 * self.share(speedup):.2f}%"

    def y(self, accuracy: float) -> float:
        height = _HEIGHT - _FLOOR - _TOP
        return round(_TOP + height * (self.top - accuracy) / (self.top - self.bottom), 1)


def _grid(frame: _Frame) -> list[str]:
    lines = []
    for tick in linear_ticks(frame.bottom, frame.top):
        y = frame.y(tick)
        lines.append(
            f'<line class="grid" x1="0" x2="100%" y1="{y}" y2="{y}"/><text class="tick" y="{y - 3}">{tick:g}</text>'
        )
    for tick in log_ticks(frame.low, frame.high):
        x = frame.x(tick)
        lines.append(
            f'<line class="grid" x1="{x}" x2="{x}" y1="{_TOP}" y2="{_HEIGHT - _FLOOR}"/>'
            f'<text class="tick middle" x="{x}" y="{_HEIGHT - _FLOOR + 16}">{tick:g}x</text>'
        )
    return lines


def _line(a: Point, b: Point, frame: _Frame) -> str:
    ends = f'x1="{frame.x(a.speedup)}" y1="{frame.y(a.accuracy)}" x2="{frame.x(b.speedup)}" y2="{frame.y(b.accuracy)}"'
    return f'<line class="front" {ends}/>'


def _own(point: Point, frame: _Frame, on_front: bool, labelled: bool) -> str:
    x, y, style = frame.x(point.speedup), frame.y(point.accuracy), "own front" if on_front else "own"
    dot = f'<circle class="{style}" cx="{x}" cy="{y}" r="6">{_tooltip(point)}</circle>'
    if not labelled:
        return dot
    # The front falls from left to right: above right and below left of a point are free.
    right = frame.share(point.speedup) > 0.55
    shift = 'dx="-10" dy="16" text-anchor="end"' if right else 'dx="8" dy="-9"'
    return f'{dot}<text class="label" x="{x}" y="{y}" {shift}>{_short(point.label)}</text>'


def _published(point: Point, frame: _Frame) -> str:
    # A square turned about its own centre: a diamond whose place is in percent.
    x, y = frame.x(point.speedup), frame.y(point.accuracy)
    return (
        f'<svg x="{x}" y="{y}" overflow="visible"><path class="published" d="M0-6 6 0 0 6-6 0Z">'
        f"{_tooltip(point)}</path></svg>"
    )


def _text(text: str) -> Markup:
    return escape(safe(text))


def _short(label: str) -> Markup:
    """A label that fits a phone: of a long one the end, which tells layers apart, and the whole as a tooltip."""
    if len(label) <= _LONGEST_LABEL:
        return _text(label)
    return Markup("…{}<title>{}</title>").format(_text(label[1 - _LONGEST_LABEL :]), _text(label))


def _tooltip(point: Point) -> Markup:
    text = f"{point.label}: {point.accuracy:.1f} % {point.metric} at {ratio_text(point.speedup)} over {point.baseline}"
    return Markup("<title>{}</title>").format(_text(f"{text} ({point.source})"))


_SPENT_ON = (
    ("dictionary", "dictionary_macs", "dictionary"),
    ("lookups", "lookup_macs", "lookups"),
    ("plain", "plain_macs", "left dense"),
)


def _parts(values: Values) -> tuple[tuple[str, float, str], ...]:
    spent = [(style, values.get(metric) or 0, name) for style, metric, name in _SPENT_ON]
    return tuple((style, macs, f"{name}: {count_text(macs)} MACs") for style, macs, name in spent)


def picture(drawn: Sequence[str], title: str, description: str, name: str, height: int) -> Markup:
    """What was drawn, as an SVG element with a title and a description; ``name`` is its own on the page."""
    return Markup(
        f'<svg role="img" aria-labelledby="{name}-t {name}-d" width="100%" height="{height}">'
        f'<title id="{name}-t">{_text(title)}</title><desc id="{name}-d">{_text(description)}</desc>'
        f"{''.join(drawn)}</svg>"
    )
