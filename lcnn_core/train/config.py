"""``TrainConfig``: everything that decides a run but the model, the data and the objective."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import nn

from lcnn_core.errors import ConfigError
from lcnn_core.train.schedule import SCHEDULES, Schedule, warm_up

OPTIMIZERS: dict[str, Callable[[nn.Module, float], torch.optim.Optimizer]] = {
    "sgd": lambda model, momentum: torch.optim.SGD(model.parameters(), lr=0.0, momentum=momentum),
    "adam": lambda model, momentum: torch.optim.Adam(model.parameters(), lr=0.0, betas=(momentum, 0.999)),
}
ADAM_SHARE = 0.02
"""Adam's usual rate over SGD's: the peaks of ``SCHEDULES`` are meant for SGD; a user's own are what they say."""
LARGEST = 1e6
"""Bound of rates, decay and norms: beyond any use, and well within float32, in which optimizers multiply them."""

_WHOLE = {"epochs": 1, "batch_size": 1, "shift": 0, "seed": 0, "batch_pieces": 1}
_WHOLE_OR_NONE = {"batches_per_epoch": 1, "save_every": 1}
_POSITIVE_OR_NONE = ("lr", "clip_norm", "warmup")


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides a run but the model, the data and the objective.

    batch_size: images in a batch, over all processes. lr: the schedule's peak rate; None for the schedule's own (for
        Adam a fiftieth of those in ``SCHEDULES``). lr_scale: multiplies every rate. warmup: epochs over which the rate
        rises at first.
    weight_decay: of every parameter, all along; None for the schedule's own, which may change by epoch.
    clip_norm: largest 2-norm of all gradients together; None for no limit.
    shift: training images move by up to so many pixels each way, at random.
    batch_pieces: parts in which each process takes its share of a batch, to save memory; gradients are averaged, so
        that rates and lambda keep their meaning. Batch norm sees one piece at a time, and its running statistics are
        those of the first.
    batches_per_epoch: None for one pass over the images. save_every: batches between two states, beside each epoch's.
    label_smoothing: share of the target that is spread over all classes. mixup, cutmix: alpha of the Beta
        distribution from which two images' shares are drawn, 0 for neither; with both, one of them for each batch.
    ema: decay of an exponential moving average of the weights, which is then what is validated and saved.
    bfloat16: autocast forward and loss. channels_last: memory format. compile: a backend of torch.compile, such as
        inductor. gradient_checkpointing: recompute residual blocks in the backward pass instead of keeping them.
    deterministic: only algorithms that give the same bits again; one that has none raises an error.
    """

    epochs: int = 30
    batch_size: int = 64
    optimizer: str = "sgd"
    schedule: Schedule = field(default=SCHEDULES["cosine"])
    lr: float | None = None
    momentum: float = 0.9
    weight_decay: float | None = None
    clip_norm: float | None = None
    shift: int = 0
    seed: int = 0
    lr_scale: float = 1.0
    warmup: float | None = None
    batch_pieces: int = 1
    batches_per_epoch: int | None = None
    save_every: int | None = None
    label_smoothing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    ema: float | None = None
    bfloat16: bool = False
    channels_last: bool = False
    compile: str | None = None
    gradient_checkpointing: bool = False
    deterministic: bool = False

    def __post_init__(self) -> None:
        for name, least in {**_WHOLE, **_WHOLE_OR_NONE}.items():
            value = getattr(self, name)
            whole = isinstance(value, int) and not isinstance(value, bool) and least <= value < 2**63
            if not whole and not (value is None and name in _WHOLE_OR_NONE):
                raise ConfigError(f"{name} is {value!r}; expected a whole number of {least} or more, below 2^63")
        if self.optimizer not in OPTIMIZERS:
            raise ConfigError(f"optimizer is {self.optimizer!r}; expected one of {', '.join(OPTIMIZERS)}")
        for name in ("momentum", "label_smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected 0 or more and below 1")
        for name in (*_POSITIVE_OR_NONE, "lr_scale"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= LARGEST:
                raise ConfigError(f"{name} is {value}; expected a number above 0 and at most {LARGEST:g}")
        for name in ("weight_decay", "mixup", "cutmix"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= LARGEST:
                raise ConfigError(f"{name} is {value}; expected a number from 0 to {LARGEST:g}")
        if self.ema is not None and not 0 < self.ema < 1:
            raise ConfigError(f"ema is {self.ema}; expected a decay above 0 and below 1, such as 0.999")
        if self.batch_size % self.batch_pieces:
            raise ConfigError(
                f"batch_pieces is {self.batch_pieces}; expected a divisor of the batch size, {self.batch_size}"
            )
        if self.warmup is not None and self.warmup >= self.epochs:
            raise ConfigError(f"warmup is {self.warmup:g} epochs of {self.epochs}; expected fewer than all of them")

    @property
    def peak(self) -> float:
        """The highest learning rate of the run."""
        if self.lr is not None:
            return self.lr * self.lr_scale
        for_sgd = self.schedule in SCHEDULES.values()
        return self.schedule.peak * (ADAM_SHARE if for_sgd and self.optimizer == "adam" else 1) * self.lr_scale

    def rate(self, epoch: float) -> float:
        """Learning rate after ``epoch`` epochs, fractions included."""
        schedule = self.schedule if self.warmup is None else warm_up(self.schedule, self.warmup, self.epochs)
        return schedule.rate(epoch, self.epochs) * self.peak / self.schedule.peak

    def decay(self, epoch: float) -> float:
        """Weight decay then."""
        return self.schedule.weight_decay(epoch) if self.weight_decay is None else self.weight_decay
