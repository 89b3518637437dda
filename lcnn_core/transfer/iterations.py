"""Few-iteration learning, as published: a shallow network's dictionaries in a deeper one, P trained for a short while.

Three ways to train the deeper network are compared, each from the same seed, on the same batches: with the shallow
network's dictionaries, carried over and frozen ("carried"); all of it from scratch ("scratch"); and its dense twin
from scratch ("cnn"). What is no dictionary (P, dense shortcuts, batch norm, biases) starts afresh and is trained in
all three.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

import torch
from torch import nn

from lcnn_core.data import Dataset, Split
from lcnn_core.data.files import seed_of
from lcnn_core.errors import ConfigError, TrainingError
from lcnn_core.train import EpochFinished, Event, TrainConfig, evaluate, train
from lcnn_core.train.schedule import SCHEDULES
from lcnn_core.transfer.networks import Family, carry_dictionaries_, freeze_dictionaries_
from lcnn_core.transfer.subsets import read_once

WAYS = ("carried", "scratch", "cnn")


@dataclass(frozen=True)
class FewIterationConfig:
    """The protocol's numbers.

    iterations: steps of the deeper network, on batches of ``batch_size``, at a constant rate. every: steps between
    two measurements. seeds: repetitions, shallow network included. rates: each way keeps the best, by its last
    accuracy on validation images. images: of validation and of test, drawn once, on which is measured.
    """

    iterations: int = 300
    every: int = 20
    seeds: int = 3
    rates: tuple[float, ...] = (0.1, 0.03)
    batch_size: int = 64
    images: int = 2000
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("iterations", "every", "seeds", "batch_size", "images"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected 1 or more")
        if self.iterations % self.every:
            raise ConfigError(f"every is {self.every}; expected a divisor of the {self.iterations} iterations")
        if not self.rates or not min(self.rates) > 0:
            raise ConfigError(f"rates is {self.rates}; expected numbers above 0")


@dataclass(frozen=True)
class FewIterationResult:
    """One training of the deeper network: top-1 on validation and test images after so many iterations.

    Accuracies are 0 from where it diverged on, so that its rate is not chosen.
    """

    seed: int
    way: str
    rate: float
    iterations: tuple[int, ...]
    validation: tuple[float, ...]
    test: tuple[float, ...]

    @property
    def key(self) -> tuple[int, str, float]:
        """What tells it apart."""
        return (self.seed, self.way, self.rate)


def few_iteration(
    dataset: Dataset,
    family: Family,
    deep: Mapping[str, Any],
    shallow: Callable[[int], nn.Module],
    config: FewIterationConfig,
    done: Collection[tuple[int, str, float]] = (),
) -> Iterator[FewIterationResult]:
    """Every training of the protocol, one after the other; those whose ``key`` is in ``done`` are left out.

    deep: the options that make the family's network deeper, such as {"blocks": 2}. shallow: seed number -> the
    trained shallow network whose dictionaries are carried over; called where they are needed.
    """
    generator = torch.Generator().manual_seed(config.seed)
    measured = {
        name: read_once(part, torch.randperm(len(part), generator=generator)[: config.images])
        for name, part in (("validation", dataset.validation), ("test", dataset.test))
    }
    small = replace(dataset, validation=measured["validation"])
    for number, way, rate in product(range(config.seeds), WAYS, config.rates):
        if (number, way, rate) in done:
            continue
        seed = seed_of(config.seed, number)
        model = family.build("cnn" if way == "cnn" else "lcnn", len(dataset.class_names), seed, **deep)
        if way == "carried":
            carry_dictionaries_(model, shallow(number))
            freeze_dictionaries_(model)
        curve = _Curve(model, measured["test"])
        with suppress(TrainingError):
            train(model, small, _training(config, rate, seed), curve)
        points = tuple(range(config.every, config.iterations + 1, config.every))
        diverged = [0.0] * (len(points) - len(curve.test))
        validation, test = (*curve.validation, *diverged), (*curve.test, *diverged)
        yield FewIterationResult(number, way, rate, points, validation, test)


def _training(config: FewIterationConfig, rate: float, seed: int) -> TrainConfig:
    return TrainConfig(
        epochs=config.iterations // config.every,
        batches_per_epoch=config.every,
        batch_size=config.batch_size,
        schedule=SCHEDULES["constant"],
        lr=rate,
        seed=seed,
    )


@dataclass
class _Curve:
    """Listens to a training and measures as it goes."""

    model: nn.Module
    images: Split
    validation: list[float] = field(default_factory=list)
    test: list[float] = field(default_factory=list)

    def __call__(self, event: Event) -> None:
        if isinstance(event, EpochFinished):
            self.validation.append(event.validation.top1)
            self.test.append(evaluate(self.model, self.images).top1)
