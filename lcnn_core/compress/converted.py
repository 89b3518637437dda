"""Post-training conversion as a method: fitted to a calibration set, and as it is or trained at the budget it met."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from lcnn_core.compress.calibration import calibration_images
from lcnn_core.compress.post_training import FINE_TUNING, PostTrainingConfig, convert_to_budget
from lcnn_core.compress.resumed import kept_network
from lcnn_core.compress.teacher import check_target, taught_by
from lcnn_core.data import Dataset
from lcnn_core.train import Processes, TrainConfig, TrainResult, train
from lcnn_core.train.events import Listener, ignore, telling


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
        check_target(self.speedup, self.temperature, self.distillation, self.train)


def convert_and_train(
    dense: nn.Module,
    dataset: Dataset,
    config: ConvertedConfig | None = None,
    on_event: Listener = ignore,
    resume: Mapping[str, Any] | None = None,
) -> tuple[nn.Module, TrainResult]:
    """Convert ``dense`` on training images without their labels, then train what is not zero; ``dense`` stays as it is.

    resume: as in ``train``; nothing is converted anew. Raises what ``convert_to_budget`` and ``train`` raise.
    """
    config = config or ConvertedConfig()
    if resume is not None:
        model = kept_network(dense, resume["model"])
    else:
        images = calibration_images(dataset, config.conversion.images)
        conversion = replace(config.conversion, speedup=config.speedup)
        model, _ = convert_to_budget(dense, images, conversion, telling(on_event), Processes.current().of_first)
    objective = taught_by(dense, config.temperature, config.distillation)
    return model, train(model, dataset, config.train, on_event, objective, resume=resume)


def convert_only(
    dense: nn.Module,
    dataset: Dataset,
    config: PostTrainingConfig | None = None,
    on_event: Listener = ignore,
    resume: Mapping[str, Any] | None = None,
) -> tuple[nn.Module, TrainResult]:
    """Convert ``dense`` on training images without their labels, and train nothing: what the run did is empty.

    Events are of what is measured and fitted; there is nothing to resume. Raises what ``convert_to_budget`` raises.
    """
    config, started = config or PostTrainingConfig(), time.perf_counter()
    model, _ = convert_to_budget(dense, calibration_images(dataset, config.images), config, telling(on_event))
    return model, TrainResult((), 0, time.perf_counter() - started)
