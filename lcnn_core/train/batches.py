"""Which images are in which batch, and who takes which part of it; small random shifts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lcnn_core.errors import CheckpointError, ConfigError


def batch_count(images: int, batch_size: int, pieces: int = 1) -> int:
    """Batches in a pass. What is left over joins the batch before it where a piece of it would be a single image.

    Alone, an image has no statistics.
    """
    full, rest = divmod(images, batch_size)
    return max(1, full + (rest >= 2 * pieces))


class Order:
    """The endless row of batches: pass after pass over all images, each in a new order drawn from one generator.

    ``generator`` also serves what else is drawn batch by batch (shifts), between a batch and the next.
    """

    def __init__(self, images: int, batch_size: int, pieces: int, seed: int) -> None:
        if images < pieces:
            raise ConfigError(f"{pieces} batch pieces, but {images} training images; expected one each or more")
        self.images, self.batch_size = images, batch_size
        self.per_pass = batch_count(images, batch_size, pieces)
        self.generator = torch.Generator().manual_seed(seed)
        self.passes, self.done = 0, self.per_pass
        self.start, self.order = self.generator.get_state(), torch.empty(0, dtype=torch.int64)

    def ahead(self, most: int) -> list[Tensor]:
        """Indices of the next batches: as many as this pass has left, a new one beginning where none are, or ``most``.

        Call :meth:`advance` as each is used.
        """
        if self.done == self.per_pass:
            self.passes, self.done = self.passes + 1, 0
            self._draw()
        ends = [*(number * self.batch_size for number in range(self.per_pass)), self.images]
        return [self.order[ends[n] : ends[n + 1]] for n in range(self.done, min(self.per_pass, self.done + most))]

    def advance(self) -> None:
        """The next batch is being used."""
        self.done += 1

    def _draw(self) -> None:
        self.start = self.generator.get_state()
        self.order = torch.randperm(self.images, generator=self.generator)

    def state_dict(self) -> dict[str, Any]:
        """Where the row is: plain numbers and generator states."""
        now = self.generator.get_state()
        return {"images": self.images, "passes": self.passes, "done": self.done, "start": self.start, "now": now}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where ``state`` was taken, between two batches. Raises CheckpointError for another number of images."""
        if state["images"] != self.images:
            raise CheckpointError(
                f"the state is of a run on {state['images']} training images, now there are {self.images}; "
                "resume on the data that it was trained on"
            )
        self.passes, self.done = state["passes"], state["done"]
        if self.passes:
            self.generator.set_state(state["start"])
            self._draw()
        self.generator.set_state(state["now"])


def shifted(images: Tensor, shift: int, moves: Tensor, background: Tensor) -> Tensor:
    """``images`` (b, c, h, w), each moved by its own (dy, dx), filled with ``background`` (c,).

    moves: int64 (2, b), from 0 to 2 * shift; ``shift`` means no move.
    """
    b, _, h, w = images.shape
    fill = background.reshape(1, -1, 1, 1)
    padded = F.pad(images - fill, [shift] * 4)
    dy, dx = moves
    rows = (dy[:, None] + torch.arange(h))[:, :, None]
    columns = (dx[:, None] + torch.arange(w))[:, None, :]
    return padded[torch.arange(b)[:, None, None], :, rows, columns].permute(0, 3, 1, 2).contiguous() + fill
