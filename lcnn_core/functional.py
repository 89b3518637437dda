"""The paper's equations as pure functions: the reference that everything else is tested against.

Symbols (Bagherinezhad, Rastegari, Farhadi, CVPR 2017, section 3): X input, D dictionary, S response, P coefficients,
(I, C) lookups, eps threshold. With ``groups`` > 1 every group has a dictionary of its own: D stacks them, so its
shape is (groups * k, m / groups), and P is (n, k, *kernel), filter f using the dictionary of its own group.
Functions over space work in one, two and three dimensions; the number is read off P. "Cost" is in MACs (one
multiplication-and-addition) per image, counted as published.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lcnn_core.chunked import MagnitudeSum, ThresholdedLinear, is_large
from lcnn_core.errors import ConfigError, ShapeError
from lcnn_core.spec import default_threshold

__all__ = [
    "Lookups",
    "default_threshold",
    "dense_filter",
    "dictionary_response",
    "from_lookups",
    "hard_threshold",
    "keep_largest",
    "l1_term",
    "lookup_conv",
    "lookup_conv_from_lookups",
    "lookup_linear",
    "thresholded_linear",
    "to_lookups",
]

_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}

Size = int | Sequence[int]


@dataclass(frozen=True, eq=False)
class Lookups:
    """The inference form of P: (I, C), the nonzeros of every output filter, lossless.

    indices: int64 (nnz,), each a flat index into (k, *kernel): which dictionary row, at which kernel position;
        strictly rising within a filter, so that a filter looks up each place once.
    values: (nnz,), the coefficient of each lookup, in the dtype of P.
    offsets: int64 (n + 1,); filter f owns entries offsets[f] to offsets[f + 1].
    shape: the shape (n, k, *kernel) of P.
    Raises ShapeError where these do not fit together. Compare two by their tensors.
    """

    indices: Tensor
    values: Tensor
    offsets: Tensor
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        n, filter_size = self.shape[0], math.prod(self.shape[1:])
        if self.indices.shape != self.values.shape or self.indices.ndim != 1:
            raise ShapeError(
                f"indices {tuple(self.indices.shape)} and values {tuple(self.values.shape)} must have one shape (nnz,)"
            )
        if self.offsets.shape != (n + 1,):
            raise ShapeError(
                f"offsets {tuple(self.offsets.shape)} must have shape {(n + 1,)}: one more than the filters"
            )
        ends = self.offsets[[0, -1]].tolist()
        if ends != [0, len(self.indices)] or bool((self.offsets.diff() < 0).any()):
            raise ShapeError(f"offsets must rise from 0 to {len(self.indices)}, the number of lookups")
        if not len(self.indices):
            return
        low, high = int(self.indices.min()), int(self.indices.max())
        if low < 0 or high >= filter_size:
            raise ShapeError(
                f"indices reach from {low} to {high}; expected 0 to {filter_size - 1} "
                f"for a filter of shape {tuple(self.shape[1:])}"
            )
        if bool(((self.filters * filter_size + self.indices).diff() <= 0).any()):
            raise ShapeError("indices must rise within each filter: every place is looked up once, in order")

    @property
    def filters(self) -> Tensor:
        """int64 (nnz,): the filter that owns each lookup."""
        return torch.repeat_interleave(self.offsets.diff())


def hard_threshold(coefficients: Tensor, threshold: float) -> Tensor:
    """P with entries of magnitude at or below eps replaced by zero; gradients are zero there too.

    Shape and dtype of ``coefficients`` are kept and it is not modified; eps is rounded to that dtype before it is
    compared. NaN entries stay NaN, so that a diverged training is seen and not silently pruned. Source: section 3.2.
    """
    return F.hardshrink(coefficients, threshold)


def keep_largest(coefficients: Tensor, lookups_per_position: int) -> Tensor:
    """P with only the s largest magnitudes kept at each (filter, row, column); ties go to the lower dictionary row.

    coefficients: (n, k, *kernel). Returns the same shape; with s >= k nothing changes. NaN counts as the largest.
    Raises ConfigError when s is below 1. Source: section 3.2, the alternative that the authors name.
    """
    if lookups_per_position < 1:
        raise ConfigError(f"lookups_per_position is {lookups_per_position}; expected 1 or more")
    k = coefficients.shape[1]
    if lookups_per_position >= k:
        return coefficients.clone()
    order = coefficients.detach().abs().argsort(dim=1, descending=True, stable=True)
    return coefficients.scatter(1, order[:, lookups_per_position:], 0)


def l1_term(coefficients: Tensor, threshold: float, l1_weight: float) -> Tensor:
    """lambda * sum |P| over the entries above eps: a scalar whose gradient is lambda * sign(P) there, 0 elsewhere."""
    return l1_weight * MagnitudeSum.apply(coefficients, threshold)


def dictionary_response(x: Tensor, dictionary: Tensor, groups: int = 1) -> Tensor:
    """S = X convolved 1x1 with D, no bias (equation 1).

    x: (b, m, *space), space of up to three dimensions; dictionary: (groups * k, m / groups).
    Returns (b, groups * k, *space). Cost: nnz(D) per position. Raises ShapeError when they do not fit.
    """
    rows, width = dictionary.shape
    if x.ndim < 2 or x.shape[1] != width * groups or rows % groups:
        raise ShapeError(
            f"input {tuple(x.shape)} and dictionary {tuple(dictionary.shape)} with groups={groups} do not fit: "
            f"expected an input (b, {width * groups}, ...) and rows divisible by {groups}"
        )
    if x.ndim == 2:
        return dictionary_response(x.unsqueeze(2), dictionary, groups).squeeze(2)
    space = x.ndim - 2
    return _CONV[space](x, dictionary.reshape(rows, width, *(1,) * space), groups=groups)


def lookup_conv(
    x: Tensor,
    dictionary: Tensor | None,
    coefficients: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: Size | str = 0,
    dilation: Size = 1,
    groups: int = 1,
    threshold: float | None = None,
) -> Tensor:
    """Y = conv(S, P, stride, dilation) + b with S the response of D on the zero-padded input (equations 1 and 2).

    x: (b, m, *space); dictionary: (groups * k, m / groups), or None for the identity (S = X);
    coefficients: (n, k, *kernel), of which entries of magnitude at or below ``threshold``, where one is given, count
    as zero; bias: (n,); padding: numbers, "same" or "valid", as in ``F.conv2d``. Returns (b, n, *out). D has no bias,
    so S is padded instead of X. Raises ShapeError when shapes do not fit.
    Cost: nnz(D) * padded positions + nnz(P) * output positions.
    """
    response = _checked_response(x, dictionary, coefficients.shape, groups)
    if (
        groups == 1
        and response.shape[2:] == coefficients.shape[2:]
        and _is_plain(padding, 0)
        and _is_plain(dilation, 1)
    ):
        # One output position: a matrix product, several times faster than the same convolution, backwards above all.
        y = thresholded_linear(response.flatten(1), coefficients.flatten(1), bias, threshold)
        return y.reshape(*y.shape, *(1,) * (coefficients.ndim - 2))
    if threshold is not None:
        coefficients = hard_threshold(coefficients, threshold)
    return _CONV[coefficients.ndim - 2](response, coefficients, bias, stride, padding, dilation, groups)


def lookup_linear(
    x: Tensor,
    dictionary: Tensor | None,
    coefficients: Tensor,
    bias: Tensor | None = None,
    threshold: float | None = None,
) -> Tensor:
    """Y = (X Dt) Pt + b: the lookup convolution without space.

    x: (*, m); dictionary: (k, m), or None for the identity (k = m); coefficients: (n, k); bias: (n,); threshold: as in
    :func:`lookup_conv`. Returns (*, n). Cost: (nnz(D) + nnz(P)) * positions.
    """
    response = x if dictionary is None else F.linear(x, dictionary)
    return thresholded_linear(response, coefficients, bias, threshold)


def thresholded_linear(
    x: Tensor, coefficients: Tensor, bias: Tensor | None = None, threshold: float | None = None
) -> Tensor:
    """``F.linear`` with the entries of ``coefficients`` of magnitude at or below ``threshold`` taken as zero.

    x: (*, m); coefficients: (n, m); bias: (n,). Returns (*, n). A large P (32 MiB and
    more, on the processor) is not copied; it has first derivatives only, and none of torch.func's transforms but grad.
    """
    if threshold is None:
        return F.linear(x, coefficients, bias)
    if not is_large(coefficients):
        return F.linear(x, hard_threshold(coefficients, threshold), bias)
    y = ThresholdedLinear.apply(x.reshape(-1, x.shape[-1]), coefficients, threshold)
    y = y.reshape(*x.shape[:-1], len(coefficients))
    return y if bias is None else y + bias


def lookup_conv_from_lookups(
    x: Tensor,
    dictionary: Tensor | None,
    lookups: Lookups,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: Size = 0,
    dilation: Size = 1,
    groups: int = 1,
) -> Tensor:
    """The same Y from (D, I, C): every lookup reads one shifted channel of S and adds it, scaled (equation 3).

    Arguments as in :func:`lookup_conv`, with numeric padding only; x (b, m) and P (n, k) make a linear layer.
    Cost: nnz(D) * padded positions + one multiplication per lookup and output position. Written for clarity and
    exactness, not for speed. Raises ShapeError when shapes do not fit.
    """
    n, k, *kernel = lookups.shape
    space = len(kernel)
    step, pad, dil = (_expand(value, space) for value in (stride, padding, dilation))
    response = _checked_response(x, dictionary, lookups.shape, groups)
    response = F.pad(response, [p for size in reversed(pad) for p in (size, size)])
    spans = [d * (extent - 1) + 1 for d, extent in zip(dil, kernel, strict=True)]
    out = [(size - span) // s + 1 for size, span, s in zip(response.shape[2:], spans, step, strict=True)]
    if any(size < 1 for size in out):
        raise ShapeError(f"padded input {tuple(response.shape[2:])} is smaller than the dilated kernel {tuple(spans)}")
    y = response.new_zeros(len(x), n, *out)
    filters, area = lookups.filters, math.prod(kernel)
    rows, places = lookups.indices // area + filters // (n // groups) * k, lookups.indices % area
    for place, corner in enumerate(product(*(range(0, span, d) for span, d in zip(spans, dil, strict=True)))):
        here = places == place
        window: list[Any] = [slice(at, at + (o - 1) * s + 1, s) for at, o, s in zip(corner, out, step, strict=True)]
        shifted = response[(slice(None), rows[here], *window)]
        y.index_add_(1, filters[here], shifted * lookups.values[here].reshape(-1, *(1,) * space))
    return y if bias is None else y + bias.reshape(-1, *(1,) * space)


def to_lookups(coefficients: Tensor, threshold: float = 0.0) -> Lookups:
    """P (n, k, *kernel) -> (I, C): the entries of magnitude above eps, filter by filter, in index order."""
    flat = hard_threshold(coefficients.detach(), threshold).flatten(1)
    filters, indices = flat.nonzero(as_tuple=True)
    counts = torch.bincount(filters, minlength=flat.shape[0])
    offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    return Lookups(indices, flat[filters, indices], offsets, tuple(coefficients.shape))


def from_lookups(lookups: Lookups) -> Tensor:
    """(I, C) -> P, the inverse of :func:`to_lookups`: zeros everywhere but at the lookups."""
    flat = lookups.values.new_zeros(lookups.shape[0], math.prod(lookups.shape[1:]))
    flat[lookups.filters, lookups.indices] = lookups.values
    return flat.reshape(lookups.shape)


def dense_filter(dictionary: Tensor | None, coefficients: Tensor, groups: int = 1) -> Tensor:
    """The dense filter that a layer stands for: W = einsum('nkyx,km->nmyx', P, D), group by group.

    dictionary: (groups * k, m / groups) or None for the identity; coefficients: (n, k, *kernel).
    Returns (n, m / groups, *kernel), differentiable in both. Cost: n * k * (m / groups) * kh * kw MACs.
    """
    if dictionary is None:
        return coefficients
    n, k, *kernel = coefficients.shape
    rows, width = dictionary.shape
    if rows != groups * k or n % groups:
        raise ShapeError(
            f"dictionary {tuple(dictionary.shape)} and coefficients {tuple(coefficients.shape)} "
            f"do not fit groups={groups}: expected {groups * k} dictionary rows and filters divisible by {groups}"
        )
    per_group = coefficients.reshape(groups, n // groups, k, -1)
    dense = torch.einsum("gnkp,gkm->gnmp", per_group, dictionary.reshape(groups, k, width))
    return dense.reshape(n, width, *kernel)


def _checked_response(x: Tensor, dictionary: Tensor | None, shape: Sequence[int], groups: int) -> Tensor:
    """S for coefficients of this shape, or ShapeError."""
    if x.ndim != len(shape):
        raise ShapeError(
            f"input {tuple(x.shape)} and coefficients {tuple(shape)} do not fit: expected {len(shape)} dimensions, "
            "the batch among them"
        )
    response = x if dictionary is None else dictionary_response(x, dictionary, groups)
    if response.shape[1] != shape[1] * groups or shape[0] % groups:
        raise ShapeError(
            f"response with {response.shape[1]} channels and coefficients {tuple(shape)} with groups={groups} "
            f"do not fit: expected {shape[1] * groups} channels and filters divisible by {groups}"
        )
    return response


def _is_plain(value: Size | str, plain: int) -> bool:
    return value == "valid" or (not isinstance(value, str) and set(_expand(value, 1)) == {plain})


def _expand(value: Size, space: int) -> tuple[int, ...]:
    return (value,) * space if isinstance(value, int) else tuple(value)
