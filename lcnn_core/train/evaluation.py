"""What a model answers on a split, every image counted once: top-1, top-5, and which class it took for which."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lcnn_core.data import Images
from lcnn_core.errors import ConfigError, DataError, TrainingError
from lcnn_core.train.distributed import Processes
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


@dataclass(frozen=True, eq=False)
class Evaluation:
    """An accuracy, and the answers that it comes from."""

    accuracy: Accuracy
    confusion: Tensor
    """int64 (classes, classes): images of the row's class that the model takes for the column's."""
    right: Tensor
    """bool (count,): whether an image's label is the model's first answer, in the order of the split."""

    @property
    def precision(self) -> Tensor:
        """float64 (classes,): of the images taken for a class, the share that is of it; NaN where there are none."""
        return self.confusion.diagonal().double() / self.confusion.sum(0)

    @property
    def recall(self) -> Tensor:
        """float64 (classes,): of the images of a class, the share taken for it; NaN where there are none."""
        return self.confusion.diagonal().double() / self.confusion.sum(1)


def label_ranks(logits: Tensor, labels: Tensor) -> Tensor:
    """Place of each label among its row's answers, 0 for the first; equal logits rank by class number.

    logits: (b, classes), labels: (b,). Returns int64 (b,). Cost: two comparisons per logit.
    """
    own = logits.gather(1, labels.unsqueeze(1))
    lower = torch.arange(logits.shape[1], device=logits.device) < labels.unsqueeze(1)
    return ((logits > own) | ((logits == own) & lower)).sum(dim=1)


def evaluate(model: nn.Module, split: Images, batch_size: int = 256, crops: int = 1) -> Accuracy:
    """Accuracy of ``model`` in eval mode on ``split``; the model's training flag is put back.

    crops: 5 (corners and centre) or 10 (mirrored too) views of each image, their probabilities averaged, where the
    source has room for them. In a run of many processes each takes a share of the images. Raises ConfigError when
    labels and outputs do not fit or the split is empty, TrainingError for NaN outputs.
    """
    top1 = top5 = count = 0
    loss = 0.0
    for logits, labels in _answers(model, split, batch_size, crops, Processes.current()):
        ranks = label_ranks(logits, labels)
        top1 += int((ranks < 1).sum())
        top5 += int((ranks < 5).sum())
        count += len(labels)
        loss += float(F.cross_entropy(logits.double(), labels, reduction="sum"))
    sums = Processes.current().sums((top1, top5, count, loss), model_device(model))
    if not sums[2]:
        raise DataError("none of the images to evaluate on could be read")
    return Accuracy(sums[0] / sums[2], sums[1] / sums[2], int(sums[2]), sums[3] / sums[2])


def evaluate_classes(model: nn.Module, split: Images, batch_size: int = 256, crops: int = 1) -> Evaluation:
    """As :func:`evaluate`, on this process alone, with which first answers are right and the confusion matrix."""
    found = [
        (logits.double().cpu(), labels.cpu())
        for logits, labels in _answers(model, split, batch_size, crops, Processes())
    ]
    if not found:
        raise DataError("none of the images to evaluate on could be read")
    logits, labels = (torch.cat(parts) for parts in zip(*found, strict=True))
    ranks, classes = label_ranks(logits, labels), logits.shape[1]
    confusion = torch.bincount(labels * classes + logits.argmax(1), minlength=classes * classes)
    top1, top5 = (float((ranks < first).double().mean()) for first in (1, 5))
    accuracy = Accuracy(top1, top5, len(labels), float(F.cross_entropy(logits, labels)))
    return Evaluation(accuracy, confusion.reshape(classes, classes), ranks < 1)


def _answers(
    model: nn.Module, split: Images, batch_size: int, crops: int, processes: Processes
) -> Iterator[tuple[Tensor, Tensor]]:
    """Logits and labels, batch by batch, of the share of the images that falls to this process."""
    if len(split) == 0:
        raise ConfigError("the split to evaluate on has no images; expected at least one")
    device = model_device(model)
    own = torch.arange(len(split)).tensor_split(processes.count)[processes.rank]
    with _eval_mode(model), torch.no_grad():
        for images, labels in split.read(list(own.split(batch_size)) if len(own) else [], None, crops):
            images, labels = images.to(device), labels.to(device)
            logits = _logits(model, images)
            check_outputs(logits, labels)
            if bool(logits.isnan().any()):
                views = images.flatten(0, 1) if images.ndim == 5 else images
                raise TrainingError(f"the model answers NaN in evaluation: {diagnose_outputs(model, views)}")
            yield logits, labels


def _logits(model: nn.Module, images: Tensor) -> Tensor:
    """Of (b, c, h, w) the model's own; of (b, crops, c, h, w) the logarithm of the crops' mean probabilities."""
    if images.ndim == 4:
        return model(images)
    each = model(images.flatten(0, 1)).unflatten(0, images.shape[:2])
    return each.softmax(dim=2).mean(dim=1).log()


@contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


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
