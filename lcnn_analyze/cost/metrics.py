"""Every figure of a cost table: one function and one line in ``METRICS`` each; every renderer shows them all.

An additive metric maps one layer to a whole number (None: does not apply, or is not known) and is summed over
layers. A ratio is computed from the additive values of a row, and for the total from the totals.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from lcnn_core import LayerCount, LayerSpec

Number = int | float
Values = Mapping[str, Number | None]


@dataclass(frozen=True)
class Metric:
    """One column. ``unit`` belongs to the stored values: MACs, reads, values, fraction or ratio.

    additive: value of one layer; ratio: value of a row from its additive values and the model's totals.
    Exactly one of the two is given. ``rank`` orders columns where there is little room: 1 is always shown.
    ``counts_operations``: an operation without a formula makes the figure partial.
    ``needs_weights``: without weights, every entry of P counts as nonzero and the figure is an upper bound.
    """

    name: str
    title: str
    unit: str
    doc: str
    additive: Callable[[LayerSpec, LayerCount], int | None] | None = None
    ratio: Callable[[Values, Values], float | None] | None = None
    rank: int = 2
    counts_operations: bool = False
    needs_weights: bool = False


def _dense(layer: LayerSpec, count: LayerCount) -> int | None:
    return count.dense


def _dictionary(layer: LayerSpec, count: LayerCount) -> int | None:
    return count.dictionary if layer.lookup else None


def _lookup_reads(layer: LayerSpec, count: LayerCount) -> int | None:
    return count.lookups if layer.lookup else None


def _plain(layer: LayerSpec, count: LayerCount) -> int | None:
    return None if layer.lookup else count.plain


def _total(layer: LayerSpec, count: LayerCount) -> int | None:
    return count.total


def _on_zeros(layer: LayerSpec, count: LayerCount) -> int | None:
    return None if layer.lookup or layer.weight_nnz is None else count.skipped


def _coefficients(layer: LayerSpec, count: LayerCount) -> int | None:
    return layer.lookup.coefficients_size if layer.lookup else None


def _coefficients_nnz(layer: LayerSpec, count: LayerCount) -> int | None:
    return layer.lookup.coefficients_nnz if layer.lookup else None


def _parameters(layer: LayerSpec, count: LayerCount) -> int | None:
    return layer.parameters


def _dense_parameters(layer: LayerSpec, count: LayerCount) -> int | None:
    return layer.weight_size + layer.bias_size if layer.lookup and not layer.call else layer.parameters


def _storage(layer: LayerSpec, count: LayerCount) -> int | None:
    if layer.lookup is None or layer.call:
        return layer.parameters
    return layer.lookup.dictionary_nnz + layer.lookup.coefficients_nnz + layer.bias_size


def _quotient(numerator: Number | None, denominator: Number | None) -> float | None:
    return numerator / denominator if numerator is not None and denominator else None


def _density(row: Values, totals: Values) -> float | None:
    return _quotient(row["coefficients_nnz"], row["coefficients"])


def _speedup(row: Values, totals: Values) -> float | None:
    return _quotient(row["dense_macs"], row["macs"]) if row["dense_macs"] else None


def _share(row: Values, totals: Values) -> float | None:
    return _quotient(row["macs"], totals["macs"])


_MACS = {"counts_operations": True}
_SPARSE = {"counts_operations": True, "needs_weights": True}
_LISTED = (
    Metric("dense_macs", "dense twin", "MACs", "what the dense twin multiplies", _dense, rank=1, **_MACS),
    Metric("dictionary_macs", "dictionary", "MACs", "responses of the dictionary D", _dictionary, rank=1, **_MACS),
    Metric("lookups", "lookups", "reads", "reads of the responses, one per nonzero of P and output position",
           _lookup_reads, rank=3, **_SPARSE),
    Metric("lookup_macs", "lookups", "MACs", "multiplications of the lookups: one each", _lookup_reads, rank=1,
           **_SPARSE),
    Metric("plain_macs", "left dense", "MACs", "layers without lookups, zeros not skipped", _plain, rank=3, **_MACS),
    Metric("macs", "total", "MACs", "dictionary + lookups + left dense", _total, rank=1, **_SPARSE),
    Metric("speedup", "counted speedup", "ratio", "dense twin's MACs / total MACs", ratio=_speedup, rank=1, **_SPARSE),
    Metric("share", "share", "fraction", "part of the model's total MACs", ratio=_share, rank=1, **_SPARSE),
    Metric("zero_macs", "on zeros", "MACs", "of the layers left dense: MACs with a weight that is zero, skippable by "
           "a sparse engine; not subtracted from the total", _on_zeros, rank=3, **_MACS),
    Metric("coefficients", "P", "values", "entries of P, n * k * kh * kw", _coefficients, rank=3),
    Metric("coefficients_nnz", "nnz(P)", "values", "entries of P above the threshold", _coefficients_nnz, rank=2,
           needs_weights=True),
    Metric("density", "density of P", "fraction", "nnz(P) / entries of P", ratio=_density, rank=1, needs_weights=True),
    Metric("parameters", "parameters", "values", "held by the model, D and P in full", _parameters, rank=3),
    Metric("dense_parameters", "dense twin's", "values", "parameters of the dense twin", _dense_parameters, rank=3),
    Metric("storage", "storage", "values", "nnz(D) + nnz(P) + bias, indices not counted, an identity dictionary not "
           "stored; other layers: their parameters", _storage, rank=2, needs_weights=True),
)  # fmt: skip

METRICS: dict[str, Metric] = {metric.name: metric for metric in _LISTED}
