"""What every layer kind costs: pure formulas, shapes and nonzeros in, whole numbers out.

Units: one multiplication-and-addition is 1 MAC; 1 MAC is 2 FLOPs. Everything is for one image. ``FORMULAS`` is the
visible list of what is counted; the counts here follow the ``published`` convention (dictionary at the resolution
of the padded input, bias, normalisation, activation and pooling free).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from lcnn_core.errors import UnsupportedLayerError
from lcnn_core.spec import LayerSpec


@dataclass(frozen=True)
class LayerCount:
    """MACs of one layer on one image: ``dense`` of its dense twin, and what it multiplies itself."""

    dense: int
    dictionary: int = 0
    lookups: int = 0
    """Reads of S, one MAC each."""
    plain: int = 0
    """MACs of a layer without lookups, zeros not skipped."""
    skipped: int = 0
    """Of ``plain``, MACs with a weight that is zero: what a sparse engine could skip."""

    @property
    def total(self) -> int:
        return self.dictionary + self.lookups + self.plain


def conv_macs(
    output_positions: int, out_channels: int, in_channels: int, kernel_size: tuple[int, ...], groups: int = 1
) -> int:
    """Dense convolution: positions * n * (m / groups) * kh * kw."""
    return output_positions * out_channels * (in_channels // groups) * math.prod(kernel_size)


def linear_macs(positions: int, out_features: int, in_features: int) -> int:
    """Dense linear layer: positions * n * m."""
    return positions * out_features * in_features


def matmul_macs(batch: int, a: int, b: int, c: int) -> int:
    """(a, b) x (b, c), ``batch`` times: batch * a * b * c."""
    return batch * a * b * c


def dictionary_macs(dictionary_nnz: int, positions: int) -> int:
    """S = conv1x1(X, D): nnz(D) at every position; (h + 2p) * (w + 2p) positions under ``published``."""
    return dictionary_nnz * positions


def lookup_macs(coefficients_nnz: int, output_positions: int) -> int:
    """Lookups: nnz(P) reads of S at every output position, one multiplication each."""
    return coefficients_nnz * output_positions


def padded_positions(layer: LayerSpec) -> int:
    """(h + 2p) * (w + 2p), of all ``repeats``: the positions at which ``published`` counts the dictionary."""
    if not layer.kernel_size:
        return output_positions(layer)
    sizes = zip(layer.input_shape[1:], layer.padding, strict=True)
    return layer.repeats * math.prod(size + pad for size, pad in sizes)


def output_positions(layer: LayerSpec) -> int:
    """Positions at which every filter is applied: oh * ow, or a linear layer's input rows, of all ``repeats``."""
    return layer.repeats * math.prod(layer.output_shape[1:] if layer.kernel_size else layer.output_shape[:-1])


def _weighted(layer: LayerSpec) -> LayerCount:
    """Every weight once per position; of a lookup layer, every nonzero of D and P once per position of its own."""
    # A transposed convolution applies its kernel at every input position.
    inputs = layer.repeats * math.prod(layer.input_shape[1:])
    positions = inputs if layer.transposed else output_positions(layer)
    dense = layer.weight_size * positions
    if layer.lookup is None:
        nnz = layer.weight_size if layer.weight_nnz is None else layer.weight_nnz
        return LayerCount(dense, plain=dense, skipped=(layer.weight_size - nnz) * positions)
    return LayerCount(
        dense,
        dictionary=dictionary_macs(layer.lookup.dictionary_nnz, padded_positions(layer)),
        lookups=lookup_macs(layer.lookup.coefficients_nnz, positions),
    )


def _matmul(layer: LayerSpec) -> LayerCount:
    """A product of two matrices, neither of them a weight."""
    if layer.matmul is None:
        raise UnsupportedLayerError(f"matmul {layer.name!r} has no sizes; expected matmul=(batch, a, b, c)")
    macs = matmul_macs(*layer.matmul)
    return LayerCount(macs, plain=macs)


def _free(layer: LayerSpec) -> LayerCount:
    """Nothing, by convention."""
    return LayerCount(0)


FORMULAS: dict[str, Callable[[LayerSpec], LayerCount]] = {
    "conv": _weighted,
    "lookup_conv": _weighted,
    "linear": _weighted,
    "lookup_linear": _weighted,
    "matmul": _matmul,
    "norm": _free,
    "activation": _free,
    "pool": _free,
    "embedding": _free,
}


def count_layer(layer: LayerSpec) -> LayerCount:
    """MACs of one layer under ``published``. Raises UnsupportedLayerError for a kind without a formula."""
    try:
        formula = FORMULAS[layer.kind]
    except KeyError:
        raise UnsupportedLayerError(
            f"layer {layer.name!r} is of kind {layer.kind!r}; expected one of {', '.join(FORMULAS)}"
        ) from None
    return formula(layer)


def total_macs(layers: Iterable[LayerSpec]) -> int:
    """MACs of all the layers on one image, ``published`` convention."""
    return sum(count_layer(layer).total for layer in layers)


def counted_speedup(layers: Iterable[LayerSpec], dense: int | None = None) -> float:
    """MACs of another network, or of the dense twin / the model's MACs under ``published``.

    Infinite for a model that multiplies nothing where the other does, 1 where neither does.
    """
    counts = [count_layer(layer) for layer in layers]
    dense = sum(count.dense for count in counts) if dense is None else dense
    total = sum(count.total for count in counts)
    if total == 0:
        return math.inf if dense else 1.0
    return dense / total
