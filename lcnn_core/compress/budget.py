"""A counted budget for D and P together: what each entry costs, what it is worth, and which ones stay.

Costs are those of the ``published`` convention: an entry of P costs the layer's output positions, an entry of D its
padded input positions, in MACs on one image. Zeros are exact zeros, written in place; ``keep_zeros`` holds them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lcnn_core.compress.allocation import out_of_reach
from lcnn_core.counting import count_layer, output_positions, padded_positions
from lcnn_core.describe import describe
from lcnn_core.errors import ConfigError
from lcnn_core.layers import LookupLayer
from lcnn_core.spec import LayerSpec


@dataclass(frozen=True)
class LayerCost:
    """A lookup layer and the MACs that one nonzero entry of its P or D costs on one image, all calls together."""

    name: str
    layer: LookupLayer
    coefficient: int
    row: int
    """Of an entry of D."""

    def whole_row(self) -> int:
        """MACs of a dictionary row without zeros; 0 for the identity dictionary."""
        return 0 if self.layer.dictionary is None else self.row * self.layer.dictionary.shape[1]

    def dictionary(self) -> int:
        """MACs of D without zeros."""
        return 0 if self.layer.dictionary is None else self.row * self.layer.dictionary.numel()

    def dense(self) -> int:
        """MACs of the dense layer that it stands for."""
        return self.coefficient * math.prod(self.layer.dense_shape)

    def tensors(self) -> Iterator[tuple[Tensor, int]]:
        yield self.layer.coefficients, self.coefficient
        if self.layer.dictionary is not None:
            yield self.layer.dictionary, self.row


@dataclass(frozen=True)
class Ledger:
    """What a model costs on one image: its dense twin, what cannot be pruned, and what each entry costs."""

    dense: int
    fixed: dict[str, int]
    """MACs of the layers that are no lookup layers, by name; those that cost nothing are left out."""
    layers: tuple[LayerCost, ...]

    @classmethod
    def of(cls, model: nn.Module, input_shape: tuple[int, ...]) -> Ledger:
        """Read the costs off one forward pass of ``model`` on an image of ``input_shape``."""
        modules = dict(model.named_modules())
        dense, fixed, calls = 0, {}, {}  # type: ignore[var-annotated]
        for layer in describe(model, input_shape).layers:
            count = count_layer(layer)
            dense += count.dense
            if layer.lookup is not None:
                calls.setdefault(layer.name, []).append(layer)
            elif count.total:
                fixed[layer.name] = fixed.get(layer.name, 0) + count.total
        return cls(dense, fixed, tuple(cls._cost(name, modules[name], specs) for name, specs in calls.items()))

    @staticmethod
    def _cost(name: str, module: nn.Module, calls: list[LayerSpec]) -> LayerCost:
        assert isinstance(module, LookupLayer)
        return LayerCost(name, module, sum(map(output_positions, calls)), sum(map(padded_positions, calls)))

    def spent(self) -> int:
        """MACs of the lookup layers as they are now."""
        return sum(int(tensor.count_nonzero()) * cost for layer in self.layers for tensor, cost in layer.tensors())

    def costs(self) -> Tensor:
        """MACs of every entry, zeros too: int64 (entries,), P before D, layer after layer."""
        return torch.cat([torch.full((t.numel(),), c) for layer in self.layers for t, c in layer.tensors()])

    def allowance(self, speedup: float, whole: bool = False) -> int:
        """MACs that all lookup layers may cost together for ``speedup`` over the dense twin.

        Raises ConfigError, with the reachable maximum and what bounds it, where even one entry a tensor is too much;
        with ``whole``, one entry of each P and all of each D.
        """
        if not 1 < speedup < float("inf"):
            raise ConfigError(f"speedup is {speedup}; expected a finite number above 1")
        left = int(self.dense / speedup) - sum(self.fixed.values())
        least = sum(cost for layer in self.layers for _, cost in layer.tensors())
        if whole:
            least = sum(layer.coefficient + layer.dictionary() for layer in self.layers)
        if not self.layers:
            raise ConfigError(
                f"a speedup of {speedup:g} cannot be met: the model has no layer that can become a lookup layer"
            )
        if left < least:
            entry = "one entry of each P and the whole D" if whole else "one entry in each D and P"
            what = f"{entry} of {len(self.layers)} lookup layers"
            raise out_of_reach(speedup, self.dense, self.fixed, least, what)
        return left


def worth(layer: LookupLayer) -> list[Tensor]:
    """How much each entry of P, and of D, matters: the change of the dense filters W without it, over W's norm.

    Taking p = P[f, j, y, x] out changes W by |p| * |D[j]|, taking d = D[j, c] out by |d| * |P[:, j]| (2-norms), so
    the two are measured alike, however the scale is shared between D and P. Shapes of P and D.
    """
    coefficients = layer.coefficients.detach()
    if layer.dictionary is None:
        return [coefficients.abs() / coefficients.norm().clamp_min(1e-30)]
    n, k = coefficients.shape[:2]
    dictionary = layer.dictionary.detach()
    grouped = coefficients.reshape(layer.groups, n // layer.groups, k, -1)
    rows = dictionary.norm(dim=1).reshape(layer.groups, 1, k, 1)
    columns = grouped.norm(dim=(1, 3)).reshape(-1, 1)
    size = layer.dense_weight().detach().norm().clamp_min(1e-30)
    return [(grouped.abs() * rows).reshape(coefficients.shape) / size, dictionary.abs() * columns / size]


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


def ranks(ledger: Ledger) -> list[Tensor]:
    """Each tensor's entries by :func:`worth` over the root of their cost, P before D, flat and on the CPU.

    For a given cost, keeping the highest keeps the sum of squared changes of the filters smallest.
    """
    parts = [part.flatten().cpu() for layer in ledger.layers for part in worth(layer.layer)]
    costs = [cost for layer in ledger.layers for _, cost in layer.tensors()]
    return [part / math.sqrt(cost) for part, cost in zip(parts, costs, strict=True)]


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
    ledger: Ledger, budget: int, floor: float = 0.25, shares: Mapping[str, float] | None = None, whole: bool = False
) -> None:
    """Zero entries of D and P, in place, until all lookup layers together cost ``budget`` MACs or a hair less.

    One ranking over all layers (:func:`ranks`), or, with ``shares`` of the budget by layer, one within each. The best
    of every tensor stay whatever the ranking says: ``floor`` of the share of its entries that it would keep if all
    tensors kept the same share, and one lookup that reads something. Entries that buy nothing (:func:`useful`) go, and
    what they cost is spent on others. Zeros stay zero. whole: of D, only rows that nothing reads go.
    """
    tensors = [tensor for layer in ledger.layers for tensor, _ in layer.tensors()]
    sizes = [tensor.numel() for tensor in tensors]
    costs = ledger.costs()
    alive = torch.cat([(tensor != 0).flatten().cpu() for tensor in tensors])
    found = ranks(ledger)
    ranking = torch.cat(shared_out(ledger, found, shares) if shares else found)
    _protect(ledger, list(ranking.split(sizes)), floor * budget / int(costs.sum()), whole)
    while True:
        candidates = alive.nonzero().squeeze(1)
        keep = torch.zeros_like(alive)
        keep[candidates] = fill(ranking[candidates], costs[candidates], budget)
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
    lift = 1 + max(float(part.max()) for part in ranks)
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
