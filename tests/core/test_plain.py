"""plain_layers: the same function without lookup layers, checked in float64; cheaper_forms against hand counts."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lcnn_core.layers import LookupConv2d, LookupLayer, LookupLinear
from lcnn_core.plain import cheaper_forms, plain_layers


@st.composite
def convolutions(draw: st.DrawFn) -> LookupConv2d:
    groups = draw(st.sampled_from([1, 2]))
    padding = draw(st.sampled_from([0, 1, (2, 0), "same", "valid"]))
    return LookupConv2d(
        4 * groups,
        6 * groups,
        draw(st.sampled_from([1, 3, (1, 3)])),
        stride=1 if padding == "same" else draw(st.sampled_from([1, 2])),
        padding=padding,
        dilation=draw(st.sampled_from([1, 2])),
        groups=groups,
        bias=draw(st.booleans()),
        padding_mode=draw(st.sampled_from(["zeros", "reflect"])),
        dictionary_size=draw(st.sampled_from([None, 1, 3])),
        threshold=0.1,
        lookups_per_position=draw(st.sampled_from([None, 1])),
    )


@given(layer=convolutions(), form=st.sampled_from(["dense", "two_layers"]))
def test_convolutions_keep_their_function(layer, form):
    layer = layer.double()
    x = torch.randn(2, layer.in_channels, 9, 8, dtype=torch.float64)
    plain = plain_layers(layer, form)
    torch.testing.assert_close(plain(x), layer(x), rtol=1e-12, atol=1e-12)
    assert not any(isinstance(module, LookupLayer) for module in plain.modules())


@pytest.mark.parametrize("form", ["dense", "two_layers"])
@pytest.mark.parametrize("dictionary_size", [None, 3])
def test_linear_layers_keep_their_function(form, dictionary_size):
    layer = LookupLinear(7, 5, dictionary_size=dictionary_size, threshold=0.2).double()
    x = torch.randn(2, 3, 7, dtype=torch.float64)
    torch.testing.assert_close(plain_layers(layer, form)(x), layer(x), rtol=1e-12, atol=1e-12)


def test_a_shared_layer_stays_shared_and_the_model_is_not_touched():
    shared = LookupConv2d(4, 4, 3, padding=1, dictionary_size=2)
    model = nn.Sequential(shared, nn.BatchNorm2d(4), shared).train()
    plain = plain_layers(model, "dense")
    assert plain[0] is plain[2]
    assert plain[0] is not shared
    assert plain.training
    assert plain[0].training
    assert model[0] is shared
    plain[0].weight.data.zero_()
    plain[1].weight.data.zero_()
    assert shared.coefficients.abs().sum() > 0
    assert model[1].weight.sum() == 4


def test_a_function_chooses_the_form_of_each_layer():
    model = nn.Sequential(LookupConv2d(4, 4, 3, dictionary_size=2), LookupConv2d(4, 4, 3, dictionary_size=2))
    plain = plain_layers(model, lambda layer: "dense" if layer is model[0] else "two_layers")
    assert isinstance(plain[0], nn.Conv2d)
    assert [tuple(conv.weight.shape) for conv in plain[1]] == [(2, 4, 1, 1), (4, 2, 3, 3)]


def test_forms_are_counted_as_dense_nodes_over_all_calls():
    shared = LookupConv2d(4, 4, 3, stride=2, padding=1, dictionary_size=2)
    model = nn.Sequential(shared, shared, nn.Flatten(), LookupLinear(16, 10, dictionary_size=8))
    costs = cheaper_forms(model, (4, 8, 8))
    conv, linear = costs[shared], costs[model[3]]
    # 8x8 -> 4x4 -> 2x2: D at 64 and 16 places, P and W at 16 and 4.
    assert (conv.name, conv.two_layers, conv.dense) == ("0", 8 * (64 + 16) + 72 * (16 + 4), 144 * (16 + 4))
    assert (linear.name, linear.two_layers, linear.dense) == ("3", 16 * 8 + 8 * 10, 160)
    assert (conv.form, linear.form) == ("two_layers", "dense")
