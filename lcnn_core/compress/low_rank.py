"""Low-rank factorisation: each convolution as two dense ones, a 1x1 to few channels and one of the kernel's size.

That is a lookup layer without a zero in D or P: it is trained, counted, saved and analysed as one. A layer that no rank
makes cheaper (of one input channel, say), or too wide for a covariance of its inputs, stays dense or becomes sparse.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lcnn_core.compress import calibration, fitting
from lcnn_core.compress.allocation import DENSE, Option, allocate, pareto
from lcnn_core.compress.calibration import calibration_images
from lcnn_core.compress.fitting import Fit, Path
from lcnn_core.compress.measured import (
    PROBE_ERROR,
    Convertible,
    allowance,
    options_of,
    problems,
    speedup_of_layers,
    weigh,
)
from lcnn_core.compress.post_training import assembled
from lcnn_core.compress.resumed import kept_network
from lcnn_core.compress.teacher import COMPRESSION, check_dense, check_target, taught_by
from lcnn_core.data import Dataset
from lcnn_core.train import Processes, TrainConfig, TrainResult, train
from lcnn_core.train.events import Listener, ignore

RANKS = 48
"""Ranks of one layer that are tried."""


@dataclass(frozen=True)
class LowRankConfig:
    """speedup: counted, over the dense network. images: of the calibration set. temperature, distillation: as in
    :class:`FromDenseConfig`."""

    speedup: float = 10.0
    images: int = 512
    temperature: float = 2.0
    distillation: float = 0.7
    train: TrainConfig = COMPRESSION

    def __post_init__(self) -> None:
        calibration.check_count(self.images)
        check_target(self.speedup, self.temperature, self.distillation, self.train)


def factorized(dense: nn.Module, images: Tensor, speedup: float) -> nn.Module:
    """A copy of ``dense`` with layers of low rank that costs at most ``1 / speedup`` of it; as near as ranks come.

    images: (N, c, h, w), to calibrate on. D and P of every rank come from the singular value decomposition weighted by
    the layer's inputs (:func:`fitting.start`); ranks are those of least error of the outputs, weighed by what it
    matters, that fit the budget. A layer that no rank makes cheaper may become sparse. Batch-norm statistics are
    measured anew. Raises ConfigError, with the reachable maximum and what bounds it, for a speedup that cannot be met.
    """
    layers, fixed, dense_cost = problems(dense, images)
    menus, probes, needed = [], {}, speedup_of_layers(speedup, fixed, dense_cost)
    for layer in layers:
        ranked = options_of_ranks(layer) if _ranks(layer) else options_of(layer, [None], needed, dense=True)
        options, probes[layer.name] = ranked
        menus.append(options)
    budget = allowance(speedup, menus, fixed, dense_cost)
    chosen = _topped_up(layers, allocate(menus, weigh(dense, layers, probes, images), budget), budget)
    chosen = Processes.current().of_first(chosen)
    fits = {
        layer.name: _fit(layer, option.start) if option.start else fitting.fit_to(layer.problem, None, option.cost)
        for layer, option in zip(layers, chosen, strict=True)
        if not isinstance(option.start, str)
    }
    model = assembled(dense, {layer.name: layer for layer in layers}, fits)
    calibration.reestimate_batch_norm_(model, images)
    return model


def _fit(layer: Convertible, rank: int) -> Fit:
    path = fitting.start(layer.problem, rank)
    path.refit_coefficients()
    return path.fit()


def _ranks(layer: Convertible) -> range:
    """Those at which two layers are cheaper than one, and fewer than its channels; none without a covariance."""
    if not layer.problem.whole:
        return range(0)
    _, n, m, area = layer.problem.weight.shape
    return range(1, min(m, n * area, -(-layer.dense_cost // layer.whole_cost(1))))


def _tried(ranks: range) -> Iterator[int]:
    """All, or ``RANKS`` of them, closer where they are small."""
    if len(ranks) <= RANKS:
        yield from ranks
    else:
        yield from sorted({round(len(ranks) ** (step / (RANKS - 1))) for step in range(RANKS)})


def options_of_ranks(layer: Convertible) -> tuple[list[Option], Tensor]:
    """Costs and errors of the layer's ranks, one at least, and filters that are wrong by about ``PROBE_ERROR``."""
    options = [Option(DENSE, layer.dense_cost, 0.0)]
    ranks = list(_tried(_ranks(layer)))
    whole = fitting.start(layer.problem, ranks[-1])
    assert whole.dictionary is not None
    fits = []
    for rank in ranks:
        path = Path(layer.problem, whole.dictionary[:, :rank], whole.coefficients[:, :, :rank])
        fits.append(path.fit())
        options.append(Option(rank, fits[-1].cost, fits[-1].error))
    probe = min(fits, key=lambda fit: abs(math.log(max(fit.error, 1e-12) / PROBE_ERROR)))
    return pareto(options), probe.dense()


def _topped_up(layers: Sequence[Convertible], chosen: Sequence[Option], budget: int) -> list[Option]:
    """What the budget leaves over spent on whole ranks, the most expensive that fit first."""
    found = list(chosen)
    left = budget - sum(option.cost for option in found)
    for index in sorted(range(len(layers)), key=lambda index: -layers[index].whole_cost(1)):
        option, each = found[index], layers[index].whole_cost(1)
        if isinstance(option.start, int):
            more = min(left // each, len(_ranks(layers[index])) - option.start)
            found[index] = Option(option.start + more, option.cost + more * each, option.error)
            left -= more * each
    return found


def train_low_rank(
    dense: nn.Module,
    dataset: Dataset,
    config: LowRankConfig | None = None,
    on_event: Listener = ignore,
    resume: Mapping[str, Any] | None = None,
) -> tuple[nn.Module, TrainResult]:
    """Factorise ``dense`` within ``config.speedup``, then train both factors; ``dense`` itself stays as it is.

    resume: as in ``train``; ranks are not chosen anew. Raises ConfigError where the budget cannot be met and for a
    network that has lookup layers already.
    """
    config = config or LowRankConfig()
    check_dense(dense)
    if resume is not None:
        model = kept_network(dense, resume["model"])
    else:
        with torch.no_grad():
            model = factorized(copy.deepcopy(dense), calibration_images(dataset, config.images), config.speedup)
    objective = taught_by(dense, config.temperature, config.distillation)
    return model, train(model, dataset, config.train, on_event, objective, resume=resume)
