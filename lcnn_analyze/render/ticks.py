"""Axes: pure numbers, shared by the inline and the matplotlib pictures."""

from __future__ import annotations

import math
from collections.abc import Sequence

_STEPS = (1, 2, 5)


def bounds(speedups: Sequence[float]) -> tuple[float, float]:
    """Ends of a logarithmic axis with room on both sides; wide enough that one of 1, 2, 5, 10 lies on it."""
    low, high = min(speedups), max(speedups)
    high = max(high, 2.5 * low)
    room = (high / low) ** 0.08
    return low / room, high * room


def accuracy_bounds(accuracies: Sequence[float]) -> tuple[float, float]:
    """Ends of an axis of percentages with room on both sides: half a point at least, so that ties are not noise."""
    low, high = min(accuracies), max(accuracies)
    room = max((high - low) * 0.12, 0.5)
    return low - room, high + room


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2, 5, 10, ... between ``low`` and ``high``."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [step * 10.0**decade for decade in decades for step in _STEPS if low <= step * 10.0**decade <= high]


def linear_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers from ``low`` to ``high``, at most ``most`` of them."""
    if high <= low:
        return [low]
    rough = (high - low) / max(1, most - 1)
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= rough)
    first = math.ceil(low / step - 1e-9)
    return [round(step * place, 10) for place in range(first, math.floor(high / step + 1e-9) + 1)]
