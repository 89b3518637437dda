"""The meta device at its true price: shapes only.

PyTorch's own meta kernels are written in Python and import sympy and ``torch._dynamo`` when they first run, which takes
longer than importing torch. The operations that convolutional networks are made of get their output's shape here;
whatever a rule does not cover, a wrong input among it, is left to PyTorch's kernel and its error message.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

aten = torch.ops.aten


class NothingToFill(TorchFunctionMode):
    """Initialisers leave tensors on the meta device alone: they hold no values."""

    _FILLERS = frozenset(
        (
            *(Tensor.normal_, Tensor.uniform_, Tensor.fill_, Tensor.zero_),
            *(Tensor.erfinv_, Tensor.mul_, Tensor.add_, Tensor.clamp_),  # what a truncated normal distribution is
        )
    )

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in self._FILLERS and args[0].is_meta:
            return args[0]
        return func(*args, **(kwargs or {}))


def run(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """``func(*args, **kwargs)``; on the meta device by its rule, where there is one."""
    out = shape_of(func, args, kwargs) if _is_meta(args) else None
    return func(*args, **kwargs) if out is None else out


def shape_of(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """What ``func`` would return, of the right shape and type but without values; None where no rule judges.

    The rules are those in ``RULES`` and that of element-wise operations, on any device.
    """
    if func in RULES:
        return RULES[func](*args, **kwargs)
    if torch.Tag.pointwise in func.tags or func is aten.hardswish_.default:
        return _elementwise(func._schema.name.removeprefix("aten::"), args)
    return None


def _is_meta(args: Sequence[Any]) -> bool:
    first = args[0] if args else None
    first = first[0] if isinstance(first, list | tuple) and first else first
    return isinstance(first, Tensor) and first.is_meta


def _elementwise(name: str, args: Sequence[Any]) -> Tensor | None:
    """Shapes broadcast; the type is that of the floating tensors, of which there must be one, or truth values."""
    tensors = [value for value in args if isinstance(value, Tensor)]
    types = {tensor.dtype for tensor in tensors if tensor.is_floating_point()}
    shape = _broadcast(tensors)
    if len(types) != 1 or shape is None:
        return None
    if name.endswith("_"):
        return tensors[0] if tensors[0].shape == shape else None
    return tensors[0].new_empty(shape, dtype=torch.bool if name in _COMPARISONS else types.pop())


_COMPARISONS = frozenset(("eq", "ne", "lt", "le", "gt", "ge", "isnan", "isinf", "logical_not"))


def _broadcast(tensors: Sequence[Tensor]) -> torch.Size | None:
    sizes = []
    for column in zip_longest(*(reversed(tensor.shape) for tensor in tensors), fillvalue=1):
        wider = set(column) - {1}
        if len(wider) > 1:
            return None
        sizes.append(wider.pop() if wider else 1)
    return torch.Size(reversed(sizes))


def _convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> Tensor | None:
    if transposed or x.ndim != weight.ndim or x.shape[1] != weight.shape[1] * groups or weight.shape[0] % groups:
        return None
    values = (_each(value, x.ndim - 2) for value in (stride, padding, dilation))
    sides = list(zip(x.shape[2:], weight.shape[2:], *values, strict=True))
    out = [_windows(size, kernel, s, p, d) for size, kernel, s, p, d in sides]
    return None if min(out) < 1 else x.new_empty(x.shape[0], weight.shape[0], *out)


def _max_pool(x: Tensor, kernel: Any, stride: Any = (), padding: Any = 0, dilation: Any = 1, ceil: bool = False) -> Any:
    y = _pool(x, kernel, stride, padding, ceil, True, None, dilation)
    return None if y is None else (y, y.new_empty(y.shape, dtype=torch.int64))


def _pool(
    x: Tensor,
    kernel: Any,
    stride: Any = (),
    padding: Any = 0,
    ceil: bool = False,
    counts_padding: bool = True,
    divisor: int | None = None,
    dilation: Any = 1,
) -> Tensor | None:
    """A window slides over the last two dimensions."""
    values = [_each(value, 2) for value in (kernel, stride or kernel, padding, dilation)]
    sides = list(zip(x.shape[-2:], *values, strict=True))
    if x.ndim not in (3, 4) or any(2 * p > k for _, k, _, p, _ in sides):
        return None
    out = [_windows(size, k, s, p, d, ceil) for size, k, s, p, d in sides]
    return None if min(out) < 1 else x.new_empty(*x.shape[:-2], *out)


def _each(value: Any, count: int) -> Sequence[int]:
    """One number for every dimension, or one each."""
    values = [value] if isinstance(value, int) else list(value)
    return values * count if len(values) == 1 else values


def _windows(size: int, kernel: int, stride: int, padding: int, dilation: int, ceil: bool = False) -> int:
    """Places of a window along one side; with ``ceil`` the last one may reach past the end, but starts before it."""
    free = size + 2 * padding - dilation * (kernel - 1) - 1
    places = (-(-free // stride) if ceil else free // stride) + 1
    return places - 1 if ceil and (places - 1) * stride >= size + padding else places


def _batch_norm(x: Tensor, weight: Any, bias: Any, mean: Any, var: Any, training: bool, *_: Any) -> Any:
    if training or x.ndim < 2 or mean is None or mean.shape != x.shape[1:2]:
        return None
    return x.new_empty(x.shape), x.new_empty(0), x.new_empty(0)


def _layer_norm(x: Tensor, shape: Sequence[int], *_: Any) -> Any:
    if tuple(x.shape[-len(shape) :]) != tuple(shape):
        return None
    one = x.new_empty(*x.shape[: -len(shape)], *(1,) * len(shape))
    return x.new_empty(x.shape), one, one.clone()


def _mean(x: Tensor, dims: Sequence[int] | None, keep: bool = False, **options: Any) -> Tensor | None:
    if options or not dims:
        return None
    gone = {dim % x.ndim for dim in dims}
    sizes = [1 if at in gone else size for at, size in enumerate(x.shape) if keep or at not in gone]
    return x.new_empty(sizes)


def _cat(tensors: Sequence[Tensor], dim: int = 0) -> Tensor | None:
    first = tensors[0]
    shapes = [(*t.shape[: dim % first.ndim], *t.shape[dim % first.ndim + 1 :]) for t in tensors]
    if len(set(shapes)) > 1 or len({t.dtype for t in tensors}) > 1 or any(t.ndim != first.ndim for t in tensors):
        return None
    sizes = list(first.shape)
    sizes[dim] = sum(t.shape[dim] for t in tensors)
    return first.new_empty(sizes)


def _matmul(left: Tensor, right: Tensor) -> Tensor | None:
    if left.ndim != right.ndim or left.shape[:-2] != right.shape[:-2] or left.shape[-1] != right.shape[-2]:
        return None
    return left.new_empty(*left.shape[:-1], right.shape[-1])


RULES: dict[Any, Callable[..., Any]] = {
    aten.convolution.default: _convolution,
    aten.max_pool2d_with_indices.default: _max_pool,
    aten.avg_pool2d.default: _pool,
    aten._adaptive_avg_pool2d.default: lambda x, sizes: x.new_empty(*x.shape[:-2], *sizes),
    aten.native_batch_norm.default: _batch_norm,
    aten.native_layer_norm.default: _layer_norm,
    aten._softmax.default: lambda x, dim, half: None if half else x.new_empty(x.shape),
    aten.mean.dim: _mean,
    aten.cat.default: _cat,
    aten.mm.default: _matmul,
    aten.bmm.default: _matmul,
    aten.addmm.default: lambda bias, left, right, **scales: _matmul(left, right),
}
"""Operator -> its output for these arguments, or None where PyTorch's own kernel must judge."""
