"""``lcnn train --dry-run --rates``: whether reading images keeps up with the network, measured."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice

import torch
from torch import Tensor

from lcnn_analyze.cli.progress import WORTH_SAYING
from lcnn_core import BatchFinished, Dataset, Event, Listener, Split, TrainConfig

BATCHES = 8
"""That are timed."""
BEFORE, BEFORE_WITH_BUDGET = 1, 12
"""Batches before: workers start, memory is claimed, and a budget is met, at its usual phase of 0.6."""
RATE = 1e-6
"""Learning rate of the timed steps: whatever the run's own is, nothing diverges in them."""


Run = Callable[[Dataset, TrainConfig, Listener], object]
"""Trains, as the run will."""


def rate_lines(run: Run, dataset: Dataset, config: TrainConfig, before: int = BEFORE) -> list[str]:
    """Images a second that are read, that ``run`` trains on from memory, and with both; after ``before`` batches."""
    batches = _batches(dataset, config.batch_size)
    first = Split(*next(batches))
    read = _timed(lambda: next(batches), len(first))
    alone, _ = _trained(run, replace(dataset, train=first, validation=first), config, before)
    together, waiting = _trained(run, replace(dataset, validation=first), config, before)
    verdict = "reading keeps up" if waiting < WORTH_SAYING else "reading holds training back; more --workers may help"
    return [
        f"rates: reading {read:,.0f} images/s, training {alone:,.4g} images/s with images in memory, both at once "
        f"{together:,.4g} images/s, {waiting:.0%} of it waiting for images: {verdict}"
    ]


def _batches(dataset: Dataset, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Training's view of random images, batch by batch, by the source's workers."""
    places = torch.randint(len(dataset.train), (BATCHES + 1, min(size, len(dataset.train))))
    return iter(dataset.train.read(list(places), 0))


def _timed(take: Callable[[], object], images: int) -> float:
    started = time.perf_counter()
    for _ in range(BATCHES):
        take()
    return BATCHES * images / (time.perf_counter() - started)


def _trained(run: Run, dataset: Dataset, config: TrainConfig, before: int) -> tuple[float, float]:
    """Images a second of a few steps, and the share of their time spent waiting for images."""
    steps: list[BatchFinished] = []

    def listen(event: Event) -> None:
        if isinstance(event, BatchFinished):
            steps.append(event)

    few = replace(
        config, epochs=1, batches_per_epoch=before + BATCHES, warmup=None, lr=RATE, lr_scale=1.0, save_every=None
    )
    run(dataset, few, listen)
    timed = list(islice(steps, before, None))
    seconds = sum(step.seconds for step in timed)
    return sum(step.images for step in timed) / seconds, sum(step.waited for step in timed) / seconds
