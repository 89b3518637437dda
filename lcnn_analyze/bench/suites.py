"""Configurations that are timed by name. ``SUITES`` lists them; weights are random from a fixed seed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lcnn_analyze.bench.report import Kind, Target
from lcnn_analyze.bench.trial import Trial, open_file, open_trial
from lcnn_core import LookupConfig, LookupLayer, build, convert_, input_shape_of

AIM_FAST_ALEXNET, AIM_FAST_RESNET = 0.80, 0.85
AIM_ACCURATE_ALEXNET, AIM_ACCURATE_RESNET = 0.90, 0.95


@dataclass(frozen=True)
class Configuration:
    """A lookup network with random weights of given densities.

    density: nonzeros of P over its size, of the layer of this name. uneven: lookups spread over the filters by a
    long-tailed law, every eighth filter dead, instead of evenly. sparse: a dense architecture pruned without
    dictionaries.
    """

    name: str
    architecture: str
    density: Callable[[str], float]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    headline: Kind = "twin"
    reference: str | None = None
    targets: Mapping[int, Target] = field(default_factory=dict)
    uneven: bool = False
    sparse: bool = False

    def open(self) -> AbstractContextManager[Trial]:
        """The trial, its files removed when the context ends."""
        return open_trial(
            self.build(),
            input_shape_of(self.architecture, **self.arguments),
            self.name,
            self.reference,
            headline=self.headline,
            targets=self.targets,
        )

    def build(self, seed: int = 0) -> nn.Module:
        """The network in evaluation mode, weights filled by ``fill_``."""
        model = build(self.architecture, **self.arguments).eval()
        if self.sparse:
            convert_(model, lambda name, module: LookupConfig(None) if self._pruned(module) else None)
        return fill_(model, self.density, self.uneven, seed)

    @staticmethod
    def _pruned(module: nn.Module) -> bool:
        return isinstance(module, nn.Conv2d)


@torch.no_grad()
def fill_(model: nn.Module, density: Callable[[str], float], uneven: bool = False, seed: int = 0) -> nn.Module:
    """Random weights in place: D and dense weights normal, P with exactly round(density * size) nonzeros.

    Scaled so that every layer keeps the second moment of its input after ReLU (He et al.), so that activations
    neither vanish nor explode; batch norm gets statistics near 0 and 1, so that folding it is no empty exercise.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, module in model.named_modules():
        if isinstance(module, LookupLayer):
            _fill_lookup(module, density(name), uneven, generator)
            # The paper's two steps wherever PyTorch runs it: to rebuild W takes seconds for a fully connected layer.
            module.form = "two_convs"
        elif isinstance(module, nn.Conv2d | nn.Linear):
            module.weight.normal_(0, math.sqrt(2 / module.weight[0].numel()), generator=generator)
        elif isinstance(module, nn.BatchNorm2d):
            _fill_norm(module, generator)
            continue
        bias = getattr(module, "bias", None)
        if isinstance(bias, Tensor):
            bias.normal_(0, 0.1, generator=generator)
    return model


def _fill_norm(norm: nn.BatchNorm2d, generator: torch.Generator) -> None:
    for tensor, mean, spread in ((norm.weight, 1, 0.1), (norm.bias, 0, 0.1), (norm.running_mean, 0, 0.1)):
        assert tensor is not None
        tensor.normal_(mean, spread, generator=generator)
    assert norm.running_var is not None
    norm.running_var.uniform_(0.8, 1.25, generator=generator)


def _fill_lookup(layer: LookupLayer, density: float, uneven: bool, generator: torch.Generator) -> None:
    if layer.dictionary is not None:
        layer.dictionary.normal_(0, 1 / math.sqrt(layer.dictionary.shape[1]), generator=generator)
    coefficients = layer.coefficients
    size = coefficients.numel()
    count = round(density * size)
    draw = _uneven_places if uneven else _even_places
    places = draw(coefficients.shape[0], size // coefficients.shape[0], count, generator)
    # Magnitudes in [0.5, 1.5], far above any threshold, over their root mean square sqrt(13 / 12).
    signs = torch.randint(2, (count,), generator=generator) * 2.0 - 1.0
    scale = math.sqrt(2 * coefficients.shape[0] / count) / math.sqrt(13 / 12)
    values = signs * (0.5 + torch.rand(count, generator=generator)) * scale
    coefficients.zero_().view(-1)[places] = values
    layer.threshold = min(layer.threshold, 0.25 * scale)


def _even_places(filters: int, filter_size: int, count: int, generator: torch.Generator) -> Tensor:
    """``count`` different places, every one as likely."""
    return _distinct(count, generator, lambda n: torch.randint(filters * filter_size, (n,), generator=generator))


def _uneven_places(filters: int, filter_size: int, count: int, generator: torch.Generator) -> Tensor:
    """Places whose filters follow a long-tailed law (log-normal, sigma 1), every eighth filter left empty."""
    weights = torch.exp(torch.randn(filters, generator=generator))
    weights[::8] = 0
    weights = (weights / weights.sum()).clamp(max=0.5 * filter_size / count)

    def draw(number: int) -> Tensor:
        chosen = torch.multinomial(weights, number, replacement=True, generator=generator)
        return chosen * filter_size + torch.randint(filter_size, (number,), generator=generator)

    return _distinct(count, generator, draw)


def _distinct(count: int, generator: torch.Generator, draw: Callable[[int], Tensor]) -> Tensor:
    found = torch.empty(0, dtype=torch.int64)
    while len(found) < count:
        found = torch.cat([found, draw(count + 16)]).unique()
    return found[torch.randperm(len(found), generator=generator)[:count]]


def _alexnet(*densities: float) -> Callable[[str], float]:
    table = dict(zip(("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7"), densities, strict=True))
    return table.__getitem__


def _resnet(stem: float, rest: float) -> Callable[[str], float]:
    return lambda name: stem if name == "conv1" else rest


def _targets(aim: float, batch1: float, batch8: float) -> dict[int, Target]:
    return {1: Target(batch1, aim), 8: Target(batch8, aim)}


PUBLISHED = (
    Configuration(
        "AlexNet fast",
        "alexnet-lcnn",
        _alexnet(0.083, 0.034, 0.008, 0.013, 0.027, 0.001, 0.002),
        {"first": 3, "stages": (30, 30, 30, 30), "fc": 512},
        "reference",
        "alexnet",
        _targets(AIM_FAST_ALEXNET, 0.50, 0.60),
    ),
    Configuration(
        "AlexNet accurate",
        "alexnet-lcnn",
        _alexnet(0.129, 0.040, 0.029, 0.034, 0.071, 0.006, 0.007),
        {"first": 3, "stages": (500, 500, 500, 30), "fc": 1024},
        "reference",
        "alexnet",
        _targets(AIM_ACCURATE_ALEXNET, 0.65, 0.65),
    ),
    Configuration(
        "ResNet-18 fast",
        "resnet18-lcnn",
        _resnet(0.04, 0.02),
        {"first": 3, "stages": (12, 16, 24, 32)},
        targets=_targets(AIM_FAST_RESNET, 0.65, 0.65),
    ),
    Configuration(
        "ResNet-18 accurate",
        "resnet18-lcnn",
        _resnet(0.06, 0.03),
        {"first": 3, "stages": (100, 120, 200, 300)},
        targets=_targets(AIM_ACCURATE_RESNET, 0.80, 0.80),
    ),
)
"""The published dictionary sizes (ResNet's smaller ones, which reach the published counts) at the worked example's
densities."""

ROBUST = (
    Configuration(
        "ResNet-18 fast, uneven filters",
        "resnet18-lcnn",
        _resnet(0.04, 0.02),
        {"first": 3, "stages": (12, 16, 24, 32)},
        uneven=True,
    ),
    Configuration("ResNet-50, 90 % zeros, no dictionary", "resnet50", lambda name: 0.1, sparse=True),
)
"""What random P flatters: filters of very different length and dead ones, and a pruned network."""


@dataclass(frozen=True)
class Trained:
    """A checkpoint in ``FILES`` that this project trained; it states its accuracy and the command that made it."""

    name: str
    file: str

    def open(self) -> AbstractContextManager[Trial]:
        """The trial, its files removed when the context ends."""
        return open_file(FILES / self.file, name=self.name)


FILES = Path(__file__).parents[1] / "data" / "trained"

TRAINED = (
    Trained("small ResNet, Fashion-MNIST, 10x", "fashion-mnist-10x.pt"),
    Trained("small ResNet, Fashion-MNIST, 30x", "fashion-mnist-30x.pt"),
)
"""Started from one dense network, `lcnn train --from`, D and P pruned together: no filter is like another."""

SUITES: dict[str, tuple[Configuration | Trained, ...]] = {
    "published": PUBLISHED,
    "robust": ROBUST,
    "trained": TRAINED,
}
