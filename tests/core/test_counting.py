"""Counting formulas against loops that count their own multiplications, against fvcore and torch's counter."""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter

import numpy as np
import pytest
import torch
from fvcore.nn import FlopCountAnalysis
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from lcnn_core import counting
from lcnn_core.counting import FORMULAS, LayerCount, count_layer, counted_speedup
from lcnn_core.errors import UnsupportedLayerError
from lcnn_core.layers import LookupConv2d
from lcnn_core.spec import LayerSpec, LookupSpec


class Multiplier:
    """Multiplies, and counts how often, by stage; how often with a weight of zero, too."""

    def __init__(self) -> None:
        self.count: Counter[str] = Counter()

    def __call__(self, stage: str, value: float, weight: float) -> float:
        self.count[stage] += 1
        self.count["weight is zero"] += weight == 0
        return value * weight


def padded(x: np.ndarray, padding: tuple[int, int]) -> np.ndarray:
    return np.pad(x, [(0, 0), (padding[0],) * 2, (padding[1],) * 2])


def positions(shape, kernel, stride, dilation) -> list[tuple[int, ...]]:
    """Upper left corners of the windows, in input coordinates, as (oy, ox, y, x)."""
    ys = range(0, shape[0] - dilation[0] * (kernel[0] - 1), stride[0])
    xs = range(0, shape[1] - dilation[1] * (kernel[1] - 1), stride[1])
    return [(oy, ox, y, x) for (oy, y), (ox, x) in itertools.product(enumerate(ys), enumerate(xs))]


def dense_conv(times: Multiplier, x, weight, conv: nn.Conv2d) -> np.ndarray:
    n, width, *kernel = weight.shape
    x = padded(x, conv.padding)
    windows = positions(x.shape[1:], kernel, conv.stride, conv.dilation)
    y = np.zeros((n, windows[-1][0] + 1, windows[-1][1] + 1))
    for f, (oy, ox, top, left), c in itertools.product(range(n), windows, range(width)):
        channel = f // (n // conv.groups) * width + c
        for ky, kx in np.ndindex(*kernel):
            at = (channel, top + ky * conv.dilation[0], left + kx * conv.dilation[1])
            y[f, oy, ox] += times("plain", x[at], weight[f, c, ky, kx])
    return y


def lookup_conv(times: Multiplier, x, layer: LookupConv2d) -> np.ndarray:
    """As published: S at every position of the padded input, zeros of D and P skipped, one multiplication a lookup."""
    coefficients = layer.effective_coefficients().detach().numpy()
    n, k, *kernel = coefficients.shape
    x = padded(x, layer.padding)
    if layer.dictionary is None:
        response = x
    else:
        dictionary = layer.dictionary.detach().numpy()
        rows, width = dictionary.shape
        response = np.zeros((rows, *x.shape[1:]))
        for row, c, y, left in np.ndindex(rows, width, *x.shape[1:]):
            if dictionary[row, c] != 0:
                response[row, y, left] += times("dictionary", x[row // k * width + c, y, left], dictionary[row, c])
    windows = positions(x.shape[1:], kernel, layer.stride, layer.dilation)
    y = np.zeros((n, windows[-1][0] + 1, windows[-1][1] + 1))
    for f, row, ky, kx in zip(*np.nonzero(coefficients), strict=True):
        channel = f // (n // layer.groups) * k + row
        for oy, ox, top, left in windows:
            at = (channel, top + ky * layer.dilation[0], left + kx * layer.dilation[1])
            y[f, oy, ox] += times("lookups", response[at], coefficients[f, row, ky, kx])
    return y


def spec_of(layer, x, y, **values) -> LayerSpec:
    return LayerSpec(
        "layer",
        input_shape=x.shape,
        output_shape=y.shape,
        kernel_size=layer.kernel_size,
        stride=layer.stride,
        padding=tuple(2 * p for p in layer.padding),
        dilation=layer.dilation,
        groups=layer.groups,
        **values,
    )


@st.composite
def conv_arguments(draw: st.DrawFn) -> tuple[dict, np.ndarray]:
    groups = draw(st.sampled_from([1, 2, 3]))
    width, per_group = draw(st.integers(1, 2)), draw(st.integers(1, 2))
    pair = lambda low, high: (draw(st.integers(low, high)), draw(st.integers(low, high)))  # noqa: E731
    arguments = {
        "in_channels": groups * width,
        "out_channels": groups * per_group,
        "kernel_size": pair(1, 3),
        "stride": pair(1, 3),
        "padding": pair(0, 2),
        "dilation": pair(1, 2),
        "groups": groups,
        "bias": False,
        "dtype": torch.float64,
    }
    spans = [d * (e - 1) + 1 for d, e in zip(arguments["dilation"], arguments["kernel_size"], strict=True)]
    size = [span + draw(st.integers(0, 3)) for span in spans]
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    return arguments, rng.standard_normal((groups * width, *size))


@settings(max_examples=25)
@given(drawn=conv_arguments(), zeros=st.booleans())
def test_conv_counts_what_loops_multiply(drawn, zeros):
    arguments, x = drawn
    conv = nn.Conv2d(**arguments)
    with torch.no_grad():
        conv.weight[torch.rand(conv.weight.shape) < 0.5] *= 0 if zeros else 1
    weight = conv.weight.detach().numpy()
    times = Multiplier()
    y = dense_conv(times, x, weight, conv)
    np.testing.assert_allclose(y, conv(torch.tensor(x)).detach(), atol=1e-12)
    spec = spec_of(conv, x, y, kind="conv", weight_size=weight.size, weight_nnz=np.count_nonzero(weight))
    macs = times.count["plain"]
    assert count_layer(spec) == LayerCount(macs, plain=macs, skipped=times.count["weight is zero"])
    closed = counting.conv_macs(math.prod(y.shape[1:]), len(y), len(x), conv.kernel_size, conv.groups)
    assert closed == macs


@settings(max_examples=25)
@given(drawn=conv_arguments(), k=st.sampled_from([1, 2, 3, None]), s=st.sampled_from([None, 1]), holes=st.booleans())
def test_lookup_conv_counts_what_loops_multiply(drawn, k, s, holes):
    arguments, x = drawn
    layer = LookupConv2d(**arguments, dictionary_size=k, threshold=0.2, lookups_per_position=s)
    if layer.dictionary is not None and holes:
        with torch.no_grad():
            layer.dictionary[torch.rand(layer.dictionary.shape) < 0.4] = 0
    times = Multiplier()
    y = lookup_conv(times, x, layer)
    np.testing.assert_allclose(y, layer(torch.tensor(x)).detach(), atol=1e-12)
    dense_times = Multiplier()
    dense_conv(dense_times, x, layer.dense_weight().detach().numpy(), layer)
    effective = layer.effective_coefficients().detach()
    lookup = LookupSpec(
        dictionary_size=layer.dictionary_size,
        dictionary_nnz=0 if layer.dictionary is None else int((layer.dictionary != 0).sum()),
        coefficients_size=effective.numel(),
        coefficients_nnz=int((effective != 0).sum()),
        threshold=0.2,
        l1_weight=0.0,
    )
    spec = spec_of(layer, x, y, kind="lookup_conv", weight_size=math.prod(layer.dense_shape), lookup=lookup)
    count = count_layer(spec)
    assert count == LayerCount(
        dense_times.count["plain"], dictionary=times.count["dictionary"], lookups=times.count["lookups"]
    )
    assert count.total == times.count["dictionary"] + times.count["lookups"]


@pytest.mark.parametrize("groups", [1, 2])
def test_transposed_conv_counts_what_loops_multiply(groups):
    conv = nn.ConvTranspose2d(4, 6, (3, 2), stride=2, padding=1, groups=groups, bias=False, dtype=torch.float64)
    x = torch.randn(4, 3, 5, dtype=torch.float64)
    expected, weight = conv(x).detach(), conv.weight.detach()
    times, whole = Multiplier(), torch.zeros(6, 2 * 2 + 3, 4 * 2 + 2, dtype=torch.float64)
    for c, y, left, f, ky, kx in np.ndindex(4, 3, 5, 6 // groups, 3, 2):
        channel = c // (4 // groups) * (6 // groups) + f
        whole[channel, 2 * y + ky, 2 * left + kx] += times("plain", x[c, y, left], weight[c, f, ky, kx])
    torch.testing.assert_close(whole[:, 1:-1, 1:-1], expected)
    spec = spec_of(conv, x, expected, kind="conv", weight_size=weight.numel(), transposed=True)
    assert count_layer(spec).total == times.count["plain"]


@pytest.mark.parametrize("lead", [(), (5,), (2, 3)])
def test_linear_counts_what_loops_multiply(lead):
    x, weight = np.random.default_rng(0).standard_normal((*lead, 4)), np.arange(12.0).reshape(3, 4)
    times, y = Multiplier(), np.zeros((*lead, 3))
    for at in np.ndindex(*lead):
        for f, c in np.ndindex(3, 4):
            y[(*at, f)] += times("plain", x[(*at, c)], weight[f, c])
    np.testing.assert_allclose(y, x @ weight.T)
    spec = LayerSpec("fc", "linear", x.shape, y.shape, weight_size=12, weight_nnz=11)
    macs = times.count["plain"]
    assert count_layer(spec) == LayerCount(macs, plain=macs, skipped=math.prod(lead))
    assert counting.linear_macs(math.prod(lead), 3, 4) == macs
    lookup = LookupSpec(2, 7, 6, 5, 0.0, 0.0)
    spec = LayerSpec("fc", "lookup_linear", x.shape, y.shape, weight_size=12, lookup=lookup)
    assert count_layer(spec) == LayerCount(macs, dictionary=7 * math.prod(lead), lookups=5 * math.prod(lead))


def test_matmul_counts_what_loops_multiply():
    left, right = np.ones((2, 3, 4)), np.ones((2, 4, 5))
    times, out = Multiplier(), np.zeros((2, 3, 5))
    for i, a, b, c in np.ndindex(2, 3, 4, 5):
        out[i, a, c] += times("plain", left[i, a, b], right[i, b, c])
    np.testing.assert_array_equal(out, left @ right)
    spec = LayerSpec("attention", "matmul", (2, 3, 4), (2, 3, 5), matmul=(2, 3, 4, 5))
    assert count_layer(spec) == LayerCount(times.count["plain"], plain=times.count["plain"])


def test_repeats_multiply_every_part():
    lookup = LookupSpec(2, 8, 40, 11, 0.0, 0.0)
    values = {"kernel_size": (3, 3), "padding": (2, 2), "weight_size": 72}
    once = LayerSpec("a", "lookup_conv", (4, 5, 5), (2, 5, 5), **values, lookup=lookup)
    thrice = LayerSpec("a", "lookup_conv", (4, 5, 5), (2, 5, 5), **values, lookup=lookup, repeats=3)
    for part in ("dense", "dictionary", "lookups", "total"):
        assert getattr(count_layer(thrice), part) == 3 * getattr(count_layer(once), part) > 0


# Second opinions for dense layers


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv2d(6, 8, (3, 5), stride=(2, 1), padding=(1, 2), dilation=(1, 2), groups=2), (6, 12, 14)),
        (nn.Conv2d(3, 64, 7, 2, 3, bias=False), (3, 32, 32)),
        (nn.ConvTranspose2d(6, 4, 3, stride=2, padding=1, groups=2), (6, 5, 7)),
        (nn.Linear(12, 7), (12,)),
        (nn.Linear(12, 7), (5, 12)),
    ],
    ids=str,
)
def test_fvcore_and_torch_count_the_same(layer, shape):
    x = torch.randn(1, *shape)
    y = layer(x)
    weight = layer.weight.numel()
    if isinstance(layer, nn.Linear):
        spec = LayerSpec("fc", "linear", shape, tuple(y.shape[1:]), weight_size=weight)
    else:
        transposed = isinstance(layer, nn.ConvTranspose2d)
        spec = spec_of(layer, x[0], y[0], kind="conv", weight_size=weight, transposed=transposed)
    macs = count_layer(spec).total
    analysis = FlopCountAnalysis(layer, x)
    assert macs == analysis.unsupported_ops_warnings(False).total()
    with FlopCounterMode(display=False) as counter:
        layer(x)
    assert 2 * macs == counter.get_total_flops()


def test_fvcore_and_torch_count_the_same_matmul():
    macs = counting.matmul_macs(2, 3, 4, 5)
    with FlopCounterMode(display=False) as counter:
        torch.bmm(torch.ones(2, 3, 4), torch.ones(2, 4, 5))
    assert 2 * macs == counter.get_total_flops()

    class Product(nn.Module):
        def forward(self, a, b):
            return a @ b

    assert macs == FlopCountAnalysis(Product(), (torch.ones(2, 3, 4), torch.ones(2, 4, 5))).total()


# The list of formulas, totals and refusals


@pytest.mark.parametrize("kind", ["norm", "activation", "pool", "embedding"])
def test_free_kinds_cost_nothing(kind):
    assert count_layer(LayerSpec("x", kind, (8, 4, 4), (8, 4, 4), parameters=16)) == LayerCount(0)


@pytest.mark.parametrize("kind", FORMULAS)
def test_every_formula_counts_a_layer_of_its_kind(kind):
    spec = LayerSpec("x", kind, (4, 5, 5), (2, 5, 5), (1, 1), (1, 1), (0, 0), weight_size=8, matmul=(1, 2, 2, 2))
    count = count_layer(spec)
    assert count.total == count.dense == {"conv": 200, "linear": 200, "matmul": 8}.get(kind.removeprefix("lookup_"), 0)


def test_unknown_kinds_are_named_not_zero():
    with pytest.raises(UnsupportedLayerError, match=re.escape("layer 'f.1' is of kind 'fft'; expected one of conv, ")):
        count_layer(LayerSpec("f.1", "fft", (1,), (1,)))


def test_a_matmul_without_sizes_is_refused():
    with pytest.raises(UnsupportedLayerError, match=re.escape("matmul 'q' has no sizes; expected matmul=(batch, a, ")):
        count_layer(LayerSpec("q", "matmul", (1,), (1,)))


def test_unknown_nonzeros_skip_nothing():
    assert count_layer(LayerSpec("fc", "linear", (4,), (3,), weight_size=12)).skipped == 0


def test_counted_speedup():
    lookup = LookupSpec(1, 4, 10, 2, 0.0, 0.0)
    saved = LayerSpec("a", "lookup_linear", (4,), (10,), weight_size=40, lookup=lookup)
    plain = LayerSpec("b", "linear", (10,), (2,), weight_size=20)
    norm = LayerSpec("n", "norm", (10,), (10,))
    assert counted_speedup([saved, norm, plain]) == pytest.approx((40 + 20) / (4 + 2 + 20))
    assert counted_speedup([plain]) == 1
    assert counted_speedup([norm]) == counted_speedup([]) == 1
    nothing = LayerSpec("a", "lookup_linear", (4,), (10,), weight_size=40, lookup=LookupSpec(4, 0, 40, 0, 0.0, 0.0))
    assert counted_speedup([nothing, norm]) == math.inf


def test_a_layer_of_the_worked_example():
    """conv2 of alexnet-lcnn, fast: k = 30, density of P .034; method.md says 1.845 + 3.569 million."""
    lookup = LookupSpec(30, 30 * 64, 192 * 30 * 25, round(0.034 * 192 * 30 * 25), 0.01, 0.0)
    geometry = {"kernel_size": (5, 5), "stride": (1, 1), "padding": (4, 4), "dilation": (1, 1)}
    spec = LayerSpec(
        "conv2", "lookup_conv", (64, 27, 27), (192, 27, 27), **geometry, weight_size=192 * 64 * 25, lookup=lookup
    )
    assert count_layer(spec) == LayerCount(dense=223_948_800, dictionary=1_845_120, lookups=3_569_184)
