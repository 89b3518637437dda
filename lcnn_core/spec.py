"""Frozen descriptions of layers and models: shapes and counts, no tensors. Standard library only."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lcnn_core.errors import ConfigError


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
        for name in ("threshold", "threshold_scale", "l1_weight", "l1_scale"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise ConfigError(f"{name} is {value}; expected a finite number of 0 or more")
        if self.lookups_per_position is not None and self.lookups_per_position < 1:
            raise ConfigError(f"lookups_per_position is {self.lookups_per_position}; expected 1 or more, or None")

    def resolve(self, dictionary_size: int, kernel_size: tuple[int, ...]) -> tuple[float, float]:
        """Return (eps, lambda) for a layer with ``dictionary_size`` rows and this kernel."""
        threshold = self.threshold
        if threshold is None:
            threshold = self.threshold_scale / math.sqrt(math.prod(kernel_size) * dictionary_size)
        l1_weight = self.l1_scale * threshold if self.l1_weight is None else self.l1_weight
        return threshold, l1_weight


def check_dictionary_size(value: int | None) -> None:
    """Raise :class:`ConfigError` unless ``value`` is a positive integer or None (the identity dictionary)."""
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigError(f"dictionary_size is {value!r}; expected a whole number of 1 or more")
    if value < 1:
        raise ConfigError(f"dictionary_size is {value}; expected 1 or more (None for the identity dictionary)")


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
    """nnz(P): entries with magnitude above the threshold."""
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
