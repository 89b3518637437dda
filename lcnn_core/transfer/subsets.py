"""Some of a data source's images: of some classes, numbered anew, or a few of each class, drawn at random."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from lcnn_core.data import Dataset, Images, Split
from lcnn_core.errors import ConfigError, DataError


class OfClasses:
    """The images of ``classes``, which become classes 0, 1, ... in that order. Serves :class:`Images`."""

    def __init__(self, images: Images, classes: Sequence[int]) -> None:
        self.images = images
        self.numbers = torch.full((max(int(images.labels.max()), *classes) + 1,), -1)
        self.numbers[list(classes)] = torch.arange(len(classes))
        renumbered = self.numbers[images.labels]
        self.places = (renumbered >= 0).nonzero().flatten()
        self.labels = renumbered[self.places]

    def __len__(self) -> int:
        return len(self.places)

    @property
    def unreadable(self) -> Mapping[str, str]:
        """The source's own."""
        return self.images.unreadable

    def recall(self, unreadable: Mapping[str, str]) -> None:
        """The source's own."""
        self.images.recall(unreadable)

    def read(
        self, batches: Sequence[Tensor], seed: int | None = None, crops: int = 1
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """As :class:`Images` says. What the source puts in an unreadable image's place may be of another class; then
        another image of the batch takes the place. Raises DataError where the batch has none."""
        for images, labels in self.images.read([self.places[batch] for batch in batches], seed, crops):
            numbers = self.numbers[labels]
            kept = (numbers >= 0).nonzero().flatten()
            if not len(kept):
                raise DataError(
                    f"none of {len(labels)} images of a batch can be read; mend them, or take larger batches"
                )
            if len(kept) < len(numbers):
                kept = kept[torch.arange(len(numbers)) % len(kept)]
            yield images[kept], numbers[kept]


def only_classes(dataset: Dataset, classes: Sequence[int]) -> Dataset:
    """``dataset`` with these classes only, in this order. Its normalisation stays."""
    return replace(
        dataset,
        class_names=tuple(dataset.class_names[number] for number in classes),
        train=OfClasses(dataset.train, classes),
        validation=OfClasses(dataset.validation, classes),
        test=OfClasses(dataset.test, classes),
    )


def check_classes(images: Images, count: int) -> None:
    """Raise DataError where a class has fewer images than ``count``."""
    for label, found in enumerate(images.labels.bincount().tolist()):
        if found < count:
            raise DataError(f"class {label} has {found} images, {count} are wanted; ask for fewer")


def draw(images: Images, count: int, generator: torch.Generator) -> Tensor:
    """Indices of ``count`` images of each class, at random without repetition, class by class: int64.

    Raises DataError when a class has fewer.
    """
    check_classes(images, count)
    found = []
    for label in range(int(images.labels.max()) + 1):
        own = (images.labels == label).nonzero().flatten()
        found.append(own[torch.randperm(len(own), generator=generator)[:count]])
    return torch.cat(found)


def read_once(images: Images, chosen: Tensor) -> Split:
    """The ``chosen`` images in memory, in the plain view."""
    parts = list(images.read([chosen]))
    if not parts:
        raise DataError("none of the drawn images could be read")
    return Split(*parts[0])


def class_splits(classes: int, novel: int, splits: int, seed: int) -> tuple[tuple[int, ...], ...]:
    """``splits`` random choices of ``novel`` of ``classes`` classes, each in rising order, independent of each other.

    Raises ConfigError unless two base classes and two novel ones are left.
    """
    if not 2 <= novel <= classes - 2:
        raise ConfigError(f"novel is {novel} of {classes} classes; expected 2 to {classes - 2}, to leave two base ones")
    generator = torch.Generator().manual_seed(seed)
    drawn = (torch.randperm(classes, generator=generator)[:novel] for _ in range(splits))
    return tuple(tuple(sorted(order.tolist())) for order in drawn)
