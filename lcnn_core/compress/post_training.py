"""Conversion without gradients: each layer's cheapest form fitted to what it does on a few images, under one budget."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from lcnn_core.compress import calibration, fitting
from lcnn_core.compress.allocation import DENSE, Option, allocate, pareto
from lcnn_core.compress.fitting import Fit, Problem
from lcnn_core.compress.from_dense import balance_
from lcnn_core.convert import convert
from lcnn_core.counting import count_layer, output_positions, padded_positions
from lcnn_core.describe import describe
from lcnn_core.errors import ConfigError
from lcnn_core.layers import LookupLayer
from lcnn_core.spec import LayerSpec, LookupConfig
from lcnn_core.train import SCHEDULES, TrainConfig

FORMS = ("dense", "sparse", "lookup")
LEAST_IMAGES = 16
LEAST_SHARE = 0.125
"""The least cost that is tried for a layer, over what it would cost if all layers were made cheaper alike."""
PROBED = 64
"""Images on which it is measured how much an error of one layer matters for the answers."""
PROBE_ERROR = 0.03
"""Relative error of a layer's outputs at which that is measured, as nearly as a fit has it."""

FINE_TUNING = TrainConfig(epochs=3, batch_size=64, schedule=SCHEDULES["one-cycle"], lr=0.02, clip_norm=1.0)
"""How a converted network is trained on, taught by the dense one."""

Telling = Callable[[str, int, int], None]
"""(what is being done, how many are done, of how many)."""


@dataclass(frozen=True)
class PostTrainingConfig:
    """speedup: counted, over the dense network, ``published`` convention.

    ratios: k of the dictionaries that are tried, over the layer's input channels per group.
    forms: which of "dense", "sparse" (identity dictionary) and "lookup" a layer may take.
    images: of the calibration set, how many are used at most.
    """

    speedup: float = 4.0
    ratios: tuple[float, ...] = (0.125, 0.25, 0.5)
    forms: tuple[str, ...] = ("dense", "sparse", "lookup")
    images: int = 512

    def __post_init__(self) -> None:
        if not 1 < self.speedup < math.inf:
            raise ConfigError(f"speedup is {self.speedup}; expected a finite number above 1")
        if not all(0 < ratio < 1 for ratio in self.ratios):
            raise ConfigError(f"ratios are {self.ratios}; expected numbers between 0 and 1")
        if not self.forms or not set(self.forms) <= set(FORMS):
            raise ConfigError(f"forms are {self.forms}; expected one or more of {', '.join(FORMS)}")
        if self.images < LEAST_IMAGES:
            raise ConfigError(f"images is {self.images}; expected {LEAST_IMAGES} or more to calibrate on")


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


@dataclass(frozen=True, eq=False)
class _Layer:
    """A layer of the dense network that can be converted."""

    name: str
    module: nn.Module
    problem: Problem
    dense_cost: int
    mean: Tensor
    """Of its input patches, (groups, d)."""


def convert_to_budget(
    dense: nn.Module,
    images: Tensor,
    config: PostTrainingConfig | None = None,
    tell: Telling = lambda what, done, total: None,
) -> tuple[nn.Module, PostTrainingReport]:
    """A copy of ``dense`` with lookup, sparse and dense layers as ``config.speedup`` allows; no labels, no gradients.

    images: (N, channels, height, width), normalised as the network was trained on. For every layer, D and P are fitted
    at many costs to its filters, weighted by its inputs on ``images``; how much its error matters is measured on the
    network's answers; dynamic programming picks one fit a layer; batch-norm statistics are measured anew. Raises
    ShapeError for images that the network does not take, ConfigError for too few of them, and for a speedup that cannot
    be met, with the reachable maximum and what bounds it.
    """
    config = config or PostTrainingConfig()
    images = _checked(dense, images, config)
    layers, fixed, dense_cost = _problems(dense, images, tell)
    menus, probes = [], {}
    for done, layer in enumerate(layers):
        tell("fitting", done, len(layers))
        options, probes[layer.name] = _options(layer, config)
        menus.append(options)
    budget = _budget(config.speedup, menus, fixed, dense_cost)
    weights = _weights(dense, layers, menus, probes, images[:PROBED], tell)
    chosen = _filled(layers, allocate(menus, weights, budget), budget)
    fits: dict[str, Fit] = {}
    for done, (layer, option) in enumerate(zip(layers, chosen, strict=True)):
        tell("converting", done, len(layers))
        if not isinstance(option.start, str):
            fits[layer.name] = fitting.fit_to(layer.problem, option.start, option.cost)
    model = _assembled(dense, {layer.name: layer for layer in layers}, fits)
    calibration.reestimate_batch_norm_(model, images)
    rows = tuple(_row(layer, weight, fits.get(layer.name)) for layer, weight in zip(layers, weights, strict=True))
    total = sum(fixed.values()) + sum(row.cost for row in rows)
    return model, PostTrainingReport(dense_cost / total, len(images), rows, fixed)


def _checked(dense: nn.Module, images: Tensor, config: PostTrainingConfig) -> Tensor:
    for name, module in dense.named_modules():
        if isinstance(module, LookupLayer):
            raise ConfigError(f"{name!r} is already a lookup layer; start from a dense network")
    if len(images) < LEAST_IMAGES:
        raise ConfigError(f"{len(images)} calibration images; expected {LEAST_IMAGES} or more, 512 are usual")
    if not bool(images.isfinite().all()):
        raise ConfigError("the calibration images hold NaN or infinity; check how they were normalised")
    return images[: config.images]


def _problems(dense: nn.Module, images: Tensor, tell: Telling) -> tuple[list[_Layer], dict[str, int], int]:
    """The layers that can be converted with their problems, the cost of all others, and the cost of everything."""
    specs: dict[str, list[LayerSpec]] = {}
    for spec in describe(dense, tuple(images.shape[1:])).layers:
        specs.setdefault(spec.name, []).append(spec)
    _, report = convert(dense, LookupConfig(None, threshold=0.0, l1_weight=0.0))
    modules = dict(dense.named_modules())
    names = [layer.names[0] for layer in report.converted if layer.names[0] in specs]
    if not names:
        raise ConfigError("a speedup cannot be met: the model has no layer that can be converted")
    tell("measuring inputs", 0, 1)
    moments = calibration.input_moments(dense, {name: modules[name] for name in names}, images)
    normed = calibration.has_batch_norm(dense)
    layers = []
    costs = {name: sum(count_layer(spec).total for spec in calls) for name, calls in specs.items()}
    for name in names:
        module, seen = modules[name], moments[name]
        weight: Tensor = module.weight.detach().float()  # type: ignore[union-attr,operator]
        groups = getattr(module, "groups", 1)
        shaped = weight.reshape(groups, len(weight) // groups, weight.shape[1], -1)
        positions = sum(map(output_positions, specs[name])), sum(map(padded_positions, specs[name]))
        covariance = seen.covariance(centred=normed or module.bias is not None)
        layers.append(
            _Layer(name, module, Problem(shaped, covariance, *positions), costs[name], seen.sums / seen.count)
        )
    fixed = {name: cost for name, cost in costs.items() if cost and name not in names}
    return layers, fixed, sum(costs.values())


def _sizes(layer: _Layer, config: PostTrainingConfig) -> list[int | None]:
    """The dictionary sizes to try; None is the identity, which is left where no vectors can be shared."""
    _, n, m, area = layer.problem.weight.shape
    sizes: list[int | None] = [None] if "sparse" in config.forms else []
    if "lookup" in config.forms and m > 1:
        found = {max(1, round(ratio * m)) for ratio in config.ratios}
        sizes += sorted(k for k in found if k < min(m, n * area))
    return sizes or [None]


def _options(layer: _Layer, config: PostTrainingConfig) -> tuple[list[Option], Tensor]:
    """The layer's forms, costs and errors, and filters that are wrong by about ``PROBE_ERROR``."""
    options = [Option(DENSE, layer.dense_cost, 0.0)] if "dense" in config.forms else []
    probe, distance = layer.problem.weight, math.inf
    for size in _sizes(layer, config):
        for fit in fitting.fits(layer.problem, size, math.ceil(LEAST_SHARE / config.speedup * layer.dense_cost)):
            if fit.cost and fit.error < 1:
                options.append(Option(size, fit.cost, fit.error))
            if fit.error > 0 and abs(math.log(fit.error / PROBE_ERROR)) < distance:
                probe, distance = fit.dense(), abs(math.log(fit.error / PROBE_ERROR))
    return pareto(options), probe


def _budget(speedup: float, menus: Sequence[Sequence[Option]], fixed: Mapping[str, int], dense_cost: int) -> int:
    """MACs that the layers may cost together; ConfigError where their cheapest fits cost more."""
    budget = int(dense_cost / speedup) - sum(fixed.values())
    least = sum(min(option.cost for option in menu) for menu in menus)
    if least > budget:
        reach = math.floor(100 * dense_cost / (least + sum(fixed.values()))) / 100
        bound = f"the cheapest forms of {len(menus)} layers ({least:,} MACs)"
        if fixed:
            largest = sorted(fixed, key=lambda name: -fixed[name])[:3]
            bound = f"layers that stay dense ({', '.join(largest)}: {sum(fixed.values()):,} MACs in all) and {bound}"
        raise ConfigError(
            f"a speedup of {speedup:g} cannot be met: at most {reach:g}, bounded by {bound}; ask for less"
        )
    return budget


@torch.no_grad()
def _weights(
    dense: nn.Module,
    layers: Sequence[_Layer],
    menus: Sequence[Sequence[Option]],
    probes: Mapping[str, Tensor],
    images: Tensor,
    tell: Telling,
) -> list[float]:
    """How far the network's answers move (Kullback-Leibler) for each unit of a layer's relative error, one at a time.

    Batch norms use the statistics of ``images`` here, as they will be measured anew after the conversion.
    """
    model = copy.deepcopy(dense).eval()
    for module in model.modules():
        if isinstance(module, _BatchNorm) and module.track_running_stats:
            module.momentum = 0.0
            module.train()
    images = images.to(next(model.parameters()).device)
    reference = F.log_softmax(model(images).flatten(1).float(), 1)
    found = []
    for done, layer in enumerate(layers):
        tell("probing", done, len(layers))
        weight: Tensor = model.get_submodule(layer.name).weight  # type: ignore[assignment]
        before, probe = weight.clone(), probes[layer.name]
        weight.copy_(probe.reshape(weight.shape))
        answers = F.log_softmax(model(images).flatten(1).float(), 1)
        weight.copy_(before)
        divergence = float(F.kl_div(answers, reference, reduction="batchmean", log_target=True))
        error = layer.problem.squared(layer.problem.weight - probe) / max(layer.problem.energy, 1e-30)
        found.append(max(divergence, 1e-9) / max(error, 1e-9))
    return found


def _filled(layers: Sequence[_Layer], chosen: Sequence[Option], budget: int) -> list[Option]:
    """The same forms, the budget that rounding to a menu left over shared out in proportion to their costs."""
    kept = sum(option.cost for option in chosen if option.start == DENSE)
    spent = sum(option.cost for option in chosen) - kept
    more = (budget - kept) / spent if spent else 1.0
    return [
        option if option.start == DENSE else replace(option, cost=min(layer.dense_cost, int(more * option.cost)))
        for layer, option in zip(layers, chosen, strict=True)
    ]


@torch.no_grad()
def _assembled(dense: nn.Module, layers: Mapping[str, _Layer], fits: Mapping[str, Fit]) -> nn.Module:
    """A copy of ``dense`` with these fits in it, means corrected where a layer has a bias."""

    def choose(name: str, module: nn.Module) -> LookupConfig | None:
        if name not in fits:
            return None
        dictionary = fits[name].dictionary
        return LookupConfig(None if dictionary is None else dictionary.shape[1], threshold=0.0, l1_weight=0.0)

    model, _ = convert(dense, choose)
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


def _row(layer: _Layer, weight: float, fit: Fit | None) -> LayerChoice:
    if fit is None:
        return LayerChoice(layer.name, DENSE, None, 1.0, None, 0.0, weight, layer.dense_cost, layer.dense_cost)
    density = float(fit.coefficients.count_nonzero()) / fit.coefficients.numel()
    size, stored, form = None, None, "sparse"
    if fit.dictionary is not None:
        size, form = fit.dictionary.shape[1], "lookup"
        stored = float(fit.dictionary.count_nonzero()) / fit.dictionary.numel()
    return LayerChoice(layer.name, form, size, density, stored, fit.error, weight, fit.cost, layer.dense_cost)
