"""Batches of a split in a seeded random order, optionally with small random shifts."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from lcnn_core.data import Split


def batch_count(images: int, batch_size: int) -> int:
    """Batches in an epoch. A single image left over joins the batch before it: alone it has no statistics."""
    full, rest = divmod(images, batch_size)
    return max(1, full + (rest > 1))


def batches(
    split: Split, batch_size: int, generator: torch.Generator, background: Tensor, shift: int = 0
) -> Iterator[tuple[Tensor, Tensor]]:
    """Every image once, shuffled by ``generator``; the last batch may be smaller, or larger by one.

    shift: each image moves by up to that many pixels each way, ``background`` (c,) filling what it leaves.
    """
    order = torch.randperm(len(split), generator=generator)
    count = batch_count(len(split), batch_size)
    for number in range(count):
        end = len(order) if number == count - 1 else (number + 1) * batch_size
        chosen = order[number * batch_size : end]
        images = split.images[chosen]
        if shift:
            images = shifted(images, shift, generator, background)
        yield images, split.labels[chosen]


def shifted(images: Tensor, shift: int, generator: torch.Generator, background: Tensor) -> Tensor:
    """``images`` (b, c, h, w), each moved by its own (dy, dx) in -shift..shift, filled with ``background`` (c,)."""
    b, _, h, w = images.shape
    fill = background.reshape(1, -1, 1, 1)
    padded = F.pad(images - fill, [shift] * 4)
    dy, dx = torch.randint(0, 2 * shift + 1, (2, b), generator=generator)
    rows = (dy[:, None] + torch.arange(h))[:, :, None]
    columns = (dx[:, None] + torch.arange(w))[:, None, :]
    return padded[torch.arange(b)[:, None, None], :, rows, columns].permute(0, 3, 1, 2).contiguous() + fill
