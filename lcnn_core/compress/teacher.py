"""The dense network that a compression starts from, and by which it is taught."""

from __future__ import annotations

import copy
import math

from torch import nn

from lcnn_core.errors import ConfigError
from lcnn_core.layers import LookupLayer
from lcnn_core.train import SCHEDULES, Distillation, Objective, TrainConfig
from lcnn_core.train.objective import check_distillation

COMPRESSION = TrainConfig(epochs=40, batch_size=32, schedule=SCHEDULES["one-cycle"], lr=0.05, clip_norm=1.0, shift=1)
"""How a compression that starts from dense weights is trained, where nothing else is said."""


def check_dense(model: nn.Module) -> None:
    """Raise ConfigError for a network with lookup layers."""
    for name, module in model.named_modules():
        if isinstance(module, LookupLayer):
            raise ConfigError(f"{name!r} is already a lookup layer; start from a dense network")


def check_target(speedup: float, temperature: float, distillation: float, train: TrainConfig) -> None:
    """Raise ConfigError unless these can be asked of a method."""
    if distillation and train.label_smoothing:
        raise ConfigError("label_smoothing cannot go with distillation, which has targets of its own; set one to 0")
    if not 1 < speedup < math.inf:
        raise ConfigError(f"speedup is {speedup}; expected a finite number above 1")
    check_distillation(temperature, distillation)


def taught_by(dense: nn.Module, temperature: float, distillation: float) -> Objective | None:
    """Distillation from a copy of ``dense`` as it is now; None, labels alone, for a ``distillation`` of 0."""
    if not distillation:
        return None
    return Distillation(copy.deepcopy(dense).eval().requires_grad_(False), temperature, distillation)
