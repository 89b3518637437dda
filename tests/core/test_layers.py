"""LookupConv2d and LookupLinear: their numbers, arguments and gradients against plain convolutions and loops."""

from __future__ import annotations

import inspect
import itertools
import math
import re

import numpy as np
import pytest
import torch
from torch import nn

from lcnn_core import functional as lf
from lcnn_core.errors import ConfigError, ShapeError
from lcnn_core.layers import LAYERS, LookupConv2d, LookupLayer, LookupLinear
from lcnn_core.layers.base import DENSE_FORM_RATIO
from lcnn_core.spec import LookupConfig

GEOMETRIES = [
    {},
    {"stride": 2, "padding": 1},
    {"stride": (1, 3), "padding": (2, 0), "dilation": (1, 2)},
    {"padding": "same", "dilation": (1, 2)},
    {"padding": "same"},  # one more on the right: the kernel is two wide
    {"padding": "valid", "stride": 2},
    {"groups": 2, "padding": 1},
    {"groups": 4, "bias": False},
]
PADDING_MODES = ["zeros", "reflect", "replicate", "circular"]


def dense_twin(layer: LookupConv2d) -> nn.Conv2d:
    """PyTorch's own layer with the filters that ``layer`` stands for, rebuilt here by loops over D and P."""
    twin = nn.Conv2d(
        layer.in_channels,
        layer.out_channels,
        layer.kernel_size,
        layer.stride,
        layer.padding,
        layer.dilation,
        layer.groups,
        layer.bias is not None,
        layer.padding_mode,
        dtype=layer.coefficients.dtype,
    )
    coefficients = layer.coefficients.detach().numpy()
    n, k = coefficients.shape[:2]
    weight = np.zeros(twin.weight.shape)
    for f, row in itertools.product(range(n), range(k)):
        if layer.dictionary is None:
            vector = np.eye(k)[row]
        else:
            vector = layer.dictionary.detach().numpy()[f // (n // layer.groups) * k + row]
        used = np.where(np.abs(coefficients[f, row]) > layer.threshold, coefficients[f, row], 0)
        weight[f] += vector[:, None, None] * used
    with torch.no_grad():
        twin.weight.copy_(torch.tensor(weight))
        if layer.bias is not None:
            twin.bias.copy_(layer.bias)
    return twin


def conv(form: str = "auto", k: int | None = 3, **arguments) -> LookupConv2d:
    arguments = {"threshold": 0.05, "dtype": torch.float64, **arguments}
    return LookupConv2d(4, 8, (3, 2), dictionary_size=k, form=form, **arguments)


@pytest.mark.parametrize(("layer", "dense"), [(LookupConv2d, nn.Conv2d), (LookupLinear, nn.Linear)])
def test_signature_is_the_dense_layers_plus_keywords(layer, dense):
    ours, theirs = (list(inspect.signature(cls).parameters.values()) for cls in (layer, dense))
    assert [(p.name, p.default, p.kind) for p in ours[: len(theirs)]] == [(p.name, p.default, p.kind) for p in theirs]
    extra = {p.name: p.default for p in ours[len(theirs) :]}
    assert all(p.kind is inspect.Parameter.KEYWORD_ONLY for p in ours[len(theirs) :])
    assert extra == {
        "dictionary_size": inspect.Parameter.empty,
        "threshold": None,
        "l1_weight": 0.0,
        "lookups_per_position": None,
        "form": "auto",
    }


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("form", ["auto", "two_convs", "dense"])
@pytest.mark.parametrize("k", [1, 3, None])
@pytest.mark.parametrize("padding_mode", PADDING_MODES)
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_conv_equals_its_dense_twin(geometry, padding_mode, k, form):
    layer = conv(form, k, padding_mode=padding_mode, **geometry)
    x = torch.randn(2, 4, 7, 8, dtype=torch.float64)
    expected = dense_twin(layer)(x)
    y = layer(x)
    assert y.shape == expected.shape
    assert (y - expected).abs().max() <= 1e-12 * expected.abs().max()


@pytest.mark.parametrize("form", ["auto", "two_convs", "dense"])
@pytest.mark.parametrize("k", [1, 3, None])
@pytest.mark.parametrize("lead", [(), (5,), (2, 3), (0,)])
def test_linear_equals_its_dense_twin(lead, k, form):
    layer = LookupLinear(6, 4, dictionary_size=k, threshold=0.05, form=form, dtype=torch.float64)
    x = torch.randn(*lead, 6, dtype=torch.float64)
    dictionary = torch.eye(6, dtype=torch.float64) if layer.dictionary is None else layer.dictionary
    used = layer.coefficients * (layer.coefficients.abs() > 0.05)
    torch.testing.assert_close(layer(x), x @ (used @ dictionary).T + layer.bias, rtol=0, atol=1e-12)


def test_weights_below_the_threshold_do_matter_when_the_threshold_is_zero():
    layer = conv()
    x = torch.randn(1, 4, 5, 5, dtype=torch.float64)
    masked = layer(x)
    layer.threshold = 0.0
    assert int((layer.coefficients.abs() <= 0.05).sum()) > 5
    assert (layer(x) - masked).abs().max() > 1e-3


@pytest.mark.parametrize("form", ["two_convs", "dense"])
@pytest.mark.parametrize("groups", [1, 2])
def test_unbatched_and_empty_inputs(form, groups):
    layer = conv(form, groups=groups, padding_mode="reflect", padding=1)
    x = torch.randn(3, 4, 5, 6, dtype=torch.float64)
    y = layer(x)
    torch.testing.assert_close(layer(x[1]), y[1])
    empty = layer(x[:0])
    assert empty.shape == (0, *y.shape[1:])
    empty.sum().backward()
    assert layer.coefficients.grad.abs().sum() == 0


@pytest.mark.parametrize("form", ["two_convs", "dense"])
def test_no_lookup_at_all_leaves_the_bias(form):
    layer = conv(form, threshold=100.0)
    y = layer(torch.randn(2, 4, 5, 5, dtype=torch.float64))
    torch.testing.assert_close(y, layer.bias.reshape(1, -1, 1, 1).expand_as(y))
    assert len(layer.lookups().indices) == 0
    assert layer.l1_term() == 0


def test_lookups_per_position_keeps_the_largest():
    layer = conv(k=4, lookups_per_position=2)
    effective = layer.effective_coefficients()
    for f, y, x in itertools.product(range(8), range(3), range(2)):
        column = layer.coefficients[f, :, y, x].tolist()
        largest = sorted(column, key=abs)[-2:]
        assert effective[f, :, y, x].tolist() == [v if v in largest and abs(v) > 0.05 else 0 for v in column]
    x = torch.randn(1, 4, 5, 5, dtype=torch.float64)
    torch.testing.assert_close(layer(x), lf.lookup_conv(x, layer.dictionary, effective, layer.bias))


def test_prune_writes_what_the_forward_pass_sees():
    layer = conv(k=4, lookups_per_position=2)
    x = torch.randn(1, 4, 5, 5, dtype=torch.float64)
    y, seen = layer(x), layer.effective_coefficients().clone()
    assert layer.prune_() is layer
    assert torch.equal(layer.coefficients, seen)
    assert torch.equal(layer(x), y)
    assert layer.coefficients.requires_grad


def test_forward_mutates_nothing():
    layer, x = conv(k=4, lookups_per_position=2), torch.randn(2, 4, 5, 5, dtype=torch.float64)
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    attributes, x_before = dict(vars(layer)), x.clone()
    for training in (True, False):
        layer.train(training)(x)
    layer.l1_term(), layer.lookups(), layer.dense_weight()
    assert torch.equal(x, x_before)
    assert {**vars(layer), "training": True} == attributes
    for name, value in layer.state_dict().items():
        assert torch.equal(value, before[name]), name


# Gradients


@pytest.mark.parametrize("form", ["two_convs", "dense"])
@pytest.mark.parametrize("arguments", [{}, {"groups": 2}, {"k": None}, {"lookups_per_position": 2}], ids=str)
def test_gradcheck(form, arguments):
    layer = conv(form, threshold=0.1, padding=1, **arguments)
    with torch.no_grad():  # away from the threshold, where P has no derivative
        near = (layer.coefficients.abs() - 0.1).abs() < 0.01
        layer.coefficients[near] = 0.2
    parameters = [p for p in layer.parameters() if p is not None]
    x = torch.randn(1, 4, 4, 3, dtype=torch.float64, requires_grad=True)

    def run(x, *_):
        return layer(x)

    assert torch.autograd.gradcheck(run, (x, *parameters))


@pytest.mark.parametrize("form", ["two_convs", "dense"])
def test_published_gradient_rule(form):
    """dL/dP + lambda * sign(P), and zero where P is zeroed, against loops over every entry of P."""
    layer = conv(form, groups=2, stride=2, padding=1, l1_weight=0.3)
    x, upstream = torch.randn(2, 4, 6, 5, dtype=torch.float64), torch.randn(2, 8, 3, 3, dtype=torch.float64)
    ((layer(x) * upstream).sum() + layer.l1_term()).backward()

    padded = np.pad(x.numpy(), [(0, 0), (0, 0), (1, 1), (1, 1)])
    dictionary, coefficients = layer.dictionary.detach().numpy(), layer.coefficients.detach().numpy()
    expected = np.zeros(coefficients.shape)
    for f, row, ky, kx in np.ndindex(*coefficients.shape):
        value = coefficients[f, row, ky, kx]
        if abs(value) <= 0.05:
            continue
        group = f // 4
        slope = 0.3 * math.copysign(1, value)
        for image, oy, ox in itertools.product(range(2), range(3), range(3)):
            pixel = padded[image, group * 2 : group * 2 + 2, oy * 2 + ky, ox * 2 + kx]
            slope += upstream[image, f, oy, ox].item() * float(pixel @ dictionary[group * 3 + row])
        expected[f, row, ky, kx] = slope
    assert (np.abs(coefficients) <= 0.05).any()
    np.testing.assert_allclose(layer.coefficients.grad.numpy(), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("eps", [0.0, 0.05])
def test_l1_term_by_loops(eps):
    layer = conv(k=4, threshold=eps, l1_weight=0.7, lookups_per_position=3)
    used = layer.effective_coefficients().flatten().tolist()
    assert layer.l1_term().item() == pytest.approx(0.7 * sum(abs(v) for v in used))


# The training form


@pytest.mark.parametrize(
    ("layer", "two_convs", "dense"),
    [
        # MACs per output position, counted by hand: dictionary at stride 1, then P; against the dense filter.
        (lambda k: LookupConv2d(64, 64, 3, dictionary_size=k), lambda k: k * 64 + 64 * k * 9, 64 * 64 * 9),
        (lambda k: LookupConv2d(64, 64, 3, 2, dictionary_size=k), lambda k: 4 * k * 64 + 64 * k * 9, 64 * 64 * 9),
        (lambda k: LookupConv2d(64, 64, 1, dictionary_size=k), lambda k: k * 64 + 64 * k, 64 * 64),
        (lambda k: LookupConv2d(64, 64, 3, groups=4, dictionary_size=k), lambda k: k * 64 + 64 * k * 9, 64 * 16 * 9),
        (lambda k: LookupLinear(64, 32, dictionary_size=k), lambda k: k * 64 + 32 * k, 32 * 64),
    ],
)
def test_auto_rebuilds_w_where_two_steps_cost_more(layer, two_convs, dense):
    choices = {k: layer(k).uses_dense_form(10**9) for k in range(1, 70)}
    assert choices == {k: two_convs(k) > 0.85 * dense for k in choices}
    assert {True, False} == set(choices.values())
    assert DENSE_FORM_RATIO == 0.85


def test_form_is_obeyed_and_the_identity_never_rebuilds():
    assert LookupConv2d(4, 4, 3, dictionary_size=1, form="dense").uses_dense_form(1)
    assert not LookupConv2d(4, 4, 3, dictionary_size=40, form="two_convs").uses_dense_form(10**9)
    assert not LookupConv2d(4, 4, 1, stride=3, dictionary_size=None).uses_dense_form(10**9)


def test_auto_spreads_the_rebuilding_over_the_positions():
    """fc6 of the published AlexNet, 32 images: 38.7 G MACs to rebuild W, while two steps need 5.1 G for all of them."""
    with torch.device("meta"):
        fc6 = LookupConv2d(256, 4096, 6, dictionary_size=1024)
    two_convs, dense = 256 * 1024 + 4096 * 1024 * 36, 4096 * 256 * 36
    least = 4096 * 1024 * 36 * 256 / (two_convs - 0.85 * dense)
    assert 300 < least < 400
    assert [fc6.uses_dense_form(n) for n in (32, math.floor(least), math.ceil(least) + 1)] == [False, False, True]


@pytest.mark.parametrize(
    ("layer", "small", "large"),
    [
        # W is worth rebuilding from 15.3 positions on: 4 * 4 * 9 * 4 MACs over 160 - 0.85 * 144 a position.
        (LookupConv2d(4, 4, 3, dictionary_size=4), (1, 4, 5, 5), (1, 4, 6, 6)),
        (LookupConv2d(4, 4, 3, padding=1, dictionary_size=4), (1, 4, 3, 5), (1, 4, 4, 4)),
        (LookupConv2d(4, 4, 3, padding=1, padding_mode="reflect", dictionary_size=4), (1, 4, 3, 5), (1, 4, 4, 4)),
        (LookupConv2d(4, 4, 3, dilation=2, dictionary_size=4), (5, 4, 5, 7), (4, 4, 6, 6)),
        # Stride: the dictionary costs four times as much a position, so from 6.7 on.
        (LookupConv2d(4, 4, 3, stride=2, padding=1, dictionary_size=4), (1, 4, 5, 4), (1, 4, 4, 7)),
        # 8 * 8 * 8 MACs over 128 - 0.85 * 64 a position: from 6.96 on.
        (LookupLinear(8, 8, dictionary_size=8), (2, 3, 8), (7, 1, 8)),
    ],
)
def test_the_batch_s_positions_decide_the_form(layer, small, large, monkeypatch):
    rebuilt = []
    dense_weight = type(layer).dense_weight
    monkeypatch.setattr(type(layer), "dense_weight", lambda self: rebuilt.append(1) or dense_weight(self))
    layer(torch.randn(small))
    assert not rebuilt
    layer(torch.randn(large))
    assert rebuilt


# Start and shapes


def test_parameters_and_their_start():
    layer = LookupConv2d(6, 90, (3, 5), groups=3, dictionary_size=8)
    assert layer.dictionary.shape == (24, 2)
    assert layer.coefficients.shape == (90, 8, 3, 5)
    assert layer.dense_shape == layer.dense_weight().shape == nn.Conv2d(6, 90, (3, 5), groups=3).weight.shape
    assert layer.dictionary_size == 8
    bound = 1 / math.sqrt(8 * 15)
    assert layer.threshold == pytest.approx(0.01 * bound)
    magnitudes = layer.coefficients.detach().abs()
    assert 0.999 * bound < magnitudes.max() <= bound
    assert (magnitudes <= layer.threshold).float().mean().item() == pytest.approx(0.01, abs=0.004)
    assert magnitudes.mean().item() == pytest.approx(bound / 2, rel=0.02)
    assert layer.dictionary.detach().abs().max() <= 1 / math.sqrt(2)
    assert layer.bias.detach().abs().max() <= 1 / math.sqrt(2 * 15)


def test_identity_stores_no_dictionary():
    layer = LookupConv2d(6, 4, 3, groups=2, dictionary_size=None)
    assert layer.dictionary is None
    assert layer.coefficients.shape == layer.dense_shape == (4, 3, 3, 3)
    assert set(layer.state_dict()) == {"coefficients", "bias"}
    assert layer.config.dictionary_size is None


@pytest.mark.parametrize(("dense", "lookup"), LAYERS.items(), ids=lambda cls: cls.__name__)
def test_every_registered_layer_is_a_sibling_of_its_dense_layer(dense, lookup):
    assert issubclass(lookup, LookupLayer)
    assert lookup.__doc__
    original = dense(*(8,) * (3 if dense is nn.Conv2d else 2), bias=False, dtype=torch.float64).eval()
    config = LookupConfig(3, threshold_scale=0.5, l1_scale=0.2, lookups_per_position=2)
    layer = lookup.like(original, config)
    kernel = original.weight.shape[2:]
    assert layer.dense_shape == original.weight.shape
    assert layer.threshold == pytest.approx(0.5 / math.sqrt(3 * math.prod(kernel)))
    assert layer.l1_weight == pytest.approx(0.2 * layer.threshold)
    assert (layer.lookups_per_position, layer.bias, layer.training) == (2, None, False)
    assert layer.coefficients.dtype == torch.float64
    assert layer.config == LookupConfig(3, layer.threshold, l1_weight=layer.l1_weight, lookups_per_position=2)
    assert lookup.like(original, layer.config).config == layer.config


def test_like_keeps_every_argument_device_dtype_and_training_flag():
    original = nn.Conv2d(
        8, 4, (3, 2), (1, 1), "same", (2, 1), 4, False, "circular", device="meta", dtype=torch.bfloat16
    )
    layer = LookupConv2d.like(original, LookupConfig(2), form="dense")
    names = ["in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode"]
    assert [getattr(layer, name) for name in names] == [getattr(original, name) for name in names]
    assert layer.bias is None
    assert layer.form == "dense"
    assert layer.training
    assert {(p.device.type, p.dtype) for p in layer.parameters()} == {("meta", torch.bfloat16)}
    assert not LookupLinear.like(nn.Linear(2, 2).eval(), LookupConfig(1)).training


# What is refused


@pytest.mark.parametrize("cls", [LookupConv2d, LookupLinear])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"dictionary_size": 0},
            "dictionary_size is 0; expected a whole number of 1 or more, or None for",
        ),
        ({"dictionary_size": -3}, "dictionary_size is -3; expected a whole number of 1 or more"),
        ({"dictionary_size": 2.0}, "dictionary_size is 2.0; expected a whole number of 1 or more"),
        ({"dictionary_size": True}, "dictionary_size is True; expected a whole number of 1 or more"),
        ({"threshold": -0.1}, "threshold is -0.1; expected a finite number of 0 or more"),
        ({"threshold": math.nan}, "threshold is nan; expected a finite number of 0 or more"),
        ({"l1_weight": math.inf}, "l1_weight is inf; expected a finite number of 0 or more"),
        (
            {"lookups_per_position": 0},
            "lookups_per_position is 0; expected a whole number of 1 or more, or None for",
        ),
        ({"form": "fast"}, "form is 'fast'; expected one of auto, two_convs, dense"),
    ],
)
def test_lookup_arguments_out_of_range(cls, arguments, message):
    sizes = (4, 4, 3) if cls is LookupConv2d else (4, 4)
    with pytest.raises(ConfigError, match=re.escape(message)):
        cls(*sizes, **{"dictionary_size": 2, **arguments})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"groups": 3}, "groups is 3; expected a divisor of in_channels=4 and out_channels=6"),
        ({"groups": 4}, "groups is 4; expected a divisor of in_channels=4 and out_channels=6"),
        ({"groups": 0}, "groups is 0; expected a divisor"),
        ({"groups": -2}, "groups is -2; expected a divisor"),
        ({"padding_mode": "mirror"}, "padding_mode is 'mirror'; expected one of zeros, reflect, replicate, circular"),
        ({"padding": "full"}, "padding is 'full'; expected 'same', 'valid', a number or a pair"),
        ({"padding": "same", "stride": 2}, "padding='same' needs stride 1, but stride is (2, 2)"),
        ({"kernel_size": (3, 0)}, "a layer of 4 inputs per group, 6 outputs and kernel (3, 0) has no weights"),
    ],
)
def test_conv_arguments_out_of_range(arguments, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        LookupConv2d(**{"in_channels": 4, "out_channels": 6, "kernel_size": 3, "dictionary_size": 2, **arguments})


@pytest.mark.parametrize("shape", [(2, 3, 5, 5), (3, 5, 5), (5, 5), (1, 2, 4, 5, 5), ()])
def test_conv_inputs_that_do_not_fit(shape):
    message = f"input {shape} does not fit; expected (b, 4, h, w) or (4, h, w)"
    with pytest.raises(ShapeError, match=re.escape(message)):
        conv()(torch.zeros(shape, dtype=torch.float64))


@pytest.mark.parametrize("shape", [(2, 3), (6, 2), ()])
def test_linear_inputs_that_do_not_fit(shape):
    with pytest.raises(ShapeError, match=re.escape(f"input {shape} does not fit; expected (*, 6)")):
        LookupLinear(6, 2, dictionary_size=1)(torch.zeros(shape))
