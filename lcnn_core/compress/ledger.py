"""What a network costs, entry by entry of D and P: the ledger on which budgets are kept.

Costs are those of the ``published`` convention: an entry of P costs the layer's output positions, an entry of D its
padded input positions, in MACs on one image.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
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

    def tensors(self) -> Iterator[tuple[Tensor, int]]:
        """Every P and D with what one of its entries costs, P before D, layer after layer."""
        return (pair for layer in self.layers for pair in layer.tensors())

    def spent(self) -> int:
        """MACs of the lookup layers as they are now."""
        return sum(int(tensor.count_nonzero()) * cost for tensor, cost in self.tensors())

    def costs(self) -> Tensor:
        """MACs of every entry, zeros too: int64 (entries,), in the order of the tensors."""
        return torch.cat([torch.full((tensor.numel(),), cost) for tensor, cost in self.tensors()])

    def allowance(self, speedup: float, whole: bool = False) -> int:
        """MACs that all lookup layers may cost together for ``speedup`` over the dense twin.

        Raises ConfigError, with the reachable maximum and what bounds it, where even one entry a tensor is too much;
        with ``whole``, one entry of each P and all of each D.
        """
        if not 1 < speedup < float("inf"):
            raise ConfigError(f"speedup is {speedup}; expected a finite number above 1")
        left = int(self.dense / speedup) - sum(self.fixed.values())
        least = sum(cost for _, cost in self.tensors())
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
