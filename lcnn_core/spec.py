"""Frozen descriptions of layers and models: shapes and counts, no tensors. Standard library only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lcnn_core.errors import ConfigError


def default_threshold(dictionary_size: int, kernel_size: Sequence[int], scale: float = 0.01) -> float:
    """Published threshold: eps = c / sqrt(kh * kw * k) (section 3.2), c = ``scale``."""
    return scale / math.sqrt(math.prod(kernel_size) * dictionary_size)


@dataclass(frozen=True)
class LookupConfig:
    """How one dense layer becomes a lookup layer.

    dictionary_size: k, the rows of D (per group); ``None`` is the identity dictionary, which makes a plain sparse
        layer: D costs nothing and is not stored.
    threshold: eps, entries of P with magnitude at or below it count as zero; ``None`` means
        ``threshold_scale / sqrt(kh * kw * k)``, as published.
    threshold_scale: c, 0.01 for AlexNet and 0.001 for ResNet in the paper (section 3.2).
    l1_weight: lambda, weight of the l1 penalty on P; ``None`` means ``l1_scale * eps``, as published.
    l1_scale: lambda', published values 0.1, 0.2 and 0.3.
    lookups_per_position: s, keep only the s largest entries at each (filter, row, column); ``None`` keeps all.
    """

    dictionary_size: int | None
    threshold: float | None = None
    threshold_scale: float = 0.01
    l1_weight: float | None = None
    l1_scale: float = 0.1
    lookups_per_position: int | None = None

    def __post_init__(self) -> None:
        check_dictionary_size(self.dictionary_size)
        _check_count("lookups_per_position", self.lookups_per_position, "all of them")
        _check_scale("threshold", self.threshold, ", or None for threshold_scale / sqrt(kh * kw * k)")
        _check_scale("l1_weight", self.l1_weight, ", or None for l1_scale * threshold")
        _check_scale("threshold_scale", self.threshold_scale)
        _check_scale("l1_scale", self.l1_scale)

    def resolve(self, dictionary_size: int, kernel_size: Sequence[int]) -> tuple[float, float]:
        """Return (eps, lambda) for a layer with ``dictionary_size`` rows per group and this kernel."""
        threshold = self.threshold
        if threshold is None:
            threshold = default_threshold(dictionary_size, kernel_size, self.threshold_scale)
        l1_weight = self.l1_scale * threshold if self.l1_weight is None else self.l1_weight
        return threshold, l1_weight


def check_dictionary_size(value: int | None) -> None:
    """Raise :class:`ConfigError` unless ``value`` is a positive integer or None (the identity dictionary)."""
    _check_count("dictionary_size", value, "the identity dictionary")


def _check_count(name: str, value: int | None, none: str) -> None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise ConfigError(f"{name} is {value!r}; expected a whole number of 1 or more, or None for {none}")


def _check_scale(name: str, value: float | None, default: str = "") -> None:
    if value is None and default:
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
        raise ConfigError(f"{name} is {value!r}; expected a finite number of 0 or more{default}")


@dataclass(frozen=True)
class LookupSpec:
    """The lookup part of one layer: sizes and nonzeros of D and P."""

    dictionary_size: int
    """k, rows of D per group."""
    dictionary_nnz: int
    """Nonzeros of D over all groups; 0 when D is the identity and not stored."""
    coefficients_size: int
    """n * k * kh * kw."""
    coefficients_nnz: int
    """nnz(P): entries in use, of magnitude above the threshold and, where s is set, among the s largest."""
    threshold: float
    l1_weight: float
    identity: bool = False


@dataclass(frozen=True)
class LayerSpec:
    """One call of one layer on one image. Shapes leave the batch out: (channels, *spatial) or (*, features)."""

    name: str
    """Dotted module path; for an operation outside any known module, the path of the module that called it."""
    kind: str
    """A key of ``lcnn_core.counting.FORMULAS``: conv, lookup_conv, linear, lookup_linear, matmul, batch_norm, ..."""
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    kernel_size: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    """Zeros added per spatial dimension, both sides together: 2p for padding p."""
    dilation: tuple[int, ...] = ()
    groups: int = 1
    transposed: bool = False
    weight_size: int = 0
    """Entries of the dense weight, the twin's for a lookup layer: n * (m / groups) * kh * kw."""
    weight_nnz: int | None = None
    """Nonzeros of a dense layer's weight; None when it has none or they are unknown (meta device)."""
    bias_size: int = 0
    parameters: int = 0
    """Parameters held by this layer; 0 from the second call on, so that sums count shared layers once."""
    repeats: int = 1
    """Batch items that a convolution sees per image: more than 1 where a model folds windows into the batch."""
    call: int = 0
    """0 for the first call of this module in a forward pass, 1 for the second, ..."""
    lookup: LookupSpec | None = None
    matmul: tuple[int, int, int, int] | None = None
    """(batch, a, b, c) of a matrix product (a, b) x (b, c) done ``batch`` times per image."""


@dataclass(frozen=True)
class Uncounted:
    """An operation that no formula covers: named, never counted as zero."""

    name: str
    operation: str
    calls: int
    reason: str


@dataclass(frozen=True)
class ModelSpec:
    """What a forward pass of one image does, layer by layer, in call order."""

    architecture: str
    input_shape: tuple[int, ...]
    """Without the batch: (channels, *spatial)."""
    layers: tuple[LayerSpec, ...]
    uncounted: tuple[Uncounted, ...] = ()
    parameters: int = 0
    """All parameters of the model, each once, also those outside the layers listed."""
    weights_known: bool = True
    """False for a model on the meta device: its nonzeros are upper bounds."""
    activation_bytes: int | None = None
    """The most bytes that the input and what is computed from it take at once, one image, as PyTorch runs the model
    in evaluation mode, parameters and work space inside an operation left out; None where nothing was run."""


@dataclass(frozen=True)
class Finding:
    """One thing wrong with one layer: ``count`` of ``of`` things, and what to change."""

    layer: str
    problem: str
    count: int
    of: int
    change: str
