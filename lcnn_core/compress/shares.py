"""Layer budgets: what part of the counted budget each lookup layer gets, where no ranking over all layers decides."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from lcnn_core.compress.allocation import allocate
from lcnn_core.compress.budget import Ledger
from lcnn_core.compress.measured import options_of, problems, weigh

LAYER_BUDGETS = ("ranking", "uniform", "measured")


def uniform_shares(ledger: Ledger) -> dict[str, float]:
    """Each layer's part of the dense layers' MACs: all get the same speedup. Sums to 1."""
    whole = sum(layer.dense() for layer in ledger.layers)
    return {layer.name: layer.dense() / whole for layer in ledger.layers}


def measured_shares(dense: nn.Module, ledger: Ledger, speedup: float, images: Tensor) -> Mapping[str, float]:
    """Each layer's part where the errors that its outputs have on ``images``, weighed by what they matter, are least.

    For every layer, D and P of the size that it has in ``ledger`` are fitted to the dense filters at many costs, as in
    post-training conversion; dynamic programming picks one cost a layer. images: (N, c, h, w). Sums to 1.
    """
    layers = {cost.name: cost.layer for cost in ledger.layers}
    found = [layer for layer in problems(dense, images)[0] if layer.name in layers]
    menus, probes = [], {}
    for layer in found:
        size = layers[layer.name].config.dictionary_size
        options, probes[layer.name] = options_of(layer, [size], speedup, dense=False)
        menus.append(options)
    chosen = allocate(menus, weigh(dense, found, probes, images), ledger.allowance(speedup))
    whole = sum(option.cost for option in chosen)
    return {layer.name: option.cost / whole for layer, option in zip(found, chosen, strict=True)}
