"""What every data source hands over: normalised splits, their class names, and the normalisation itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lcnn_core.checkpoint import Normalization
from lcnn_core.errors import DataError, ShapeError


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


@dataclass(frozen=True)
class Dataset:
    """One data source, split once and for all.

    Choices (best epoch, hyperparameters) are made on ``validation``; ``test`` is for the final figure only.
    """

    name: str
    """The specification that loads it again, e.g. ``digits`` or ``idx:FOLDER``."""
    input_shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    train: Split
    validation: Split
    test: Split
    normalization: Normalization
    """Of pixels in [0, 1], per channel; from the training split unless the caller brought one."""


@dataclass(frozen=True)
class Source:
    """A kind of data source: how its specification is written, and what loads it."""

    usage: str
    load: Callable[[str, Normalization | None], Dataset]
    """Takes what follows the colon, and the normalisation to use (None for the training split's own)."""


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
