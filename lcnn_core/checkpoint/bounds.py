"""Whether what a file says of a tensor can be true: asked before anything is allocated for it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from lcnn_core.errors import CheckpointError

MAX_VIEWS = 16
"""How often the bytes of a file may be seen through its tensors, on average. Tied weights are seen twice; without a
limit, a small file could claim any number of weights and keep a reader busy for ever."""


def check_names(tensors: Iterable[Tensor], source: str) -> None:
    """Raise CheckpointError where names show the same bytes over and over: each name may come to be a copy."""
    shown, held = 0, {}
    for tensor in tensors:
        shown += tensor.numel() * tensor.element_size()
        if tensor.layout == torch.strided and not tensor.is_meta:
            held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    if shown > MAX_VIEWS * sum(held.values()):
        raise CheckpointError(f"{source}: its names show the same bytes over {MAX_VIEWS} times; save it again")


def view_fits(sizes: Sequence[int], strides: Sequence[int], offset: int, room: int) -> bool:
    """Whether a strided tensor lies inside a storage of ``room`` entries and has no more entries than that.

    sizes, strides, offset: in entries, as in ``torch.as_strided``; none may be negative.
    """
    if len(sizes) != len(strides) or offset < 0 or any(number < 0 for number in (*sizes, *strides)):
        return False
    count = math.prod(sizes)
    last = offset + sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True))
    return not count or (last < room and count <= room)


def is_finite(tensor: Tensor) -> bool:
    """Whether a tensor holds neither NaN nor infinity; in one pass, without memory for a mask, unless it has 8 bits."""
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    # PyTorch has no order for numbers of 8 bits.
    low, high = torch.aminmax(tensor.float() if tensor.itemsize == 1 else tensor)
    return bool(torch.isfinite(low) and torch.isfinite(high))
