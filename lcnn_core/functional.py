"""The paper's equations as pure functions: the reference that everything else is tested against.

Symbols (Bagherinezhad, Rastegari, Farhadi, CVPR 2017, section 3): X input, D dictionary, S response, P coefficients,
(I, C) lookups, eps threshold. With ``groups`` > 1 every group has a dictionary of its own: D stacks them, so its
shape is (groups * k, m / groups), and P is (n, k, *kernel), filter f using the dictionary of its own group.
Functions over space work in one, two and three dimensions; the number is read off P.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from lcnn_core.errors import ShapeError

_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}

Size = int | Sequence[int]


@dataclass(frozen=True)
class Lookups:
    """The inference form of P: (I, C), the nonzeros of every output filter, lossless.

    indices: int64 (nnz,), each a flat index into (k, *kernel): which dictionary row, at which kernel position.
    values: (nnz,), the coefficient of each lookup, in the dtype of P.
    offsets: int64 (n + 1,); filter f owns entries offsets[f] to offsets[f + 1].
    shape: the shape (n, k, *kernel) of P.
    """

    indices: Tensor
    values: Tensor
    offsets: Tensor
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.indices.shape != self.values.shape or self.indices.ndim != 1:
            raise ShapeError(
                f"indices {tuple(self.indices.shape)} and values {tuple(self.values.shape)} must have equal shape (nnz,)"
            )
        if self.offsets.shape != (self.shape[0] + 1,):
            raise ShapeError(
                f"offsets {tuple(self.offsets.shape)} must have shape {(self.shape[0] + 1,)}: one more than the filters"
            )
        steps = self.offsets.diff()
        if int(self.offsets[0]) != 0 or int(self.offsets[-1]) != len(self.indices) or bool((steps < 0).any()):
            raise ShapeError(f"offsets must rise from 0 to {len(self.indices)}, the number of lookups")
        filter_size = math.prod(self.shape[1:])
        if len(self.indices) and not (int(self.indices.min()) >= 0 and int(self.indices.max()) < filter_size):
            raise ShapeError(
                f"indices reach from {int(self.indices.min())} to {int(self.indices.max())}; "
                f"expected 0 to {filter_size - 1} for a filter of shape {self.shape[1:]}"
            )


def default_threshold(dictionary_size: int, kernel_size: Sequence[int], scale: float = 0.01) -> float:
    """Published threshold: eps = c / sqrt(kh * kw * k) (section 3.2), c = ``scale``."""
    return scale / math.sqrt(math.prod(kernel_size) * dictionary_size)


def hard_threshold(coefficients: Tensor, threshold: float) -> Tensor:
    """P with entries of magnitude at or below eps replaced by zero; gradients are zero there too.

    Shape and dtype of ``coefficients`` are kept and it is not modified. NaN entries stay NaN. Source: section 3.2.
    """
    return coefficients.masked_fill(coefficients.detach().abs() <= threshold, 0)


def keep_largest(coefficients: Tensor, lookups_per_position: int) -> Tensor:
    """P with only the s largest magnitudes kept at each (filter, row, column); ties go to the lower dictionary row.

    coefficients: (n, k, *kernel). Returns the same shape; with s >= k nothing changes. Source: section 3.2, the
    alternative that the authors name.
    """
    if lookups_per_position < 1:
        raise ShapeError(f"lookups_per_position is {lookups_per_position}; expected 1 or more")
    k = coefficients.shape[1]
    if lookups_per_position >= k:
        return coefficients.clone()
    order = coefficients.detach().abs().argsort(dim=1, descending=True, stable=True)
    return coefficients.scatter(1, order[:, lookups_per_position:], 0)


def l1_term(coefficients: Tensor, threshold: float, l1_weight: float) -> Tensor:
    """lambda * sum |P| over the entries above eps: a scalar whose gradient is lambda * sign(P) there, 0 elsewhere."""
    return l1_weight * hard_threshold(coefficients, threshold).abs().sum()


def dictionary_response(x: Tensor, dictionary: Tensor, groups: int = 1) -> Tensor:
    """S = X convolved 1x1 with D, no bias (equation 1).

    x: (b, m, *space); dictionary: (groups * k, m / groups). Returns (b, groups * k, *space).
    Cost: groups * k * (m / groups) MACs per position. Raises ShapeError when m does not fit.
    """
    rows, width = dictionary.shape
    if x.shape[1] != width * groups:
        raise ShapeError(
            f"input {tuple(x.shape)} has {x.shape[1]} channels, but dictionary {tuple(dictionary.shape)} "
            f"with groups={groups} expects {width * groups}"
        )
    spatial = x.ndim - 2
    return _CONV[spatial](x, dictionary.reshape(rows, width, *(1,) * spatial), groups=groups)


def lookup_conv(
    x: Tensor,
    dictionary: Tensor | None,
    coefficients: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: Size | str = 0,
    dilation: Size = 1,
    groups: int = 1,
) -> Tensor:
    """Y = conv(S, P, stride, dilation) + b with S the response of D on the zero-padded input (equations 1 and 2).

    x: (b, m, *space); dictionary: (groups * k, m / groups), or None for the identity (S = X);
    coefficients: (n, k, *kernel); bias: (n,). Returns (b, n, *out). D has no bias, so S is padded instead of X.
    Cost (published): nnz(D) * padded positions + nnz(P) * output positions, in MACs.
    """
    response = x if dictionary is None else dictionary_response(x, dictionary, groups)
    _check_coefficients(response, coefficients, groups)
    return _CONV[coefficients.ndim - 2](response, coefficients, bias, stride, padding, dilation, groups)


def lookup_linear(x: Tensor, dictionary: Tensor | None, coefficients: Tensor, bias: Tensor | None = None) -> Tensor:
    """Y = (X Dt) Pt + b: the lookup convolution without space. x: (*, m), D: (k, m), P: (n, k). Returns (*, n)."""
    response = x if dictionary is None else F.linear(x, dictionary)
    return F.linear(response, coefficients, bias)


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

    Arguments as in :func:`lookup_conv`; numeric padding only. One multiplication per lookup and output position.
    Written for clarity and exactness, not for speed.
    """
    n, k, *kernel = lookups.shape
    space = len(kernel)
    step, pad, dil = (_expand(value, space) for value in (stride, padding, dilation))
    response = x if dictionary is None else dictionary_response(x, dictionary, groups)
    response = F.pad(response, [p for size in reversed(pad) for p in (size, size)])
    out = [
        (size - d * (extent - 1) - 1) // s + 1
        for size, d, extent, s in zip(response.shape[2:], dil, kernel, step, strict=True)
    ]
    y = x.new_zeros(x.shape[0], n, *out)
    filters = torch.repeat_interleave(torch.arange(n, device=x.device), lookups.offsets.diff())
    where = torch.unravel_index(lookups.indices, (k, *kernel))
    rows = where[0] + filters // (n // groups) * k
    positions = torch.stack(where[1:], dim=1) if space else lookups.indices.new_zeros(len(rows), 0)
    for position in torch.unique(positions, dim=0).tolist():
        here = (positions == positions.new_tensor(position)).all(dim=1)
        window = tuple(
            slice(at * d, at * d + (size - 1) * s + 1, s)
            for at, d, size, s in zip(position, dil, out, step, strict=True)
        )
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
    n = lookups.shape[0]
    flat = lookups.values.new_zeros(n, math.prod(lookups.shape[1:]))
    filters = torch.repeat_interleave(torch.arange(n, device=flat.device), lookups.offsets.diff())
    flat[filters, lookups.indices] = lookups.values
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


def _check_coefficients(response: Tensor, coefficients: Tensor, groups: int) -> None:
    if response.shape[1] != coefficients.shape[1] * groups:
        raise ShapeError(
            f"response with {response.shape[1]} channels and coefficients {tuple(coefficients.shape)} with "
            f"groups={groups} do not fit: expected {coefficients.shape[1] * groups} channels"
        )


def _expand(value: Size, space: int) -> tuple[int, ...]:
    return (value,) * space if isinstance(value, int) else tuple(value)
