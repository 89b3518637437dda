"""Which form and cost each layer gets under one budget: one choice a layer, least error, by dynamic programming."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lcnn_core.errors import ConfigError

CELLS = 16_384
"""Parts into which the budget is cut; costs are rounded up to whole parts, so that the budget is never exceeded."""


DENSE = "dense"


@dataclass(frozen=True)
class Option:
    """One form that a layer can take."""

    start: int | str | None
    """``DENSE``, the layer as it is; None, sparse with the identity dictionary; or k of a dictionary."""
    cost: int
    """MACs on one image."""
    error: float
    """Relative squared error of the layer's outputs."""


def out_of_reach(speedup: float, dense: int, fixed: Mapping[str, int], least: int, what: str) -> ConfigError:
    """What to raise where ``what``, of ``least`` MACs, and the ``fixed`` layers cost more than ``dense / speedup``."""
    reach = math.floor(100 * dense / (least + sum(fixed.values()))) / 100
    bound = f"{what} ({least:,} MACs)"
    if fixed:
        largest = sorted(fixed, key=lambda name: -fixed[name])[:3]
        bound = f"layers that stay dense ({', '.join(largest)}: {sum(fixed.values()):,} MACs in all) and {bound}"
    return ConfigError(f"a speedup of {speedup:g} cannot be met: at most {reach:g}, bounded by {bound}; ask for less")


def pareto(options: Sequence[Option]) -> list[Option]:
    """Those that no cheaper, or equally cheap, option matches in error; by rising cost."""
    best: list[Option] = []
    for option in sorted(options, key=lambda o: (o.cost, o.error)):
        if not best or option.error < best[-1].error:
            best.append(option)
    return best


def allocate(menus: Sequence[Sequence[Option]], weights: Sequence[float], budget: int) -> list[Option]:
    """One option from each menu, of least weighted sum of errors, whose costs sum to at most ``budget``.

    Exact but for the rounding of costs to a 16,384th of the budget. Raises ConfigError where even the cheapest
    options cost more than the budget.
    """
    least = sum(min(option.cost for option in menu) for menu in menus)
    if least > budget:
        raise ConfigError(f"a budget of {budget:,} MACs cannot be met: the cheapest forms cost {least:,}; ask for more")
    cell = max(1, -(-budget // CELLS))
    size = budget // cell
    total = np.zeros(size + 1)
    choices = []
    for menu, weight in zip(menus, weights, strict=True):
        costs = [-(-option.cost // cell) for option in menu]
        reached = np.full((len(menu), size + 1), np.inf)
        for row, (option, cost) in enumerate(zip(menu, costs, strict=True)):
            if cost <= size:
                reached[row, cost:] = total[: size + 1 - cost] + weight * option.error
        choices.append(reached.argmin(0))
        total = reached.min(0)
    if not np.isfinite(total[size]):  # only rounding stands in the way
        return [min(menu, key=lambda option: option.cost) for menu in menus]
    left, chosen = size, []
    for menu, picks in zip(reversed(menus), reversed(choices), strict=True):
        option = menu[picks[left]]
        chosen.append(option)
        left -= -(-option.cost // cell)
    return chosen[::-1]
