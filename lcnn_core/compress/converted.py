"""Post-training conversion as a start: fitted to a calibration set, then trained at the budget it landed on."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from lcnn_core.compress.post_training import FINE_TUNING, PostTrainingConfig, convert_to_budget
from lcnn_core.data import Dataset
from lcnn_core.errors import ConfigError
from lcnn_core.train import Distillation, TrainConfig, TrainResult, train
from lcnn_core.train.events import Listener, ignore
from lcnn_core.train.objective import check_distillation


@dataclass(frozen=True)
class ConvertedConfig:
    """speedup: counted, over the dense network. conversion: its other choices. temperature, weight: of the distillation
    from the dense network; weight 0 trains on the labels alone."""

    speedup: float = 10.0
    conversion: PostTrainingConfig = field(default_factory=PostTrainingConfig)
    temperature: float = 2.0
    weight: float = 0.7
    train: TrainConfig = FINE_TUNING

    def __post_init__(self) -> None:
        if not 1 < self.speedup < math.inf:
            raise ConfigError(f"speedup is {self.speedup}; expected a finite number above 1")
        check_distillation(self.temperature, self.weight)


def convert_and_train(
    dense: nn.Module,
    dataset: Dataset,
    config: ConvertedConfig | None = None,
    on_event: Listener = ignore,
    resume: Mapping[str, Any] | None = None,
) -> tuple[nn.Module, TrainResult]:
    """Convert ``dense`` on training images without their labels, then train what is not zero; ``dense`` stays as it is.

    Raises what ``convert_to_budget`` and ``train`` raise.
    """
    config = config or ConvertedConfig()
    images = calibration_images(dataset, config.conversion.images)
    model, _ = convert_to_budget(dense, images, replace(config.conversion, speedup=config.speedup))
    teacher = copy.deepcopy(dense).eval().requires_grad_(False)
    objective = Distillation(teacher, config.temperature, config.weight) if config.weight else None
    return model, train(model, dataset, config.train, on_event, objective, resume=resume)


def calibration_images(dataset: Dataset, count: int) -> torch.Tensor:
    """``count`` training images (N, c, h, w), or all, drawn with a fixed seed; their labels are not looked at."""
    order = torch.randperm(len(dataset.train), generator=torch.Generator().manual_seed(0))[:count]
    return torch.cat([images for images, _ in dataset.train.read(list(order.sort().values.split(64)))])
