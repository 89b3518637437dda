"""The controller that leads a run down to a counted budget: when it cuts, how, and what may grow back."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch

from lcnn_core.compress.budget import prune_to_
from lcnn_core.compress.ledger import LayerCost, Ledger
from lcnn_core.compress.ranking import Fisher, Ranking, by_magnitude
from lcnn_core.compress.regrowth import regrow_
from lcnn_core.compress.thresholds import SoftThresholds
from lcnn_core.errors import CheckpointError, ConfigError


class Budget:
    """A training controller that lowers a model's cost to ``speedup``, on a cubic schedule, and holds it there.

    At share t of the run the lookup layers may cost final + (start - final) * (1 - t / phase)^3, ``phase`` being the
    share of the run in which pruning takes place; it happens in ``cuts`` equal steps of t. Until the last one they may
    cost two dictionary rows more: the last cut may leave rows unread, and needs others to spend their cost on to land
    exactly. Source of the schedule: Zhu and Gupta 2017.

    floor, shares, whole: as in :func:`prune_to_`. soft: learned soft thresholds (:class:`SoftThresholds`) before each
    cut. ranking: "fisher" (:class:`Fisher`) or "magnitude" (:func:`by_magnitude`).
    regrowth: share of the cost that a cut takes beyond its due and gives back a batch later to the zeros of largest
    gradient (:func:`regrow_`), falling along a line to nothing at the last cut.
    """

    def __init__(
        self,
        ledger: Ledger,
        speedup: float,
        phase: float = 0.6,
        cuts: int = 50,
        floor: float = 0.25,
        soft: bool = False,
        regrowth: float = 0.0,
        shares: Mapping[str, float] | None = None,
        whole: bool = False,
        ranking: str = "magnitude",
    ) -> None:
        self.ledger, self.whole = ledger, whole
        self.final = self.ledger.allowance(speedup, whole)
        self.start = self.ledger.spent()
        if self.start < self.final / 1.02:
            reached = ledger.dense / (self.start + sum(ledger.fixed.values()))
            raise ConfigError(
                f"a speedup of {speedup:g} cannot be met: with these dictionaries the network starts at {reached:.3g}x "
                "already; choose a larger dictionary_ratio or forms 'sparse', or ask for more"
            )
        self.spare = 2 * max(map(LayerCost.whole_row, self.ledger.layers))
        self.phase, self.cuts, self.floor, self.regrowth, self.shares = phase, cuts, floor, regrowth, shares
        self.fisher = Fisher(ledger) if ranking == "fisher" else None
        self.ranking: Ranking = self.fisher.ranks if self.fisher else partial(by_magnitude, ledger)
        self.thresholds = SoftThresholds(ledger, self.ranking) if soft else None
        self.done = 0
        self.growing = 0
        """MACs up to which zeros come back after this batch; 0 where none do."""

    def before_batch(self, progress: float) -> None:
        due = min(self.cuts, int(self.cuts * progress / self.phase))
        if due > self.done:
            self.done = due
            self._cut()

    def _cut(self) -> None:
        self._drop_masked()
        left = 1 - self.done / self.cuts
        allowed = min(self.start, int(self.final + (self.start - self.final) * left**3 + self.spare * (left > 0)))
        budget = int(allowed * (1 - self.regrowth * left))
        if self.thresholds:
            self.thresholds.shrink_(budget)
        prune_to_(self.ledger, budget, self.floor, self.shares, self.whole, self.ranking())
        if budget < allowed:
            self.growing = allowed
            self._mask_gradients(False)
        if self.settled():
            self._hold()

    @torch.no_grad()
    def _drop_masked(self) -> None:
        """Zero what the layers' own thresholds mask: it answers nothing, and is not counted."""
        for cost in self.ledger.layers:
            cost.layer.coefficients.masked_fill_(cost.layer.coefficients.abs() <= cost.layer.threshold, 0)

    def _hold(self) -> None:
        """After the last cut no threshold or penalty takes more: what was counted stays, and nothing is ranked."""
        for cost in self.ledger.layers:
            cost.layer.threshold = cost.layer.l1_weight = 0.0
        if self.fisher:
            self.fisher.forget()

    def after_batch(self) -> None:
        if self.growing:
            self._mask_gradients(True)
            regrow_(self.ledger, self.growing)
            self.growing = 0
        if self.settled():
            return
        for part in self._listeners().values():
            if part:
                part.listen()

    def _mask_gradients(self, masked: bool) -> None:
        for cost in self.ledger.layers:
            cost.layer.masked_gradient = masked

    def settled(self) -> bool:
        return self.done == self.cuts

    def _listeners(self) -> dict[str, SoftThresholds | Fisher | None]:
        """What learns from the gradients, by the option that asks for it."""
        return {"ranking": self.fisher, "thresholds": self.thresholds}

    def state_dict(self) -> dict[str, Any]:
        states = {name: part.state_dict() if part else None for name, part in self._listeners().items()}
        return {"done": self.done, "shares": dict(self.shares) if self.shares else None, **states}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.done = state["done"]
        for name, part in self._listeners().items():
            saved = state.get(name)
            if part and saved is not None:
                part.load_state_dict(saved)
            elif part or saved is not None:
                raise CheckpointError(f"the state was made with another choice of {name}; resume with the same")
        if self.settled():
            self._hold()
