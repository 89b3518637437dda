"""Post-training conversion as a start: fitted to a calibration set, then trained at the budget it landed on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from lcnn_core.compress.calibration import calibration_images
from lcnn_core.compress.post_training import FINE_TUNING, PostTrainingConfig, convert_to_budget
from lcnn_core.compress.teacher import check_target, taught_by
from lcnn_core.data import Dataset
from lcnn_core.train import TrainConfig, TrainResult, train
from lcnn_core.train.events import Listener, ignore


@dataclass(frozen=True)
class ConvertedConfig:
    """speedup: counted, over the dense network. conversion: its other choices. temperature, distillation: as in
    :class:`FromDenseConfig`."""

    speedup: float = 10.0
    conversion: PostTrainingConfig = field(default_factory=PostTrainingConfig)
    temperature: float = 2.0
    distillation: float = 0.7
    train: TrainConfig = FINE_TUNING

    def __post_init__(self) -> None:
        check_target(self.speedup, self.temperature, self.distillation)


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
    objective = taught_by(dense, config.temperature, config.distillation)
    return model, train(model, dataset, config.train, on_event, objective, resume=resume)
