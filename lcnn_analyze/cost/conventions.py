"""How multiplications are counted: each convention has a name, which is printed beside every total.

A convention turns a model into a counter of its layers, so that a rule may depend on the whole model (and, for a
convention counted from an inference plan, on that plan) while each layer is still counted on its own.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from lcnn_core import (
    ConfigError,
    LayerCount,
    LayerSpec,
    ModelSpec,
    UnsupportedLayerError,
    count_layer,
    dictionary_macs,
    output_positions,
)

if TYPE_CHECKING:
    from lcnn_core import PlanStep

LayerCounter = Callable[[LayerSpec], LayerCount]


@dataclass(frozen=True)
class Convention:
    """A named counting rule. ``definition`` is one line for readers; ``counter`` makes the rule for one model.

    The counter gets the model and, for a convention that needs it, the steps of the engine's plan for it.
    """

    name: str
    definition: str
    counter: Callable[[ModelSpec, Sequence[PlanStep]], LayerCounter]
    needs_plan: bool = False


def _published(spec: ModelSpec, steps: Sequence[PlanStep]) -> LayerCounter:
    return count_layer


def _executed(spec: ModelSpec, steps: Sequence[PlanStep]) -> LayerCounter:
    """What the steps of the plan multiply, each under the layer that it was made of."""
    by_layer: dict[str, list[PlanStep]] = defaultdict(list)
    for step in steps:
        if step.native and step.macs:
            by_layer[step.name].append(step)
    calls = {layer.name: layer.call + 1 for layer in spec.layers}

    def count(layer: LayerSpec) -> LayerCount:
        published = count_layer(layer)
        if not published.total:
            return published
        own = by_layer[layer.name]
        share, rest = divmod(len(own), calls[layer.name])
        if not share or rest:
            raise UnsupportedLayerError(f"{layer.name or 'a function'} runs in PyTorch, not in the engine")
        own = own[layer.call * share : (layer.call + 1) * share]
        looked_up = [step for step in own if "lookup" in step.kind]
        macs = sum(step.macs for step in own)
        if not looked_up:
            return LayerCount(published.dense, plain=macs)
        # A strided lookup layer runs its dictionary in a matrix product of its own.
        lookups = sum(step.macs - step.dictionary_macs for step in looked_up)
        return LayerCount(published.dense, dictionary=macs - lookups, lookups=lookups)

    return count


def _output_resolution(spec: ModelSpec, steps: Sequence[PlanStep]) -> LayerCounter:
    """Dictionary at the output's positions; what a lookup network leaves dense costs nothing."""
    has_lookups = any(layer.lookup for layer in spec.layers)

    def count(layer: LayerSpec) -> LayerCount:
        published = count_layer(layer)
        if layer.lookup is not None:
            positions = output_positions(layer)
            return replace(published, dictionary=dictionary_macs(layer.lookup.dictionary_nnz, positions))
        return replace(published, plain=0, skipped=0) if has_lookups else published

    return count


_LISTED = (
    Convention(
        "published",
        "dictionary nnz(D) at every position of the padded input, one MAC per lookup at every output position; "
        "bias, normalization, activation and pooling free; one image",
        _published,
    ),
    Convention(
        "executed",
        "what the inference engine multiplies on this machine for its plan: padding columns that it computes included, "
        "zero halo and unread rows of D not; a layer may run dense; baselines as published; one image",
        _executed,
        needs_plan=True,
    ),
    Convention(
        "output-resolution",
        "as published, but the dictionary at the output's positions only and the layers that a lookup network leaves "
        "dense (shortcuts, classifier) left out: a reading of the published ResNet table, for comparison with it only",
        _output_resolution,
    ),
)

CONVENTIONS: dict[str, Convention] = {convention.name: convention for convention in _LISTED}


def find_convention(name: str) -> Convention:
    """The convention of this name. Raises ConfigError that lists the names there are."""
    try:
        return CONVENTIONS[name]
    except KeyError:
        raise ConfigError(f"convention is {name!r}; expected one of {', '.join(CONVENTIONS)}") from None
