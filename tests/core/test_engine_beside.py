"""Lookups beside the products that make S of the next tile: layers for which a library with 32 registers chooses it."""

from __future__ import annotations

import pytest
import torch
from engine_cases import error, native, sparsify
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lcnn_core.engine import compile, libraries
from lcnn_core.layers import LookupConv2d

ISAS = list(libraries())
pytestmark = pytest.mark.skipif(not ISAS, reason="no native library was built")
ISA = (ISAS or ["none"])[0]


class Chain(nn.Module):
    """A strided layer, one whose filters add what comes in, and one that reads both."""

    def __init__(self, width: int, filters: int, rows: int, kernel: int, stride: int, groups: int, density: float):
        super().__init__()

        def layer(m: int, step: int) -> LookupConv2d:
            made = LookupConv2d(
                m, filters, kernel, step, kernel // 2, groups=groups, dictionary_size=rows, threshold=0.0
            )
            return sparsify(made, density, rows)  # type: ignore[return-value]

        self.first, self.second, self.third = layer(width, stride), layer(filters, 1), layer(filters, 1)

    def forward(self, x: Tensor) -> Tensor:
        before = torch.relu(self.first(x))
        return self.third(torch.relu(self.second(before) + before)).clamp(-1, 1)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("rows", [904, 910, 920])
def test_blocks_where_all_of_the_response_just_fits(isa: str, rows: int) -> None:
    """Threads that share blocks are a team, whichever side of the cache's size the response lies on."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.ReLU(), LookupConv2d(64, 512, 3, 1, 1, dictionary_size=rows, threshold=0.0))
    x = torch.randn(1, 64, 14, 14)
    sparsify(model, 0.006, 0)
    for threads in (1, 2, 3):
        assert error(model, native(compile(model.eval(), x, threads=threads, isa=isa)), x) <= 1e-5


@settings(max_examples=60, deadline=None)
@example(64, 40, 120, 3, 1, 1, (70, 57), 0.1, 1, 1, ISA)  # S larger than the cache: a window of tiles
@example(64, 40, 300, 5, 1, 1, (40, 60), 0.05, 1, 1, ISA)  # the same, tiles lower than what is read around them
@example(24, 16, 40, 3, 1, 1, (60, 31), 0.1, 1, 1, ISA)  # all of S held, whole tiles
@example(32, 40, 60, 3, 1, 1, (7, 7), 0.1, 2, 3, ISA)  # blocks of dictionary rows, half a vector at the end
@example(64, 64, 104, 3, 2, 1, (14, 14), 0.04, 3, 1, ISA)  # blocks that are phases, from the last to the first
@example(64, 24, 24, 5, 1, 1, (14, 14), 0.1, 2, 1, ISA)  # more lookups than half of the products
@example(300, 16, 24, 3, 1, 1, (13, 9), 0.1, 1, 1, ISA)  # two blocks of depth
@example(48, 48, 24, 3, 1, 2, (40, 33), 0.1, 2, 1, ISA)  # groups
@given(
    st.sampled_from([16, 24, 64, 300]), st.sampled_from([16, 40, 66]), st.integers(8, 120), st.sampled_from([3, 5]),
    st.sampled_from([1, 1, 2]), st.sampled_from([1, 1, 2]), st.tuples(st.integers(5, 40), st.integers(3, 70)),
    st.sampled_from([0.03, 0.1, 0.3]), st.sampled_from([1, 2, 3, 9]), st.sampled_from([1, 3]),
    st.sampled_from(ISAS or ["none"]),
)  # fmt: skip
def test_lookups_beside_products(
    width: int, filters: int, rows: int, kernel: int, stride: int, groups: int, size: tuple[int, int], density: float,
    threads: int, batch: int, isa: str,
) -> None:  # fmt: skip
    torch.manual_seed(rows)
    model = Chain(width, filters, rows, kernel, stride, groups, density).eval()
    x = torch.randn(batch, width, *size)
    compiled = native(compile(model, x[:1], threads=threads, isa=isa))
    assert error(model, compiled, x) <= 1e-5
    for part in (x[:1], x):  # a sum is the same beside products and alone, however many threads divide the layer
        assert torch.equal(compiled(part), native(compile(model, x[:1], threads=1, isa=isa))(part))
