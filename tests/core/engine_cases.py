"""What the engine's tests share: layers of every shape, and the error against float64 PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from lcnn_core.layers import LookupConv2d, LookupLinear


def sparsify(model: nn.Module, density: float, seed: int) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    for layer in model.modules():
        if isinstance(layer, (LookupConv2d, LookupLinear)):
            with torch.no_grad():
                keep = torch.rand(layer.coefficients.shape, generator=generator) < density
                layer.coefficients.mul_(keep)
    return model.eval()


def error(model: nn.Module, compiled: Callable[[Tensor], Tensor], x: Tensor) -> float:
    """Largest error of ``compiled`` over the largest magnitude of the float64 output of ``model``."""
    with torch.no_grad():
        expected = model.double()(x.double())
        model.float()
    assert compiled(x).shape == expected.shape
    return float((compiled(x) - expected).abs().max() / expected.abs().max().clamp_min(1e-30))


def native(compiled: Any) -> Any:
    """``compiled``, if all of it is: PyTorch stands in where the engine is wrong, and would be compared with itself."""
    assert not compiled.plan.fallbacks
    return compiled


@st.composite
def layers(draw: st.DrawFn) -> tuple[nn.Module, tuple[int, int, int]]:
    kernel = draw(st.tuples(st.integers(1, 5), st.integers(1, 5)))
    stride = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    padding = draw(st.tuples(st.integers(0, 3), st.integers(0, 3)))
    dilation = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    width, filters = draw(st.integers(1, 9)) * groups, draw(st.integers(1, 9)) * groups
    reach = [d * (k - 1) + 1 - 2 * p for k, d, p in zip(kernel, dilation, padding, strict=True)]
    size = tuple(max(1, r) + draw(st.integers(0, 14)) for r in reach)
    bias = draw(st.booleans())
    rows = draw(st.sampled_from([0, None, 1, 3, 8, 13, 33]))
    torch.manual_seed(draw(st.integers(0, 1000)))
    if rows == 0:
        conv: nn.Module = nn.Conv2d(width, filters, kernel, stride, padding, dilation, groups, bias)
    else:
        conv = LookupConv2d(
            width, filters, kernel, stride, padding, dilation, groups, bias, dictionary_size=rows, threshold=0.0
        )
        if rows and draw(st.booleans()):  # D is pruned too
            with torch.no_grad():
                conv.dictionary.mul_(torch.rand(conv.dictionary.shape) < 0.3)
    density = draw(st.sampled_from([0.0, 0.05, 0.3, 1.0]))
    tail = draw(st.sampled_from([nn.Identity, nn.ReLU, nn.Hardswish, nn.LeakyReLU]))
    return sparsify(nn.Sequential(conv, nn.BatchNorm2d(filters), tail()), density, 1), (width, *size)


def halves(weights: Tensor) -> Tensor:
    """As bfloat16 storage rounds them."""
    return weights.to(torch.bfloat16).float()


def bytes_of_rows(weights: Tensor) -> Tensor:
    """As int8 storage rounds them; no row may be zero."""
    scale = weights.double().abs().amax(1, keepdim=True) / 127
    return (torch.round(weights / scale) * scale).float()
