"""How multiplications are counted: each convention has a name, which is printed beside every total.

A convention turns a model into a counter of its layers, so that a rule may depend on the whole model (and, for a
convention counted from an inference plan, on that plan) while each layer is still counted on its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from lcnn_core import ConfigError, LayerCount, LayerSpec, ModelSpec, count_layer, dictionary_macs, output_positions

LayerCounter = Callable[[LayerSpec], LayerCount]


@dataclass(frozen=True)
class Convention:
    """A named counting rule. ``definition`` is one line for readers; ``counter`` makes the rule for one model."""

    name: str
    definition: str
    counter: Callable[[ModelSpec], LayerCounter]


def _published(spec: ModelSpec) -> LayerCounter:
    return count_layer


def _output_resolution(spec: ModelSpec) -> LayerCounter:
    """Dictionary at the output's positions; what a lookup network leaves dense costs nothing."""
    has_lookups = any(layer.lookup for layer in spec.layers)

    def count(layer: LayerSpec) -> LayerCount:
        published = count_layer(layer)
        if layer.lookup is not None:
            positions = output_positions(layer) * layer.repeats
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
