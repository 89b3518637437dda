"""Architectures: exact dense counts, names of torchvision, options and their errors, every entry of the registry."""

from __future__ import annotations

import copy
import re

import pytest
import torch
from fvcore.nn import FlopCountAnalysis
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from lcnn_core.errors import ConfigError
from lcnn_core.layers import LookupConv2d, LookupLayer, LookupLinear
from lcnn_core.models import ALIASES, MODELS, build, dense_twin, input_shape_of, resolve

SMALL = [name for name in MODELS if name.startswith(("small", "digits"))]


def macs(name: str, twin: bool = False, **arguments) -> int:
    """Multiply-adds of one image by torch's own counter, which knows nothing of this project."""
    with torch.device("meta"):
        model = (dense_twin if twin else build)(name, **arguments).eval()
        x = torch.empty(1, *input_shape_of(name, **arguments))
        with FlopCounterMode(display=False) as counter:
            model(x)
    return counter.get_total_flops() // 2


@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("alexnet", {}, 1_135_256_096),
        ("alexnet-lcnn", {"preset": "dense"}, 714_188_480),
        ("resnet", {"depth": 18, "shortcut": "B"}, 1_814_073_344),
        # torchvision's documented GFLOPS (MACs) of resnet34, 50, 101 and 152: 3.66, 4.09, 7.80, 11.51.
        ("resnet34", {}, 3_663_761_408),
        ("resnet50", {}, 4_089_184_256),
        ("resnet101", {}, 7_801_405_440),
        ("resnet152", {}, 11_513_626_624),
    ],
)
def test_dense_macs_are_exact(name, arguments, expected):
    assert macs(name, **arguments) == expected


def test_resnet18_macs_agree_with_fvcore():
    model = build("resnet18").eval()
    counted = FlopCountAnalysis(model, torch.zeros(1, 3, 224, 224)).unsupported_ops_warnings(False)
    by_operator = counted.by_operator()
    assert by_operator["conv"] + by_operator["linear"] == 1_814_073_344


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [("small-resnet", 10e6, 13e6), ("small-alexnet", 8e6, 13e6), ("digits-resnet", 1.0e6, 1.1e6)],
)
def test_small_networks_have_the_size_they_promise(name, low, high):
    assert low < macs(name) < high


@pytest.mark.parametrize("name", MODELS)
def test_every_architecture_builds_runs_and_says_what_it_takes(name):
    builder = MODELS[name]
    assert builder.name == name
    assert builder.doc
    assert builder.input_shape == input_shape_of(name)
    model = build(name, num_classes=7).eval()
    assert model(torch.randn(2, *builder.input_shape)).shape == (2, 7)
    lookups = [module for module in model.modules() if isinstance(module, LookupLayer)]
    assert bool(lookups) == name.endswith("-lcnn") == builder.has_lookups


@pytest.mark.parametrize("name", SMALL)
def test_small_networks_learn(name):
    torch.manual_seed(0)
    model = build(name)
    x, y = torch.randn(10, *input_shape_of(name)), torch.arange(10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.03, momentum=0.9)
    losses = []
    for _ in range(12):
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("name", SMALL)
def test_two_builds_share_nothing_and_a_seed_repeats(name):
    torch.manual_seed(3)
    first = build(name)
    torch.manual_seed(3)
    second = build(name)
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert a is not b
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", [name for name in MODELS if name.endswith("-lcnn")])
def test_the_lookup_network_is_the_same_network(name):
    """Same modules at the same places; only the kind of some layers differs; the twin has none of them."""
    with torch.device("meta"):
        lookup, twin = build(name), dense_twin(name)
    ours = {key: type(module) for key, module in lookup.named_modules()}
    theirs = {key: type(module) for key, module in twin.named_modules()}
    assert list(ours) == list(theirs)
    for key, kind in ours.items():
        expected = {LookupConv2d: nn.Conv2d, LookupLinear: nn.Linear}.get(kind, kind)
        assert theirs[key] is expected
    for key, module in lookup.named_modules():
        if isinstance(module, LookupLayer):
            assert module.dense_shape == tuple(twin.get_submodule(key).weight.shape)
    dense_name = name.removesuffix("-lcnn")
    if dense_name != "alexnet":
        assert macs(name, twin=True) == macs(dense_name)
        dense = build(dense_name).state_dict()
        assert {key: value.shape for key, value in dense.items()} == {
            key: value.shape for key, value in twin.state_dict().items()
        }


def test_resnet_parameters_have_the_names_of_torchvision():
    """Written from torchvision's documented module names; its package does not import beside a CPU-only torch."""
    with torch.device("meta"):
        model = build("resnet50")
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    assert len(shapes) == 320
    assert sum(parameter.numel() for parameter in model.parameters()) == 25_557_032
    for key, shape in {
        "conv1.weight": (64, 3, 7, 7),
        "bn1.running_mean": (64,),
        "layer1.0.downsample.0.weight": (256, 64, 1, 1),
        "layer1.0.downsample.1.weight": (256,),
        "layer3.5.conv2.weight": (256, 256, 3, 3),
        "layer4.2.bn3.num_batches_tracked": (),
        "fc.weight": (1000, 2048),
        "fc.bias": (1000,),
    }.items():
        assert shapes[key] == shape
    assert model.layer2[0].conv1.stride == (1, 1)
    assert model.layer2[0].conv2.stride == (2, 2)


@pytest.mark.parametrize(("name", "parameters"), [("resnet18", 11_689_512), ("resnet34", 21_797_672)])
def test_resnet_parameter_counts_of_torchvision(name, parameters):
    with torch.device("meta"):
        assert sum(parameter.numel() for parameter in build(name).parameters()) == parameters


def test_shortcut_kinds():
    def projections(kind: str) -> list[str]:
        with torch.device("meta"):
            model = build("resnet18", shortcut=kind)
        return [name for name, _ in model.named_modules() if name.endswith("downsample.0")]

    assert projections("A") == []
    assert projections("B") == [f"layer{stage}.0.downsample.0" for stage in (2, 3, 4)]
    assert len(projections("C")) == 8


def test_shortcut_a_subsamples_and_pads_with_zeros():
    model = build("digits-resnet", shortcut="A")
    x = torch.randn(2, 16, 8, 8)
    y = model.layer2[0].downsample(x)
    assert y.shape == (2, 32, 4, 4)
    assert torch.equal(y[:, :16], x[:, :, ::2, ::2])
    assert not y[:, 16:].any()


@pytest.mark.parametrize("shortcut", ["A", "B", "C"])
@pytest.mark.parametrize("depth", [10, 50])
def test_every_shortcut_runs_in_both_kinds_of_block(depth, shortcut):
    model = build("resnet-lcnn", depth=depth, shortcut=shortcut, stem="small", in_channels=1, num_classes=5).eval()
    assert model(torch.randn(1, 1, 28, 28)).shape == (1, 5)
    for name, module in model.named_modules():
        if "downsample" in name:
            assert not isinstance(module, LookupLayer)


def test_depth_8_is_resnet_10():
    eight, ten = build("resnet8"), build("resnet", depth=10)
    assert [key for key, _ in eight.named_parameters()] == [key for key, _ in ten.named_parameters()]
    weighted = [m for n, m in ten.named_modules() if isinstance(m, nn.Conv2d | nn.Linear) and "downsample" not in n]
    assert len(weighted) == 10


def test_the_small_stem_keeps_the_resolution():
    assert input_shape_of("resnet", stem="small", in_channels=1) == (1, 28, 28)
    model = build("resnet10", stem="small", in_channels=1, num_classes=10).eval()
    sizes = []
    model.layer1.register_forward_hook(lambda module, args, out: sizes.append(tuple(out.shape[2:])))
    assert model(torch.zeros(1, 1, 28, 28)).shape == (1, 10)
    assert sizes == [(28, 28)]


def sizes_of(model: nn.Module) -> dict[str, int | None]:
    return {name: m.config.dictionary_size for name, m in model.named_modules() if isinstance(m, LookupLayer)}


def test_published_presets_of_alexnet():
    with torch.device("meta"):
        fast, accurate = build("alexnet-lcnn"), build("alexnet-lcnn", preset="accurate")
    convs = ["conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7"]
    assert sizes_of(fast) == dict(zip(convs, [3, 30, 30, 30, 30, 512, 512], strict=True))
    assert sizes_of(accurate) == dict(zip(convs, [3, 500, 500, 500, 500, 1024, 1024], strict=True))
    # c = 0.01 and lambda' = 0.3: eps = 0.01 / sqrt(3 * 3 * 30) for conv3.
    assert fast.conv3.threshold == pytest.approx(0.01 / 270**0.5)
    assert fast.conv3.l1_weight == pytest.approx(0.3 * 0.01 / 270**0.5)
    assert accurate.fc7.l1_weight == pytest.approx(0.1 * 0.01 / 1024**0.5)


def test_published_presets_of_resnet():
    with torch.device("meta"):
        fast, accurate = build("resnet18-lcnn"), build("resnet18-lcnn", preset="accurate")
    for model, stages in ((fast, (16, 32, 64, 128)), (accurate, (128, 256, 512, 1024))):
        sizes = sizes_of(model)
        assert sizes.pop("conv1") == 3
        assert {name.split(".")[0]: k for name, k in sizes.items()} == {
            f"layer{stage + 1}": k for stage, k in enumerate(stages)
        }
        assert len(sizes) == 16
    assert fast.layer2[0].conv1.threshold == pytest.approx(0.001 / (9 * 32) ** 0.5)


def test_all_three_convolutions_of_a_bottleneck_are_lookups():
    with torch.device("meta"):
        model = build("resnet50-lcnn")
    assert all(isinstance(getattr(model.layer3[2], f"conv{i}"), LookupConv2d) for i in (1, 2, 3))


def test_a_layer_stays_dense_when_its_dictionary_saves_nothing():
    with torch.device("meta"):
        model = build("resnet50-lcnn", preset="accurate")
    # n * kh * kw = 64 < k = 128 in the first 1x1 convolution, 64 * 9 and 256 are not below it.
    assert type(model.layer1[0].conv1) is nn.Conv2d
    assert type(model.layer1[0].conv2) is LookupConv2d
    assert type(model.layer1[0].conv3) is LookupConv2d
    with torch.device("meta"):
        assert type(build("digits-resnet-lcnn", classifier=10).fc) is nn.Linear
        assert type(build("digits-resnet-lcnn", classifier=9).fc) is LookupLinear


def test_sizes_by_role_override_the_preset():
    with torch.device("meta"):
        model = build(
            "alexnet-lcnn",
            first="dense",
            stages=[4, "identity", "dense", 7],
            fc=11,
            classifier=13,
            threshold_scale=0.0,
            l1_scale=0.2,
        )
    assert sizes_of(model) == {"conv2": 4, "conv3": None, "conv5": 7, "fc6": 11, "fc7": 11, "fc8": 13}
    assert model.conv3.threshold == 0
    with torch.device("meta"):
        assert set(sizes_of(build("small-resnet-lcnn", stages=5)).values()) == {None, 5}


def test_widths_and_blocks_of_small_resnets():
    model = build("small-resnet-lcnn", widths=[8, 12], blocks=[1, 3], num_classes=4, in_channels=3).eval()
    assert model(torch.randn(2, 3, 28, 28)).shape == (2, 4)
    assert len(model.layer2) == 3
    assert model.fc.in_features == 12


def test_widths_of_small_alexnets():
    model = build("small-alexnet", widths=[5, 6, 7, 8, 9, 11]).eval()
    assert [getattr(model, f"conv{n}").out_channels for n in range(1, 6)] == [5, 6, 7, 8, 9]
    assert (model.fc6.out_channels, model.fc7.out_channels) == (11, 11)
    assert model(torch.randn(2, 1, 28, 28)).shape == (2, 10)


def test_dropout_is_an_option():
    assert build("small-alexnet", dropout=0.25).dropout.p == 0.25


@pytest.mark.parametrize("alias", ALIASES)
def test_aliases_stand_for_a_depth(alias):
    builder, arguments = resolve(alias)
    assert builder.name == re.sub(r"\d+", "", alias)
    assert arguments["depth"] == int(re.search(r"\d+", alias).group())


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("alexnet-lcn", {}, r"unknown architecture 'alexnet-lcn'; did you mean alexnet-lcnn or alexnet"),
        ("zzz", {}, r"unknown architecture 'zzz'; expected one of alexnet, alexnet-lcnn, resnet"),
        ("resnet", {"dept": 18}, r"resnet has no option 'dept'; its options are depth, shortcut, num_classes"),
        ("resnet", {"first": 3}, r"resnet has no option 'first'"),
        ("resnet18", {"depth": 34}, r"resnet18 has no option 'depth'"),
        ("resnet-lcnn", {"fc": 3}, r"resnet-lcnn has no option 'fc'"),
        ("resnet", {"depth": 20}, r"depth is 20; expected one of 8, 10, 18, 34, 50, 101, 152"),
        ("resnet", {"depth": "18"}, r"depth is '18'; expected one of 8"),
        ("resnet", {"depth": True}, r"depth is True"),
        ("resnet", {"shortcut": "D"}, r"shortcut is 'D'; expected one of 'A', 'B', 'C'"),
        ("resnet", {"stem": "tiny"}, r"stem is 'tiny'; expected one of 'imagenet', 'small'"),
        ("resnet", {"num_classes": 0}, r"num_classes is 0; expected a whole number of 1 or more"),
        ("alexnet", {"in_channels": 1.5}, r"in_channels is 1.5; expected a whole number"),
        ("alexnet", {"dropout": 1.0}, r"dropout is 1.0; expected a number from 0 to below 1"),
        ("alexnet", {"dropout": "half"}, r"dropout is 'half'"),
        ("alexnet-lcnn", {"preset": "slow"}, r"preset is 'slow'; expected one of 'fast', 'accurate', 'dense'"),
        ("alexnet-lcnn", {"first": 0}, r"first is 0; expected a whole number of 1 or more"),
        ("alexnet-lcnn", {"fc": -4}, r"fc is -4; expected a whole number of 1 or more"),
        ("alexnet-lcnn", {"classifier": "sparse"}, r"classifier is 'sparse'; expected .*'dense' or 'identity'"),
        ("alexnet-lcnn", {"stages": (3, 3)}, r"stages is \(3, 3\); expected one dictionary size, or 4"),
        ("alexnet-lcnn", {"stages": (3, 3, 3, 2.5)}, r"stages is 2.5; expected a whole number"),
        ("alexnet-lcnn", {"threshold_scale": -1}, r"threshold_scale is -1; expected a finite number"),
        ("alexnet-lcnn", {"l1_scale": float("nan")}, r"l1_scale is nan; expected a finite number"),
        ("alexnet-lcnn", {"l1_scale": "x"}, r"l1_scale is 'x'"),
        ("small-resnet", {"widths": ()}, r"widths is \(\); expected whole numbers of 1 or more, one a stage"),
        ("small-alexnet", {"widths": (5, 6)}, r"widths are \(5, 6\); expected 6 numbers"),
        ("small-resnet", {"widths": "16"}, r"widths is '16'; expected whole numbers"),
        ("small-resnet", {"widths": (16, 32)}, r"widths \(16, 32\) and blocks \(1, 1, 2\) differ in length"),
        ("small-resnet", {"blocks": (1, 0, 1)}, r"blocks is 0; expected a whole number"),
    ],
)
def test_bad_names_and_options_are_told_in_one_line(name, arguments, message):
    with pytest.raises(ConfigError, match=message) as caught:
        build(name, **arguments)
    assert "\n" not in str(caught.value)


def test_resnet_can_be_copied_and_captured():
    """Stages are found without a branch that depends on data: export works and gives the same numbers."""
    model = build("digits-resnet-lcnn").eval()
    x = torch.randn(2, 1, 8, 8)
    assert torch.equal(copy.deepcopy(model)(x), model(x))
    exported = torch.export.export(model, (x,)).module()
    assert torch.allclose(exported(x), model(x), atol=1e-6)
