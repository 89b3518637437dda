"""Layer budgets: what part of the counted budget each lookup layer gets, where no ranking over all layers decides."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from torch import Tensor, nn

from lcnn_core.compress.allocation import Option, allocate
from lcnn_core.compress.ledger import Ledger
from lcnn_core.compress.measured import (
    Convertible,
    Telling,
    allowance,
    options_of,
    problems,
    silent,
    speedup_of_layers,
    weigh,
)

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
    layers, fixed, dense_cost = problems(dense, images, tell)
    menus, probes, needed = [], {}, speedup_of_layers(speedup, fixed, dense_cost)
    for done, layer in enumerate(layers):
        tell("fitting", done, len(layers))
        options, probes[layer.name] = options_of(layer, sizes(layer.shape), needed, dense=False)
        menus.append(options)
    budget = allowance(speedup, menus, fixed, dense_cost)
    weights = weigh(dense, layers, probes, images, tell)
    chosen = _spending(layers, allocate(menus, weights, budget), weights, sizes, budget)
    return {layer.name: option for layer, option in zip(layers, chosen, strict=True)}


def _spending(
    layers: Sequence[Convertible], chosen: Sequence[Option], weights: Sequence[float], sizes: Sizes, budget: int
) -> list[Option]:
    """The same, less the dictionaries, those that lose most first, with which the whole network costs less than the
    budget."""
    found = list(chosen)
    for place in sorted(range(len(found)), key=lambda place: -weights[place] * chosen[place].error):
        whole = sum(layer.whole_cost(option.start) for layer, option in zip(layers, found, strict=True))
        if whole < budget and None in sizes(layers[place].shape):
            found[place] = replace(found[place], start=None)
    return found


def measured_shares(choices: dict[str, Option]) -> dict[str, float]:
    """Each layer's part of what the choices cost together. Sums to 1."""
    whole = sum(option.cost for option in choices.values())
    return {name: option.cost / whole for name, option in choices.items()}
