"""``cost_table(spec, convention) -> CostTable``: every metric of every layer, and totals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from lcnn_analyze.cost.conventions import find_convention
from lcnn_analyze.cost.metrics import METRICS, Metric, Number
from lcnn_core import ConfigError, LayerCount, LayerSpec, ModelSpec, Uncounted, UnsupportedLayerError

if TYPE_CHECKING:
    from lcnn_core import PlanStep

OUTSIDE = "(parameters outside layers)"


@dataclass(frozen=True)
class Status:
    """Whether a figure stands for the whole model; ``reason`` says why not."""

    state: Literal["complete", "partial", "unavailable"]
    reason: str = ""


@dataclass(frozen=True)
class LayerCost:
    """One call of one layer: what it is, and the value of every metric (None: does not apply or is not known)."""

    name: str
    kind: str
    call: int
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    groups: int
    dictionary_size: int | None
    """k; None where there is no dictionary."""
    identity: bool
    """The dictionary is the identity: it costs nothing and is not stored."""
    values: Mapping[str, Number | None]


@dataclass(frozen=True)
class CostTable:
    """What one model costs under one convention, for one image. MACs: 1 MAC is 2 FLOPs."""

    convention: str
    input_shape: tuple[int, ...]
    layers: tuple[LayerCost, ...]
    totals: Mapping[str, Number | None]
    status: Mapping[str, Status]
    uncounted: tuple[Uncounted, ...]

    @property
    def state(self) -> Literal["complete", "partial"]:
        """Partial as soon as one figure is."""
        return "partial" if any(status.state == "partial" for status in self.status.values()) else "complete"


def cost_table(spec: ModelSpec, convention: str = "published", steps: Sequence[PlanStep] | None = None) -> CostTable:
    """Count ``spec`` under ``convention``. A layer kind without a formula is listed as uncounted, never as zero.

    steps: of the engine's plan for the model, which ``executed`` counts. Raises ConfigError where they are missing.
    """
    rule = find_convention(convention)
    if rule.needs_plan and steps is None:
        raise ConfigError(f"convention {convention!r} counts an inference plan; give the plan's steps")
    count = rule.counter(spec, steps or ())
    rows: list[tuple[LayerSpec, dict[str, Number | None]]] = []
    uncounted = list(spec.uncounted)
    for layer in spec.layers:
        try:
            rows.append((layer, _additive(layer, count(layer))))
        except UnsupportedLayerError as error:
            reason = str(error) if rule.needs_plan else "no formula for this kind of layer"
            uncounted.append(Uncounted(layer.name, layer.kind, 1, reason))
    outside = spec.parameters - sum(layer.parameters for layer in spec.layers)
    if outside > 0:
        rest = LayerSpec(OUTSIDE, "parameters", (), (), parameters=outside)
        rows.append((rest, _additive(rest, LayerCount(0))))
    totals: dict[str, Number | None] = {name: _sum([row[name] for _, row in rows]) for name in _additive_names()}
    for _, row in [*rows, (None, totals)]:
        row |= {name: metric.ratio(row, totals) for name, metric in METRICS.items() if metric.ratio}
    return CostTable(
        convention=convention,
        input_shape=spec.input_shape,
        layers=tuple(_layer_cost(layer, row) for layer, row in rows),
        totals={name: totals[name] for name in METRICS},
        status={name: _status(metric, totals[name], spec, uncounted) for name, metric in METRICS.items()},
        uncounted=tuple(uncounted),
    )


def _additive_names() -> list[str]:
    return [name for name, metric in METRICS.items() if metric.additive]


def _additive(layer: LayerSpec, count: LayerCount) -> dict[str, Number | None]:
    return {name: metric.additive(layer, count) for name, metric in METRICS.items() if metric.additive}


def _sum(values: Sequence[Number | None]) -> Number | None:
    known = [value for value in values if value is not None]
    return sum(known) if known or not values else None


def _layer_cost(layer: LayerSpec, row: Mapping[str, Number | None]) -> LayerCost:
    lookup = layer.lookup
    return LayerCost(
        name=layer.name,
        kind=layer.kind,
        call=layer.call,
        input_shape=layer.input_shape,
        output_shape=layer.output_shape,
        kernel_size=layer.kernel_size,
        stride=layer.stride,
        groups=layer.groups,
        dictionary_size=lookup.dictionary_size if lookup and not lookup.identity else None,
        identity=bool(lookup and lookup.identity),
        values={name: row[name] for name in METRICS},
    )


def _status(metric: Metric, total: Number | None, spec: ModelSpec, uncounted: Sequence[Uncounted]) -> Status:
    if total is None:
        return Status("unavailable", _why_absent(metric, spec))
    if "operations" in metric.depends and uncounted:
        calls = sum(item.calls for item in uncounted)
        names = ", ".join(dict.fromkeys(item.operation for item in uncounted))
        return Status("partial", f"{calls} calls of operations without a formula are not counted: {names}")
    if "weights" in metric.depends and not spec.weights_known and any(layer.lookup for layer in spec.layers):
        return Status("partial", "weights are not loaded: every entry of P counts as nonzero, an upper bound")
    return Status("complete")


def _why_absent(metric: Metric, spec: ModelSpec) -> str:
    if not any(layer.lookup for layer in spec.layers) and metric.name not in ("plain_macs", "zero_macs"):
        return "the model has no lookup layers"
    return "weights are not loaded" if not spec.weights_known else "no layer that it applies to"
