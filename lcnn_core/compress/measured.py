"""What is measured of a dense network's layers on a few images: inputs, errors of cheaper forms, what they matter."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from lcnn_core.compress import calibration, fitting
from lcnn_core.compress.allocation import DENSE, Option, out_of_reach, pareto
from lcnn_core.compress.fitting import Problem
from lcnn_core.convert import convert
from lcnn_core.counting import output_positions, padded_positions, total_macs
from lcnn_core.describe import describe
from lcnn_core.errors import ConfigError
from lcnn_core.spec import LayerSpec, LookupConfig

LEAST_SHARE = 0.125
"""The least cost that is tried for a layer, over what it would cost if all layers were made cheaper alike."""
PROBED = 64
"""Images on which it is measured how much an error of one layer matters for the answers."""
PROBE_ERROR = 0.03
"""Relative error of a layer's outputs at which that is measured, as nearly as a fit has it."""

Telling = Callable[[str, int, int], None]
"""(what is being done, how many are done, of how many)."""


def silent(what: str, done: int, total: int) -> None:
    """The listener of whoever wants silence."""


@dataclass(frozen=True, eq=False)
class Convertible:
    """A layer of the dense network that can be converted."""

    name: str
    module: nn.Module
    problem: Problem
    dense_cost: int
    mean: Tensor
    """Of its input patches, (groups, d)."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of its filters: (n, m / groups, *kernel)."""
        weight: Tensor = self.module.weight  # type: ignore[assignment]
        return tuple(weight.shape)

    def whole_cost(self, start: int | str | None) -> int:
        """MACs of a dictionary of this size and its P, none of their entries cut; without one, of the dense filters."""
        groups, n, m, area = self.problem.weight.shape
        if not isinstance(start, int):
            return self.dense_cost
        return groups * start * (m * self.problem.row + n * area * self.problem.coefficient)


def problems(dense: nn.Module, images: Tensor, tell: Telling = silent) -> tuple[list[Convertible], dict[str, int], int]:
    """The layers that can be converted with their problems, the cost of all others, and the cost of everything.

    images: (N, c, h, w). Raises ConfigError for too few of them or damaged ones, and where no layer can be converted.
    """
    calibration.check_images(images)
    specs: dict[str, list[LayerSpec]] = {}
    for spec in describe(dense, tuple(images.shape[1:])).layers:
        specs.setdefault(spec.name, []).append(spec)
    _, report = convert(dense, LookupConfig(None, threshold=0.0, l1_weight=0.0))
    modules = dict(dense.named_modules())
    names = [layer.names[0] for layer in report.converted if layer.names[0] in specs]
    if not names:
        raise ConfigError("a speedup cannot be met: the model has no layer that can become a lookup layer")
    tell("measuring inputs", 0, 1)
    moments = calibration.input_moments(dense, {name: modules[name] for name in names}, images)
    normed = calibration.has_batch_norm(dense)
    layers = []
    costs = {name: total_macs(calls) for name, calls in specs.items()}
    for name in names:
        module, seen = modules[name], moments[name]
        weight: Tensor = module.weight.detach().float()  # type: ignore[union-attr,operator]
        groups = getattr(module, "groups", 1)
        shaped = weight.reshape(groups, len(weight) // groups, weight.shape[1], -1)
        positions = sum(map(output_positions, specs[name])), sum(map(padded_positions, specs[name]))
        covariance = seen.covariance(centred=normed or module.bias is not None)
        layers.append(Convertible(name, module, Problem(shaped, covariance, *positions), costs[name], seen.mean()))
    fixed = {name: cost for name, cost in costs.items() if cost and name not in names}
    return layers, fixed, sum(costs.values())


def speedup_of_layers(speedup: float, fixed: Mapping[str, int], dense_cost: int) -> float:
    """What the layers that can be converted must reach together, as the ``fixed`` ones stay as they are."""
    stays = sum(fixed.values())
    return (dense_cost - stays) / max(dense_cost / speedup - stays, 1.0)


def options_of(
    layer: Convertible, sizes: Sequence[int | None], speedup: float, dense: bool
) -> tuple[list[Option], Tensor]:
    """The layer's costs and errors with these dictionary sizes, and filters that are wrong by about ``PROBE_ERROR``.

    Layers too wide for a covariance of their inputs get no dictionary; where nothing else is left, they become sparse.
    dense: whether to stay as it is is one of them. speedup: what all such layers together are to reach.
    """
    options = [Option(DENSE, layer.dense_cost, 0.0)] if dense else []
    probe, distance = layer.problem.weight, math.inf
    sizes = [size for size in sizes if size is None or layer.problem.whole] or ([] if dense else [None])
    for size in sizes:
        for fit in fitting.menu(layer.problem, size, math.ceil(LEAST_SHARE / speedup * layer.dense_cost)):
            if fit.cost and fit.error < 1:
                options.append(Option(size, fit.cost, fit.error))
            if abs(math.log(fit.error / PROBE_ERROR)) < distance:
                probe, distance = fit.dense(), abs(math.log(fit.error / PROBE_ERROR))
    if not options:  # a layer of one weight, say
        fit = fitting.fit_to(layer.problem, sizes[0], 1)
        options.append(Option(sizes[0], fit.cost, min(fit.error, 1.0)))
    return pareto(options), probe


@torch.no_grad()
def weigh(
    dense: nn.Module,
    layers: Sequence[Convertible],
    probes: Mapping[str, Tensor],
    images: Tensor,
    tell: Telling = silent,
) -> list[float]:
    """How far the network's answers move (Kullback-Leibler) for each unit of a layer's relative error, one at a time.

    Batch norms use the statistics of ``images`` here, as they will be measured anew after the conversion.
    """
    model = copy.deepcopy(dense).eval()
    for module in model.modules():
        if isinstance(module, _BatchNorm) and module.track_running_stats:
            module.momentum = 0.0
            module.train()
    images = images[:PROBED].to(next(model.parameters()).device)
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


def _budget(speedup: float, least: int, what: str, fixed: Mapping[str, int], dense_cost: int) -> int:
    """MACs that the layers may cost together; ConfigError where ``what``, of ``least`` MACs, costs more."""
    budget = int(dense_cost / speedup) - sum(fixed.values())
    if least > budget:
        raise out_of_reach(speedup, dense_cost, fixed, least, what)
    return budget


def allowance(speedup: float, menus: Sequence[Sequence[Option]], fixed: Mapping[str, int], dense_cost: int) -> int:
    """MACs that the layers may cost together; ConfigError where the cheapest on each menu cost more."""
    least = sum(min(option.cost for option in menu) for menu in menus)
    return _budget(speedup, least, f"the cheapest forms of {len(menus)} layers", fixed, dense_cost)


@dataclass(frozen=True, eq=False)
class Measured:
    """What a choice of forms goes by: for every layer its menu, and how far an error of it moves the answers."""

    layers: list[Convertible]
    fixed: dict[str, int]
    """MACs of what cannot be converted, by name."""
    dense_cost: int
    menus: list[list[Option]]
    weights: list[float]
    budget: int
    """MACs that the layers may cost together."""


def measure(
    dense: nn.Module,
    speedup: float,
    images: Tensor,
    sizes: Callable[[Convertible], Sequence[int | None]],
    stay: bool,
    tell: Telling = silent,
) -> Measured:
    """The menus of all layers for ``speedup`` and their weights. sizes: dictionary sizes to try; stay: whether to stay
    dense is on the menu. Raises ConfigError where even the cheapest forms cost too much."""
    layers, fixed, dense_cost = problems(dense, images, tell)
    if all(None in sizes(layer) for layer in layers):  # else what the least dictionary costs shows in fitting
        least = sum(layer.problem.coefficient for layer in layers)
        _budget(speedup, least, f"one nonzero in each P of {len(layers)} layers", fixed, dense_cost)
    menus, probes, needed = [], {}, speedup_of_layers(speedup, fixed, dense_cost)
    for done, layer in enumerate(layers):
        tell("fitting", done, len(layers))
        options, probes[layer.name] = options_of(layer, sizes(layer), needed, stay)
        menus.append(options)
    budget = allowance(speedup, menus, fixed, dense_cost)
    return Measured(layers, fixed, dense_cost, menus, weigh(dense, layers, probes, images, tell), budget)
