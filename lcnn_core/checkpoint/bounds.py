"""Whether what a file says of a tensor can be true: asked before anything is allocated for it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

MAX_VIEWS = 16
"""How often the bytes of a file may be seen through its tensors, on average. Tied weights are seen twice; without a
limit, a small file could claim any number of weights and keep a reader busy for ever."""


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
