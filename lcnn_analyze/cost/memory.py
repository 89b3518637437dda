"""Memory of one model, in bytes: what it takes to store, and while it runs."""

from __future__ import annotations

from dataclasses import dataclass

from lcnn_analyze.cost.table import CostTable
from lcnn_core import ModelSpec


@dataclass(frozen=True)
class Memory:
    """Bytes, at 4 for every value. ``packed`` holds indices too (metric ``packed_bytes``).

    activations: the most that the input and what is computed from it take at once, for one image in PyTorch; None
    where the model was not run.
    """

    dense_twin: int
    parameters: int
    packed: int
    activations: int | None


def memory(spec: ModelSpec, costs: CostTable) -> Memory:
    """From the description of the model, and its table under any convention."""
    totals = {name: int(value or 0) for name, value in costs.totals.items()}
    return Memory(
        4 * totals["dense_parameters"], 4 * totals["parameters"], totals["packed_bytes"], spec.activation_bytes
    )
