"""Layer budgets: what part of the counted budget each lookup layer gets, where no ranking over all layers decides."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from torch import Tensor, nn

from lcnn_core.compress.allocation import Option, allocate
from lcnn_core.compress.ledger import Ledger
from lcnn_core.compress.measured import Measured, Telling, measure, silent

LAYER_BUDGETS = ("ranking", "uniform", "measured")

Sizes = Callable[[Sequence[int]], Sequence[int | None]]
"""The dictionary sizes that a layer of filters of this shape may take; None is the identity."""


def uniform_shares(ledger: Ledger) -> dict[str, float]:
    """Each layer's part of the dense layers' MACs: all get the same speedup. Sums to 1."""
    whole = sum(layer.dense() for layer in ledger.layers)
    return {layer.name: layer.dense() / whole for layer in ledger.layers}


def measured_choices(
    dense: nn.Module, speedup: float, images: Tensor, sizes: Sizes, tell: Telling = silent
) -> dict[str, Option]:
    """For every layer a dictionary size and a cost, such that the errors that matter to the answers are least together.

    D and P of each size are fitted to the dense filters at many costs, as in post-training conversion, and dynamic
    programming picks one a layer. images: (N, c, h, w). Raises ConfigError where the cheapest cost too much.
    """
    found = measure(dense, speedup, images, lambda layer: sizes(layer.shape), stay=False, tell=tell)
    chosen = _spending(found, allocate(found.menus, found.weights, found.budget), sizes)
    return {layer.name: option for layer, option in zip(found.layers, chosen, strict=True)}


def _spending(measured: Measured, chosen: Sequence[Option], sizes: Sizes) -> list[Option]:
    """The same, less the dictionaries, those that lose most first, with which the whole network costs less than the
    budget."""
    found, layers = list(chosen), measured.layers
    for place in sorted(range(len(found)), key=lambda place: -measured.weights[place] * chosen[place].error):
        whole = sum(layer.whole_cost(option.start) for layer, option in zip(layers, found, strict=True))
        if whole < measured.budget and None in sizes(layers[place].shape):
            found[place] = replace(found[place], start=None)
    return found


def measured_shares(choices: Mapping[str, Option]) -> dict[str, float]:
    """Each layer's part of what the choices cost together. Sums to 1."""
    whole = sum(option.cost for option in choices.values())
    return {name: option.cost / whole for name, option in choices.items()}
