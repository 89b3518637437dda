"""What a described model costs: conventions, metrics, tables and baselines. Shapes and counts only, no torch."""

from lcnn_analyze.cost.baselines import TWIN, Baseline, dense_twin, named_reference, other_checkpoint
from lcnn_analyze.cost.conventions import CONVENTIONS, Convention, find_convention
from lcnn_analyze.cost.metrics import METRICS, Metric
from lcnn_analyze.cost.table import CostTable, LayerCost, Status, cost_table

__all__ = [
    "CONVENTIONS",
    "METRICS",
    "TWIN",
    "Baseline",
    "Convention",
    "CostTable",
    "LayerCost",
    "Metric",
    "Status",
    "cost_table",
    "dense_twin",
    "find_convention",
    "named_reference",
    "other_checkpoint",
]
