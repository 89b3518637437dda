"""Where a native call writes what it makes: tensors of which some are made ahead."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from lcnn_core.engine.library import NativePlan, addresses

READY = 32
READY_BYTES = 1 << 17
"""At most so many results are ready, of so many bytes. After a network of megabytes has run, torch's code is in no
cache, and to make a tensor takes some 30 microseconds; those that are made right after it take one each."""


class Results:
    """Tensors for what one plan makes of a batch, and their addresses. Each is handed out once."""

    def __init__(self, shapes: Sequence[tuple[int, ...]]):
        self._shapes = list(shapes)
        self._ready: tuple[int, list[tuple[list[Tensor], Any]]] = (0, [])

    def take(self, batch: int) -> tuple[list[Tensor], Any]:
        """Float32 tensors of ``batch`` images, whatever torch makes by default, and the array of their addresses."""
        size, ready = self._ready
        if size != batch:  # more are made for the next call of this size only
            self._ready = (batch, [])
            return self._make(batch)
        try:
            return ready.pop()
        except IndexError:  # none is left, or another thread took it
            pass
        with torch.inference_mode(False):  # they may be used where that is off
            first = self._make(batch)
            count = min(READY, READY_BYTES // max(1, sum(4 * x.numel() for x in first[0])))
            self._ready = (batch, [self._make(batch) for _ in range(count - 1)])
        return first

    def _make(self, batch: int) -> tuple[list[Tensor], Any]:
        made = [torch.empty((batch, *shape), dtype=torch.float32, device="cpu") for shape in self._shapes]
        return made, addresses([x.data_ptr() for x in made])


def run_native(
    native: NativePlan, sources: Iterable[Tensor], results: Results, batch: int, threads: int
) -> list[Tensor]:
    """What a plan makes of ``batch`` images."""
    dense = [x.contiguous() for x in sources]
    made, places = results.take(batch)
    native.run(addresses([x.data_ptr() for x in dense]), places, batch, threads)
    return made
