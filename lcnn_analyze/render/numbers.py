"""Numbers and columns as readers see them: one scale for all MACs of a report, units in every header."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lcnn_analyze.cost import LayerCost
from lcnn_analyze.report import MetricInfo, ModelReport, Report, shape_text

_PREFIXES = ((1e10, 1e9, "G"), (1e7, 1e6, "M"), (1e5, 1e3, "k"))
ABSENT = "–"  # noqa: RUF001 a dash for "does not apply", as typeset tables have it


@dataclass(frozen=True)
class Scale:
    """Divide by ``divisor`` and show ``decimals``; ``prefix`` goes before the unit in the header."""

    divisor: float = 1
    prefix: str = ""
    decimals: int = 0

    def text(self, value: float) -> str:
        """The scaled number with thousands separators; a nonzero one never reads as zero."""
        shown = f"{value / self.divisor:,.{self.decimals}f}"
        smallest = 10**-self.decimals
        return f"<{smallest:.{self.decimals}f}" if value and not float(shown.replace(",", "")) else shown

    def unit(self, unit: str) -> str:
        return f"{self.prefix} {unit}" if self.prefix else unit


def scale_for(largest: float) -> Scale:
    """The scale of a column whose largest value this is."""
    for least, divisor, prefix in _PREFIXES:
        if largest >= least:
            return Scale(
                divisor, prefix, 3 if largest / divisor < 1000 and divisor > 1e3 else 2 if divisor > 1e3 else 1
            )
    return Scale()


def count_text(value: float, unit: str = "") -> str:
    """One number with its own prefix, for sentences: 28.93 M, 1.81 G, 4,200."""
    for divisor, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= 10 * divisor or (value >= divisor and divisor > 1e3):
            scaled = value / divisor
            return f"{scaled:,.{2 if scaled < 100 else 1}f} {prefix}{' ' + unit if unit else ''}"
    return f"{value:,.0f}{' ' + unit if unit else ''}"


def bytes_text(value: float) -> str:
    """12.3 MB, in powers of ten."""
    for divisor, prefix in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= divisor:
            scaled = value / divisor
            return f"{scaled:,.{2 if scaled < 10 else 1 if scaled < 100 else 0}f} {prefix}"
    return f"{value:,.0f} bytes"


def ratio_text(value: float | None) -> str:
    """5.37x, 24.7x, 312x."""
    if value is None:
        return ABSENT
    return f"{value:,.{2 if value < 9.995 else 1 if value < 99.95 else 0}f}x"


def percent_text(fraction: float | None) -> str:
    """A fraction in percent, without the sign, which the header carries."""
    if fraction is None:
        return ABSENT
    return "<0.1" if 0 < fraction < 0.0005 else f"{fraction * 100:.1f}"


@dataclass(frozen=True)
class Column:
    """A metric as a column: its header in two parts, and how its cells read."""

    metric: MetricInfo
    scale: Scale

    @property
    def unit(self) -> str:
        return {"fraction": "%", "ratio": "x"}.get(self.metric.unit) or self.scale.unit(self.metric.unit)

    def text(self, value: float | None) -> str:
        if value is None:
            return ABSENT
        if self.metric.unit == "fraction":
            return percent_text(value)
        if self.metric.unit == "ratio":
            return ratio_text(value).removesuffix("x")
        return self.scale.text(value)

    def of(self, layer: LayerCost) -> str:
        return self.text(layer.values.get(self.metric.name))


def columns(report: Report, model: ModelReport, most: int = 3) -> list[Column]:
    """The metrics of rank 1 to ``most`` that say something about ``model``.

    One scale for all MACs of the report, so that they can be compared by eye; one per metric for other units.
    """
    largest: dict[str, float] = {}
    for each in report.models:
        for metric in report.metrics:
            value = each.costs.totals.get(metric.name) or 0
            largest[_scaled_with(metric)] = max(largest.get(_scaled_with(metric), 0), value)
    return [
        Column(metric, scale_for(largest[_scaled_with(metric)]))
        for metric in report.metrics
        if metric.rank <= most and model.costs.totals.get(metric.name)
    ]


def _scaled_with(metric: MetricInfo) -> str:
    return metric.unit if metric.unit == "MACs" else metric.name


def counted_layers(model: ModelReport) -> list[LayerCost]:
    """The layers that multiply something in the model or in its dense twin."""
    return [layer for layer in model.costs.layers if layer.values.get("dense_macs") or layer.values.get("macs")]


def layer_name(layer: LayerCost) -> str:
    """The layer's path, with the number of the call where a shared layer is called again."""
    return f"{layer.name or '(model)'}{f' #{layer.call + 1}' if layer.call else ''}"


def dictionary_text(layer: LayerCost) -> str:
    if layer.identity:
        return "id"
    return ABSENT if layer.dictionary_size is None else f"{layer.dictionary_size:,}"


def shapes_text(layer: LayerCost) -> str:
    """3x224x224 > 64x55x55."""
    return f"{shape_text(layer.input_shape)} → {shape_text(layer.output_shape)}" if layer.output_shape else ABSENT


def kernel_text(layer: LayerCost) -> str:
    """11x11 /4 for an 11x11 kernel with stride 4."""
    if not layer.kernel_size:
        return ABSENT
    stride = f" /{layer.stride[0]}" if set(layer.stride) - {1} else ""
    groups = f" g{layer.groups}" if layer.groups > 1 else ""
    return f"{shape_text(layer.kernel_size)}{stride}{groups}"


def joined(names: Sequence[str]) -> str:
    """a, b and c."""
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1]))) if names else ""


def safe(name: str) -> str:
    """A name from a file without characters that a terminal would obey."""
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in name)
