"""The engine on whole networks: every model of the registry, and converted torchvision architectures."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import pytest
import torch
from engine_cases import error, native, sparsify
from torch import nn

from lcnn_core.checkpoint.torchvision_shim import import_torchvision
from lcnn_core.convert import convert
from lcnn_core.engine import Plan, compile, libraries
from lcnn_core.layers import LookupConv2d, LookupLayer
from lcnn_core.models import MODELS, build, input_shape_of
from lcnn_core.spec import LookupConfig

pytestmark = pytest.mark.skipif(not libraries(), reason="no native library was built")

TORCHVISION = {
    "resnet18": 64, "vgg11_bn": 64, "mobilenet_v2": 64, "densenet121": 64, "squeezenet1_1": 64, "efficientnet_b0": 64,
    "regnet_y_400mf": 64, "convnext_tiny": 64, "googlenet": 64, "inception_v3": 96,
}  # fmt: skip


def settle(model: nn.Module, density: float) -> nn.Module:
    """Random sparse P, and batch norm statistics as after training, so that activations keep their scale."""
    for module in model.modules():
        if isinstance(module, LookupLayer):
            with torch.no_grad():
                module.coefficients.mul_(torch.rand_like(module.coefficients) < density)
        if isinstance(module, (nn.BatchNorm2d, nn.BatchNorm1d)):
            module.reset_running_stats()
            module.momentum = None
    return model


def in_two_steps(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, LookupLayer):
            module.form = "two_convs"
    return model


def check(model: nn.Module, x: torch.Tensor, threads: int | None = None, batches: Sequence[int] = ()) -> nn.Module:
    """Compile for one image; compare on ``x``, or its first so many images, by the error that compiling may make: 1e-5,
    or twice PyTorch's own, of the filters W = P D or, as the engine computes, of D and then P."""
    with torch.no_grad():
        model.eval()
        for module in model.modules():
            module.train(isinstance(module, (nn.BatchNorm2d, nn.BatchNorm1d)))
        model(torch.cat([x, torch.randn_like(x)]))
        expected = model.eval().double()(x.double())
        plain = model.float()(x)
        other = in_two_steps(copy.deepcopy(model))(x)
    compiled = compile(model, x[:1], threads=threads)
    scale = expected.abs().max()
    allowed = max(1e-5, *(2 * float((own - expected).abs().max() / scale) for own in (plain, other)))
    for count in batches or (len(x),):
        assert float((compiled(x[:count]) - expected[:count]).abs().max() / scale) <= allowed
    return compiled


@pytest.mark.parametrize("name", sorted(MODELS))
def test_every_model_of_the_registry(name: str) -> None:
    model = settle(build(name), 0.05 if name.endswith("lcnn") else 1.0)
    plan: Plan = check(model, torch.randn(3, *input_shape_of(name))).plan  # type: ignore[assignment]
    assert not plan.fallbacks
    if plan.liveness_bytes > 1e6:  # below, fixed paddings and scratch weigh more
        assert plan.memory_bytes <= 1.25 * plan.liveness_bytes


def torchvision_network(name: str) -> nn.Module:
    """Of ten classes, fresh."""
    import_torchvision()
    from torchvision import models

    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    return models.get_model(name, weights=None, num_classes=10, **options)


def with_dictionaries(model: nn.Module) -> nn.Module:
    """16 vectors in every layer that is not grouped, half of P zero."""

    def config(name: str, layer: nn.Module) -> LookupConfig | None:
        # Swin's attention takes the weights out of its layers; 100 million of VGG's would take most of the test's time.
        fixed = getattr(layer, "groups", 1) > 1 or ".attn." in name or layer.weight.numel() > 5e7  # type: ignore[operator]
        return None if fixed else LookupConfig(16, 0.0)

    model, _ = convert(model, config)
    return settle(model, 0.5)


@pytest.mark.parametrize("name", sorted(TORCHVISION))
def test_converted_torchvision(name: str) -> None:
    size = TORCHVISION[name]
    check(with_dictionaries(torchvision_network(name)), torch.randn(2, 3, size, size))


MOST = 60_000_000
"""Parameters: larger siblings of the same families take minutes and gigabytes, and no other path."""


def classifiers() -> list[str]:
    import_torchvision()
    from torchvision import models

    sizes = {n: models.get_model_weights(n).DEFAULT.meta["num_params"] for n in models.list_models(module=models)}
    return [name for name, size in sizes.items() if size < MOST]


@pytest.mark.slow
@pytest.mark.parametrize(("form", "threads"), [("dense", 1), ("lookup", 2)])
@pytest.mark.parametrize("name", classifiers())
def test_every_classifier_of_torchvision(name: str, form: str, threads: int) -> None:
    """The full matrix: ``pytest -m slow tests/core/test_engine_models.py``. Transformers run in PyTorch where the
    engine has no step for them. Eight images: over fewer, the largest of PyTorch's own errors is a matter of luck."""
    torch.manual_seed(0)
    model = torchvision_network(name)
    model = with_dictionaries(model) if form == "lookup" else settle(model, 1.0)
    fixed = {"maxvit": 224, "vit": 224, "swin": 256}
    size = fixed.get(name.split("_")[0], TORCHVISION.get(name, 64))
    check(model, torch.randn(8, 3, size, size), threads, (8, 3, 1))


def test_an_unstructured_sparse_network_skips_its_zeros() -> None:
    model = build("resnet", depth=18)
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            with torch.no_grad():
                layer.weight.mul_(torch.rand_like(layer.weight) < 0.1)
    x = torch.randn(1, 3, 64, 64)
    compiled = check(settle(model, 1.0), x)
    dense = compile(build("resnet", depth=18), x)
    assert compiled.plan.macs < 0.15 * dense.plan.macs  # type: ignore[union-attr,operator]


@pytest.mark.parametrize("stride", [1, 4])
def test_filters_that_batch_norm_scales_by_nothing_look_nothing_up(stride: int) -> None:
    """Nor does anyone make S for them. Folding never changes the model's own coefficients."""
    torch.manual_seed(0)
    layer, norm = LookupConv2d(3, 8, 5, stride=stride, dictionary_size=2), nn.BatchNorm2d(8)
    nn.init.uniform_(norm.weight, 0.5, 2)
    norm.weight.data[2:] = 0
    nn.init.uniform_(norm.running_var, 0.5, 2)
    model, x = sparsify(nn.Sequential(layer, norm), 0.1, 0), torch.randn(2, 3, 33, 33)
    before = layer.coefficients.detach().clone()
    compiled = native(compile(model, x))
    assert error(model, compiled, x) < 1e-5
    assert torch.equal(layer.coefficients, before)
    with torch.no_grad():
        layer.coefficients[2:] = 0
    assert native(compile(model, x)).plan.macs == compiled.plan.macs > 0
    assert error(model, compiled, x) < 1e-5


@pytest.mark.parametrize("isa", libraries() or ["none"])
@pytest.mark.parametrize(
    ("window", "width"),
    [((3, 2, 1), 95), ((3, 2, 1), 190), ((3, 2, 1), 130), ((3, 2, 1), 260), ((3, 2), 131), ((3, 2), 262), ((2, 2), 448),
     ((3, 3, 1), 190)],
)  # fmt: skip
def test_stems_as_wide_as_the_registers_take(window: tuple[int, ...], width: int, isa: str) -> None:
    """Joined columns in one group and in two, from left to right and from right to left, of 8 lanes and of 16."""
    torch.manual_seed(width)
    lookups = LookupConv2d(3, 9, 3, 1, 1, dictionary_size=2, threshold=0.0)
    model = sparsify(nn.Sequential(lookups, nn.MaxPool2d(*window)), 0.2, 5)
    x = torch.randn(3, 3, 9, width)
    assert error(model, native(compile(model, x, threads=2, isa=isa)), x) <= 1e-5
