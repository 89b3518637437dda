"""Fully connected layers and kernels as large as the image: zero inputs skipped, images side by side, lookups in S."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from engine_cases import bytes_of_rows, error, halves, sparsify
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lcnn_core.engine import compile, libraries
from lcnn_core.layers import LookupConv2d, LookupLinear

ISAS = list(libraries())
pytestmark = pytest.mark.skipif(not ISAS, reason="no native library was built")


def compiled_alike(model: nn.Module, x: torch.Tensor, threads: int, **options: Any) -> nn.Module:
    """Compiled for one image and so many threads: on ``x`` close to float64, and in the bits that one thread makes."""
    compiled, alone = (compile(model, x[:1], threads=count, **options) for count in (threads, 1))
    assert error(model, compiled, x) <= 1e-5
    assert torch.equal(compiled(x), alone(x))
    return compiled


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 300), st.sampled_from([1, 15, 16, 17, 100, 256, 513]), st.sampled_from([0.0, 0.5, 0.9, 1.0]),
    st.sampled_from([1, 2, 7, 8, 13, 20]), st.sampled_from([1, 2, 3]), st.booleans(), st.sampled_from(ISAS or ["none"]),
)  # fmt: skip
def test_inputs_of_which_many_are_zero(
    m: int, n: int, zeros: float, batch: int, threads: int, lookups: bool, isa: str
) -> None:
    torch.manual_seed(m * 1000 + n)
    layer = LookupLinear(m, n, dictionary_size=min(m, 20), threshold=0.0) if lookups else nn.Linear(m, n)
    model = sparsify(nn.Sequential(layer), 0.5, 1)
    x = torch.randn(batch, m) * (torch.rand(batch, m) >= zeros)
    compiled_alike(model, x, threads, isa=isa)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 300), st.sampled_from([17, 100, 101, 256, 513]), st.sampled_from([1, 2, 3, 4, 5, 7, 8, 13]),
    st.sampled_from([1, 2, 3]), st.booleans(), st.sampled_from(["bfloat16", "int8"]), st.sampled_from(ISAS or ["none"]),
)  # fmt: skip
def test_stored_weights_of_any_shape(
    m: int, n: int, batch: int, threads: int, lookups: bool, storage: str, isa: str
) -> None:
    """Against float64 with weights rounded alike; an image in the same bits at any place and with any threads."""
    torch.manual_seed(m * 1000 + n)
    layer = LookupLinear(m, n, dictionary_size=min(m, 9), threshold=0.0) if lookups else nn.Linear(m, n)
    model = sparsify(nn.Sequential(layer), 0.05, 1)
    with torch.no_grad():
        weights = layer.dictionary if lookups else layer.weight
        weights.copy_({"bfloat16": halves, "int8": bytes_of_rows}[storage](weights))
    x = torch.randn(batch, m)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lcnn_core.engine.storage.LEAST", 1)
        compiled = compiled_alike(model, x, threads, isa=isa, storage=storage)
    kind = "lookup_linear" if lookups else "linear"
    assert [(step.kind, step.storage) for step in compiled.plan.steps if step.macs] == [(kind, storage)]
    same = compiled(x[:1].repeat(batch, 1))
    assert torch.equal(same, same[:1].expand_as(same))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("batch", [1, 9])
def test_long_sums_of_one_sign_stay_exact(batch: int, isa: str) -> None:
    """Where rounding errors would all go one way: 200,000 products, each about a 200,000th of their sum."""
    model, x = nn.Sequential(nn.Linear(200_000, 3, bias=False)), torch.rand(batch, 200_000)
    with torch.no_grad():
        model[0].weight.uniform_()
    own = error(model, lambda y: model(y).detach(), x)
    assert error(model, compile(model, x[:1], isa=isa), x) <= max(1e-5, 2 * own)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("batch", [1, 9])
@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_a_zero_times_what_is_not_finite_is_no_number(value: float, batch: int, isa: str) -> None:
    model, x = nn.Sequential(nn.Linear(40, 30)), torch.randn(batch, 40)
    with torch.no_grad():
        model[0].weight[7, 3] = value
    x[:, 3] = 0
    with torch.no_grad():
        assert model(x)[:, 7].isnan().all()
    found = compile(model, torch.ones(1, 40), isa=isa)(x)
    assert torch.equal(found.isnan(), model(x).isnan())


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 40), st.sampled_from([3, 100, 600]), st.sampled_from([None, 1, 7, 300]), st.integers(1, 6),
    st.integers(1, 6), st.sampled_from([0.02, 0.5]), st.sampled_from([1, 2, 8, 11, 20, 40]), st.sampled_from([1, 2, 3]),
    st.sampled_from(ISAS or ["none"]),
)  # fmt: skip
def test_kernels_as_large_as_the_image(
    m: int, n: int, rows: int | None, h: int, w: int, density: float, batch: int, threads: int, isa: str
) -> None:
    torch.manual_seed(m * 100 + n)
    layer = LookupConv2d(m, n, (h, w), dictionary_size=rows, threshold=0.0)
    model = sparsify(nn.Sequential(layer, nn.BatchNorm2d(n), nn.ReLU(), nn.Conv2d(n, 5, 1), nn.Flatten()), density, 3)
    x = torch.randn(batch, m, h, w)
    assert not compiled_alike(model, x, threads, isa=isa).plan.fallbacks


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("threads", [1, 3])
def test_a_wide_dictionary_at_pixels_that_end_within_a_vector(threads: int, isa: str) -> None:
    """Summed in two blocks of its depth: 25 pixels of 8 images are 12 vectors of 16 and a half."""
    layer = LookupConv2d(300, 70, 5, dictionary_size=45, threshold=0.0)
    model = sparsify(nn.Sequential(layer, nn.Flatten()), 0.05, 3)
    compiled_alike(model, torch.randn(8, 300, 5, 5), threads, isa=isa)


@pytest.mark.parametrize("storage", ["float32", "bfloat16", "int8"])
def test_their_plan_counts_d_at_every_pixel_and_each_lookup_once(storage: str) -> None:
    layer = LookupConv2d(256, 600, 6, dictionary_size=300, threshold=0.0)
    model = sparsify(nn.Sequential(nn.Conv2d(3, 256, 3, padding=1), layer, nn.Flatten()), 0.001, 3)
    x = torch.randn(3, 3, 6, 6)
    compiled = compile(model, x[:1], storage=storage)
    (step,) = [step for step in compiled.plan.steps if step.kind == "lookup_linear"]
    nonzeros = int(layer.coefficients.count_nonzero())
    read = int(layer.coefficients.detach().abs().sum((0, 2, 3)).count_nonzero())
    assert (step.dictionary_macs, step.macs) == (read * 256 * 36, read * 256 * 36 + nonzeros)
    assert step.storage == "float32"  # D is read once for 36 pixels
    assert error(model, compiled, x) <= 1e-5
