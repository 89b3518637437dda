"""What training minimises: a data term, plus the published l1 penalty of every lookup layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lcnn_core.errors import ConfigError
from lcnn_core.layers import LookupLayer


class Objective(Protocol):
    """The data term: a scalar, mean over the batch, from what the model answered (b, classes)."""

    def __call__(self, logits: Tensor, images: Tensor, labels: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class CrossEntropy:
    """Mean cross entropy between the answers and the labels: class numbers (b,), or shares of the classes.

    label_smoothing: share of each target that is spread evenly over all classes (Szegedy et al. 2016).
    """

    label_smoothing: float = 0.0

    def __call__(self, logits: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)


@dataclass(frozen=True)
class Distillation:
    """(1 - weight) * cross entropy + weight * T^2 * KL(teacher || model), both softened by the temperature T.

    The teacher answers in the mode it is in (put it in eval mode) and gets no gradient. T^2 keeps the size of the
    gradient independent of T. Source: Hinton, Vinyals, Dean 2015, section 2.
    """

    teacher: nn.Module
    temperature: float = 2.0
    weight: float = 0.7

    def __post_init__(self) -> None:
        check_distillation(self.temperature, self.weight)

    def __call__(self, logits: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        with torch.no_grad():
            target = F.log_softmax(self.teacher(images) / self.temperature, dim=1)
        answer = F.log_softmax(logits / self.temperature, dim=1)
        soft = F.kl_div(answer, target, reduction="batchmean", log_target=True) * self.temperature**2
        return (1 - self.weight) * F.cross_entropy(logits, labels) + self.weight * soft


def check_distillation(temperature: float, weight: float) -> None:
    """Raise ConfigError unless these are a temperature and a weight of :class:`Distillation`."""
    if not 0 <= weight <= 1:
        raise ConfigError(f"distillation weight is {weight}; expected 0 to 1")
    if not 0 < temperature < float("inf"):
        raise ConfigError(f"distillation temperature is {temperature}; expected a finite number above 0")


def l1_penalty(model: nn.Module) -> Tensor:
    """Sum over lookup layers of lambda * sum |P|; gradient lambda * sign(P), zero where P was zeroed (section 3.2)."""
    terms = [layer.l1_term() for layer in model.modules() if isinstance(layer, LookupLayer) and layer.l1_weight]
    return torch.stack([term.reshape(()) for term in terms]).sum() if terms else torch.zeros(())
