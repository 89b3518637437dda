"""Buffers of a native segment: their shape in memory, and where each lies so that few bytes serve many tensors."""

from __future__ import annotations

from dataclasses import dataclass, field

ALIGN = 16


def _round(n: int) -> int:
    return (n + ALIGN - 1) // ALIGN * ALIGN


@dataclass(eq=False)
class Tensor:
    """A buffer. ``stride`` is shared by linked tensors, ``above``, ``below`` zero rows, ``aside`` zero columns."""

    channels: int
    height: int
    width: int
    vector: bool
    minimum_stride: int = 1
    above: int = 0
    below: int = 0
    aside: int = 0
    batched: bool = False
    held: bool = True
    """In memory; else only its grid counts, of an image that is read as the caller gave it."""
    stride: int = 1
    plane: int = 1
    lead: int = 0
    offset: int = 0
    linked: list[Tensor] = field(default_factory=list)
    over: Tensor | None = None
    """The residual in whose memory this one lies: the step that writes this one is its last reader."""

    @property
    def floats(self) -> int:
        return self.channels if self.vector else self.lead + self.channels * self.plane

    @property
    def pixels(self) -> int:
        return self.height * self.width

    @property
    def lowest(self) -> Tensor:
        """The one whose memory this one shares, maybe itself."""
        return self if self.over is None else self.over.lowest

    def settle(self) -> None:
        """Choose plane and lead from the stride. A plane of a multiple of 4 KB would map to one cache set."""
        if self.vector:
            return
        self.lead = _round(self.above * self.stride + self.aside + 1)
        zeros = max(self.above, self.below) * self.stride + self.aside
        self.plane = _round(self.height * self.stride + max(zeros, ALIGN))
        if self.plane % 512 == 0:
            self.plane += ALIGN


def lives(used: list[list[Tensor]]) -> dict[int, tuple[int, int]]:
    """First and last step that touches each tensor, by its id; of one that lies over others, of all together."""
    found: dict[int, tuple[int, int]] = {}
    for step, tensors in enumerate(used):
        for t in tensors:
            found[id(t.lowest)] = (found.get(id(t.lowest), (step, step))[0], step)
    return found


def liveness(tensors: list[Tensor], used: list[list[Tensor]], extra: list[int]) -> int:
    """Floats that no order of buffers can avoid: the largest sum over the steps of the tensors alive, unpadded.

    used: the tensors that each step touches. extra: floats that each step needs besides.
    """
    alive = lives(used)
    sums = list(extra)
    for t in tensors:
        if not t.held or t.over is not None:
            continue
        first, last = alive[id(t)]
        for step in range(first, last + 1):
            sums[step] += t.channels * t.pixels
    return max(sums)


def place(tensors: list[Tensor], used: list[list[Tensor]]) -> tuple[int, int]:
    """Offsets by liveness: largest first, each at the lowest place free for as long as it lives.

    Returns the floats of one image's arena and batch space.
    """
    alive = lives(used)
    placed: list[Tensor] = []
    arena = batch = 0
    for t in sorted((t for t in tensors if t.held and t.over is None), key=lambda t: -t.floats):
        size = _round(t.floats)
        if t.batched:
            t.offset, batch = batch, batch + size
            continue
        first, last = alive[id(t)]
        start = 0
        for other in sorted(placed, key=lambda o: o.offset - o.lead):
            apart = alive[id(other)][1] < first or last < alive[id(other)][0]
            begin = other.offset - other.lead
            if not apart and start < begin + _round(other.floats) and begin < start + size:
                start = begin + _round(other.floats)
        t.offset = start + t.lead
        placed.append(t)
        arena = max(arena, start + size)
    for t in tensors:
        if t.over is not None:
            t.offset = t.lowest.offset
    return arena, batch
