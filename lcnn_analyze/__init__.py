"""The analyzer: what a model costs, layer by layer, in any report.

``import lcnn_analyze`` loads nothing else: every public name is fetched when it is first used (PEP 562).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

_HOMES = {
    "analysis": "analyze compare",
    "cost": "CONVENTIONS METRICS Convention CostTable LayerCost Metric Status cost_table",
    "crosscheck": "TOOLS cross_check",
    "render": "RENDERERS Renderer",
    "report": "Accuracy ModelReport Report Source",
    "spectrum": "Panel Point pareto_front published_points",
}
"""The public names by module. To add one: a word here and a line in the imports for type checkers below."""

_HOME = {name: module for module, names in _HOMES.items() for name in names.split()}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return list(__all__)


if TYPE_CHECKING:
    from lcnn_analyze.analysis import analyze as analyze
    from lcnn_analyze.analysis import compare as compare
    from lcnn_analyze.cost import CONVENTIONS as CONVENTIONS
    from lcnn_analyze.cost import METRICS as METRICS
    from lcnn_analyze.cost import Convention as Convention
    from lcnn_analyze.cost import CostTable as CostTable
    from lcnn_analyze.cost import LayerCost as LayerCost
    from lcnn_analyze.cost import Metric as Metric
    from lcnn_analyze.cost import Status as Status
    from lcnn_analyze.cost import cost_table as cost_table
    from lcnn_analyze.crosscheck import TOOLS as TOOLS
    from lcnn_analyze.crosscheck import cross_check as cross_check
    from lcnn_analyze.render import RENDERERS as RENDERERS
    from lcnn_analyze.render import Renderer as Renderer
    from lcnn_analyze.report import Accuracy as Accuracy
    from lcnn_analyze.report import ModelReport as ModelReport
    from lcnn_analyze.report import Report as Report
    from lcnn_analyze.report import Source as Source
    from lcnn_analyze.spectrum import Panel as Panel
    from lcnn_analyze.spectrum import Point as Point
    from lcnn_analyze.spectrum import pareto_front as pareto_front
    from lcnn_analyze.spectrum import published_points as published_points
