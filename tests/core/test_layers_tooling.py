"""Lookup layers in PyTorch's machinery: state dicts, copies, low precision, layouts, meta device, compile, export."""

from __future__ import annotations

import copy
import io
import pickle
import shutil

import pytest
import torch
from torch import nn

from lcnn_core.layers import LAYERS, LookupConv2d, LookupLinear

LAYER_CASES = {
    "two_convs": lambda **kw: LookupConv2d(4, 6, 3, padding=1, dictionary_size=3, form="two_convs", **kw),
    "dense": lambda **kw: LookupConv2d(4, 6, (3, 1), groups=2, dictionary_size=3, form="dense", **kw),
    "identity": lambda **kw: LookupConv2d(4, 6, 3, 2, 1, padding_mode="reflect", dictionary_size=None, **kw),
    "largest": lambda **kw: LookupConv2d(4, 6, 3, bias=False, dictionary_size=5, lookups_per_position=2, **kw),
    "linear": lambda **kw: LookupLinear(4, 6, dictionary_size=2, form="two_convs", **kw),
    "linear dense": lambda **kw: LookupLinear(4, 6, dictionary_size=2, form="dense", **kw),
    "linear identity": lambda **kw: LookupLinear(4, 6, bias=False, dictionary_size=None, **kw),
}
layers = pytest.mark.parametrize("make", LAYER_CASES.values(), ids=LAYER_CASES)


def example(layer: nn.Module, batch: int = 2) -> torch.Tensor:
    shape = (4, 6, 5) if isinstance(layer, LookupConv2d) else (4,)
    return torch.randn(batch, *shape, dtype=layer.coefficients.dtype)


def network() -> nn.Sequential:
    """Every layer kind and form in one small network for images of 4 x 8 x 8."""
    return nn.Sequential(
        LookupConv2d(4, 6, 3, padding=1, dictionary_size=3, form="two_convs"),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        LookupConv2d(6, 8, 3, 2, groups=2, dictionary_size=4, lookups_per_position=2, form="dense"),
        LookupConv2d(8, 8, (1, 3), padding="same", padding_mode="circular", dictionary_size=None),
        nn.Flatten(),
        LookupLinear(72, 10, dictionary_size=5, threshold=0.1),
    )


def test_the_cases_cover_every_registered_layer():
    assert {type(make()) for make in LAYER_CASES.values()} == set(LAYERS.values())


@layers
def test_state_dict_round_trip(make):
    layer, other = make(), make()
    x = example(layer)
    assert not torch.equal(layer(x), other(x))
    buffer = io.BytesIO()
    torch.save(layer.state_dict(), buffer)
    buffer.seek(0)
    assert other.load_state_dict(torch.load(buffer, weights_only=True), strict=True) == ([], [])
    assert torch.equal(layer(x), other(x))


@layers
@pytest.mark.parametrize("clone", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_copies_are_equal_and_independent(make, clone):
    layer = make().eval()
    x = example(layer)
    y, twin = layer(x), clone(layer)
    assert torch.equal(twin(x), y)
    assert repr(twin) == repr(layer)
    assert (twin.config, twin.training) == (layer.config, False)
    with torch.no_grad():
        twin.coefficients.fill_(1)
    assert torch.equal(layer(x), y)


@layers
def test_repr_builds_the_same_layer(make):
    layer = make()
    again = eval(repr(layer), {"LookupConv2d": LookupConv2d, "LookupLinear": LookupLinear})
    assert repr(again) == repr(layer)
    assert [(name, p.shape) for name, p in again.named_parameters()] == [
        (name, p.shape) for name, p in layer.named_parameters()
    ]


def test_repr_reads_as_pytorch_writes_it():
    conv = LookupConv2d(
        4,
        8,
        3,
        2,
        1,
        (1, 2),
        2,
        False,
        "circular",
        dictionary_size=5,
        threshold=0.012345,
        l1_weight=0.5,
        lookups_per_position=3,
        form="dense",
    )
    assert repr(conv) == (
        "LookupConv2d(4, 8, kernel_size=(3, 3), stride=(2, 2), padding=(1, 1), dilation=(1, 2), groups=2, bias=False, "
        "padding_mode='circular', dictionary_size=5, threshold=0.0123, l1_weight=0.5, lookups_per_position=3, "
        "form='dense')"
    )
    plain = LookupConv2d(1, 2, (3, 1), padding="same", dictionary_size=None, threshold=0)
    assert repr(plain) == (
        "LookupConv2d(1, 2, kernel_size=(3, 1), stride=(1, 1), padding='same', dictionary_size=None, threshold=0, "
        "l1_weight=0)"
    )
    linear = LookupLinear(3, 2, bias=False, dictionary_size=4, threshold=1e-5)
    assert repr(linear) == (
        "LookupLinear(in_features=3, out_features=2, bias=False, dictionary_size=4, threshold=1e-05, l1_weight=0)"
    )


@layers
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.half, 5e-3), (torch.bfloat16, 3e-2)])
def test_low_precision(make, dtype, tolerance):
    reference = make(dtype=torch.float64)
    layer = make().to(dtype)
    layer.load_state_dict(reference.state_dict())
    x = example(layer)
    y = layer(x)
    assert y.dtype == dtype
    expected = reference(x.double())
    assert (y.double() - expected).abs().max() <= tolerance * expected.abs().max()
    (y.sum() + layer.l1_term()).backward()
    assert layer.coefficients.grad.dtype == dtype
    assert layer.coefficients.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.half, torch.bfloat16])
def test_autocast_computes_low_and_keeps_parameters_high(dtype):
    layer = LAYER_CASES["two_convs"]()
    with torch.autocast("cpu", dtype=dtype):
        y = layer(example(layer))
    assert y.dtype == dtype
    y.float().sum().backward()
    assert layer.coefficients.grad.dtype == torch.float32


@pytest.mark.parametrize("make", [LAYER_CASES[name] for name in ("two_convs", "dense", "identity")])
def test_channels_last(make):
    layer = make()
    x = example(layer)
    y = layer(x)
    last = layer.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(last, y)
    assert last.is_contiguous(memory_format=torch.channels_last)


@layers
def test_meta_device_knows_shapes(make):
    real = make()
    layer = make(device="meta")
    assert all(p.is_meta for p in layer.parameters())
    assert layer(example(real).to("meta")).shape == real(example(real)).shape
    layer.to_empty(device="cpu").load_state_dict(real.state_dict())
    x = example(real)
    assert torch.equal(layer(x), real(x))


@layers
def test_reset_parameters_repeats_with_the_seed(make):
    torch.manual_seed(3)
    layer = make()
    first = copy.deepcopy(layer.state_dict())
    layer.reset_parameters()
    assert not torch.equal(layer.coefficients, first["coefficients"])
    torch.manual_seed(3)
    layer.reset_parameters()
    for name, value in layer.state_dict().items():
        assert torch.equal(value, first[name]), name


NO_COMPILER = not any(map(shutil.which, ("c++", "g++", "clang++")))
INDUCTOR = (pytest.mark.slow, pytest.mark.skipif(NO_COMPILER, reason="inductor needs a C++ compiler"))


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=INDUCTOR)])
def test_compile_the_whole_graph_with_gradients(backend):
    torch._dynamo.reset()
    model = network()
    twin = copy.deepcopy(model)
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    x = torch.randn(3, 4, 8, 8)
    y, expected = compiled(x), twin(x)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)
    y.square().sum().backward()
    expected.square().sum().backward()
    for (name, p), q in zip(model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-3, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}")


def test_export_with_a_dynamic_batch():
    model = network().eval()
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(model, (torch.randn(2, 4, 8, 8),), dynamic_shapes=({0: batch},), strict=True)
    for size in (1, 2, 7):
        x = torch.randn(size, 4, 8, 8)
        torch.testing.assert_close(program.module()(x), model(x))


@layers
def test_export_of_each_layer_follows_its_weights(make):
    layer = make()
    program = torch.export.export(layer, (example(layer),))
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    buffer.seek(0)
    x = example(layer)
    torch.testing.assert_close(torch.export.load(buffer).module()(x), layer(x))
    assert set(program.state_dict) == set(layer.state_dict())
