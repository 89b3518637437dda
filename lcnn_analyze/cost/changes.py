"""What changed from one model to another, layer by layer: pure, two cost tables in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from lcnn_analyze.cost.table import CostTable, LayerCost


@dataclass(frozen=True)
class LayerChange:
    """One layer call of two models. ``what`` names the properties that differ, as "property: before -> after"."""

    layer: str
    call: int
    state: Literal["same", "changed", "added", "removed"]
    what: tuple[str, ...]
    macs: tuple[int | None, ...]
    """(before, after); None where the layer is not there."""
    storage: tuple[int | None, ...]


def changes(before: CostTable, after: CostTable) -> tuple[LayerChange, ...]:
    """Layers in the order of ``before``, those that only ``after`` has behind them; matched by name and call."""
    old = {(layer.name, layer.call): layer for layer in before.layers}
    new = {(layer.name, layer.call): layer for layer in after.layers}
    keys = [*old, *(key for key in new if key not in old)]
    return tuple(_change(*key, old.get(key), new.get(key)) for key in keys)


def _change(name: str, call: int, old: LayerCost | None, new: LayerCost | None) -> LayerChange:
    macs = tuple(None if layer is None else int(layer.values["macs"] or 0) for layer in (old, new))
    storage = tuple(None if layer is None else int(layer.values["storage"] or 0) for layer in (old, new))
    if old is None or new is None:
        return LayerChange(name, call, "added" if old is None else "removed", (), macs, storage)
    pairs = ((title, text(old), text(new)) for title, text in _PROPERTIES.items())
    what = tuple(f"{title}: {a} -> {b}" for title, a, b in pairs if a != b)
    same = not what and macs[0] == macs[1] and storage[0] == storage[1]
    return LayerChange(name, call, "same" if same else "changed", what, macs, storage)


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "none"


_PROPERTIES: dict[str, Callable[[LayerCost], str]] = {
    "kind": lambda layer: layer.kind,
    "input": lambda layer: _shape(layer.input_shape),
    "output": lambda layer: _shape(layer.output_shape),
    "kernel": lambda layer: _shape(layer.kernel_size),
    "stride": lambda layer: _shape(layer.stride),
    "groups": lambda layer: str(layer.groups),
    "k": lambda layer: "identity" if layer.identity else str(layer.dictionary_size or "none"),
    "nnz(P)": lambda layer: f"{int(layer.values['coefficients_nnz'] or 0):,}",
    "nnz(weights)": lambda layer: f"{int(layer.values['weights_nnz'] or 0):,}",
}
"""What is compared, beside MACs and storage, and how it reads."""
