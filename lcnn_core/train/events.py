"""What the training loop tells its listener, as frozen records. The loop itself draws and writes nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from lcnn_core.train.evaluation import Accuracy


@dataclass(frozen=True)
class Preparing:
    """What is done to the dense network before training, where that takes time: ``done`` parts of it of ``total``."""

    what: str
    done: int
    total: int


@dataclass(frozen=True)
class TrainingStarted:
    """Before the first batch: what is to come."""

    model: nn.Module = field(repr=False, compare=False)
    """The network that this run makes, for listeners that save it: its weights change until the run is finished."""
    epochs: int
    batches: int
    """Batches in an epoch, the last, partial one included."""
    images: int
    """Training images in an epoch."""
    counted_speedup: float
    steps_done: int = 0
    """Steps that the run had done when it was resumed."""


@dataclass(frozen=True)
class BatchFinished:
    """After every step of the optimizer."""

    epoch: int
    """From 1."""
    batch: int
    """From 1."""
    batches: int
    loss: float
    """The whole objective, l1 terms included."""
    running_accuracy: float
    """Share of training images classified right over the last 100 batches."""
    learning_rate: float
    images: int = 0
    """In the batch, over all processes."""
    seconds: float = 0.0
    """Wall time since the batch before."""
    waited: float = 0.0
    """Part of it spent waiting for images."""


@dataclass(frozen=True)
class EpochFinished:
    """After every epoch and its validation."""

    epoch: int
    """From 1."""
    epochs: int
    loss: float
    """Mean over the epoch's training images of the whole objective, l1 terms included."""
    train_accuracy: float
    """Share of training images classified right, each before the step that used it."""
    validation: Accuracy
    counted_speedup: float
    """Dense twin's MACs, or what ``train`` was given, / the model's MACs, ``published`` convention."""
    densities: Mapping[str, float]
    """nnz(P) / size of P, for each lookup layer by name."""
    learning_rate: float
    weight_decay: float
    seconds: float
    """Wall time of the epoch, validation included."""
    best: bool
    """Whether this epoch's validation is the best so far: the model that the listener sees is worth keeping."""
    speedups: Mapping[str, float] = field(default_factory=dict)
    """Counted, of each lookup layer over its dense twin."""
    unreadable: int = 0
    """Images of training and validation that could not be read so far."""


@dataclass(frozen=True)
class LayerDied:
    """After the epoch that left a lookup layer without any entry of P: it answers its bias, whatever the image."""

    epoch: int
    name: str


@dataclass(frozen=True)
class StateReached:
    """A point from which ``train(resume=...)`` can go on.

    Before the first batch, after every epoch, and every ``save_every`` batches.
    """

    epoch: int
    batch: int
    """Batches done in that epoch."""
    state: Mapping[str, Any] = field(repr=False, compare=False)
    """Plain data and the run's own tensors, which the next step changes: write or copy them at once."""


@dataclass(frozen=True)
class TrainingFinished:
    """After the last epoch."""

    seconds: float
    best_epoch: int


Event = Preparing | TrainingStarted | BatchFinished | EpochFinished | LayerDied | StateReached | TrainingFinished
Listener = Callable[[Event], None]


def telling(on_event: Listener) -> Callable[[str, int, int], None]:
    """Preparing's fields, one call each, made an event for the listener."""
    return lambda what, done, total: on_event(Preparing(what, done, total))


def ignore(event: Event) -> None:
    """The listener of whoever wants silence."""
