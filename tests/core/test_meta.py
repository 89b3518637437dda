"""Shapes on the meta device: the same as PyTorch's own kernels give, without what those import."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from lcnn_core import ShapeError, build_named, describe, meta

NETWORKS = {
    **dict.fromkeys(("alexnet-lcnn", "resnet50-lcnn", "digits-resnet"), None),
    **dict.fromkeys(("torchvision:googlenet", "torchvision:squeezenet1_1", "torchvision:densenet121"), (3, 97, 90)),
    **dict.fromkeys(("torchvision:mobilenet_v3_small", "torchvision:shufflenet_v2_x1_0"), (3, 64, 64)),
    **dict.fromkeys(("torchvision:swin_t", "torchvision:convnext_tiny", "torchvision:regnet_y_400mf"), (3, 64, 64)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_are_described_as_by_pytorchs_own_kernels(name, monkeypatch):
    named = build_named(name)
    shape = NETWORKS[name] or named.input_shape
    ours = describe(named.model, shape)
    monkeypatch.setattr(meta, "run", lambda func, args, kwargs: func(*args, **kwargs))
    theirs = describe(named.model, shape)
    # Their batch norm makes statistics of no use in evaluation, which the CPU's kernel and the rule here leave empty.
    assert ours.activation_bytes <= theirs.activation_bytes <= 1.05 * ours.activation_bytes
    assert ours == replace(theirs, activation_bytes=ours.activation_bytes)


def test_memory_of_values_is_that_of_the_cpu():
    for name in ("digits-resnet", "small-alexnet"):
        on_meta = build_named(name)
        real = describe(build_named(name, to="cpu").model, on_meta.input_shape)
        assert describe(on_meta.model, on_meta.input_shape).activation_bytes == real.activation_bytes


sides = st.integers(1, 9)


@example(3, 3, 1, 3, 0, 1, True)
@given(sides, sides, st.integers(1, 4), st.integers(1, 3), st.integers(0, 2), st.integers(1, 2), st.booleans())
def test_windows_are_pytorchs(height, width, kernel, stride, padding, dilation, ceil):
    """Against real convolutions and pools: the same shape, or both refuse."""
    x = torch.zeros(1, 2, height, width)
    conv = nn.Conv2d(2, 4, kernel, stride, padding, dilation, groups=2)
    cases = [
        (meta.aten.convolution.default, (conv.weight, None, (stride,), (padding,), (dilation,), False, (0,), 2)),
        (meta.aten.max_pool2d_with_indices.default, ([kernel], [stride], [padding], [dilation], ceil)),
        (meta.aten.avg_pool2d.default, ([kernel, kernel], [stride], [padding, padding], ceil)),
    ]
    for operator, arguments in cases:
        real = outcome(operator, x, arguments)
        on_meta = [value.to("meta") if isinstance(value, torch.Tensor) else value for value in arguments]
        assert outcome(lambda *given, f=operator: meta.run(f, given, {}), x.to("meta"), on_meta) == real


def outcome(operator, x, arguments):
    try:
        out = operator(x, *arguments)
    except RuntimeError:
        return "refused"
    return [tensor.shape for tensor in (out if isinstance(out, tuple) else (out,))]


@given(st.lists(st.integers(1, 3), max_size=3), st.lists(st.integers(1, 3), max_size=3))
def test_element_wise_operations_broadcast_as_pytorch_does(left, right):
    add = meta.aten.add.Tensor
    real = outcome(add, torch.zeros(left), (torch.zeros(right),))
    on_meta = torch.zeros(left, device="meta"), (torch.zeros(right, device="meta"),)
    assert outcome(lambda *given: meta.run(add, given, {}), *on_meta) == real


def test_types_are_pytorchs():
    for real in (torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.half)):
        x = real.to("meta")
        for operator, rest in ((meta.aten.le.Scalar, (0.5,)), (meta.aten.masked_fill.Scalar, (real > 0, 0))):
            on_meta = [value.to("meta") if isinstance(value, torch.Tensor) else value for value in rest]
            assert meta.run(operator, (x, *on_meta), {}).dtype == operator(real, *rest).dtype
        assert meta.run(meta.aten.relu_.default, (x,), {}) is x


def test_an_input_that_does_not_fit_gets_pytorchs_message():
    with torch.device("meta"):
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(5, 2))
    with pytest.raises(ShapeError, match="does not run through the model: Invalid channel dimensions"):
        describe(model, (2, 8, 8))
    with pytest.raises(ShapeError, match="does not run through the model"):
        describe(model, (3, 8, 8))


def test_initialisers_leave_the_meta_device_alone():
    with torch.device("meta"), meta.NothingToFill():
        weight = nn.init.trunc_normal_(nn.init.kaiming_normal_(torch.empty(3, 4)), std=0.1)
    assert weight.is_meta
    with meta.NothingToFill():
        assert torch.equal(nn.init.ones_(torch.empty(2)), torch.ones(2))
    assert F.relu(weight).shape == (3, 4)


def test_a_name_is_analyzed_without_weights_or_what_meta_kernels_import():
    """A fresh process: torch, then the whole command; 60 million weights would be 240 MB."""
    script = """
import resource, sys, torch
def memory(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
before = memory()
from lcnn_analyze.cli.app import analyze_main
sys.argv = ["analyze", "resnet152", "--quiet"]
try:
    analyze_main()
except SystemExit as done:
    assert not done.code
heavy = {"sympy", "torch._dynamo", "pandas", "matplotlib", "jinja2", "fvcore", "torchvision"} & set(sys.modules)
print(memory() - before, heavy or "light", file=sys.stderr)
"""
    root = Path(__file__).parents[2]
    ran = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=True)
    extra, light = ran.stderr.split()
    assert int(extra) < 100
    assert light == "light"
