"""Start from dense: D and P from a trained network's filters, pruned together to a counted budget while it teaches."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field

from torch import nn

from lcnn_core.compress.budget import Budget
from lcnn_core.convert import convert
from lcnn_core.data import Dataset
from lcnn_core.errors import ConfigError
from lcnn_core.spec import LookupConfig
from lcnn_core.train import SCHEDULES, Distillation, TrainConfig, TrainResult, train
from lcnn_core.train.events import Listener, ignore


@dataclass(frozen=True)
class FromDenseConfig:
    """speedup: counted, over the dense twin, ``published`` convention; it is met exactly or by a hair more.

    dictionary_ratio: k over the input channels of layers with kernels beyond 1x1; None for 0.35 at 10x, falling as
        speedups rise (half of it at 30x). Ratios of 1 or more mean a plain sparse layer.
    phase: share of the run in which the cost is lowered; cuts: in how many steps.
    floor: share of an even split of the budget that every tensor keeps.
    temperature, weight: of the distillation from the dense network.
    """

    speedup: float = 10.0
    dictionary_ratio: float | None = None
    phase: float = 0.6
    cuts: int = 100
    floor: float = 0.25
    temperature: float = 2.0
    weight: float = 0.7
    train: TrainConfig = field(
        default_factory=lambda: TrainConfig(schedule=SCHEDULES["one-cycle"], lr=0.03, clip_norm=1.0)
    )

    def __post_init__(self) -> None:
        if not 1 < self.speedup < math.inf:
            raise ConfigError(f"speedup is {self.speedup}; expected a finite number above 1")
        if self.dictionary_ratio is not None and not 0 < self.dictionary_ratio < math.inf:
            raise ConfigError(f"dictionary_ratio is {self.dictionary_ratio}; expected a number above 0")
        if not 0 < self.phase <= 1 or self.cuts < 1 or not 0 <= self.floor <= 1:
            raise ConfigError(
                f"phase is {self.phase}, cuts {self.cuts}, floor {self.floor}; expected 0 < phase <= 1, "
                "cuts of 1 or more, 0 <= floor <= 1"
            )

    @property
    def ratio(self) -> float:
        if self.dictionary_ratio is not None:
            return self.dictionary_ratio
        return 0.35 * (10 / self.speedup) ** 0.63


def lookup_config(module: nn.Module, ratio: float) -> LookupConfig | None:
    """How one layer of a dense network starts: a dictionary of ``ratio`` of its channels, or a plain sparse layer.

    Dictionaries pay where several kernel positions share them: not in 1x1 convolutions, linear layers and stems.
    """
    size = None
    if isinstance(module, nn.Conv2d):
        width = module.in_channels // module.groups
        size = max(1, round(ratio * width))
        if math.prod(module.kernel_size) == 1 or width < 8 or size >= width:
            size = None
    elif not isinstance(module, nn.Linear):
        return None
    return LookupConfig(size, threshold=0.0, l1_weight=0.0)


def compress_from_dense(
    dense: nn.Module, dataset: Dataset, config: FromDenseConfig | None = None, on_event: Listener = ignore
) -> tuple[nn.Module, TrainResult]:
    """Make a lookup network of ``dense`` that meets ``config.speedup``; ``dense`` itself is left as it is.

    Returns the network with the last epoch's weights, and what the run did. Raises ConfigError, with the reachable
    maximum and what bounds it, when the budget cannot be met.
    """
    config = config or FromDenseConfig()
    model, _ = convert(dense, lambda name, module: lookup_config(module, config.ratio))
    teacher = copy.deepcopy(dense).eval().requires_grad_(False)
    budget = Budget(model, dataset.input_shape, config.speedup, config.phase, config.cuts, config.floor)
    objective = Distillation(teacher, config.temperature, config.weight)
    return model, train(model, dataset, config.train, on_event, objective, budget)
