"""Packed lookup layers: the same outputs, an ordinary module, and counted by other people's tools as by us."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from fvcore.nn import FlopCountAnalysis
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from lcnn_core import (
    LAYERS,
    MODELS,
    ConfigError,
    LookupConv2d,
    LookupLayer,
    LookupLinear,
    PackedLookupConv2d,
    PackedLookupLinear,
    ShapeError,
    build,
    count_layer,
    describe,
    handles,
    input_shape_of,
    pack,
)

CASES = {
    "strided": (lambda: LookupConv2d(4, 6, 3, 2, 1, dictionary_size=3), (4, 9, 7)),
    "grouped": (lambda: LookupConv2d(8, 6, (3, 2), padding=(1, 0), groups=2, dictionary_size=3), (8, 6, 7)),
    "dilated": (lambda: LookupConv2d(4, 6, 3, padding=2, dilation=2, bias=False, dictionary_size=2), (4, 8, 8)),
    "all of it": (lambda: LookupConv2d(6, 9, (2, 3), (2, 1), (0, 1), (2, 1), 3, dictionary_size=2), (6, 8, 7)),
    "identity": (lambda: LookupConv2d(4, 6, 3, 2, 1, padding_mode="reflect", dictionary_size=None), (4, 6, 5)),
    "same, uneven": (lambda: LookupConv2d(4, 6, (2, 4), padding="same", dictionary_size=3), (4, 6, 5)),
    "valid": (lambda: LookupConv2d(4, 6, 3, padding="valid", dictionary_size=5, lookups_per_position=2), (4, 6, 5)),
    "linear": (lambda: LookupLinear(5, 6, dictionary_size=2), (5,)),
    "linear on tokens": (lambda: LookupLinear(5, 6, bias=False, dictionary_size=None), (3, 5)),
}
cases = pytest.mark.parametrize(("make", "shape"), CASES.values(), ids=CASES)


def sparse(make) -> nn.Module:
    """The layer with zeros in D and half of P below its threshold."""
    layer = make()
    layer.threshold = float(layer.coefficients.detach().abs().median())
    if layer.dictionary is not None:
        with torch.no_grad():
            layer.dictionary[0, 0] = 0
    return layer


def torch_flops(model: nn.Module, x: torch.Tensor) -> int:
    with FlopCounterMode(display=False) as counter:
        model(x)
    return counter.get_total_flops()


def fvcore_macs(model: nn.Module, x: torch.Tensor) -> int:
    """What fvcore counts for operators that multiply by weights."""
    analysis = FlopCountAnalysis(model, x).set_op_handle(**handles()).unsupported_ops_warnings(False)
    analysis.uncalled_modules_warnings(False).tracer_warnings("none")
    counted = analysis.by_operator()
    return sum(counted[name] for name in ("conv", "linear", "matmul", "lookup_conv", "lookup_linear"))


def test_the_cases_cover_every_registered_layer():
    assert {type(make()) for make, _ in CASES.values()} == set(LAYERS.values())


@cases
def test_packed_computes_what_the_layer_does(make, shape):
    layer = sparse(make)
    packed = layer.pack()
    for batch in (1, 3):
        x = torch.randn(batch, *shape)
        torch.testing.assert_close(packed(x), layer(x), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(packed(x[0]), layer(x[0]), rtol=1e-5, atol=1e-6)
    half = layer.double().pack()
    torch.testing.assert_close(half(x.double()), layer(x.double()))


@cases
def test_both_tools_count_positions_times_nonzeros(make, shape):
    """Counted here by hand: nonzeros of D at every padded position, of P at every output position."""
    layer = sparse(make)
    x = torch.randn(2, *shape)
    y, d, p = layer(x), layer.dictionary, layer.effective_coefficients()
    if isinstance(layer, LookupConv2d):
        rows, columns = layer.padding_total()
        padded, positions = (shape[1] + rows) * (shape[2] + columns), y.shape[2] * y.shape[3]
    else:
        padded = positions = y[0].numel() // 6
    expected = 2 * (padded * (0 if d is None else int((d != 0).sum())) + positions * int((p != 0).sum()))
    assert torch_flops(layer.pack(), x) == 2 * expected
    assert fvcore_macs(layer.pack(), x) == expected
    assert 2 * count_layer(describe(layer.pack(), shape).layers[0]).total == expected


@pytest.mark.parametrize("name", [name for name, builder in MODELS.items() if builder.has_lookups])
def test_packed_networks_of_the_registry_are_counted_as_published(name):
    model = build(name, **({"fc": 16} if name == "alexnet-lcnn" else {})).eval()  # 75 million coefficients less
    for layer in model.modules():
        if isinstance(layer, LookupLayer):
            layer.threshold = 0.95 * float(layer.coefficients.detach().abs().max())  # P is uniform: 5 % stay
    shape = (3, 64, 64) if name == "resnet-lcnn" else input_shape_of(name)
    ours = sum(count_layer(layer).total for layer in describe(model, shape).layers)
    packed, x = pack(model), torch.zeros(1, *shape)
    assert torch_flops(packed, x) == 2 * ours
    assert fvcore_macs(packed, x) == ours
    assert sum(count_layer(layer).total for layer in describe(packed, shape).layers) == ours


def test_a_packed_network_is_a_copy_with_the_same_outputs():
    model = build("digits-resnet-lcnn")
    names = set(dict(model.named_modules()))
    packed = pack(model).eval()
    assert packed.training != model.training
    assert set(dict(packed.named_modules())) == names
    kinds = [type(module) for module in packed.modules()]
    assert kinds.count(PackedLookupConv2d) == 9
    assert LookupConv2d not in kinds
    x = torch.randn(4, 1, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(packed(x), model.eval()(x))
    alone = LookupLinear(3, 2, dictionary_size=2)
    assert type(pack(alone)) is PackedLookupLinear


@cases
def test_description_is_the_layers_own(make, shape):
    layer = sparse(make)
    plain, packed = (describe(model, shape).layers[0] for model in (layer, layer.pack()))
    assert packed.parameters < plain.parameters
    for field in ("kind", "input_shape", "output_shape", "padding", "weight_size", "bias_size", "lookup"):
        assert getattr(packed, field) == getattr(plain, field), field


@cases
def test_state_dict_copies_and_pickles(make, shape):
    packed = sparse(make).pack()
    x = torch.randn(2, *shape)
    for twin in (copy.deepcopy(packed), pickle.loads(pickle.dumps(packed))):
        assert torch.equal(twin(x), packed(x))
        assert repr(twin) == repr(packed)
    buffer = io.BytesIO()
    torch.save(packed.state_dict(), buffer)
    buffer.seek(0)
    state = torch.load(buffer, weights_only=True)
    other = make().pack()  # nothing below its threshold: twice the lookups
    assert len(other.values) > len(packed.values)
    assert other.load_state_dict(state) == ([], [])
    assert torch.equal(other(x), packed(x))
    assert torch_flops(other, x) == torch_flops(packed, x)


def test_lookups_that_do_not_fit_are_refused_and_change_nothing():
    packed = LookupConv2d(2, 3, 2, dictionary_size=2).pack()
    before = packed(torch.ones(1, 2, 4, 4))
    state = packed.state_dict()
    state["indices"] = state["indices"].clone()
    state["indices"][-1] = 8
    with pytest.raises(RuntimeError, match=r"the layer: indices reach from 0 to 8; expected 0 to 7"):
        packed.load_state_dict(state)
    assert torch.equal(packed(torch.ones(1, 2, 4, 4)), before)
    packed.indices[-1] = 8
    with pytest.raises(ShapeError, match="indices reach from 0 to 8; expected 0 to 7"):
        packed(torch.ones(1, 2, 4, 4))


def test_inputs_that_do_not_fit_are_refused():
    with pytest.raises(ShapeError, match=r"input \(1, 3, 4, 4\) does not fit; expected \(b, 2, h, w\) or \(2, h, w\)"):
        LookupConv2d(2, 3, 2, dictionary_size=2).pack()(torch.ones(1, 3, 4, 4))
    with pytest.raises(ShapeError, match=r"input \(1, 3\) does not fit; expected \(\*, 2\)"):
        LookupLinear(2, 3, dictionary_size=2).pack()(torch.ones(1, 3))


def test_layers_without_weights_cannot_be_packed():
    with torch.device("meta"):
        model = build("digits-resnet-lcnn")
    with pytest.raises(ConfigError, match="on the meta device has no lookups to pack; load its weights first"):
        pack(model)


@cases
def test_export_and_the_meta_device_know_the_shapes(make, shape):
    layer = sparse(make)
    packed = layer.pack()
    x = torch.randn(2, *shape)
    assert copy.deepcopy(packed).to("meta")(x.to("meta")).shape == layer(x).shape
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(packed, (x,), dynamic_shapes=({0: batch},))
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    buffer.seek(0)
    x = torch.randn(5, *shape)
    torch.testing.assert_close(torch.export.load(buffer).module()(x), layer(x), rtol=1e-5, atol=1e-6)


def test_operators_keep_pytorchs_rules():
    """PyTorch's own check of schema, fake kernel and dispatch."""
    conv, linear = (
        LookupConv2d(4, 6, 3, groups=2, dictionary_size=3).pack(),
        LookupLinear(4, 6, dictionary_size=2).pack(),
    )
    tensors = [
        (layer.dictionary, layer.indices, layer.values, layer.offsets, layer.bias, layer.shape, layer.dictionary_nnz)
        for layer in (conv, linear)
    ]
    x = torch.randn(2, 4, 6, 5)
    torch.library.opcheck(torch.ops.lcnn.lookup_conv, (x, *tensors[0], [2, 1], [1, 0], [1, 2], 2))
    torch.library.opcheck(torch.ops.lcnn.lookup_linear, (torch.randn(2, 3, 4), *tensors[1]))
