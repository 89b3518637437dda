"""What every data source hands over: normalised splits, their class names, and the normalisation itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from lcnn_core.checkpoint import Normalization
from lcnn_core.errors import ConfigError, DataError, ShapeError

AUGMENTS = ("resized", "crop", "none")


class Images(Protocol):
    """Labelled images, in memory or not."""

    @property
    def labels(self) -> Tensor:
        """int64 (N,)."""

    @property
    def unreadable(self) -> Mapping[str, str]:
        """The images that could not be read so far: name -> reason."""

    def recall(self, unreadable: Mapping[str, str]) -> None:
        """Count these among the ``unreadable``: a run that goes on knows of them, or another process has met them."""

    def __len__(self) -> int: ...

    def read(
        self, batches: Sequence[Tensor], seed: int | None = None, crops: int = 1
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """For each of ``batches`` (indices, int64) its images, float32 (b, c, h, w), normalised, and labels (b,).

        seed: training's view, its random changes a function of this number and of the image; None for the plain view.
        Training gets as many images as it asked for: a readable one takes an unreadable one's place. The plain view
        leaves unreadable ones out. crops: 5 or 10 gives (b, crops, c, h, w), where the source has room for them.
        """


@dataclass(frozen=True)
class DataOptions:
    """How image files become images; None for the source's own.

    image_size: pixels a side of what the network sees (224). resize: shorter side before the crop (8/7 of that: 256).
    augment: "resized" (random area and aspect, flip), "crop" (as published: a random crop of the resized image,
        flip), "none".
    workers: processes that read; unreadable_limit: so many unreadable images are passed over, one more ends the run.
    """

    image_size: int | None = None
    resize: int | None = None
    augment: str | None = None
    workers: int | None = None
    unreadable_limit: int | None = None

    def __post_init__(self) -> None:
        for name, least in (("image_size", 1), ("resize", 1), ("workers", 0), ("unreadable_limit", 0)):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
                raise ConfigError(f"{name} is {value!r}; expected a whole number of {least} or more")
        if self.augment not in (None, *AUGMENTS):
            raise ConfigError(f"augment is {self.augment!r}; expected one of {', '.join(AUGMENTS)}")
        if self.resize is not None and self.resize < (self.image_size or 224):
            raise ConfigError(
                f"resize is {self.resize}; expected the image size, {self.image_size or 224}, or more: a crop follows"
            )

    def given(self) -> dict[str, int | str]:
        """The options that are not None."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True)
class Split:
    """Images, float32 (N, c, h, w), normalised, and their labels, int64 (N,)."""

    images: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or self.labels.shape != self.images.shape[:1]:
            raise ShapeError(
                f"images {tuple(self.images.shape)} and labels {tuple(self.labels.shape)} do not fit: "
                "expected (N, channels, height, width) and (N,)"
            )

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def unreadable(self) -> Mapping[str, str]:
        """None: what is in memory was read."""
        return {}

    def recall(self, unreadable: Mapping[str, str]) -> None:
        """There are none."""

    def read(
        self, batches: Sequence[Tensor], seed: int | None = None, crops: int = 1
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """As :class:`Images` says; ``seed`` changes nothing, and there is no room for crops."""
        if crops != 1:
            raise ConfigError(
                f"crops is {crops}; expected 1: these images are just as large as the network's input, "
                "there is nothing to crop from"
            )
        for chosen in batches:
            yield self.images[chosen], self.labels[chosen]


@dataclass(frozen=True)
class Dataset:
    """One data source, split once and for all.

    Choices (best epoch, hyperparameters) are made on ``validation``; ``test`` is for the final figure only.
    """

    name: str
    """The specification that loads it again, e.g. ``digits`` or ``idx:FOLDER``."""
    input_shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    train: Images
    validation: Images
    test: Images
    normalization: Normalization
    """Of pixels in [0, 1], per channel; from the training split unless the caller brought one."""


@dataclass(frozen=True)
class Source:
    """A kind of data source: how its specification is written, and what loads it."""

    usage: str
    load: Callable[[str, Normalization | None, DataOptions], Dataset]
    """Takes what follows the colon, the normalisation to use (None for the source's own), and the options."""
    files: bool = False
    """Whether it reads image files, to which :class:`DataOptions` apply."""


def stratified_split(labels: np.ndarray, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Split 0..N-1 into (rest, held out) with ``count`` held out, each class in its share, both in rising order.

    Shares are rounded by largest remainder. NumPy's legacy generator draws, whose stream never changes.
    """
    generator = np.random.RandomState(seed)
    classes, sizes = np.unique(labels, return_counts=True)
    shares = sizes * count / len(labels)
    take = np.floor(shares).astype(int)
    take[np.argsort(take - shares, kind="stable")[: count - take.sum()]] += 1
    chosen = np.zeros(len(labels), dtype=bool)
    for label, size in zip(classes, take, strict=True):
        members = np.flatnonzero(labels == label)
        chosen[generator.permutation(members)[:size]] = True
    return np.flatnonzero(~chosen), np.flatnonzero(chosen)


def check_classes_used(source: str, class_names: Sequence[str], labels: Tensor) -> None:
    """Raise DataError that names the classes of which ``labels``, those of the training images, have none."""
    used = set(labels.tolist())
    if empty := [name for number, name in enumerate(class_names) if number not in used]:
        shown = ", ".join(empty[:3]) + (f" and {len(empty) - 3} more" if len(empty) > 3 else "")
        raise DataError(
            f"{source}: no training image of {len(empty)} of {len(class_names)} classes: {shown}; "
            "expected images of each class"
        )


def measure_normalization(pixels: Tensor) -> Normalization:
    """Mean and standard deviation per channel of ``pixels`` (N, c, h, w), accumulated in float64."""
    mean = pixels.mean(dim=(0, 2, 3), dtype=torch.float64)
    square = pixels.square().mean(dim=(0, 2, 3), dtype=torch.float64)
    std = (square - mean.square()).clamp(min=0).sqrt()
    if bool((std < 1e-6).any()):
        raise DataError("the training images are all of one grey value; expected images that differ")
    return Normalization(tuple(mean.tolist()), tuple(std.tolist()))


def normalize(pixels: Tensor, normalization: Normalization) -> Tensor:
    """(pixels - mean) / std per channel, for pixels in [0, 1] of shape (N, c, h, w)."""
    if len(normalization.mean) != pixels.shape[1]:
        raise ShapeError(
            f"normalisation for {len(normalization.mean)} channels does not fit images {tuple(pixels.shape)}"
        )
    mean, std = (pixels.new_tensor(value).reshape(1, -1, 1, 1) for value in (normalization.mean, normalization.std))
    return (pixels - mean) / std


def build_dataset(
    name: str,
    class_names: tuple[str, ...],
    splits: tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor], tuple[Tensor, Tensor]],
    normalization: Normalization | None,
) -> Dataset:
    """Assemble a Dataset from (pixels in [0, 1], labels) of training, validation and test."""
    if normalization is None:
        normalization = measure_normalization(splits[0][0])
    train, validation, test = (Split(normalize(pixels, normalization), labels) for pixels, labels in splits)
    channels, height, width = train.images.shape[1:]
    return Dataset(name, (channels, height, width), class_names, train, validation, test, normalization)
