"""Conversion without gradients: each layer's cheapest form fitted to what it does on a few images, under one budget."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from lcnn_core.compress import calibration, fitting
from lcnn_core.compress.allocation import DENSE, Option, allocate
from lcnn_core.compress.fitting import Fit
from lcnn_core.compress.from_dense import balance_
from lcnn_core.compress.measured import Convertible, Telling, measure, silent
from lcnn_core.compress.resumed import of_sizes
from lcnn_core.compress.teacher import check_dense
from lcnn_core.errors import ConfigError
from lcnn_core.layers import LookupLayer
from lcnn_core.train import SCHEDULES, TrainConfig

FORMS = ("dense", "sparse", "lookup")

FINE_TUNING = TrainConfig(epochs=3, batch_size=64, schedule=SCHEDULES["one-cycle"], lr=0.02, clip_norm=1.0)
"""How a converted network is trained on, taught by the dense one."""


@dataclass(frozen=True)
class PostTrainingConfig:
    """speedup: counted, over the dense network, ``published`` convention.

    ratios: k of the dictionaries that are tried, over the layer's input channels per group.
    forms: which of "dense", "sparse" (identity dictionary) and "lookup" a layer may take. Of "lookup" alone, layers
        that no dictionary fits, or whose inputs are too wide to measure, become sparse.
    images: of the calibration set, how many are used at most.
    """

    speedup: float = 4.0
    ratios: tuple[float, ...] = (0.125, 0.25, 0.5)
    forms: tuple[str, ...] = ("dense", "sparse", "lookup")
    images: int = 512

    def __post_init__(self) -> None:
        if isinstance(self.forms, str):  # one alone, as a recipe of `lcnn spectrum` gives it
            object.__setattr__(self, "forms", (self.forms,))
        if not 1 < self.speedup < math.inf:
            raise ConfigError(f"speedup is {self.speedup}; expected a finite number above 1")
        if not all(0 < ratio < 1 for ratio in self.ratios):
            raise ConfigError(f"ratios are {self.ratios}; expected numbers between 0 and 1")
        if not self.forms or not set(self.forms) <= set(FORMS):
            raise ConfigError(f"forms are {self.forms}; expected one or more of {', '.join(FORMS)}")
        calibration.check_count(self.images)


@dataclass(frozen=True)
class LayerChoice:
    """What became of one layer."""

    name: str
    form: str
    """dense, sparse (identity dictionary) or lookup."""
    dictionary_size: int | None
    """k; None where there is no dictionary."""
    density: float
    """nnz(P) / size of P; 1 for a dense layer."""
    dictionary_density: float | None
    error: float
    """Relative squared error of the layer's outputs on the calibration images, their mean corrected."""
    weight: float
    """Divergence of the network's answers for each unit of that error, measured."""
    cost: int
    """MACs on one image."""
    dense_cost: int


@dataclass(frozen=True)
class PostTrainingReport:
    """What a conversion chose, layer by layer, and where it landed."""

    speedup: float
    """Counted."""
    images: int
    layers: tuple[LayerChoice, ...]
    fixed: Mapping[str, int]
    """MACs of what cannot be converted, by name."""


def convert_to_budget(
    dense: nn.Module,
    images: Tensor,
    config: PostTrainingConfig | None = None,
    tell: Telling = silent,
    agree: Callable[[list[Option]], list[Option]] = list,
) -> tuple[nn.Module, PostTrainingReport]:
    """A copy of ``dense`` with lookup, sparse and dense layers as ``config.speedup`` allows; no labels, no gradients.

    images: (N, channels, height, width), normalised as the network was trained on. For every layer, D and P are fitted
    at many costs to its filters, weighted by its inputs on ``images``; how much its error matters is measured on the
    network's answers; dynamic programming picks one fit a layer; batch-norm statistics are measured anew. Raises
    ShapeError for images that the network does not take, ConfigError for too few of them, and for a speedup that cannot
    be met, with the reachable maximum and what bounds it. agree: what is made of the choice, which rounding may have
    made otherwise elsewhere, before it is fitted.
    """
    config = config or PostTrainingConfig()
    check_dense(dense)
    images = images[: config.images]
    found = measure(dense, config.speedup, images, lambda layer: _sizes(layer, config), "dense" in config.forms, tell)
    layers, fixed, weights, budget = found.layers, found.fixed, found.weights, found.budget
    chosen = agree(_filled(layers, allocate(found.menus, weights, budget), budget))
    fits: dict[str, Fit] = {}
    for done, (layer, option) in enumerate(zip(layers, chosen, strict=True)):
        tell("converting", done, len(layers))
        if not isinstance(option.start, str):
            fits[layer.name] = fitting.fit_to(layer.problem, option.start, option.cost)
    model = assembled(dense, {layer.name: layer for layer in layers}, fits)
    calibration.reestimate_batch_norm_(model, images)
    rows = tuple(_row(layer, weight, fits.get(layer.name)) for layer, weight in zip(layers, weights, strict=True))
    total = sum(fixed.values()) + sum(row.cost for row in rows)
    return model, PostTrainingReport(found.dense_cost / total, len(images), rows, fixed)


def _sizes(layer: Convertible, config: PostTrainingConfig) -> list[int | None]:
    """The dictionary sizes to try; None is the identity."""
    _, n, m, area = layer.problem.weight.shape
    sizes: list[int | None] = [None] if "sparse" in config.forms else []
    if "lookup" in config.forms and m > 1:
        found = {max(1, round(ratio * m)) for ratio in config.ratios}
        sizes += sorted(k for k in found if k < min(m, n * area))
    return sizes


def _filled(layers: Sequence[Convertible], chosen: Sequence[Option], budget: int) -> list[Option]:
    """The same forms, the budget that rounding to a menu left over shared out in proportion to their costs."""
    kept = sum(option.cost for option in chosen if option.start == DENSE)
    spent = sum(option.cost for option in chosen) - kept
    more = (budget - kept) / spent if spent else 1.0
    return [
        option if option.start == DENSE else replace(option, cost=min(layer.dense_cost, int(more * option.cost)))
        for layer, option in zip(layers, chosen, strict=True)
    ]


@torch.no_grad()
def assembled(dense: nn.Module, layers: Mapping[str, Convertible], fits: Mapping[str, Fit]) -> nn.Module:
    """A copy of ``dense`` with these fits in it, means corrected where a layer has a bias."""

    dictionaries = {name: fit.dictionary for name, fit in fits.items()}
    model = of_sizes(dense, {name: None if d is None else d.shape[1] for name, d in dictionaries.items()})
    for name, fit in fits.items():
        made, layer = model.get_submodule(name), layers[name]
        assert isinstance(made, LookupLayer)
        made.coefficients.copy_(fit.coefficients.reshape(made.coefficients.shape))
        if made.dictionary is not None and fit.dictionary is not None:
            made.dictionary.copy_(fit.dictionary.reshape(made.dictionary.shape))
        balance_(made)
        if made.bias is not None:
            lost = (layer.problem.weight - fit.dense()).flatten(2) @ layer.mean[:, :, None]
            made.bias.add_(lost.flatten().to(made.bias))
    return model.eval()


def _row(layer: Convertible, weight: float, fit: Fit | None) -> LayerChoice:
    if fit is None:
        return LayerChoice(layer.name, DENSE, None, 1.0, None, 0.0, weight, layer.dense_cost, layer.dense_cost)
    density = float(fit.coefficients.count_nonzero()) / fit.coefficients.numel()
    size, stored, form = None, None, "sparse"
    if fit.dictionary is not None:
        size, form = fit.dictionary.shape[1], "lookup"
        stored = float(fit.dictionary.count_nonzero()) / fit.dictionary.numel()
    return LayerChoice(layer.name, form, size, density, stored, fit.error, weight, fit.cost, layer.dense_cost)
