"""Architectures by name: torchvision's whole classification zoo against the figures that torchvision publishes."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from lcnn_core.checkpoint.torchvision_shim import import_torchvision
from lcnn_core.checkpoint.zoo import build_named, find
from lcnn_core.counting import count_layer
from lcnn_core.describe import describe
from lcnn_core.errors import ConfigError
from lcnn_core.models import ALIASES, MODELS, build, input_shape_of

MODELS_OF_TORCHVISION = import_torchvision().models
CLASSIFIERS = MODELS_OF_TORCHVISION.list_models(module=MODELS_OF_TORCHVISION)
TWENTY = """alexnet convnext_tiny densenet121 efficientnet_b0 efficientnet_v2_s googlenet inception_v3 maxvit_t
    mnasnet1_0 mobilenet_v2 mobilenet_v3_large regnet_x_400mf regnet_y_400mf resnet18 resnet50 resnext50_32x4d
    shufflenet_v2_x1_0 squeezenet1_0 swin_t swin_v2_t vgg16 vit_b_16""".split()  # noqa: SIM905


def macs(architecture: str) -> tuple[int, int]:
    """MACs and parameters of an architecture by name, nothing left uncounted."""
    named = build_named(architecture)
    spec = describe(named.model, named.input_shape)
    assert spec.uncounted == ()
    assert not spec.weights_known
    return sum(count_layer(layer).total for layer in spec.layers), spec.parameters


@pytest.mark.parametrize("name", [n for n in CLASSIFIERS if n in TWENTY or n == "regnet_y_128gf"])
def test_macs_and_parameters_are_the_published_ones(name):
    check_published(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in CLASSIFIERS if n not in TWENTY and n != "vit_h_14"])
def test_macs_and_parameters_of_the_rest_of_the_zoo(name):
    check_published(name)


def check_published(name: str) -> None:
    """torchvision publishes, with its weights, multiplications in units of 1e9, rounded to three digits."""
    published = MODELS_OF_TORCHVISION.get_model_weights(name).DEFAULT.meta
    counted, parameters = macs(f"torchvision:{name}")
    assert round(counted / 1e9, 3) == pytest.approx(published["_ops"], abs=1e-9)
    if name != "googlenet":  # built with its auxiliary heads, published without
        assert parameters == published["num_params"]


@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_0", "shufflenet_v2_x1_0", "mobilenet_v2", "googlenet"])
def test_counts_equal_half_of_torchs_flop_counter(name):
    named = build_named(f"torchvision:{name}")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        named.model(torch.zeros(1, *named.input_shape, device="meta"))
    assert 2 * macs(f"torchvision:{name}")[0] == counter.get_total_flops()


@pytest.mark.parametrize("name", [*MODELS, *ALIASES])
def test_our_own_architectures_have_no_weights_and_their_own_shape(name):
    named = build_named(name)
    assert (named.architecture, named.input_shape) == (name, input_shape_of(name))
    assert all(tensor.is_meta for tensor in (*named.model.parameters(), *named.model.buffers()))
    assert not named.model.training
    if not name.startswith("resnet"):
        expected = {key: tensor.shape for key, tensor in build(name).state_dict().items()}
        assert {key: tensor.shape for key, tensor in named.model.state_dict().items()} == expected


def test_a_plain_name_is_ours_first_and_a_prefix_says_otherwise():
    assert find("resnet50") == ("lcnn", "resnet50")
    assert find("torchvision:resnet50") == ("torchvision", "resnet50")
    assert find("mobilenet_v2") == ("torchvision", "mobilenet_v2")
    assert build_named("mobilenet_v2").architecture == "torchvision:mobilenet_v2"


def test_options_reach_the_constructor():
    assert build_named("torchvision:resnet18", num_classes=7).model.fc.out_features == 7
    assert build_named("resnet18", in_channels=1).input_shape == (1, 224, 224)
    with pytest.raises(ConfigError, match=r"torchvision:resnet18 cannot be built with wings=2: .*check its options"):
        build_named("torchvision:resnet18", wings=2)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mobilnet_v2", r"unknown architecture 'mobilnet_v2'; .*did you mean mobilenet_v2"),
        ("torchvision:alexnet-lcnn", "unknown architecture 'torchvision:alexnet-lcnn'"),
        ("hub:resnet50", "unknown source 'hub' in 'hub:resnet50'; expected one of lcnn, torchvision, timm"),
        ("", "unknown architecture ''"),
    ],
)
def test_names_that_nobody_has(name, message):
    with pytest.raises(ConfigError, match=message):
        build_named(name)


def test_what_the_constructor_computes_stays_real_when_weights_are_hollow():
    model = build_named("torchvision:swin_t", to="hollow").model
    assert all(parameter.is_meta for parameter in model.parameters())
    assert not any(buffer.is_meta for buffer in model.buffers())
    assert not any(tensor.is_meta for tensor in build_named("digits-resnet", to="cpu").model.state_dict().values())


def test_a_package_that_is_not_installed_is_named_with_the_way_to_get_it():
    """In a fresh process where the packages cannot be imported."""
    code = (
        "import sys; sys.modules.update(torchvision=None, timm=None)\n"
        "from lcnn_core.checkpoint.zoo import build_named\n"
        "from lcnn_core.errors import ConfigError\n"
        "build_named('resnet18')\n"
        "for name in ('torchvision:resnet18', 'timm:resnet18', 'mobilenet_v2'):\n"
        "    try: build_named(name)\n"
        "    except ConfigError as error: print(error)\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    lines = run.stdout.splitlines()
    assert len(lines) == 3
    assert "pip install 'lcnn[vision]'" in lines[0]
    assert all("is not there" in line for line in lines)


def test_our_names_need_no_torchvision():
    code = (
        "import sys; from lcnn_core.checkpoint.opening import open_model\n"
        "open_model('resnet18-lcnn'); assert 'torchvision' not in sys.modules and 'onnx' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_name_allocates_no_weights():
    """ResNet-152 holds 241 MB of weights; describing it takes under 100 MB beside torch, loaded code included."""
    code = (
        "import resource, torch; rss = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "before = rss()\n"
        "from lcnn_core.checkpoint.opening import open_model; from lcnn_core.describe import describe\n"
        "opened = open_model('resnet152'); describe(opened.model, opened.input_shape)\n"
        "print((rss() - before) // 1024)\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(run.stdout) < 100


if importlib.util.find_spec("timm"):  # not one of the test suite's packages: checked where it is there

    @pytest.mark.parametrize(
        "name", ["resnet26", "efficientnet_lite0", "swin_tiny_patch4_window7_224", "convnext_atto"]
    )
    def test_timm_architectures(name):
        named = build_named(f"timm:{name}")
        spec = describe(named.model, named.input_shape)
        assert spec.uncounted == ()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            named.model(torch.zeros(1, *named.input_shape, device="meta"))
        assert 2 * sum(count_layer(layer).total for layer in spec.layers) == counter.get_total_flops()
