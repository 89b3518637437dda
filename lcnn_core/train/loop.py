"""The training loop: one pass over the data after the other, told in events, stopped at the first damage."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from lcnn_core.counting import counted_speedup
from lcnn_core.data import Dataset
from lcnn_core.describe import describe
from lcnn_core.errors import ConfigError, TrainingError
from lcnn_core.train import health
from lcnn_core.train.batches import batch_count, batches
from lcnn_core.train.evaluation import Accuracy, check_outputs, evaluate, label_ranks, model_device
from lcnn_core.train.events import (
    BatchFinished,
    EpochFinished,
    Listener,
    TrainingFinished,
    TrainingStarted,
    ignore,
)
from lcnn_core.train.objective import CrossEntropy, Objective, l1_penalty
from lcnn_core.train.schedule import SCHEDULES, Schedule
from lcnn_core.train.zeros import keep_zeros

OPTIMIZERS: dict[str, Callable[[nn.Module, float], torch.optim.Optimizer]] = {
    "sgd": lambda model, momentum: torch.optim.SGD(model.parameters(), lr=0.0, momentum=momentum),
    "adam": lambda model, momentum: torch.optim.Adam(model.parameters(), lr=0.0, betas=(momentum, 0.999)),
}
ADAM_SHARE = 0.02
"""Adam's usual rate over SGD's: the schedules' peaks are meant for SGD."""
RUNNING_BATCHES = 100
LARGEST = 1e6
"""Bound of rates, decay and norms: beyond any use, and well within float32, in which optimizers multiply them."""


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides a run but the model, the data and the objective.

    lr: the schedule's peak rate; None for the schedule's own (a fiftieth of it for Adam).
    weight_decay: of every parameter, all along; None for the schedule's own, which may change by epoch.
    clip_norm: largest 2-norm of all gradients together; None for no limit.
    shift: training images move by up to so many pixels each way, at random.
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

    def __post_init__(self) -> None:
        for name, least in (("epochs", 1), ("batch_size", 1), ("shift", 0), ("seed", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 2**63:
                raise ConfigError(f"{name} is {value!r}; expected a whole number of {least} or more, below 2^63")
        if self.optimizer not in OPTIMIZERS:
            raise ConfigError(f"optimizer is {self.optimizer!r}; expected one of {', '.join(OPTIMIZERS)}")
        if not 0 <= self.momentum < 1:
            raise ConfigError(f"momentum is {self.momentum}; expected 0 or more and below 1")
        for name in ("lr", "clip_norm"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= LARGEST:
                raise ConfigError(f"{name} is {value}; expected a number above 0 and at most {LARGEST:g}")
        if self.weight_decay is not None and not 0 <= self.weight_decay <= LARGEST:
            raise ConfigError(f"weight_decay is {self.weight_decay}; expected a number from 0 to {LARGEST:g}")

    @property
    def peak(self) -> float:
        """The highest learning rate of the run."""
        if self.lr is not None:
            return self.lr
        return self.schedule.peak * (ADAM_SHARE if self.optimizer == "adam" else 1)

    def rate(self, epoch: float) -> float:
        """Learning rate after ``epoch`` epochs, fractions included."""
        return self.schedule.rate(epoch, self.epochs) * self.peak / self.schedule.peak

    def decay(self, epoch: float) -> float:
        """Weight decay then."""
        return self.schedule.weight_decay(epoch) if self.weight_decay is None else self.weight_decay


class Controller(Protocol):
    """Steers the model from within the run, e.g. prunes it down to a budget."""

    def before_batch(self, progress: float) -> None:
        """Called before each batch with the share of the run's batches done so far, and at the end with 1."""

    def settled(self) -> bool:
        """Whether the model is now one that may be kept as the best."""


@dataclass(frozen=True)
class TrainResult:
    """What a run did; the model itself holds the last epoch's weights."""

    history: tuple[EpochFinished, ...]
    best_epoch: int
    """From 1; the epoch of highest validation top-1, then of lowest validation loss; 0 if none was eligible."""
    seconds: float

    @property
    def last(self) -> EpochFinished:
        return self.history[-1]


def train(
    model: nn.Module,
    dataset: Dataset,
    config: TrainConfig | None = None,
    on_event: Listener = ignore,
    objective: Objective | None = None,
    controller: Controller | None = None,
) -> TrainResult:
    """Train ``model`` in place on ``dataset.train``, measured on ``dataset.validation`` after every epoch.

    Minimises ``objective`` (cross entropy) plus the l1 terms of lookup layers; entries of P that are zero stay zero.
    On the CPU a run is bit-reproducible from the model's weights and ``config``; the caller's random state is left
    as it was. Raises TrainingError, naming epoch, batch and layer, as soon as something is not finite, ConfigError
    when model and data do not fit.
    """
    config = config or TrainConfig()
    device = model_device(model)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(config.seed)
        return _Run(model, dataset, config, on_event, objective or CrossEntropy(), controller).go()


class _Run:
    """The state of one run: optimizer, data order, history."""

    def __init__(
        self,
        model: nn.Module,
        dataset: Dataset,
        config: TrainConfig,
        on_event: Listener,
        objective: Objective,
        controller: Controller | None,
    ) -> None:
        self.model, self.dataset, self.config = model, dataset, config
        self.on_event, self.objective, self.controller = on_event, objective, controller
        self.device = model_device(model)
        self.generator = torch.Generator().manual_seed(config.seed)
        self.optimizer = OPTIMIZERS[config.optimizer](model, config.momentum)
        self.batches = batch_count(len(dataset.train), config.batch_size)
        mean, std = (torch.tensor(values) for values in (dataset.normalization.mean, dataset.normalization.std))
        self.background = -mean / std
        self.history: list[EpochFinished] = []
        self.best: tuple[float, float] | None = None
        self.best_epoch = 0
        self.recent: deque[tuple[int, int]] = deque(maxlen=RUNNING_BATCHES)

    def go(self) -> TrainResult:
        started = time.perf_counter()
        spec = describe(self.model, self.dataset.input_shape)
        speedup = counted_speedup(spec.layers)
        self.on_event(TrainingStarted(self.model, self.config.epochs, self.batches, len(self.dataset.train), speedup))
        end = keep_zeros(self.optimizer, self.model)
        try:
            for epoch in range(1, self.config.epochs + 1):
                self.history.append(self.epoch(epoch))
                self.on_event(self.history[-1])
        finally:
            end()
        seconds = time.perf_counter() - started
        self.on_event(TrainingFinished(seconds, self.best_epoch))
        return TrainResult(tuple(self.history), self.best_epoch, seconds)

    def epoch(self, epoch: int) -> EpochFinished:
        started = time.perf_counter()
        self.model.train()
        loss = right = 0.0
        source = batches(self.dataset.train, self.config.batch_size, self.generator, self.background, self.config.shift)
        for batch, (images, labels) in enumerate(source, start=1):
            images, labels = images.to(self.device), labels.to(self.device)
            batch_loss, batch_right = self.step(epoch, batch, images, labels)
            loss += batch_loss * len(labels)
            right += batch_right
            self.recent.append((batch_right, len(labels)))
            running = sum(r for r, _ in self.recent) / sum(n for _, n in self.recent)
            self.on_event(BatchFinished(epoch, batch, self.batches, batch_loss, running, self.rate))
        if self.controller and epoch == self.config.epochs:
            self.controller.before_batch(1.0)
        images_seen = len(self.dataset.train)
        return self.measure(epoch, loss / images_seen, right / images_seen, started)

    def step(self, epoch: int, batch: int, images: Tensor, labels: Tensor) -> tuple[float, int]:
        """One batch: returns its loss and how many images were right before the step."""
        at = epoch - 1 + (batch - 1) / self.batches
        if self.controller:
            self.controller.before_batch(at / self.config.epochs)
        self.rate = self.config.rate(at)
        for group in self.optimizer.param_groups:
            group["lr"], group["weight_decay"] = self.rate, self.config.decay(at)
        self.optimizer.zero_grad()
        logits = self.model(images)
        check_outputs(logits, labels)
        loss = self.objective(logits, images, labels) + l1_penalty(self.model)
        if not bool(loss.isfinite()):
            self.stop(epoch, batch, f"the loss is {float(loss.detach())}", images, labels)
        loss.backward()
        norm = health.gradient_norm(self.model)
        if not bool(norm.isfinite()):
            self.stop(epoch, batch, f"the gradient's norm is {float(norm)}", images, labels)
        if self.config.clip_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(self.model.parameters(), self.config.clip_norm, norm)
        self.optimizer.step()
        return float(loss.detach()), int((label_ranks(logits.detach(), labels) < 1).sum())

    def measure(self, epoch: int, loss: float, train_accuracy: float, started: float) -> EpochFinished:
        """Validate; a model with damaged weights or answers ends the run here and is never called the best."""
        if not health.all_finite(self.model):
            raise TrainingError(
                f"epoch {epoch}, batch {self.batches}: {health.first_damaged(self.model)!r} is not finite after the "
                f"last step; {_ADVICE}"
            )
        try:
            validation = evaluate(self.model, self.dataset.validation)
        except TrainingError as error:
            raise TrainingError(f"epoch {epoch}, validation: {error}; {_ADVICE}") from error
        spec = describe(self.model, self.dataset.input_shape)
        best = self.is_best(epoch, validation)
        return EpochFinished(
            epoch,
            self.config.epochs,
            loss,
            train_accuracy,
            validation,
            counted_speedup(spec.layers),
            {
                layer.name: layer.lookup.coefficients_nnz / layer.lookup.coefficients_size
                for layer in spec.layers
                if layer.lookup is not None
            },
            self.rate,
            self.config.decay(epoch - 1),
            time.perf_counter() - started,
            best,
        )

    def is_best(self, epoch: int, validation: Accuracy) -> bool:
        merit = (validation.top1, -validation.loss)
        if (self.controller and not self.controller.settled()) or (self.best is not None and merit <= self.best):
            return False
        self.best, self.best_epoch = merit, epoch
        return True

    def stop(self, epoch: int, batch: int, what: str, images: Tensor, labels: Tensor) -> None:
        why = health.diagnose(self.model, self.objective, images, labels)
        raise TrainingError(f"epoch {epoch}, batch {batch}: {what}: {why}; {_ADVICE}")


_ADVICE = "lower the learning rate or clip the gradient's norm"
