"""What a model is compared with: its dense twin, a named architecture, another checkpoint. None is "the" speedup."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from lcnn_analyze.cost.table import CostTable, cost_table
from lcnn_core import ModelSpec

TWIN = "dense twin"
"""How every report calls it."""


@dataclass(frozen=True)
class Baseline:
    """Another network's cost for the same image, and the counted speedup over it (its MACs / the model's MACs)."""

    name: str
    kind: Literal["twin", "reference", "checkpoint"]
    definition: str
    macs: int
    parameters: int
    speedup: float | None
    """None for a model that multiplies nothing."""
    remark: str = ""
    """Why its MACs are no exact count, where they are none: a part of it, or an upper bound."""
    uncounted: int = 0
    """Its operations without a formula."""

    def same_network(self, other: Baseline) -> bool:
        """Whether both are one network, as far as their counts can tell."""
        return (self.macs, self.parameters) == (other.macs, other.parameters)


def dense_twin(costs: CostTable) -> Baseline:
    """The same network with every lookup layer dense: same shapes, same widths."""
    macs, parameters = int(costs.totals["dense_macs"] or 0), int(costs.totals["dense_parameters"] or 0)
    return Baseline(
        TWIN,
        "twin",
        "the same network with every lookup layer made dense",
        macs,
        parameters,
        _speedup(macs, costs),
    )


_OF_SIZE = ("widths", "blocks")
"""Options that make another network of the same name."""


def named_reference(costs: CostTable, reference: ModelSpec, options: Mapping[str, Any] | None = None) -> Baseline:
    """A named architecture, built with these options, counted under ``published`` for an input of its own shape."""
    counted = cost_table(reference)
    macs, parameters = int(counted.totals["macs"] or 0), int(counted.totals["parameters"] or 0)
    shape = " x ".join(map(str, reference.input_shape))
    named = "".join(f", {key} {options[key]}" for key in _OF_SIZE if options and options.get(key) is not None)
    definition = f"the architecture {reference.architecture}{named}, with a {shape} input"
    exact = counted.status["macs"].reason, len(counted.uncounted)
    return Baseline(reference.architecture, "reference", definition, macs, parameters, _speedup(macs, costs), *exact)


def other_checkpoint(costs: CostTable, other: ModelSpec, name: str) -> Baseline:
    """Another trained model, counted under ``published``, whatever layers it has."""
    counted = cost_table(other)
    macs, storage = int(counted.totals["macs"] or 0), int(counted.totals["storage"] or 0)
    shape = " x ".join(map(str, other.input_shape))
    definition = f"the model in the file {name}, {other.architecture} with a {shape} input"
    exact = counted.status["macs"].reason, len(counted.uncounted)
    return Baseline(name, "checkpoint", definition, macs, storage, _speedup(macs, costs), *exact)


def _speedup(macs: int, costs: CostTable) -> float | None:
    total = costs.totals["macs"]
    return macs / total if total else None
