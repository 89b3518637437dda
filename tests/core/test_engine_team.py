"""Threads that divide one image, each in an arena of its own, borrowing of the others: they make what one makes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from engine_cases import error, native, sparsify
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lcnn_core.engine import compile, libraries
from lcnn_core.engine.compiled import Segment
from lcnn_core.errors import ConfigError
from lcnn_core.layers import LookupConv2d

ISAS = list(libraries())
pytestmark = pytest.mark.skipif(not ISAS, reason="no native library was built")
ISA = (ISAS or ["none"])[0]
WIDTH = 24
Pair = tuple[int, int]
KINDS = ["lookup", "lookup", "lookup", "pruned", "dense", "pool"]
KERNELS = [(1, 1), (3, 3), (3, 3), (5, 5), (1, 3), (3, 1), (1, 7)]


class Step(nn.Module):
    """A layer of ``WIDTH`` channels; what comes in may be added, or stand beside it, or go around it as in a ResNet."""

    def __init__(
        self, kind: str, kernel: Pair, stride: Pair, dilation: Pair, padded: bool, rows: int, density: float, join: str
    ):
        super().__init__()
        padding = tuple(d * (k // 2) if padded else 0 for k, d in zip(kernel, dilation, strict=True))
        shape: Any = (WIDTH, WIDTH, kernel, stride, padding, dilation)
        same = padded and kind != "pool" and (stride == (1, 1) or join == "around")
        self.join = join if same or join == "leaky" else "none"
        if kind == "pool":
            window = (2, 2) if kernel == (1, 1) else kernel
            around = tuple(k // 2 if padded else 0 for k in window)
            self.layer: nn.Module = nn.MaxPool2d(window, stride, around)
        elif kind == "dense":
            self.layer = nn.Conv2d(*shape)
        else:
            size = None if kind == "pruned" else rows
            self.layer = sparsify(LookupConv2d(*shape, dictionary_size=size, threshold=0.0), density, rows)
        around = LookupConv2d(WIDTH, WIDTH, 3, 1, 1, dictionary_size=rows, threshold=0.0)
        self.around = sparsify(around, density, rows)
        self.side = sparsify(LookupConv2d(WIDTH, WIDTH, 1, stride, dictionary_size=rows, threshold=0.0), 0.2, rows)
        self.back = sparsify(LookupConv2d(2 * WIDTH, WIDTH, 1, dictionary_size=rows, threshold=0.0), 0.2, rows)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        if self.join == "add":
            return torch.relu(y + x)
        if self.join == "around":
            return torch.relu(self.around(torch.relu(y)) + nn.functional.leaky_relu(self.side(x), 0.1))
        if self.join == "beside":
            return self.back(torch.cat([y, x], 1))
        if isinstance(self.layer, nn.MaxPool2d):
            return y
        return nn.functional.leaky_relu(y, 0.1) if self.join == "leaky" else torch.relu(y)


def made_of(steps: list[Any], end: str) -> nn.Module:
    first = sparsify(LookupConv2d(3, WIDTH, 3, 1, 1, dictionary_size=8, threshold=0.0), 0.3, 1)
    ends: dict[str, list[nn.Module]] = {
        "mean": [nn.AdaptiveAvgPool2d(1), nn.Flatten()], "cells": [nn.AdaptiveAvgPool2d(2)], "none": [],
    }  # fmt: skip
    return nn.Sequential(first, nn.ReLU(), *(Step(*step) for step in steps), *ends[end]).eval()


ONE, TWO = (1, 1), (2, 2)
STEP = st.tuples(
    st.sampled_from(KINDS), st.sampled_from(KERNELS), st.sampled_from([ONE, ONE, TWO, (1, 2), (2, 1), (1, 4)]),
    st.sampled_from([ONE, ONE, TWO, (1, 3)]), st.sampled_from([True, True, False]), st.sampled_from([4, 16, 40]),
    st.sampled_from([0.08, 0.3]), st.sampled_from(["none", "add", "around", "beside", "leaky"]),
)  # fmt: skip
PLAIN = ("lookup", (3, 3), ONE, ONE, True, 16, 0.3, "none")
ADDED = ("lookup", (3, 3), ONE, ONE, True, 16, 0.3, "add")
AROUND = ("lookup", (3, 3), ONE, ONE, True, 16, 0.3, "around")
BESIDE = ("lookup", (3, 3), ONE, ONE, True, 40, 0.08, "around")
BARE = ("lookup", (3, 1), ONE, ONE, False, 40, 0.08, "none")
HALVED = ("lookup", (3, 3), TWO, ONE, True, 16, 0.3, "none")
LEAKY = ("lookup", (3, 3), ONE, ONE, True, 40, 0.08, "leaky")
LONG = ("lookup", (1, 7), ONE, ONE, True, 16, 0.3, "add")
ACROSS = ("lookup", (1, 7), (1, 2), ONE, True, 16, 0.3, "none")
POOL = ("pool", (3, 3), TWO, ONE, True, 4, 0.3, "none")
POOL_IN = ("pool", (3, 3), TWO, ONE, False, 4, 0.3, "none")
MAXIMA = ("pool", (5, 5), ONE, ONE, True, 4, 0.3, "none")
MANY = ("lookup", (3, 3), ONE, ONE, True, 40, 0.3, "none")
PRUNED = ("pruned", (5, 5), ONE, ONE, True, 4, 0.3, "add")
DENSE = ("dense", (3, 3), ONE, TWO, True, 4, 0.3, "add")
POINTS = [("lookup", (1, 1), (1, step), ONE, True, 4, 0.08, "none") for step in (1, 2)]
APART = ("lookup", (3, 3), ONE, TWO, True, 4, 0.08, "none")
EVEN: list[float] = []


@settings(max_examples=100, deadline=None)
@example([PLAIN, ADDED, HALVED, PLAIN, ADDED], "mean", (28, 28), 2, EVEN, ISA)  # as in a ResNet: all kept apart
@example([PLAIN, LONG, PLAIN], "mean", (9, 20), 3, EVEN, ISA)  # only columns are borrowed
@example([PRUNED, DENSE], "none", (17, 12), 4, EVEN, ISA)  # zeros around the image are read
@example([HALVED, HALVED, PLAIN], "cells", (25, 31), 2, EVEN, ISA)  # rows that end within a line
@example([MANY, MANY, POOL_IN, MANY], "none", (40, 30), 2, EVEN, ISA)  # as in an AlexNet: rows pooled later
@example([MANY, PLAIN, POOL, MANY], "none", (40, 30), 2, EVEN, ISA)  # a window needs the pair before its own
@example([PLAIN, PLAIN, MAXIMA, PLAIN], "none", (40, 30), 2, EVEN, ISA)  # windows that no pairs make
@example([PLAIN, PLAIN, POOL, MANY], "none", (11, 30), 3, EVEN, ISA)  # so few rows that filters are divided
@example([POOL, AROUND], "none", (40, 21), 2, EVEN, ISA)  # what is added was divided at rows, the sums are at lines
@example([LEAKY, BESIDE, ADDED], "mean", (13, 13), 2, EVEN, ISA)  # the same in blocks of dictionary rows
@example([LEAKY, BESIDE, ADDED], "mean", (13, 13), 2, [0.97, 0.03], ISA)  # a part of S, and no pixel of the output
@example([BARE], "none", (14, 3), 4, EVEN, ISA)  # the same, as what is divided is of two sizes
@example([ACROSS, ACROSS], "none", (30, 50), 2, [0.43, 0.57], ISA)  # zeros behind a row are farther on than its pixels
@example([*POINTS, APART], "mean", (15, 21), 2, [0.3], ISA)  # zeros behind a row, wider than what is read between two
@example([PLAIN, ADDED], "mean", (100, 6), 2, EVEN, ISA)  # so tall that each makes all the S that it reads
@example([BESIDE, BESIDE], "none", (90, 19), 2, EVEN, ISA)  # the same beside products
@given(
    st.lists(STEP, min_size=1, max_size=5), st.sampled_from(["mean", "cells", "none"]),
    st.tuples(st.integers(3, 40), st.integers(2, 40)), st.sampled_from([2, 2, 3, 4, 9]),
    st.lists(st.sampled_from([0.0, 0.02, 0.1, 0.3, 0.6, 1.0]), max_size=9), st.sampled_from(ISAS or ["none"]),
)  # fmt: skip
def test_any_network_on_any_team(
    steps: list[Any], end: str, size: tuple[int, int], threads: int, parts: list[float], isa: str
) -> None:
    """No number before the first image: what is left in an arena, and not borrowed again, would show."""
    torch.manual_seed(len(steps) + sum(size))
    model = made_of(steps, end)
    x = torch.randn(3, 3, *size)
    try:
        model(x)
    except RuntimeError:
        assume(False)  # a kernel larger than what is left
    team = native(compile(model, x[:1], threads=threads, isa=isa))
    alone = native(compile(model, x[:1], threads=1, isa=isa))
    if parts:
        divide(team, (threads * parts)[:threads])
    team(torch.full_like(x[:1], torch.nan))
    for image in 3 * x.split(1):  # unless they are fixed, the threads' parts change with how fast they were
        assert torch.equal(team(image), alone(image))
    assert error(model, team, x[:1]) <= 2e-5


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("size", [(12, 12), (8, 16)])
def test_rows_beyond_those_of_the_input_read_zeros(size: tuple[int, int], threads: int) -> None:
    """A sparse kernel whose only entries lie at offset 0, padded to more rows than there are: over no edge."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(*shape, 3, padding=1) for shape in ((3, 64), (64, 16), (16, 16))]
    last = nn.Conv2d(16, 16, (2, 1), padding=(1, 0), bias=False)
    last.weight.data.zero_()[range(16), range(16), 1] = 1.0
    model = nn.Sequential(*(part for layer in layers for part in (layer, nn.ReLU())), last).eval()
    x = torch.randn(1, 3, *size)
    compiled = native(compile(model, torch.zeros_like(x), threads=threads))
    compiled(torch.full_like(x, torch.nan))
    assert error(model, compiled, x) <= 1e-5


def divide(compiled: Any, parts: list[float]) -> None:
    for part in compiled._parts:
        if isinstance(part, Segment):
            assert part.native is not None
            part.native.divide(parts)


@pytest.mark.parametrize("part", [-0.1, 1.5, float("nan")])
def test_a_part_is_a_number_from_0_to_1(part: float) -> None:
    model = nn.Conv2d(3, 4, 3)
    with pytest.raises(ConfigError, match=r"parts \[.*\] of an image; expected numbers from 0 to 1"):
        divide(compile(model, torch.randn(1, 3, 8, 8)), [0.5, part])
