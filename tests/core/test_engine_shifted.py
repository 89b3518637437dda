"""Lookups by kernel column: layers of many lookups a filter, where a library with vectors of 512 bits chooses it."""

from __future__ import annotations

import pytest
import torch
from engine_cases import error, native, sparsify
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lcnn_core.engine import compile, libraries
from lcnn_core.layers import LookupConv2d

ISAS = list(libraries())
pytestmark = pytest.mark.skipif(not ISAS, reason="no native library was built")
ISA = (ISAS or ["none"])[0]
POOLS = {
    "none": nn.Identity(),
    "two": nn.MaxPool2d(2),
    "after": nn.MaxPool2d(3, 2),
    "before": nn.MaxPool2d(3, 2, 1),
    "rows": nn.MaxPool2d((3, 2), 2),
    "other": nn.MaxPool2d(3, 1, 1),
}


class Layers(nn.Module):
    """Three layers with their pooling, then two of which the second adds what the first one read."""

    def __init__(
        self,
        rows: int | None,
        kernel: tuple[int, int],
        stride: int,
        dilation: int,
        groups: int,
        pool: str,
        density: float,
    ) -> None:
        super().__init__()

        def layer(m: int, step: int, groups: int) -> nn.Module:
            padding = (dilation * (kernel[0] // 2), dilation * (kernel[1] // 2))
            made = LookupConv2d(m, 24, kernel, step, padding, dilation, groups, dictionary_size=rows, threshold=0.0)
            return sparsify(made, density, kernel[0])

        self.layers = nn.ModuleList([layer(3, stride, 1), layer(24, 1, groups), layer(24, stride, groups)])
        self.inner, self.residual = layer(24, 1, 1), layer(24, 1, 1)
        self.pool = POOLS[pool]

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = self.pool(torch.relu(layer(x)))
        return (self.residual(torch.relu(self.inner(x))) + x).clamp(-1, 1)  # written over x


@settings(max_examples=60, deadline=None)
@example(12, (5, 5), 1, 1, 1, "none", (27, 27), 0.6, 1, 1, ISA)  # two vectors a row
@example(12, (3, 3), 1, 1, 1, "none", (56, 61), 0.6, 2, 1, ISA)  # four
@example(6, (3, 3), 1, 1, 1, "none", (14, 40), 0.9, 3, 3, ISA)  # three, then one
@example(70, (5, 5), 1, 1, 1, "none", (30, 30), 0.9, 1, 1, ISA)  # blocks of dictionary rows
@example(None, (3, 3), 1, 1, 1, "none", (30, 27), 0.9, 2, 2, ISA)  # no dictionary: rows of the input are copied
@example(None, (3, 5), 1, 1, 2, "none", (14, 14), 0.9, 1, 1, ISA)  # of two groups
@example(6, (11, 11), 4, 1, 1, "after", (121, 121), 0.5, 1, 2, ISA)  # an image divided into phases, pooled
@example(6, (5, 3), 1, 1, 1, "none", (30, 30), 0.1, 1, 1, ISA)  # zeros before the rows of an image
@example(6, (5, 5), 2, 1, 1, "two", (100, 90), 0.6, 2, 1, ISA)
@example(6, (3, 3), 1, 1, 1, "after", (55, 55), 0.9, 1, 1, ISA)
@example(6, (3, 3), 1, 1, 1, "two", (55, 52), 0.9, 9, 1, ISA)
@example(6, (3, 3), 1, 1, 1, "before", (54, 54), 0.9, 2, 1, ISA)
@example(6, (3, 3), 1, 1, 1, "before", (105, 107), 0.9, 2, 1, ISA)  # the last pair lacks a row
@example(6, (3, 3), 1, 1, 1, "before", (53, 53), 0.9, 1, 1, ISA)  # columns cannot be joined two by two
@example(6, (5, 5), 1, 1, 1, "rows", (26, 27), 0.9, 1, 1, ISA)
@example(6, (3, 3), 1, 3, 1, "none", (28, 27), 0.9, 1, 1, ISA)  # dilated: columns without lookups
@example(6, (3, 3), 1, 1, 1, "none", (20, 47), 0.9, 2, 1, ISA)  # the last vector of a row holds no output
@example(6, (5, 5), 1, 1, 1, "none", (9, 45), 0.9, 1, 1, ISA)
@example(6, (3, 11), 1, 1, 1, "none", (14, 40), 0.9, 1, 1, ISA)
@example(None, (11, 7), 1, 1, 1, "none", (4, 46), 0.9, 3, 1, ISA)
@example(6, (1, 5), 1, 1, 1, "other", (13, 9), 0.9, 1, 1, ISA)
@example(6, (7, 1), 1, 1, 1, "none", (31, 30), 0.9, 1, 1, ISA)  # one column
@given(
    st.sampled_from([None, 6, 12, 70]), st.tuples(st.sampled_from([1, 3, 5, 7]), st.sampled_from([1, 3, 5, 7, 11])),
    st.sampled_from([1, 1, 2, 4]), st.sampled_from([1, 1, 2]), st.sampled_from([1, 1, 2]),
    st.sampled_from(sorted(POOLS)), st.tuples(st.integers(1, 64), st.integers(1, 64)),
    st.sampled_from([0.1, 0.5, 0.9]), st.sampled_from([1, 2, 3, 9]), st.sampled_from([1, 3]),
    st.sampled_from(ISAS or ["none"]),
)  # fmt: skip
def test_lookups_by_kernel_column(
    rows: int | None, kernel: tuple[int, int], stride: int, dilation: int, groups: int, pool: str,
    size: tuple[int, int], density: float, threads: int, batch: int, isa: str,
) -> None:  # fmt: skip
    torch.manual_seed(size[0])
    try:
        model = Layers(rows, kernel, stride, dilation, groups, pool, density).eval()
        x = torch.randn(batch, 3, *size)
        model(x)
    except RuntimeError:
        assume(False)  # an image smaller than a window
    compiled = native(compile(model, x[:1], threads=threads, isa=isa))
    compiled(x * torch.nan)  # what is left of it in the scratch is never used
    assert error(model, compiled, x) <= 1e-5
    for part in (x[:1], x):  # a sum is the same however many threads divide the layer
        alone = native(compile(model, x[:1], threads=1, isa=isa))(part)
        for _ in range(3):
            assert torch.equal(compiled(part), alone)
