"""In which order entries of D and P go: what each is worth for what it costs, by magnitude or by the loss.

A ranking is one flat tensor for each P and D of the ledger, P before D, layer after layer, on the CPU. The entries of
highest rank stay.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from lcnn_core.compress.ledger import Ledger
from lcnn_core.layers import LookupLayer

Ranking = Callable[[], list[Tensor]]

RANKINGS = ("fisher", "magnitude")
MEMORY = 0.99
"""Weight of what was there in a running mean of squared gradients, batch by batch."""
LEAST = 1e-30
"""Root of a mean that stands for 0, so that living entries rank above those that are gone."""


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


def by_magnitude(ledger: Ledger) -> list[Tensor]:
    """Each tensor's entries by :func:`worth` over the root of their cost, P before D, flat and on the CPU.

    For a given cost, keeping the highest keeps the sum of squared changes of the filters smallest.
    """
    parts = [part.flatten().cpu() for layer in ledger.layers for part in worth(layer.layer)]
    return [part / math.sqrt(cost) for part, (_, cost) in zip(parts, ledger.tensors(), strict=True)]


class Fisher:
    """Ranks by what the loss would lose: |p| * sqrt(F) over the root of the cost of an entry p of D or P.

    F is a running mean of squared gradients, those of whole batches, clipped and with penalties as they are used: near
    an optimum in proportion to the diagonal of the Fisher information, by which the loss without p rises by p^2 F / 2
    to second order. It takes as much memory as D and P. Entries without gradient go by magnitude, below all others;
    where a tensor has had none at all, as one that is frozen, all tensors go by magnitude. Source: LeCun et al. 1990
    (optimal brain damage) with the Fisher information of Theis et al. 2018.
    """

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.tensors = [tensor for tensor, _ in ledger.tensors()]
        self.squares: list[Tensor | None] = [None] * len(self.tensors)

    @torch.no_grad()
    def listen(self) -> None:
        """Take in the last batch's gradients."""
        for index, tensor in enumerate(self.tensors):
            if tensor.grad is None:
                continue
            before = self.squares[index]
            before = torch.zeros_like(tensor.grad) if before is None else before
            self.squares[index] = before.mul_(MEMORY).addcmul_(tensor.grad, tensor.grad, value=1 - MEMORY)

    @torch.no_grad()
    def ranks(self) -> list[Tensor]:
        found = []
        for (tensor, cost), square in zip(self.ledger.tensors(), self.squares, strict=True):
            if square is None:
                return by_magnitude(self.ledger)
            found.append((tensor.abs() * square.sqrt().clamp_min(LEAST)).flatten().cpu() / math.sqrt(cost))
        return found

    def state_dict(self) -> dict[str, Any]:
        return {"squares": [*self.squares]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for index, (tensor, square) in enumerate(zip(self.tensors, state["squares"], strict=True)):
            self.squares[index] = None if square is None else square.to(tensor.device, copy=True)

    def forget(self) -> None:
        """Free the memory of what was seen."""
        self.squares = [None] * len(self.tensors)
