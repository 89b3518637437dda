"""describe: shapes, kinds and nonzeros against hand counts and torch's flop counter; the model is left as it was."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from lcnn_core.counting import FORMULAS, count_layer, counted_speedup
from lcnn_core.describe import FREE_OPERATIONS, KINDS, describe
from lcnn_core.errors import ConfigError, ShapeError, UnsupportedLayerError
from lcnn_core.layers import LookupConv2d, LookupLinear


class Net(nn.Module):
    """A little of everything: lookups, a shared layer, a grouped one, a functional one, a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.lookup = LookupConv2d(8, 8, 3, padding=1, dictionary_size=2)
        self.grouped = nn.Conv2d(8, 8, (3, 1), padding="same", groups=4, bias=False)
        self.kernel = nn.Parameter(torch.randn(4, 8, 1, 1))
        self.head = LookupLinear(4, 5, dictionary_size=None)

    def forward(self, x):
        x = F.relu(self.norm(self.stem(x)))
        x = self.lookup(self.lookup(x))
        x = F.conv2d(self.grouped(x), self.kernel)
        return self.head(x.mean((2, 3)))


def totals(model: nn.Module, shape: tuple[int, ...]) -> int:
    return sum(count_layer(layer).total for layer in describe(model, shape).layers)


def torch_macs(model: nn.Module, shape: tuple[int, ...]) -> float:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(torch.zeros(1, *shape))
    return counter.get_total_flops() / 2


def test_every_layer_in_call_order_with_its_shapes():
    spec = describe(Net(), (3, 12, 10), architecture="net")
    assert (spec.architecture, spec.input_shape, spec.weights_known) == ("net", (3, 12, 10), True)
    rows = [(layer.name, layer.kind, layer.call, layer.input_shape, layer.output_shape) for layer in spec.layers]
    assert rows == [
        ("stem", "conv", 0, (3, 12, 10), (8, 6, 5)),
        ("norm", "norm", 0, (8, 6, 5), (8, 6, 5)),
        ("lookup", "lookup_conv", 0, (8, 6, 5), (8, 6, 5)),
        ("lookup", "lookup_conv", 1, (8, 6, 5), (8, 6, 5)),
        ("grouped", "conv", 0, (8, 6, 5), (8, 6, 5)),
        ("", "conv", 0, (8, 6, 5), (4, 6, 5)),
        ("head", "lookup_linear", 0, (4,), (5,)),
    ]
    by_name = {layer.name: layer for layer in spec.layers}
    assert by_name["stem"].padding == (2, 2)
    assert by_name["grouped"].padding == (2, 0)
    assert spec.uncounted == ()


def test_counts_of_the_little_net_by_hand():
    net = Net()
    with torch.no_grad():
        net.lookup.coefficients.zero_()
        net.lookup.coefficients.view(-1)[:7] = 1.0
        net.lookup.dictionary[0, 0] = 0.0
    counts = {(layer.name, layer.call): count_layer(layer) for layer in describe(net, (3, 12, 10)).layers}
    lookup = counts["lookup", 0]
    assert (lookup.dense, lookup.dictionary, lookup.lookups) == (30 * 8 * 8 * 9, 15 * 8 * 7, 30 * 7)
    assert counts["lookup", 1] == lookup
    assert counts["grouped", 0].total == 30 * 8 * 2 * 3
    assert counts["", 0].total == 30 * 4 * 8
    head = counts["head", 0]
    assert (head.dense, head.dictionary) == (20, 0)
    assert head.lookups == int((net.head.coefficients.abs() > net.head.threshold).sum())


def test_shared_parameters_are_counted_once_and_the_total_holds_them_all():
    net = Net()
    spec = describe(net, (3, 12, 10))
    assert spec.parameters == sum(p.numel() for p in net.parameters())
    assert sum(layer.parameters for layer in spec.layers) == spec.parameters


def test_model_comes_out_as_it_was():
    net = Net()
    net.grouped.eval()
    before = copy.deepcopy(net.state_dict())
    flags = [module.training for module in net.modules()]
    fast_path = torch.backends.mha.get_fastpath_enabled()
    with pytest.raises(ShapeError, match=r"an input of shape \(2, 12, 10\) does not run"):
        describe(net, (2, 12, 10))
    describe(net, (3, 12, 10))
    assert [module.training for module in net.modules()] == flags
    assert torch.backends.mha.get_fastpath_enabled() == fast_path
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (nn.Sequential(nn.Conv1d(4, 6, 3, stride=2, dilation=2), nn.ReLU(), nn.Conv1d(6, 6, 1)), (4, 20)),
        (nn.Sequential(nn.Conv3d(2, 4, 3, padding=1), nn.MaxPool3d(2)), (2, 6, 6, 6)),
        (nn.ConvTranspose2d(6, 4, 3, stride=2, padding=1, output_padding=1, groups=2), (6, 5, 5)),
        (nn.Sequential(nn.Flatten(), nn.Linear(12, 7), nn.Softmax(-1)), (3, 2, 2)),
        (nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), (5, 8)),
    ],
)
def test_dense_layers_agree_with_torch_flop_counter(model, shape, monkeypatch):
    if isinstance(model, nn.TransformerEncoderLayer):
        # torch's counter does not see the fused CPU attention; its two products are added by hand.
        attention = 2 * 2 * (5 * 4 * 5)
        with monkeypatch.context() as patch:
            patch.setattr(torch.backends.mha, "_is_fastpath_enabled", False)
            assert totals(model, shape) == torch_macs(model, shape) + attention
    else:
        assert totals(model, shape) == torch_macs(model, shape)


class Standardized(nn.Conv2d):
    """A subclass that does more: its operations are read, with the weight that is really used."""

    def forward(self, x):
        return F.conv2d(x, self.weight * (torch.arange(self.weight.shape[0]) % 2).view(-1, 1, 1, 1), self.bias)


def test_subclasses_are_read_by_their_operations():
    spec = describe(nn.Sequential(Standardized(3, 4, 3)), (3, 6, 6))
    (layer,) = spec.layers
    assert (layer.name, layer.kind, layer.weight_size, layer.weight_nnz) == ("0", "conv", 108, 54)
    assert count_layer(layer).skipped == 16 * 54


class ByKeyword(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3)
        self.lookup = LookupConv2d(2, 4, 1, dictionary_size=1)

    def forward(self, x):
        return self.lookup(x=self.conv(input=x))


def test_layers_called_by_keyword_are_counted():
    layers = describe(ByKeyword(), (1, 5, 5)).layers
    assert [(layer.name, layer.kind, layer.input_shape) for layer in layers] == [
        ("conv", "conv", (1, 5, 5)),
        ("lookup", "lookup_conv", (2, 3, 3)),
    ]


def test_tied_weights_are_counted_once():
    first, second = nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False)
    second.weight = first.weight
    spec = describe(nn.Sequential(first, second), (8,))
    assert [layer.parameters for layer in spec.layers] == [64, 0]
    assert spec.parameters == 64


class Spectral(nn.Module):
    def forward(self, x):
        return torch.fft.rfft2(x).abs()


def test_unknown_operations_are_listed_and_never_taken_for_zero():
    spec = describe(Spectral(), (1, 8, 8))
    assert [(u.operation, u.calls) for u in spec.uncounted] == [("aten._fft_r2c.default", 1)]


class Pruned(nn.Module):
    """Weights that no module in KINDS holds: attention's, a subclass's masked one, and two of functional layers."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.masked = Masked(8, 6)
        self.kernels = nn.ParameterList([nn.Parameter(torch.randn(2, 1, 3)), nn.Parameter(torch.randn(3, 2, 1))])
        with torch.no_grad():
            self.attention.in_proj_weight[3:20] = 0
            self.attention.out_proj.weight[:, 1] = 0
            self.kernels[1][0] = 0

    def forward(self, x):
        x = self.masked(self.attention(x, x, x)[0])
        x = x.transpose(0, 1).reshape(-1, 1, 6)
        return F.conv1d(F.conv1d(x, self.kernels[0]), self.kernels[1])


class Masked(nn.Linear):
    def forward(self, x):
        return F.linear(x, self.weight * (torch.arange(8) % 2), self.bias)


def test_zeros_are_seen_wherever_the_weights_are():
    """Of 5 tokens: 17 * 8 zeros in three projections, 8 in the output's, 4 * 6 masked; 2 of 6 taps at 4 places."""
    spec = describe(Pruned(), (5, 8))
    counts = [count_layer(layer) for layer in spec.layers]
    assert sum(count.skipped for count in counts) == 5 * (17 * 8 + 8 + 4 * 6) + 5 * 4 * 2
    weighted = [(layer.kind, layer.weight_size, layer.parameters) for layer in spec.layers if layer.weight_size]
    assert weighted == [("linear", 192, 216), ("linear", 64, 72), ("linear", 48, 0), ("conv", 6, 6), ("conv", 6, 6)]
    assert not spec.uncounted


class Refuses(nn.Module):
    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def forward(self, x):
        raise self.error


@pytest.mark.parametrize("error", [AssertionError(), KeyError("x"), ValueError(" "), ZeroDivisionError("by zero")])
def test_what_a_model_raises_for_an_input_is_a_shape_error(error):
    with pytest.raises(
        ShapeError, match=rf"does not run through the model: {str(error).strip() or type(error).__name__}"
    ):
        describe(Refuses(error), (3,))


def test_lazy_layers_are_refused_and_left_lazy():
    model = nn.Sequential(nn.LazyConv2d(4, 3), nn.Conv2d(4, 2, 1))
    with pytest.raises(UnsupportedLayerError, match="lazy layers without sizes; run one image through it first"):
        describe(model, (3, 8, 8))
    assert type(model[0]) is nn.LazyConv2d
    model(torch.zeros(1, 3, 8, 8))
    assert [layer.name for layer in describe(model, (3, 8, 8)).layers] == ["0", "1"]


def test_moving_values_is_free():
    """A GRU on the CPU splits its gates, unfolding copies windows: no multiplication in either."""
    assert not describe(nn.Sequential(nn.Flatten(2), nn.GRU(8, 5)), (3, 2, 4)).uncounted
    assert not describe(nn.Sequential(nn.Unfold(3), nn.Fold((8, 8), 3)), (3, 8, 8)).uncounted


def test_meta_model_gives_upper_bounds():
    with torch.device("meta"):
        net = Net()
    spec = describe(net, (3, 12, 10))
    assert not spec.weights_known
    lookup = next(layer for layer in spec.layers if layer.name == "lookup").lookup
    assert lookup is not None
    assert (lookup.coefficients_nnz, lookup.dictionary_nnz) == (8 * 2 * 9, 16)


def test_counted_speedup_is_twin_over_model():
    net = nn.Sequential(LookupConv2d(4, 6, 3, padding=1, dictionary_size=2))
    with torch.no_grad():
        net[0].coefficients.zero_()
        net[0].coefficients[0, 0, 0, 0] = 1
    assert counted_speedup(describe(net, (4, 5, 5)).layers) == 25 * 6 * 4 * 9 / (49 * 8 + 25)


def test_compiled_wrapper_is_looked_through():
    net = nn.Sequential(nn.Conv2d(1, 2, 1))
    assert describe(torch.compile(net), (1, 4, 4)).layers == describe(net, (1, 4, 4)).layers


def test_bad_arguments():
    with pytest.raises(ConfigError, match=r"input shape is \(3, 0, 4\); expected positive whole numbers"):
        describe(Net(), (3, 0, 4))
    for size in (10**11, 10**20):
        with pytest.raises(ShapeError, match="does not run through the model"):
            describe(Net(), (3, size, size))
    with pytest.raises(UnsupportedLayerError, match="ScriptModule hides its calls"):
        describe(torch.jit.script(nn.Linear(2, 2)), (2,))


def test_registries_fit():
    assert set(KINDS.values()) <= set(FORMULAS)
    names = {name.split("::")[1].split(".")[0] for name in torch._C._dispatch_get_all_op_names() if name[:4] == "aten"}
    assert names >= FREE_OPERATIONS


class Chooses(nn.Module):
    """Its path hangs on the values of a known module, as in early exits and in mixtures of experts."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)
        self.often, self.rare = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 1)
        self.rows = nn.Linear(4, 5)
        nn.init.constant_(self.stem.bias, 1)

    def forward(self, x):
        x = self.stem(x)
        x = self.often(x) if x.mean() > 0.5 else self.rare(x)
        return self.rows(x.new_ones(len(x.nonzero()), 4))


def test_a_path_that_hangs_on_values_is_the_one_that_an_image_of_zeros_takes():
    model = Chooses()
    reached = model.often(model.stem(torch.zeros(1, 3, 2, 2)))
    layers = {layer.name: layer for layer in describe(model, (3, 2, 2)).layers}
    assert list(layers) == ["stem", "often", "rows"]
    assert layers["rows"].output_shape == (int(reached.count_nonzero()), 5)


def test_known_modules_are_not_computed(monkeypatch):
    computed = []
    monkeypatch.setattr(F, "relu", lambda x: computed.append(x.abs().sum()) or torch.relu(x))
    model = Net()
    nn.init.constant_(model.stem.bias, 1)
    spec = describe(model, (3, 12, 10))
    assert len(spec.layers) == 7
    assert [float(value) for value in computed] == [0]
