"""Comparing our dense counts with another tool's, layer by layer: pure, names and numbers in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from lcnn_analyze.cost.table import CostTable


@dataclass(frozen=True)
class Disagreement:
    """One layer that two counts differ on, in dense MACs; ``explanation`` names the tool's policy, if one covers it."""

    layer: str
    ours: int
    theirs: int
    explanation: str = ""


@dataclass(frozen=True)
class ToolCount:
    """What one tool says of the dense twin. ``macs`` in MACs, converted from the tool's own unit."""

    tool: str
    version: str
    policy: str
    """What one of its units is, what it counts and what it leaves out."""
    macs: int | None
    """None when the tool failed; ``reason`` says why."""
    disagreements: tuple[Disagreement, ...] = ()
    ignored: Mapping[str, int] | None = None
    """Operators that the tool reports and that are not MACs (batch norm, ...), left out of the comparison."""
    reason: str = ""

    @property
    def state(self) -> Literal["agrees", "disagrees", "unavailable"]:
        if self.macs is None:
            return "unavailable"
        return "disagrees" if any(not item.explanation for item in self.disagreements) else "agrees"


@dataclass(frozen=True)
class CrossCheck:
    """The closed forms against every tool that was asked. ``macs``: our total for the dense twin."""

    macs: int
    tools: tuple[ToolCount, ...]

    @property
    def agree(self) -> bool:
        """Every tool agrees within its policy, and every tool could be asked."""
        return all(tool.state == "agrees" for tool in self.tools)


def dense_macs_by_layer(costs: CostTable) -> dict[str, int]:
    """Dense MACs under each layer's name, calls added up; layers that multiply nothing left out."""
    by_name: dict[str, int] = {}
    for layer in costs.layers:
        macs = int(layer.values["dense_macs"] or 0)
        if macs:
            by_name[layer.name] = by_name.get(layer.name, 0) + macs
    return by_name


def disagreements(
    ours: Mapping[str, int], theirs: Mapping[str, int], explained: Mapping[str, str] | None = None
) -> tuple[Disagreement, ...]:
    """The layers on which the counts differ, in our order, then theirs. ``explained``: layer -> the policy's words."""
    names = [*ours, *(name for name in theirs if name not in ours)]
    return tuple(
        Disagreement(name, ours.get(name, 0), theirs.get(name, 0), (explained or {}).get(name, ""))
        for name in names
        if ours.get(name, 0) != theirs.get(name, 0)
    )
