"""The inference form of a lookup layer as registered operators: ``lcnn::lookup_conv`` and ``lcnn::lookup_linear``.

They take (D, I, C) instead of P, run wherever PyTorch runs, and know their shapes without computing (meta device,
``torch.export``). Their cost is the ``published`` count: nnz(D) at every position of the padded input, and one MAC per
lookup at every output position, times the batch. PyTorch's own flop counter knows it from the moment this module is
loaded, which every packed layer does; fvcore is told by ``FlopCountAnalysis(...).set_op_handle(**handles())``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from lcnn_core import functional
from lcnn_core.counting import dictionary_macs, lookup_macs

FLOPS_PER_MAC = 2


@torch.library.custom_op("lcnn::lookup_conv", mutates_args=())
def lookup_conv(
    x: Tensor,
    dictionary: Tensor | None,
    indices: Tensor,
    values: Tensor,
    offsets: Tensor,
    bias: Tensor | None,
    shape: Sequence[int],
    dictionary_nnz: int,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """Y = conv(S, P, stride, dilation) + b with P given as its lookups (equations 1 and 3).

    x: (b, m, *space); dictionary: (groups * k, m / groups), or None for the identity; indices, values, offsets and
    shape: the fields of ``functional.Lookups``; dictionary_nnz: nonzeros of D, for counters that see shapes only.
    Returns (b, n, *out). No gradients. Raises ShapeError where sizes do not fit or an index is outside P.
    """
    coefficients = functional.from_lookups(functional.Lookups(indices, values, offsets, tuple(shape)))
    return functional.lookup_conv(x, dictionary, coefficients, bias, stride, padding, dilation, groups)


@torch.library.custom_op("lcnn::lookup_linear", mutates_args=())
def lookup_linear(
    x: Tensor,
    dictionary: Tensor | None,
    indices: Tensor,
    values: Tensor,
    offsets: Tensor,
    bias: Tensor | None,
    shape: Sequence[int],
    dictionary_nnz: int,
) -> Tensor:
    """Y = (X Dt) Pt + b with P given as its lookups: :func:`lookup_conv` without space.

    x: (*, m); dictionary: (k, m), or None for the identity; the others as there, shape (n, k). Returns (*, n).
    """
    coefficients = functional.from_lookups(functional.Lookups(indices, values, offsets, tuple(shape)))
    return functional.lookup_linear(x, dictionary, coefficients, bias)


@lookup_conv.register_fake
def _(
    x: Tensor,
    dictionary: Tensor | None,
    indices: Tensor,
    values: Tensor,
    offsets: Tensor,
    bias: Tensor | None,
    shape: Sequence[int],
    dictionary_nnz: int,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    sizes = zip(x.shape[2:], shape[2:], stride, padding, dilation, strict=True)
    out = [(size + 2 * p - d * (kernel - 1) - 1) // s + 1 for size, kernel, s, p, d in sizes]
    return x.new_empty(x.shape[0], shape[0], *out)


@lookup_linear.register_fake
def _(
    x: Tensor,
    dictionary: Tensor | None,
    indices: Tensor,
    values: Tensor,
    offsets: Tensor,
    bias: Tensor | None,
    shape: Sequence[int],
    dictionary_nnz: int,
) -> Tensor:
    return x.new_empty(*x.shape[:-1], shape[0])


Shape = Sequence[int]


def _conv_macs(
    x: Shape,
    dictionary: Shape | None,
    indices: Shape,
    values: Shape,
    offsets: Shape,
    bias: Shape | None,
    shape: Shape,
    dictionary_nnz: int,
    stride: Shape,
    padding: Shape,
    dilation: Shape,
    groups: int,
    *,
    out: Shape,
) -> int:
    """``published`` MACs from shapes alone: the length of ``values`` is nnz(P)."""
    padded = math.prod(size + 2 * pad for size, pad in zip(x[2:], padding, strict=True))
    return x[0] * (dictionary_macs(dictionary_nnz, padded) + lookup_macs(values[0], math.prod(out[2:])))


def _linear_macs(
    x: Shape,
    dictionary: Shape | None,
    indices: Shape,
    values: Shape,
    offsets: Shape,
    bias: Shape | None,
    shape: Shape,
    dictionary_nnz: int,
    *,
    out: Shape,
) -> int:
    return math.prod(x[:-1]) * (dictionary_nnz + values[0])


_MACS: dict[str, Callable[..., int]] = {"lcnn::lookup_conv": _conv_macs, "lcnn::lookup_linear": _linear_macs}


@register_flop_formula(torch.ops.lcnn.lookup_conv)
def _conv_flops(*shapes: Any, out_shape: Shape, **_: Any) -> int:
    return FLOPS_PER_MAC * _conv_macs(*shapes, out=out_shape)


@register_flop_formula(torch.ops.lcnn.lookup_linear)
def _linear_flops(*shapes: Any, out_shape: Shape, **_: Any) -> int:
    return FLOPS_PER_MAC * _linear_macs(*shapes, out=out_shape)


def handles() -> dict[str, Callable[[list[Any], list[Any]], int]]:
    """What fvcore needs to count packed lookup layers: operator name -> handle, in its unit, which is one MAC.

    ``FlopCountAnalysis(model, x).set_op_handle(**lcnn_core.handles())``. torch's flop counter needs nothing.
    """

    def handle(macs: Callable[..., int]) -> Callable[[list[Any], list[Any]], int]:
        return lambda inputs, outputs: macs(*map(_traced, inputs), out=_traced(outputs[0]))

    return {name: handle(macs) for name, macs in _MACS.items()}


def _traced(value: Any) -> Any:
    """A value of a traced graph as a formula sees it: the shape of a tensor, a list, or a constant."""
    if value.type().kind() == "TensorType":
        return value.type().sizes()
    if value.node().kind() == "prim::ListConstruct":
        return [_traced(item) for item in value.node().inputs()]
    return value.toIValue()
