"""Top-1 and top-5 of a model on a split, every image counted once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lcnn_core.data import Split
from lcnn_core.errors import ConfigError, TrainingError
from lcnn_core.train.health import diagnose_outputs


@dataclass(frozen=True)
class Accuracy:
    """Shares of ``count`` images whose label is the first, or among the first five, of the model's answers."""

    top1: float
    top5: float
    """With five classes or fewer every answer is among the first five: 1."""
    count: int
    loss: float
    """Mean cross entropy."""


def label_ranks(logits: Tensor, labels: Tensor) -> Tensor:
    """Place of each label among its row's answers, 0 for the first; equal logits rank by class number.

    logits: (b, classes), labels: (b,). Returns int64 (b,). Cost: two comparisons per logit.
    """
    own = logits.gather(1, labels.unsqueeze(1))
    lower = torch.arange(logits.shape[1], device=logits.device) < labels.unsqueeze(1)
    return ((logits > own) | ((logits == own) & lower)).sum(dim=1)


def evaluate(model: nn.Module, split: Split, batch_size: int = 256) -> Accuracy:
    """Accuracy of ``model`` in eval mode on ``split``; the model's training flag is put back.

    Raises ConfigError when labels and outputs do not fit or the split is empty, TrainingError for NaN outputs.
    """
    if len(split) == 0:
        raise ConfigError("the split to evaluate on has no images; expected at least one")
    modes = {module: module.training for module in model.modules()}
    device = model_device(model)
    top1 = top5 = 0
    loss = 0.0
    model.eval()
    try:
        with torch.no_grad():
            for images, labels in zip(split.images.split(batch_size), split.labels.split(batch_size), strict=True):
                images, labels = images.to(device), labels.to(device)
                logits = model(images)
                check_outputs(logits, labels)
                if bool(logits.isnan().any()):
                    raise TrainingError(f"the model answers NaN in evaluation: {diagnose_outputs(model, images)}")
                ranks = label_ranks(logits, labels)
                top1 += int((ranks < 1).sum())
                top5 += int((ranks < 5).sum())
                loss += float(F.cross_entropy(logits.double(), labels, reduction="sum"))
    finally:
        for module, mode in modes.items():
            module.training = mode
    return Accuracy(top1 / len(split), top5 / len(split), len(split), loss / len(split))


def check_outputs(logits: Tensor, labels: Tensor) -> None:
    """Raise ConfigError unless ``logits`` is (b, classes) with a class for each of ``labels``."""
    if logits.ndim != 2 or len(logits) != len(labels):
        raise ConfigError(f"the model's output has shape {tuple(logits.shape)}; expected ({len(labels)}, classes)")
    if int(labels.max()) >= logits.shape[1]:
        raise ConfigError(
            f"the model answers {logits.shape[1]} classes, but a label is {int(labels.max())}; "
            f"build it for {int(labels.max()) + 1} classes or more"
        )


def model_device(model: nn.Module) -> torch.device:
    """Where the model's first parameter lies; the CPU for a model without parameters."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
