"""The training loop: one epoch after the other, told in events, stopped at the first damage, resumable at any batch."""

from __future__ import annotations

import os
import random
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from lcnn_core.checkpoint.restore import check_fit
from lcnn_core.counting import count_layer, counted_speedup
from lcnn_core.data import Dataset, Images
from lcnn_core.data.files import seed_of, worker_deaths_said
from lcnn_core.describe import describe
from lcnn_core.errors import CheckpointError, ConfigError, TrainingError
from lcnn_core.train import health
from lcnn_core.train.averaging import Average
from lcnn_core.train.batches import Order, shifted
from lcnn_core.train.config import OPTIMIZERS, TrainConfig
from lcnn_core.train.distributed import Processes
from lcnn_core.train.evaluation import Accuracy, evaluate
from lcnn_core.train.events import (
    BatchFinished,
    EpochFinished,
    LayerDied,
    Listener,
    StateReached,
    TrainingFinished,
    TrainingStarted,
    ignore,
)
from lcnn_core.train.objective import CrossEntropy, Objective
from lcnn_core.train.state import plain_epoch, random_state, restore_epoch, set_random_state
from lcnn_core.train.step import ADVICE, Step
from lcnn_core.train.zeros import keep_zeros

RUNNING_BATCHES = 100


class Controller(Protocol):
    """Steers the model from within the run, e.g. prunes it down to a budget."""

    def before_batch(self, progress: float) -> None:
        """Called before each batch with the share of the run's batches done so far, and at the end with 1."""

    def after_batch(self) -> None:
        """Called after each step of the optimizer, the batch's gradients still in the parameters."""

    def settled(self) -> bool:
        """Whether the model is now one that may be kept as the best."""

    def state_dict(self) -> dict[str, Any]:
        """What it knows beyond the progress that it is told and the model, as plain data."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where ``state`` was taken, between two batches."""


@dataclass(frozen=True)
class TrainResult:
    """What a run did; the model itself holds the last epoch's weights, or their average where the run keeps one."""

    history: tuple[EpochFinished, ...]
    best_epoch: int
    """From 1; the epoch of highest validation top-1, then of lowest validation loss; 0 if none was eligible."""
    seconds: float

    @property
    def last(self) -> EpochFinished:
        """Of the last epoch; there is none where nothing was trained."""
        return self.history[-1]


def train(
    model: nn.Module,
    dataset: Dataset,
    config: TrainConfig | None = None,
    on_event: Listener = ignore,
    objective: Objective | None = None,
    controller: Controller | None = None,
    resume: Mapping[str, Any] | None = None,
    dense_macs: int | None = None,
) -> TrainResult:
    """Train ``model`` in place on ``dataset.train``, measured on ``dataset.validation`` after every epoch.

    Minimises ``objective`` (cross entropy) plus the l1 terms of lookup layers; entries of P that are zero stay zero.
    On the CPU a run is bit-reproducible from the model's weights and ``config``; the caller's random state is left
    as it was. resume: the state of a ``StateReached`` event of a run with the same arguments; what follows is bit for
    bit what followed then. In a process group (torchrun) each process takes its share of every batch. Raises
    TrainingError, naming epoch, batch and layer, as soon as something is not finite, ConfigError when model and data
    do not fit, CheckpointError for the state of another model.
    """
    config = config or TrainConfig()
    if objective is not None and config.label_smoothing:
        raise ConfigError("label_smoothing belongs to cross entropy, and this run minimises something else; leave it 0")
    with _own_random_state(config.seed), _deterministic(config):
        objective = objective or CrossEntropy(config.label_smoothing)
        run = _Run(model, dataset, config, on_event, objective, controller, dense_macs)
        try:
            with worker_deaths_said():
                return run.go(resume)
        finally:
            run.step.end()


@contextmanager
def _own_random_state(seed: int) -> Iterator[None]:
    before = random_state()
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)
    try:
        yield
    finally:
        set_random_state(before)


@contextmanager
def _deterministic(config: TrainConfig) -> Iterator[None]:
    if not config.deterministic:
        yield
        return
    before = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # which cuBLAS asks for
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn_only)


@dataclass
class _Position:
    """Where a run is: an epoch, its batches done, and the sums over them."""

    epoch: int = 1
    batch: int = 0
    loss: float = 0.0
    right: int = 0
    images: int = 0


class _Run:
    """The state of one run: optimizer, data order, position, history."""

    def __init__(
        self,
        model: nn.Module,
        dataset: Dataset,
        config: TrainConfig,
        on_event: Listener,
        objective: Objective,
        controller: Controller | None,
        dense_macs: int | None,
    ) -> None:
        self.model, self.dataset, self.config = model, dataset, config
        self.on_event, self.controller, self.dense_macs = on_event, controller, dense_macs
        self.processes = Processes.current()
        self.average = Average(model, config.ema) if config.ema else None
        self.step = Step(model, config, objective, self.processes, len(dataset.class_names))
        if config.batch_size % self.step.pieces:
            raise ConfigError(
                f"batch_size is {config.batch_size}; expected a multiple of {self.step.pieces}, the pieces of all "
                f"{self.processes.count} processes"
            )
        self.optimizer = OPTIMIZERS[config.optimizer](model, config.momentum)
        self.order = Order(len(dataset.train), config.batch_size, self.step.pieces, config.seed)
        self.batches = config.batches_per_epoch or self.order.per_pass
        mean, std = (torch.tensor(values) for values in (dataset.normalization.mean, dataset.normalization.std))
        self.background = -mean / std
        self.at = _Position()
        self.history: list[EpochFinished] = []
        self.best: tuple[float, float] | None = None
        self.best_epoch = 0
        self.recent: deque[tuple[int, int]] = deque(maxlen=RUNNING_BATCHES)
        self.rate = config.rate(0)

    @property
    def result(self) -> nn.Module:
        """The network that the run makes: the averaged one where it keeps an average."""
        return self.average.model if self.average else self.model

    def go(self, resume: Mapping[str, Any] | None) -> TrainResult:
        started = time.perf_counter()
        self.step.begin()
        if resume is not None:
            self.load_state(resume)
        speedup = counted_speedup(describe(self.result, self.dataset.input_shape).layers, self.dense_macs)
        done = (self.at.epoch - 1) * self.batches + self.at.batch
        images = min(self.batches * self.config.batch_size, len(self.dataset.train))
        self.on_event(TrainingStarted(self.result, self.config.epochs, self.batches, images, speedup, done))
        if not done:
            self.on_event(StateReached(1, 0, self.state()))
        end = keep_zeros(self.optimizer, self.model)
        try:
            while self.at.epoch <= self.config.epochs:
                self.epoch()
        finally:
            end()
        if self.average:
            self.model.load_state_dict(self.average.model.state_dict())
        seconds = time.perf_counter() - started
        self.on_event(TrainingFinished(seconds, self.best_epoch))
        return TrainResult(tuple(self.history), self.best_epoch, seconds)

    def epoch(self) -> None:
        started, at = time.perf_counter(), self.at
        self.model.train()
        clock = started
        while at.batch < self.batches:
            planned = self.order.ahead(self.batches - at.batch)
            source = self.dataset.train.read(
                [self.step.own(batch) for batch in planned], seed_of(self.config.seed, self.order.passes)
            )
            for batch in planned:
                images, labels = next(source)
                self.order.advance()
                waited = time.perf_counter() - clock
                event = self.batch(self.move(images, len(batch)), labels, len(batch))
                clock, before = time.perf_counter(), clock
                self.on_event(event(seconds=clock - before, waited=waited))
                if self.config.save_every and at.batch % self.config.save_every == 0 and at.batch < self.batches:
                    self.on_event(StateReached(at.epoch, at.batch, self.state()))
        if self.controller and at.epoch == self.config.epochs:
            self.controller.before_batch(1.0)
        finished = self.measure(started)
        died = [name for name, density in finished.densities.items() if not density and self.was_alive(name)]
        self.history.append(finished)
        self.at = _Position(at.epoch + 1)
        self.on_event(finished)
        for name in died:
            self.on_event(LayerDied(at.epoch, name))
        self.on_event(StateReached(at.epoch, self.batches, self.state()))

    def move(self, images: Tensor, total: int) -> Tensor:
        """This process's images of a batch of ``total``, each shifted at random where the run does so."""
        shift = self.config.shift
        if not shift:
            return images
        moves = torch.randint(0, 2 * shift + 1, (2, total), generator=self.order.generator)
        first = self.step.offset(total)
        return shifted(images, shift, moves[:, first : first + len(images)], self.background)

    def batch(self, images: Tensor, labels: Tensor, total: int) -> Any:
        """One step of the optimizer; returns the event that tells it, without its times."""
        at = self.at
        done = at.epoch - 1 + at.batch / self.batches
        if self.controller:
            self.controller.before_batch(done / self.config.epochs)
        self.rate = self.config.rate(done)
        for group in self.optimizer.param_groups:
            group["lr"], group["weight_decay"] = self.rate, self.config.decay(done)
        self.optimizer.zero_grad()
        where = f"epoch {at.epoch}, batch {at.batch + 1}"
        number = (at.epoch - 1) * self.batches + at.batch
        loss, right = self.step(images, labels, total, number, where)
        norm = health.gradient_norm(self.model)
        if not bool(norm.isfinite()):
            self.step.stop(where, f"the gradient's norm is {float(norm)}", images, labels)
        if self.config.clip_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(self.model.parameters(), self.config.clip_norm, norm)
        self.optimizer.step()
        if self.controller:
            self.controller.after_batch()
        if self.average:
            self.average.update()
        at.batch, at.loss, at.right, at.images = (
            at.batch + 1,
            at.loss + loss * total,
            at.right + right,
            at.images + total,
        )
        self.recent.append((right, total))
        running = sum(r for r, _ in self.recent) / sum(n for _, n in self.recent)

        def event(seconds: float, waited: float) -> BatchFinished:
            return BatchFinished(at.epoch, at.batch, self.batches, loss, running, self.rate, total, seconds, waited)

        return event

    def measure(self, started: float) -> EpochFinished:
        """Validate; a model with damaged weights or answers ends the run here and is never called the best."""
        at = self.at
        self.processes.send_buffers(self.result)
        if self.average:
            self.average.keep_zeros()
        if not health.all_finite(self.model):
            raise TrainingError(
                f"epoch {at.epoch}, batch {self.batches}: {health.first_damaged(self.model)!r} is not finite after the "
                f"last step; {ADVICE}"
            )
        try:
            validation = evaluate(self.result, self.dataset.validation)
        except TrainingError as error:
            raise TrainingError(f"epoch {at.epoch}, validation: {error}; {ADVICE}") from error
        spec = describe(self.result, self.dataset.input_shape)
        lookups = [layer for layer in spec.layers if layer.lookup is not None]
        counts = {layer.name: count_layer(layer) for layer in lookups}
        return EpochFinished(
            at.epoch,
            self.config.epochs,
            at.loss / at.images,
            at.right / at.images,
            validation,
            counted_speedup(spec.layers, self.dense_macs),
            {layer.name: layer.lookup.coefficients_nnz / layer.lookup.coefficients_size for layer in lookups},  # type: ignore[union-attr]
            self.rate,
            self.config.decay(at.epoch - 1),
            time.perf_counter() - started,
            self.is_best(at.epoch, validation),
            {name: count.dense / count.total if count.total else 0.0 for name, count in counts.items()},
            sum(map(len, self.unreadable().values())),
        )

    def unreadable(self) -> dict[str, dict[str, str]]:
        """The images of training and validation that some process could not read so far; all of them know it then."""
        found = {}
        for name, images in self.splits().items():
            found[name] = self.processes.union(images.unreadable)
            images.recall(found[name])
        return found

    def splits(self) -> dict[str, Images]:
        """The splits that a run reads."""
        return {"train": self.dataset.train, "validation": self.dataset.validation}

    def was_alive(self, name: str) -> bool:
        return not self.history or bool(self.history[-1].densities.get(name, 1.0))

    def is_best(self, epoch: int, validation: Accuracy) -> bool:
        merit = (validation.top1, -validation.loss)
        if (self.controller and not self.controller.settled()) or (self.best is not None and merit <= self.best):
            return False
        self.best, self.best_epoch = merit, epoch
        return True

    def state(self) -> dict[str, Any]:
        """Everything that decides what comes next, as plain data and the run's own tensors."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average.state_dict() if self.average else None,
            "controller": self.controller.state_dict() if self.controller else None,
            "order": self.order.state_dict(),
            "random": random_state(),
            "position": asdict(self.at),
            "batches": self.batches,
            "pieces": self.step.pieces,
            "recent": [list(pair) for pair in self.recent],
            "unreadable": self.unreadable(),
            "history": [plain_epoch(event) for event in self.history],
            "best": [*self.best, self.best_epoch] if self.best else None,
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        check_fit(self.model, state["model"], "the network of this run")
        if (state["average"] is None) != (self.average is None):
            raise CheckpointError("the state was made with another choice of ema; resume with the same")
        middle = state["position"]["batch"] > 0
        if middle and (state["batches"], state["pieces"]) != (self.batches, self.step.pieces):
            raise CheckpointError(
                f"the state is in the middle of an epoch of {state['batches']} batches in {state['pieces']} pieces, "
                f"now there are {self.batches} in {self.step.pieces}; change that at an epoch's end only"
            )
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.average:
            self.average.load_state_dict(state["average"])
        if self.controller:
            self.controller.load_state_dict(state["controller"])
        self.order.load_state_dict(state["order"])
        self.at = _Position(**state["position"])
        self.recent.extend((right, total) for right, total in state["recent"])
        for name, images in self.splits().items():
            images.recall(state.get("unreadable", {}).get(name, {}))
        self.history = [restore_epoch(fields) for fields in state["history"]]
        if state["best"]:
            *merit, self.best_epoch = state["best"]
            self.best = (merit[0], merit[1])
        set_random_state(state["random"])
