"""Conversion: weights carried over (against torch's SVD and the dense model itself), what is left, and the report."""

from __future__ import annotations

import copy
import dataclasses
import math
import re
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from lcnn_core.convert import ConversionReport, convert, convert_, set_lookup_layers_, svd_factors
from lcnn_core.errors import ConfigError, ShapeError
from lcnn_core.layers import LAYERS, LookupConv2d, LookupLayer, LookupLinear
from lcnn_core.models import build, input_shape_of
from lcnn_core.spec import LookupConfig

EXACT = LookupConfig(8, threshold=0.0)


def product(dictionary: torch.Tensor, coefficients: torch.Tensor, groups: int = 1) -> torch.Tensor:
    """W from D and P by plain loops over groups and filters."""
    n, k, *kernel = coefficients.shape
    filters = []
    for index in range(n):
        group = index // (n // groups)
        rows = dictionary[group * k : (group + 1) * k]
        filters.append(sum(coefficients[index, j] * rows[j].reshape(-1, *(1,) * len(kernel)) for j in range(k)))
    return torch.stack(filters)


def small_net() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 24, 3), nn.Flatten())


def reasons(report: ConversionReport) -> dict[str, str]:
    return {name: layer.reason for layer in report.left for name in layer.names}


def converted(report: ConversionReport) -> set[str]:
    return {name for layer in report.converted for name in layer.names}


# --- D and P from dense filters


@given(
    st.integers(1, 3),
    st.integers(1, 6),
    st.integers(1, 6),
    st.sampled_from([(), (1, 1), (3, 3), (2, 1), (3,), (2, 2, 2)]),
    st.integers(1, 9),
    st.integers(0, 99),
)
def test_svd_factors_are_the_best_rank_k_approximation(groups, per_group, m, kernel, k, seed):
    """Eckart and Young: no k vectors leave a smaller error than the truncated SVD, here by torch in float64."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(groups * per_group, m, *kernel, dtype=torch.float64, generator=generator)
    dictionary, coefficients = svd_factors(weight, k, groups)
    assert dictionary.shape == (groups * k, m)
    assert coefficients.shape == (groups * per_group, k, *kernel)
    error = (product(dictionary, coefficients, groups) - weight).square().sum()
    best = torch.tensor(0.0, dtype=torch.float64)
    for part in weight.split(per_group):
        rows = part.reshape(per_group, m, -1).transpose(1, 2).reshape(-1, m)
        best += torch.linalg.svdvals(rows)[k:].square().sum()
    assert error.item() == pytest.approx(best.item(), rel=1e-9, abs=1e-14)
    if k >= m:
        assert error.sqrt() <= 1e-12 * weight.norm()


@pytest.mark.parametrize("scale", [1e-4, 1.0, 300.0])
@pytest.mark.parametrize("k", [3, 8, 13])
def test_the_scale_of_p_is_that_of_its_published_start(scale, k):
    """Uniform in +-1/sqrt(kh * kw * k) has a root mean square of 1 / sqrt(3 * kh * kw * k)."""
    dictionary, coefficients = svd_factors(torch.randn(16, 8, 3, 3) * scale, k)
    assert coefficients.square().mean().sqrt().item() == pytest.approx(1 / math.sqrt(3 * 9 * k), rel=1e-5)
    if k <= 8:
        gram = dictionary @ dictionary.T
        assert torch.allclose(gram, torch.eye(k) * gram[0, 0], atol=1e-5 * gram[0, 0].item())


def test_every_row_of_an_overcomplete_dictionary_is_in_use():
    dictionary, coefficients = svd_factors(torch.randn(16, 4, 3, 3), 11)
    assert (dictionary.norm(dim=1) > 0.1 * dictionary.norm(dim=1).max()).all()
    assert (coefficients.abs().amax(dim=(0, 2, 3)) > 0).all()


def test_wide_layers_use_the_leading_directions_only():
    """Beyond 1024 columns few vectors are found iteratively: as good as the SVD to 0.5 %."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(1100, 60, generator=generator) @ torch.randn(60, 1100, generator=generator)
    weight += torch.randn(1100, 1100, generator=generator)
    dictionary, coefficients = svd_factors(weight, 40)
    error = (coefficients @ dictionary - weight).norm()
    best = torch.linalg.svdvals(weight.double())[40:].norm()
    assert best * 0.999 <= error <= best * 1.005


def test_svd_factors_refuse_what_does_not_fit():
    with pytest.raises(ShapeError, match=r"weight \(5, 3\) does not fit groups=2: expected a divisor of 5"):
        svd_factors(torch.ones(5, 3), 2, groups=2)
    with pytest.raises(ConfigError, match="dictionary_size is 0"):
        svd_factors(torch.ones(5, 3), 0)


# --- the model computes the same


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(6, 12, 3),
        nn.Conv2d(6, 12, (3, 1), stride=(2, 1), padding=(1, 0), bias=False),
        nn.Conv2d(6, 12, 3, padding="same", dilation=2, padding_mode="reflect"),
        nn.Conv2d(6, 12, 3, groups=2, padding=1),
        nn.Conv2d(6, 12, 1, groups=3, stride=2),
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_convolution_computes_the_same_when_k_reaches_m(conv, dtype):
    model = nn.Sequential(copy.deepcopy(conv).to(dtype))
    x = torch.randn(2, 6, 9, 8, dtype=dtype)
    lookup, report = convert(model, LookupConfig(6 // conv.groups, threshold=0.0))
    assert isinstance(lookup[0], LookupConv2d if len(report.converted) else nn.Conv2d)
    expected = model(x.clone())
    tolerance = 1e-12 if dtype == torch.float64 else 2e-6
    assert (lookup(x) - expected).abs().max() <= tolerance * expected.abs().max()
    if conv.kernel_size != (1, 1):
        assert converted(report) == {"0"}
        assert report.converted[0].relative_error < tolerance


@pytest.mark.parametrize("name", ["digits-resnet", "small-resnet", "small-alexnet"])
def test_whole_networks_compute_the_same_when_k_reaches_m(name):
    model = build(name).eval().double()
    x = torch.randn(2, *input_shape_of(name), dtype=torch.float64)

    def reach_m(_: str, module: nn.Module) -> LookupConfig:
        return LookupConfig(getattr(module, "in_channels", None) or module.in_features, threshold=0.0)

    lookup, report = convert(model, reach_m)
    assert len(report.converted) >= 5
    assert (lookup(x) - model(x)).abs().max() < 1e-10
    assert all(isinstance(lookup.get_submodule(name), LookupLayer) for name in converted(report))


def test_the_identity_dictionary_carries_the_weights_exactly():
    model = nn.Sequential(nn.Conv2d(4, 6, 3, groups=2), nn.Flatten(), nn.Linear(6 * 16, 5))
    lookup, _ = convert(model, LookupConfig(None, threshold=0.0))
    for index in (0, 2):
        assert lookup[index].dictionary is None
        assert torch.equal(lookup[index].coefficients, model[index].weight)
    x = torch.randn(3, 4, 6, 6)
    assert torch.equal(lookup(x), model(x))


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e4])
@pytest.mark.parametrize("k", [None, 5, 16, 23])
def test_the_published_threshold_destroys_no_weights(scale, k):
    """Entries at or below eps = c / sqrt(kh * kw * k) count as zero: sqrt(3) * c of W at most, at any scale of W."""
    model = nn.Sequential(nn.Conv2d(16, 24, 3))
    with torch.no_grad():
        model[0].weight.mul_(scale)
    lookup, report = convert(model, LookupConfig(k, threshold_scale=0.01))
    plain, _ = convert(model, LookupConfig(k, threshold=0.0))
    layer = lookup[0]
    removed = (layer.dense_weight() - plain[0].dense_weight()).norm() / plain[0].dense_weight().norm()
    assert 0 < (layer.effective_coefficients() == 0).float().mean() < 0.05
    assert removed <= math.sqrt(3) * 0.01
    assert layer.l1_weight == pytest.approx(0.1 * layer.threshold)
    # Uniform entries of this root mean square reach up to sqrt(3) times it: c is the share of them that falls below.
    reach = 1 / math.sqrt(9 * k) if k else math.sqrt(3) * model[0].weight.square().mean().sqrt().item()
    assert layer.threshold == pytest.approx(0.01 * reach, rel=1e-5)
    expected = (layer.dense_weight() - model[0].weight).norm() / model[0].weight.norm()
    assert report.converted[0].relative_error == pytest.approx(expected.item(), rel=1e-4)


def test_a_threshold_or_l1_weight_of_ones_own_is_kept():
    lookup, report = convert(small_net(), LookupConfig(5, threshold=0.03, l1_weight=0.2, lookups_per_position=2))
    for layer in report.converted:
        assert (layer.config.threshold, layer.config.l1_weight, layer.config.lookups_per_position) == (0.03, 0.2, 2)
    assert (lookup[0].threshold, lookup[0].l1_weight, lookup[0].lookups_per_position) == (0.03, 0.2, 2)


# --- what is kept


def test_convert_leaves_the_original_alone_and_convert_in_place_does_not():
    model = small_net()
    before = copy.deepcopy(model.state_dict())
    lookup, report = convert(model, EXACT)
    assert type(model[0]) is nn.Conv2d
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    batch_norm = model[1]
    in_place = convert_(model, EXACT)
    assert str(in_place) == str(report)
    assert model[1] is batch_norm
    assert isinstance(model[0], LookupConv2d)
    x = torch.randn(1, 3, 8, 8)
    assert torch.equal(model.eval()(x), lookup.eval()(x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_training_flag_dtype_device_and_requires_grad_are_kept(dtype):
    model = small_net().to(dtype).eval()
    model[0].train()
    model[3].weight.requires_grad_(False)
    bias = model[0].bias
    convert_(model, LookupConfig(3))
    assert model[0].training
    assert not model[3].training
    assert model[0].bias is bias
    for layer, trained in ((model[0], True), (model[3], False)):
        for parameter in (layer.dictionary, layer.coefficients):
            assert parameter.dtype == dtype
            assert parameter.requires_grad is trained
            assert parameter.isfinite().all()
    assert model[3].bias.requires_grad


def test_frozen_bias_stays_frozen():
    model = small_net()
    model[0].bias.requires_grad_(False)
    convert_(model, EXACT)
    assert not model[0].bias.requires_grad
    assert model[0].coefficients.requires_grad


def test_channels_last_is_kept():
    model = small_net().to(memory_format=torch.channels_last)
    convert_(model, EXACT)
    assert model[3].coefficients.is_contiguous(memory_format=torch.channels_last)
    assert not model[3].coefficients.is_contiguous()
    assert convert(small_net(), EXACT)[0][3].coefficients.is_contiguous()


def test_the_meta_device_gets_the_structure():
    with torch.device("meta"):
        model = build("resnet18")
    report = convert_(model, LookupConfig(16))
    assert model.layer2[0].conv1.coefficients.shape == (128, 16, 3, 3)
    assert model.layer2[0].conv1.coefficients.is_meta
    assert {layer.relative_error for layer in report.converted} == {None}
    assert "relative error" not in str(report)


def test_a_module_used_twice_stays_one():
    shared = nn.Conv2d(8, 8, 3, padding=1)
    block = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1))
    model = nn.ModuleDict({"a": shared, "b": shared, "first": block, "second": block})
    model.register_module("empty", None)
    report = convert_(model, LookupConfig(4))
    assert isinstance(model["a"], LookupConv2d)
    assert model["a"] is model["b"]
    assert model["first"][0] is model["second"][0]
    assert [layer.names for layer in report.converted] == [("a", "b"), ("first.0", "second.0")]
    assert "a = b" in str(report)


def test_overrides_of_a_shared_module_must_agree():
    shared = nn.Conv2d(8, 8, 3)
    model = nn.ModuleList([shared, shared])
    report = convert_(model, None, {"1": LookupConfig(3)})
    assert converted(report) == {"0", "1"}
    model = nn.ModuleList([shared, shared])
    with pytest.raises(ConfigError, match=r"overrides '0' and '1' differ, but are one module"):
        convert_(model, None, {"0": LookupConfig(3), "1": LookupConfig(4)})


def test_gradients_flow_into_both_factors():
    model, _ = convert(build("digits-resnet"), LookupConfig(4, threshold=0.0))
    model(torch.randn(4, 1, 8, 8)).square().sum().backward()
    layer = model.layer3[0].conv2
    assert layer.dictionary.grad.abs().sum() > 0
    assert layer.coefficients.grad.abs().sum() > 0


def test_the_models_own_layer_is_returned_by_convert_and_refused_in_place():
    conv = nn.Conv2d(4, 8, 3)
    layer, report = convert(conv, LookupConfig(4, threshold=0.0))
    assert isinstance(layer, LookupConv2d)
    assert "(the model itself)" in str(report)
    x = torch.randn(1, 4, 5, 5)
    assert torch.allclose(layer(x), conv(x), atol=1e-5)
    with pytest.raises(ConfigError, match=r"the model itself is a Conv2d and cannot be replaced in place; use convert"):
        convert_(conv, LookupConfig(4))
    with pytest.raises(ConfigError, match="the model itself is a Linear"):
        set_lookup_layers_(nn.Linear(4, 4), {"": LookupConfig(2)})


# --- what is left, and why


class Doubling(nn.Conv2d):
    def forward(self, x):
        return 2 * super().forward(x)


def hooked(conv: nn.Conv2d, kind: str) -> nn.Conv2d:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        if kind == "old weight norm":
            return nn.utils.weight_norm(conv)
        if kind == "old spectral norm":
            return nn.utils.spectral_norm(conv)
    if kind == "prune":
        prune.l1_unstructured(conv, "weight", 0.5)
    elif kind == "tensor hook":
        conv.weight.register_hook(lambda grad: 2 * grad)
    elif kind == "accumulation hook":
        conv.weight.register_post_accumulate_grad_hook(lambda parameter: None)
    elif kind == "own forward":
        conv.forward = lambda x: x
    elif kind == "buffer":
        conv.register_buffer("mask", torch.ones(1))
    else:
        getattr(conv, f"register_{kind}_hook")(lambda *arguments: None)
    return conv


def test_subclasses_are_not_swallowed():
    model = nn.Sequential(Doubling(4, 8, 3), nn.Conv1d(4, 8, 3), nn.ConvTranspose2d(4, 8, 3), nn.Embedding(5, 8))
    report = convert_(model, LookupConfig(2))
    assert not report.converted
    assert set(reasons(report).values()) == {"only exactly nn.Conv2d and nn.Linear are converted"}
    assert [layer.kind for layer in report.left] == ["Doubling", "Conv1d", "ConvTranspose2d", "Embedding"]
    assert type(model[0]) is Doubling


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("old weight norm", "computed before every call"),
        ("old spectral norm", "computed before every call"),
        ("prune", "computed before every call"),
        ("forward", "hooks, which would be lost"),
        ("forward_pre", "hooks, which would be lost"),
        ("full_backward", "hooks, which would be lost"),
        ("state_dict_pre", "hooks, which would be lost"),
        ("tensor hook", "hooks, which would be lost"),
        ("accumulation hook", "hooks, which would be lost"),
        ("own forward", "an own forward, buffer"),
        ("buffer", "an own forward, buffer"),
    ],
)
def test_layers_that_do_more_stay(kind, reason):
    model = nn.Sequential(hooked(nn.Conv2d(4, 8, 3), kind), nn.Conv2d(8, 8, 3))
    report = convert_(model, LookupConfig(3))
    assert re.search(reason, reasons(report)["0"])
    assert converted(report) == {"1"}
    assert type(model[0]) is nn.Conv2d


def test_parametrized_layers_stay():
    class Symmetric(nn.Module):
        def forward(self, x):
            return x + x.flip(0)

    model = nn.Sequential(
        parametrizations.weight_norm(nn.Conv2d(4, 8, 3)),
        parametrizations.spectral_norm(nn.Linear(4, 8)),
        nn.Linear(8, 8),
    )
    parametrize.register_parametrization(model[2], "weight", Symmetric())
    report = convert_(model, LookupConfig(2))
    assert set(reasons(report)) == {"0", "1", "2"}
    assert all("parametrized" in reason for reason in reasons(report).values())


def test_shared_weights_stay_shared():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(30, 8)
            self.decoder = nn.Linear(8, 30)
            self.decoder.weight = self.embedding.weight
            self.a, self.b, self.free = nn.Conv2d(4, 8, 3), nn.Conv2d(4, 8, 3), nn.Conv2d(4, 8, 3)
            self.b.weight.data = self.a.weight.data
            self.free.bias = self.a.bias

    model = Tied()
    report = convert_(model, LookupConfig(2))
    assert reasons(report)["decoder"] == "its weight is shared by embedding, decoder"
    assert reasons(report)["a"] == "its weight is shared by a, b"
    assert converted(report) == {"free"}
    assert model.free.bias is model.a.bias


def test_attention_and_transformer_layers_keep_the_weights_that_they_read():
    model = nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), nn.Linear(8, 8)).eval()
    x = torch.randn(2, 5, 8)
    expected = model(x)
    report = convert_(model, LookupConfig(4))
    assert converted(report) == {"1"}
    assert "only exactly" in reasons(report)["0.self_attn.out_proj"]
    assert reasons(report)["0.linear1"] == "its parent, a TransformerEncoderLayer, reads its weight directly"
    with torch.no_grad():
        assert model(x).shape == expected.shape

    class SelfAttention(nn.MultiheadAttention):
        def __init__(self):
            super().__init__(8, 2)
            self.out_proj = nn.Linear(8, 8)

    report = convert_(SelfAttention(), LookupConfig(4))
    assert reasons(report)["out_proj"] == "its parent, a SelfAttention, reads its weight directly"


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_lazy_quantized_complex_and_empty_layers_stay():
    from torch.ao.nn.quantized.dynamic import Linear as QuantizedLinear

    model = nn.ModuleDict(
        {
            "lazy": nn.LazyConv2d(8, 3),
            "quantized": QuantizedLinear(8, 8),
            "complex": nn.Conv2d(4, 8, 3, dtype=torch.complex64),
            "dead": nn.Conv2d(4, 8, 3),
            "broken": nn.Conv2d(4, 8, 3),
            "lookup": LookupLinear(8, 8, dictionary_size=2),
        }
    )
    nn.init.zeros_(model["dead"].weight)
    with torch.no_grad():
        model["broken"].weight[0, 0, 0, 0] = math.nan
    report = convert_(model, LookupConfig(2))
    assert not report.converted
    assert reasons(report) == {
        "lazy": "lazy: its shape is unknown until a first batch has run",
        "quantized": "only exactly nn.Conv2d and nn.Linear are converted",
        "complex": "its weight is torch.complex64, not floating point",
        "dead": "its weight is all zero, and coefficients that are zero stay zero",
        "broken": "its weight holds NaN or infinity",
        "lookup": "already a lookup layer",
    }


def test_tensor_subclasses_stay():
    class Special(torch.Tensor):
        pass

    model = nn.Sequential(nn.Linear(4, 4))
    model[0].weight = nn.Parameter(torch.randn(4, 4).as_subclass(Special))
    report = convert_(model, LookupConfig(2))
    assert reasons(report)["0"] == "its weight is a Special, not a plain parameter"


def test_dictionaries_that_save_nothing_leave_the_layer_dense():
    model = nn.Sequential(
        nn.Linear(64, 10), nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 1, groups=2)
    )
    report = convert_(model, LookupConfig(10))
    why = reasons(report)
    assert why["0"] == "dictionary_size 10 is not below n * kh * kw = 10, so the dictionary saves nothing"
    assert "n / groups * kh * kw = 9" in why["1"]
    assert "one input channel per group" in why["2"]
    assert "n / groups * kh * kw = 4" in why["3"]
    assert "one input channel per group" in reasons(convert_(model, None, {"1": LookupConfig(2)}))["1"]
    assert converted(convert_(model, LookupConfig(9))) == {"0"}
    assert converted(convert_(model, LookupConfig(None))) == {"1", "2", "3"}


def test_every_module_with_weights_is_in_the_report_once():
    model = build("resnet18")
    report = convert_(model, LookupConfig(16), {"re:.*downsample.*": None}, lambda name, module: name != "fc")
    names = [name for layer in (*report.converted, *report.left) for name in layer.names]
    expected = [
        name for name, module in model.named_modules() if isinstance(module, nn.Conv2d | nn.Linear | LookupLayer)
    ]
    assert sorted(names) == sorted(expected)
    assert reasons(report)["fc"] == "filter_fn left it out"
    assert reasons(report)["layer2.0.downsample.0"] == "override 're:.*downsample.*' is None"


# --- choosing


def test_a_function_chooses_by_name_and_module():
    def choose(name: str, module: nn.Module) -> LookupConfig | None:
        return LookupConfig(module.in_channels // 2) if name != "0" else None

    model, report = convert(small_net(), choose)
    assert model[3].dictionary_size == 8
    assert reasons(report) == {"0": "the configuration function returned None"}


def test_the_functions_are_asked_only_about_what_can_be_converted():
    model = nn.Sequential(nn.Embedding(5, 8), Doubling(8, 8, 3), nn.Conv2d(8, 8, 3))
    asked = []

    def choose(name: str, module: nn.Module) -> LookupConfig:
        asked.append(name)
        return LookupConfig(module.in_channels // 2)

    convert_(model, choose, filter_fn=lambda name, module: module.in_channels > 4)
    assert asked == ["2"]


def test_exact_names_beat_patterns_and_both_beat_the_filter():
    model = build("digits-resnet")
    report = convert_(
        model,
        LookupConfig(2),
        {"re:layer3.*": LookupConfig(3), "layer3.0.conv1": LookupConfig(5), "re:.*conv2": None, "fc": LookupConfig(4)},
        filter_fn=lambda name, module: name.startswith("layer1"),
    )
    sizes = {name: layer.config.dictionary_size for layer in report.converted for name in layer.names}
    assert sizes["layer1.0.conv1"] == 2
    assert sizes["layer3.0.conv1"] == 5
    assert sizes["layer3.0.conv2"] == 3
    assert sizes["fc"] == 4
    assert "layer2.0.conv1" not in sizes
    assert reasons(report)["layer1.0.conv2"] == "override 're:.*conv2' is None"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"layer1.0.conv3": None}, r"override 'layer1.0.conv3' matches no layer; did you mean 'layer1.0.conv\d'"),
        ({"zzz": None}, r"override 'zzz' matches no layer$"),
        ({"bn1": LookupConfig(2)}, r"override 'bn1' names a BatchNorm2d; expected a layer with weights"),
        ({"re:conv": None}, r"override 're:conv' matches no layer; expected all of a name, such as 'conv1'"),
        ({"re:(": None}, r"override 're:\(' is no regular expression"),
        ({"conv1": 30}, r"the configuration of 'conv1' is 30; expected a LookupConfig, or None to leave it"),
    ],
)
def test_overrides_that_cannot_be_meant_are_errors(overrides, message):
    model = build("digits-resnet")
    with pytest.raises(ConfigError, match=message):
        convert_(model, LookupConfig(4), overrides)
    assert not any(isinstance(module, LookupLayer) for module in model.modules())


def test_a_configuration_of_another_kind_is_an_error():
    with pytest.raises(ConfigError, match=r"config is 30; expected a LookupConfig, a function"):
        convert(small_net(), 30)
    with pytest.raises(ConfigError, match=r"the configuration of '0' is 30"):
        convert(small_net(), lambda name, module: 30)


def test_an_error_half_way_changes_nothing():
    model = small_net()

    def choose(name: str, module: nn.Module) -> LookupConfig:
        return LookupConfig(2 if name == "0" else 0)

    with pytest.raises(ConfigError, match="dictionary_size is 0"):
        convert_(model, choose)
    assert type(model[0]) is nn.Conv2d


def test_the_report_reads_well_and_is_frozen():
    _, report = convert(small_net(), LookupConfig(5, threshold=0.0), {"0": None})
    lines = str(report).splitlines()
    assert lines[0] == "1 converted, 1 left"
    assert re.fullmatch(r"  3  converted  Conv2d \(24, 16, 3, 3\), k=5, threshold 0, relative error 0\.\d+", lines[1])
    assert lines[2] == "  0  left       Conv2d: override '0' is None"
    with pytest.raises(dataclasses.FrozenInstanceError):
        report.left = ()


# --- structure only


def test_structure_from_a_table_and_back():
    model = small_net()
    table = {"0": LookupConfig(2, threshold=0.1, l1_weight=0.0), "3": LookupConfig(None, threshold=0.0, l1_weight=0.0)}
    set_lookup_layers_(model, table)
    assert {name: module.config for name, module in model.named_modules() if isinstance(module, LookupLayer)} == table
    kept = model[0]
    set_lookup_layers_(model, {"0": table["0"], "3": None})
    assert model[0] is kept
    assert type(model[3]) is nn.Conv2d
    assert model[3].weight.shape == (24, 16, 3, 3)
    set_lookup_layers_(model, {"0": LookupConfig(3)})
    assert model[0].dictionary_size == 3
    kept = model[0]
    assert set_lookup_layers_(model, {"0": LookupConfig(3)}) == {}  # threshold and l1 weight follow from it as before
    assert model[0] is kept
    assert set_lookup_layers_(model, {"0": LookupConfig(3, threshold_scale=0.5)}).keys() == {kept}


@pytest.mark.parametrize("dense", [nn.Conv2d(4, 6, (3, 2), 2, (1, 0), 2, 2, False, "circular"), nn.Linear(4, 6, False)])
def test_every_layer_kind_goes_to_lookup_and_back_to_the_same_dense_layer(dense):
    model = nn.Sequential(dense.half().eval())
    before = repr(model)
    set_lookup_layers_(model, {"0": LookupConfig(2)})
    assert type(model[0]) is LAYERS[type(dense)]
    set_lookup_layers_(model, {"0": None})
    assert repr(model) == before
    assert model[0].weight.dtype == torch.float16
    assert not model[0].training


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"0": LookupConfig(2), "9": None}, "the model has no layer '9'"),
        (
            {"0": LookupConfig(2), "1": LookupConfig(2)},
            "layer '1' is a BatchNorm2d, which cannot become a lookup layer",
        ),
    ],
)
def test_a_table_that_does_not_fit_changes_nothing(table, message):
    model = small_net()
    with pytest.raises(ConfigError, match=message):
        set_lookup_layers_(model, table)
    assert type(model[0]) is nn.Conv2d
