"""``lcnn train --dry-run --rates``: whether reading images keeps up with the network, measured."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from lcnn_analyze.cli.progress import WORTH_SAYING
from lcnn_core import BatchFinished, Dataset, Event, Images, Listener, Preparing, Split, TrainConfig

BATCHES = 8
"""That are timed of images in memory, and again of images that are read."""
BEFORE, BEFORE_WITH_BUDGET = 1, 26
"""Batches before: memory is claimed, and a budget is met, at its usual phase of 0.6 of all batches."""
STARTING = 1
"""Batches that are read before reading is timed: workers start."""
RATE = 1e-6
"""Learning rate of the timed steps: whatever the run's own is, nothing diverges in them."""


Run = Callable[[Dataset, TrainConfig, Listener], object]
"""Trains, as the run will."""


class MemoryFirst:
    """Training images of which ``left`` batches are ``kept``, in memory; those after them are read from ``source``."""

    def __init__(self, source: Images, kept: Split, left: int) -> None:
        self.source, self.kept, self.left = source, kept, left

    def __len__(self) -> int:
        return len(self.source)

    @property
    def labels(self) -> Tensor:
        return self.source.labels

    @property
    def unreadable(self) -> Mapping[str, str]:
        return self.source.unreadable

    def recall(self, unreadable: Mapping[str, str]) -> None:
        self.source.recall(unreadable)

    def read(
        self, batches: Sequence[Tensor], seed: int | None = None, crops: int = 1
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """In training's view; what is measured before, in the plain one, is read as it is."""
        for position, batch in enumerate(batches):
            if seed is None or not self.left:
                yield from self.source.read(batches[position:], seed, crops)
                return
            self.left -= 1
            places = torch.arange(len(batch)) % len(self.kept)  # the last batch takes in a short remainder
            yield self.kept.images[places], self.kept.labels[places]


def rate_lines(
    run: Run, dataset: Dataset, config: TrainConfig, before: int = BEFORE, on_event: Listener | None = None
) -> list[str]:
    """Images a second that are read, that ``run`` trains on from memory, and with both; after ``before`` batches.

    on_event: is told what ``run`` prepares. The network is made once, and trained on the one and then on the other.
    """
    batches = _batches(dataset, config.batch_size)
    first = Split(*next(batches))
    read = _timed(lambda: next(batches), len(first))
    steps: list[BatchFinished] = []

    def listen(event: Event) -> None:
        if isinstance(event, BatchFinished):
            steps.append(event)
        elif on_event and isinstance(event, Preparing):
            on_event(event)

    total = before + BATCHES + STARTING + BATCHES
    few = replace(config, epochs=1, batches_per_epoch=total, warmup=None, lr=RATE, lr_scale=1.0, save_every=None)
    run(replace(dataset, train=MemoryFirst(dataset.train, first, before + BATCHES), validation=first), few, listen)
    alone, _ = _rate(steps[before : before + BATCHES])
    together, waiting = _rate(steps[-BATCHES:])
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


def _rate(steps: Sequence[BatchFinished]) -> tuple[float, float]:
    """Images a second of these steps, and the share of their time spent waiting for images."""
    seconds = sum(step.seconds for step in steps)
    return sum(step.images for step in steps) / seconds, sum(step.waited for step in steps) / seconds
