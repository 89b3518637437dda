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
    """One column.

    unit: of the stored values: MACs, reads, values, fraction or ratio.
    rank: 1 is shown even where there is little room, 3 only where all columns are.
    depends: "operations" where an operation without a formula makes the figure partial; "weights" where, without
        weights, every entry of P counts as nonzero and the figure is an upper bound.
    additive: value of one layer; ratio: value of a row from its additive values and the model's totals. One of the
        two is given.
    """

    name: str
    title: str
    unit: str
    doc: str
    rank: int = 2
    depends: tuple[str, ...] = ()
    additive: Callable[[LayerSpec, LayerCount], int | None] | None = None
    ratio: Callable[[Values, Values], float | None] | None = None


def _dense(layer: LayerSpec, count: LayerCount) -> int | None:
    return count.dense


def _dictionary(layer: LayerSpec, count: LayerCount) -> int | None:
    return count.dictionary if layer.lookup else None


def _lookups(layer: LayerSpec, count: LayerCount) -> int | None:
    return count.lookups if layer.lookup else None


def _plain(layer: LayerSpec, count: LayerCount) -> int | None:
    return None if layer.lookup and not count.plain else count.plain


def _without_zeros(layer: LayerSpec, count: LayerCount) -> int | None:
    return count.total - count.skipped


def _total(layer: LayerSpec, count: LayerCount) -> int | None:
    return count.total


def _on_zeros(layer: LayerSpec, count: LayerCount) -> int | None:
    return None if layer.lookup or layer.weight_nnz is None else count.skipped


def _weights(layer: LayerSpec, count: LayerCount) -> int | None:
    if layer.lookup or not count.dense or not layer.weight_size:
        return None
    # A later call of a layer has the weights of the first, unless it brings its own, as the output of attention does.
    return None if layer.call and not layer.parameters else layer.weight_size


def _weights_nnz(layer: LayerSpec, count: LayerCount) -> int | None:
    return None if _weights(layer, count) is None else layer.weight_nnz


def _coefficients(layer: LayerSpec, count: LayerCount) -> int | None:
    return layer.lookup.coefficients_size if layer.lookup and not layer.call else None


def _coefficients_nnz(layer: LayerSpec, count: LayerCount) -> int | None:
    return layer.lookup.coefficients_nnz if layer.lookup and not layer.call else None


def _parameters(layer: LayerSpec, count: LayerCount) -> int | None:
    return layer.parameters


def _dense_parameters(layer: LayerSpec, count: LayerCount) -> int | None:
    return layer.weight_size + layer.bias_size if layer.lookup and not layer.call else layer.parameters


def _storage(layer: LayerSpec, count: LayerCount) -> int | None:
    if layer.lookup is None or layer.call:
        return layer.parameters
    return layer.lookup.dictionary_nnz + layer.lookup.coefficients_nnz + layer.bias_size


def _packed(layer: LayerSpec, count: LayerCount) -> int | None:
    """Sparse matrices as rows of (value, index) with the start of each row; dense where that is smaller."""
    if not layer.parameters or not count.dense:
        return 4 * layer.parameters
    filters = layer.output_shape[0] if layer.kernel_size else layer.output_shape[-1]
    if layer.lookup is None:
        weights = _matrix_bytes(filters, layer.weight_size, layer.weight_nnz)
    else:
        k, p = layer.lookup.dictionary_size * layer.groups, layer.lookup
        width = layer.input_shape[0 if layer.kernel_size else -1] // layer.groups
        weights = _matrix_bytes(filters, p.coefficients_size, p.coefficients_nnz)
        weights += 0 if p.identity else _matrix_bytes(k, k * width, p.dictionary_nnz)
    return weights + 4 * layer.bias_size


def _matrix_bytes(rows: int, size: int, nonzeros: int | None) -> int:
    return 4 * size if nonzeros is None else 4 * min(2 * nonzeros + rows + 1, size)


def _quotient(numerator: Number | None, denominator: Number | None) -> float | None:
    return numerator / denominator if numerator is not None and denominator else None


def _density(row: Values, totals: Values) -> float | None:
    return _quotient(row["coefficients_nnz"], row["coefficients"])


def _speedup(row: Values, totals: Values) -> float | None:
    return _quotient(row["dense_macs"], row["macs"]) if row["dense_macs"] else None


def _share(row: Values, totals: Values) -> float | None:
    return _quotient(row["macs"], totals["macs"])


_PACKED = "32-bit index per nonzero and start per row of D and P where that is smaller than dense"
_NOT_STORED = "no indices, no identity dictionary; other layers: their parameters"
_MACS, _SPARSE, _WEIGHTS = ("operations",), ("operations", "weights"), ("weights",)
_LISTED = (
    Metric("dense_macs", "dense twin", "MACs", "what the dense twin multiplies", 1, _MACS, _dense),
    Metric("dictionary_macs", "dictionary", "MACs", "responses of the dictionary D", 1, _MACS, _dictionary),
    Metric("lookups", "lookups", "reads", "reads of the responses: nnz(P) at each position", 3, _SPARSE, _lookups),
    Metric("lookup_macs", "lookups", "MACs", "multiplications of the lookups: one each", 1, _SPARSE, _lookups),
    Metric("plain_macs", "left dense", "MACs", "layers without lookups, zeros not skipped", 3, _MACS, _plain),
    Metric("macs", "total", "MACs", "dictionary + lookups + left dense", 1, _SPARSE, _total),
    Metric("speedup", "counted speedup", "ratio", "MACs of the dense twin / total MACs", 1, _SPARSE, ratio=_speedup),
    Metric("share", "share", "fraction", "part of the model's total MACs", 1, _SPARSE, ratio=_share),
    Metric("zero_macs", "on zeros", "MACs", "of left dense: weight is zero; not subtracted", 2, _MACS, _on_zeros),
    Metric(
        "nonzero_macs", "zeros skipped", "MACs", "total - on zeros, if zeros were skipped", 3, _SPARSE, _without_zeros
    ),
    Metric("weights", "weights", "values", "entries of the weights of layers without lookups", 3, (), _weights),
    Metric("weights_nnz", "nnz(weights)", "values", "of these weights, those that are not zero", 3, (), _weights_nnz),
    Metric("coefficients", "P", "values", "entries of P: n * k * kh * kw", 3, (), _coefficients),
    Metric("coefficients_nnz", "nnz(P)", "values", "entries of P above the threshold", 2, _WEIGHTS, _coefficients_nnz),
    Metric("density", "density of P", "fraction", "nnz(P) / entries of P", 1, _WEIGHTS, ratio=_density),
    Metric("parameters", "parameters", "values", "held by the model, D and P in full", 3, (), _parameters),
    Metric("dense_parameters", "dense parameters", "values", "held by the dense twin", 3, (), _dense_parameters),
    Metric("storage", "storage", "values", f"nnz(D) + nnz(P) + bias; {_NOT_STORED}", 2, _WEIGHTS, _storage),
    Metric("packed_bytes", "packed", "bytes", f"float32 values, {_PACKED}", 3, _WEIGHTS, _packed),
)

METRICS: dict[str, Metric] = {metric.name: metric for metric in _LISTED}
