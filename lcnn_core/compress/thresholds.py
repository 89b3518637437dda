"""Soft thresholds that are learned: what each tensor bears of a cut follows from what shrinking it does to the loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from lcnn_core.compress.budget import level
from lcnn_core.compress.ledger import Ledger
from lcnn_core.compress.ranking import Ranking

RATE = 0.5
"""How far the logarithm of a tensor's threshold moves at a cut where all its gradients agree."""
FAINT = 1e-3
"""What is left of an entry below the threshold until the cut that follows takes it: its place in the ranking."""


class SoftThresholds:
    """Before each cut every entry of D and P loses the threshold's magnitude; those below it are what the cut takes.

    The threshold of a tensor is a common level, such that the budget is met, times a factor of its own. The factor is
    learned by gradient descent on the loss: where the gradients would shrink the living entries anyway it rises, where
    they would let them grow it falls. Magnitudes and thresholds are in units of the ranking, so that with equal factors
    the same entries go as in a hard cut, but nobody stands just above the edge at full size. Between two cuts entries
    are free to move. Source: Kusupati et al. 2020 (STR), with the level held by the budget.
    """

    def __init__(self, ledger: Ledger, ranking: Ranking) -> None:
        self.ledger, self.ranking = ledger, ranking
        count = sum(1 for _ in ledger.tensors())
        self.logarithms = [0.0] * count
        self.pulls, self.sizes = [0.0] * count, [0.0] * count

    @torch.no_grad()
    def listen(self) -> None:
        """Take in the last batch's gradients: how much they would shrink each tensor, over how much they move it."""
        for index, ((tensor, _), rank) in enumerate(zip(self.ledger.tensors(), self.ranking(), strict=True)):
            if tensor.grad is not None:
                # entry / rank: its sign times the magnitude that one unit of the ranking is.
                pull = (tensor * tensor.grad).flatten().cpu() / rank.clamp_min(1e-30)
                self.pulls[index] += float(pull.sum())
                self.sizes[index] += float(pull.abs().sum())

    @torch.no_grad()
    def shrink_(self, budget: int) -> None:
        """Shrink all entries, in place, by thresholds above which they cost ``budget`` MACs together."""
        for index, (pull, size) in enumerate(zip(self.pulls, self.sizes, strict=True)):
            self.logarithms[index] += RATE * pull / size if size else 0.0
            self.pulls[index] = self.sizes[index] = 0.0
        factors = torch.tensor(self.logarithms, dtype=torch.float64).exp().tolist()
        parts = self.ranking()
        scaled = torch.cat([part / factor for part, factor in zip(parts, factors, strict=True)])
        common = level(scaled, self.ledger.costs(), budget)
        for (tensor, _), part, factor in zip(self.ledger.tensors(), parts, factors, strict=True):
            left = (1 - common * factor / part.clamp_min(1e-30)).clamp_min(FAINT)
            tensor.mul_(left.reshape(tensor.shape).to(tensor))

    def state_dict(self) -> dict[str, Any]:
        return {"logarithms": [*self.logarithms], "pulls": [*self.pulls], "sizes": [*self.sizes]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.logarithms, self.pulls, self.sizes = ([*state[name]] for name in ("logarithms", "pulls", "sizes"))
