"""Cutting D and P down to a counted budget: which entries stay, and that they buy something.

Zeros are exact zeros, written in place; ``keep_zeros`` holds them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from lcnn_core.compress.ledger import Ledger
from lcnn_core.compress.ranking import by_magnitude
from lcnn_core.layers import LookupLayer


def useful(layer: LookupLayer, coefficients: Tensor, dictionary: Tensor | None) -> list[Tensor]:
    """Of the entries to keep (masks of P and D), those that buy something: no row of D unread, none empty yet read."""
    if dictionary is None:
        return [coefficients]
    n, k = coefficients.shape[:2]
    grouped = coefficients.reshape(layer.groups, n // layer.groups, k, -1)
    read = grouped.any(dim=3).any(dim=1)
    filled = dictionary.any(dim=1).reshape(layer.groups, k)
    return [(grouped & filled[:, None, :, None]).reshape(coefficients.shape), dictionary & read.reshape(-1, 1)]


def fill(ranks: Tensor, costs: Tensor, budget: int) -> Tensor:
    """Mask of the entries to keep: the highest ranks first, as long as their costs sum to at most ``budget``.

    Where the next one no longer fits, cheaper ones behind it still may, so that what is left is less than the
    cheapest entry left out. ranks, costs: (entries,); equal ranks keep their order.
    """
    keep = torch.zeros_like(ranks, dtype=torch.bool)
    order = ranks.argsort(descending=True, stable=True)
    while len(order):
        running = costs[order].cumsum(0)
        fits = running <= budget
        keep[order[fits]] = True
        budget -= int(running[fits][-1]) if bool(fits.any()) else 0
        order = order[~fits]
        order = order[costs[order] <= budget]
    return keep


def level(ranks: Tensor, costs: Tensor, budget: int) -> float:
    """The rank above which entries cost at most ``budget`` together; 0 where all do. ranks, costs: (entries,)."""
    order = ranks.argsort(descending=True, stable=True)
    kept = int((costs[order].cumsum(0) <= budget).sum())
    return float(ranks[order[kept]]) if kept < len(order) else 0.0


def shared_out(ledger: Ledger, ranking: list[Tensor], shares: Mapping[str, float]) -> list[Tensor]:
    """``ranking`` such that one cut over all layers gives each its share of the budget: entries by their place in it.

    An entry's new rank is its layer's share over what the layer's entries up to this one cost.
    """
    found, remaining = [], iter(ranking)
    for layer in ledger.layers:
        parts = [(next(remaining), cost) for _, cost in layer.tensors()]
        own = torch.cat([part for part, _ in parts])
        costs = torch.cat([torch.full_like(part, cost, dtype=torch.float64) for part, cost in parts])
        order = own.argsort(descending=True, stable=True)
        places = torch.empty_like(costs)
        places[order] = shares[layer.name] / costs[order].cumsum(0)
        found += places.split([len(part) for part, _ in parts])
    return found


@torch.no_grad()
def prune_to_(
    ledger: Ledger,
    budget: int,
    floor: float = 0.25,
    shares: Mapping[str, float] | None = None,
    whole: bool = False,
    ranking: list[Tensor] | None = None,
) -> None:
    """Zero entries of D and P, in place, until all lookup layers together cost ``budget`` MACs or a hair less.

    One ``ranking`` over all layers, by magnitude where none is given, or, with ``shares`` of the budget by layer, one
    within each. The best of every tensor stay whatever the ranking says: ``floor`` of the share of its entries that it
    would keep if all tensors kept the same share, and one lookup that reads something. Entries that buy nothing
    (:func:`useful`) go, and what they cost is spent on others. Zeros stay zero. whole: of D, only rows that nothing
    reads go.
    """
    tensors = [tensor for tensor, _ in ledger.tensors()]
    sizes = [tensor.numel() for tensor in tensors]
    costs = ledger.costs()
    alive = torch.cat([(tensor != 0).flatten().cpu() for tensor in tensors])
    found = by_magnitude(ledger) if ranking is None else ranking
    places = torch.cat(shared_out(ledger, found, shares) if shares else found)
    _protect(ledger, list(places.split(sizes)), floor * budget / int(costs.sum()), whole)
    while True:
        candidates = alive.nonzero().squeeze(1)
        keep = torch.zeros_like(alive)
        keep[candidates] = fill(places[candidates], costs[candidates], budget)
        parts = [mask.reshape(t.shape) for mask, t in zip(keep.split(sizes), tensors, strict=True)]
        needed = torch.cat([mask.flatten() for mask in _useful_parts(ledger, parts)])
        if bool((needed == keep).all()):
            break
        alive &= ~(keep & ~needed)
    for tensor, mask in zip(tensors, parts, strict=True):
        tensor.masked_fill_(~mask.to(tensor.device), 0)


def _protect(ledger: Ledger, ranks: list[Tensor], share: float, whole: bool) -> None:
    """Lift, in place, the ranks of each tensor's best ``share`` above all others, one lookup of each layer on top.

    whole: of every D, all.
    """
    lift = 2 * max(float(part.max()) for part in ranks) or 1.0
    remaining = iter(ranks)
    for layer in (cost.layer for cost in ledger.layers):
        coefficients = next(remaining)
        best = coefficients.topk(max(1, int(share * len(coefficients)))).indices
        coefficients[best] += lift
        coefficients[best[0]] += lift
        if layer.dictionary is None:
            continue
        dictionary = next(remaining)
        dictionary[dictionary.topk(int((1 if whole else share) * len(dictionary))).indices] += lift
        # The row that the layer's best lookup reads: kept both, the layer still answers something.
        n, k = layer.coefficients.shape[:2]
        filter_, row = divmod(int(best[0]) // layer.coefficients[0, 0].numel(), k)
        read = dictionary.reshape(layer.dictionary.shape)[filter_ // (n // layer.groups) * k + row]
        read[read.argmax()] += 2 * lift


def _useful_parts(ledger: Ledger, parts: list[Tensor]) -> Iterator[Tensor]:
    remaining = iter(parts)
    for cost in ledger.layers:
        coefficients = next(remaining)
        yield from useful(cost.layer, coefficients, None if cost.layer.dictionary is None else next(remaining))
