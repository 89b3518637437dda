"""Layers whose lookups do not pay, told from their counts alone."""

from __future__ import annotations

from collections.abc import Iterator

from lcnn_analyze.cost.table import CostTable
from lcnn_core import Finding


def unprofitable(costs: CostTable) -> Iterator[Finding]:
    """Lookup layers that multiply at least as often as the dense layer would."""
    for layer in costs.layers:
        macs, dense = int(layer.values["macs"] or 0), int(layer.values["dense_macs"] or 0)
        if (layer.dictionary_size is None and not layer.identity) or macs < dense:
            continue
        dictionary = int(layer.values["dictionary_macs"] or 0)
        change = (
            "its dictionary alone costs as much as the dense layer: lower dictionary_size or leave the layer dense"
            if dictionary >= dense
            else "prune P further, lower dictionary_size, or leave the layer dense"
        )
        yield Finding(layer.name, "MACs that the dense layer would not need", macs - dense, macs, change)
