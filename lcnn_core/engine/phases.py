"""Phases: which every s-th rows and columns of its input a strided convolution reads, and where on them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lcnn_core.engine.ir import Array, Operation, Window


def _shift(position: int, step: int) -> tuple[int, int]:
    """(phase, whole steps) of a kernel position relative to the output pixel's corner."""
    return position % step, position // step


@dataclass
class Table:
    """Where each kernel entry or lookup reads: (channel, row, column) on the input's phases, relative to the output."""

    phases: list[tuple[int, int]]
    rows: Array
    columns: Array
    phase: Array


def kernel_table(
    op: Operation, phases: list[tuple[int, int]], ky: Array, kx: Array, step: tuple[int, int], right: int = 0
) -> Table:
    """Of an input split into phases by ``step``; for the output pixel so far to the right of the one in the corner."""
    window = op.window
    ty = ky * window.dilation[0] - window.padding[0]
    tx = kx * window.dilation[1] - window.padding[1] + right * window.stride[1]
    sy, sx = step
    index = np.zeros((sy, sx), dtype=np.int64)
    for i, (py, px) in enumerate(phases):
        index[py, px] = i
    return Table(phases, ty // sy, tx // sx, index[ty % sy, tx % sx])


def used_phases(op: Operation, step: tuple[int, int]) -> list[tuple[int, int]]:
    """Phases by ``step`` that a kernel position with a nonzero reads, for one output pixel or two that are joined."""
    weights = op.coefficients if op.coefficients is not None else op.weight
    assert weights is not None
    used = set()
    for ky, kx in zip(*np.nonzero(weights.any(axis=(0, 1))), strict=True):
        py, _ = _shift(int(ky) * op.window.dilation[0] - op.window.padding[0], step[0])
        for right in range(0, step[1], op.window.stride[1]):
            px, _ = _shift(int(kx) * op.window.dilation[1] - op.window.padding[1] + right, step[1])
            used.add((py, px))
    return sorted(used) or [(0, 0)]


MOST_SPLIT_CHANNELS = 16


def can_split(op: Operation, columns: int) -> bool:
    """Whether S can be made of an image as the caller gave it, and divided by so many columns: native/split.cpp."""
    dictionary = op.dictionary
    if op.kind != "lookup_conv" or dictionary is None or op.groups != 1:
        return False
    return dictionary.shape[1] <= MOST_SPLIT_CHANNELS and columns in (1, 2, 4, 8)


def can_pair(op: Operation) -> bool:
    """Whether rows of outputs are joined two by two under the fused max-pool, as native/load_weights.cpp does it."""
    if op.kind != "lookup_conv" or op.pool is None or not _in_pairs(op.pool, 0):
        return False
    return 2 * (op.output.grid[1] + _after(op.pool, 0)) <= op.pool_input[0] + 1


def can_join(op: Operation) -> bool:
    """Whether columns are joined, too.

    All columns of its windows have to be there but for one on the left. A stride of 4 leaves rows too short to pay.
    """
    pool = op.pool
    if pool is None or not can_pair(op) or not _in_pairs(pool, 1) or op.window.stride[1] not in (1, 2):
        return False
    return 2 * op.output.grid[2] + _after(pool, 1) <= op.pool_input[1]


def _in_pairs(pool: Window, axis: int) -> bool:
    side = (pool.kernel[axis], pool.padding[axis])
    return pool.stride[axis] == 2 and pool.dilation[axis] == 1 and side in ((2, 0), (3, 0), (3, 1))


def _after(pool: Window, axis: int) -> bool:
    """Whether a window ends with the first one of the next pair."""
    return (pool.kernel[axis], pool.padding[axis]) == (3, 0)
