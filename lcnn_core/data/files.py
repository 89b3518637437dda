"""Images that are read when they are needed, by worker processes: decoded, augmented, normalised.

What is random about an image is a function of the run's seed and of the image, so the number of workers, and a run
that was interrupted, change nothing.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from lcnn_core.checkpoint import Normalization
from lcnn_core.checkpoint.torchvision_shim import import_torchvision
from lcnn_core.cores import usable_cores
from lcnn_core.data.base import DataOptions
from lcnn_core.errors import ConfigError, DataError

IMAGENET = Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
IMAGE_SIZE, RESIZE_RATIO = 224, 8 / 7
WORKERS, UNREADABLE_LIMIT = 2, 10  # workers: at most one a core
CROPS = (1, 5, 10)


def transforms() -> Any:
    """``torchvision.transforms.v2``."""
    import_torchvision()
    return import_module("torchvision.transforms.v2")


def seed_of(*numbers: int) -> int:
    """A seed of 63 bits from whole numbers of 0 or more, well mixed."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]) >> 1


def decode(data: bytes) -> Any:
    """An encoded image as a PIL image in RGB; 16-bit grey keeps its upper eight bits."""
    from PIL import Image

    image: Image.Image = Image.open(io.BytesIO(data))
    image.load()
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
    return image.convert("RGB")


class View:
    """From encoded bytes to a normalised tensor (3, size, size), or (crops, 3, size, size)."""

    def __init__(self, options: DataOptions, normalization: Normalization, seed: int | None, crops: int) -> None:
        if crops not in CROPS:
            raise ConfigError(f"crops is {crops}; expected one of {', '.join(map(str, CROPS))}")
        self.size = options.image_size or IMAGE_SIZE
        self.resize = options.resize or round(self.size * RESIZE_RATIO)
        self.augment = (options.augment or "resized") if seed is not None else "none"
        self.normalization, self.seed, self.crops = normalization, seed, crops

    @cached_property  # made in the worker: torchvision's classes need the shim before they can be unpickled
    def steps(self) -> Callable[[Any], Any]:
        v2 = transforms()
        flip = v2.RandomHorizontalFlip()
        geometry = {
            "resized": [v2.RandomResizedCrop(self.size, antialias=True), flip],
            "crop": [v2.Resize(self.resize, antialias=True), v2.RandomCrop(self.size), flip],
            "none": [v2.Resize(self.resize, antialias=True), v2.CenterCrop(self.size)],
        }[self.augment]
        if self.crops > 1:
            many = v2.FiveCrop if self.crops == 5 else v2.TenCrop
            geometry = [v2.Resize(self.resize, antialias=True), many(self.size)]
        return v2.Compose([*geometry, v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])

    def __call__(self, data: bytes, index: int) -> Tensor:
        image = decode(data)
        with torch.random.fork_rng(devices=[]):
            if self.seed is not None:
                torch.default_generator.manual_seed(seed_of(self.seed, index))  # of the CPU alone, and quicker
            pixels = self.steps(image)
        pixels = torch.stack(pixels) if self.crops > 1 else pixels
        mean, std = (torch.tensor(v).reshape(-1, 1, 1) for v in (self.normalization.mean, self.normalization.std))
        return (pixels - mean) / std


class Reader(torch.utils.data.Dataset[Any]):
    """What a worker does for one index: ``(image or None, label, [(index, reason)] of what could not be read)``."""

    def __init__(self, files: ImageFiles, view: View) -> None:
        self.files, self.view = files, view

    def __getitem__(self, index: int) -> tuple[Tensor | None, int, list[tuple[int, str]]]:
        failed: list[tuple[int, str]] = []
        # In training the next readable image takes an unreadable one's place; the plain view leaves it out.
        tries = self.files.limit + 1 if self.view.seed is not None else 1
        for place in range(index, index + min(tries, len(self.files))):
            number = place % len(self.files)
            try:
                image = self.view(self.files.open(number), number)
            except Exception as error:  # decoders raise nearly every kind of exception on damaged files
                failed.append((number, " ".join(f"{type(error).__name__}: {error}".split())))
            else:
                return image, int(self.files.labels[number]), failed
        return None, -1, failed


class ImageFiles:
    """A split of encoded images: their names, their labels, and ``open(index) -> bytes``. Serves :class:`Images`."""

    def __init__(
        self,
        names: Sequence[str],
        labels: Tensor,
        open: Callable[[int], bytes],
        normalization: Normalization,
        options: DataOptions,
    ) -> None:
        self.names, self.labels, self.open = names, labels, open
        self.normalization, self.options = normalization, options
        self.limit = UNREADABLE_LIMIT if options.unreadable_limit is None else options.unreadable_limit
        self.unreadable: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self.labels)

    def recall(self, unreadable: Mapping[str, str]) -> None:
        """As :class:`Images` says. Raises DataError where there are more than the limit allows."""
        self.unreadable.update(unreadable)
        self._check_limit()

    def read(
        self, batches: Sequence[Tensor], seed: int | None = None, crops: int = 1
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """As :class:`Images` says. Raises DataError when one more image is unreadable than the limit allows."""
        loader = DataLoader(
            Reader(self, View(self.options, self.normalization, seed, crops)),
            batch_sampler=[batch.tolist() for batch in batches],
            num_workers=min(WORKERS, usable_cores()) if self.options.workers is None else self.options.workers,
            collate_fn=list,
            generator=torch.Generator(),  # its own: the loader draws from the global one otherwise
        )
        with worker_deaths_said():
            yield from self._batches(loader, augmented=seed is not None)

    def _batches(self, loader: DataLoader[Any], augmented: bool) -> Iterator[tuple[Tensor, Tensor]]:
        for samples in loader:
            self._note([failure for *_, failed in samples for failure in failed])
            images = [image for image, _, _ in samples if image is not None]
            if augmented and len(images) < len(samples):
                raise DataError(f"none of {len(self)} images can be read; the first: {next(iter(self.unreadable))}")
            if images:
                yield torch.stack(images), torch.tensor([label for image, label, _ in samples if image is not None])

    def _note(self, failed: Sequence[tuple[int, str]]) -> None:
        self.unreadable.update((self.names[index], reason) for index, reason in failed)
        self._check_limit()

    def _check_limit(self) -> None:
        if len(self.unreadable) > self.limit:
            name, reason = next(reversed(self.unreadable.items()))
            raise DataError(
                f"{len(self.unreadable)} images cannot be read, the limit is {self.limit}; the last is {name}: "
                f"{reason}; mend them, or raise the limit"
            )


@contextmanager
def worker_deaths_said() -> Iterator[None]:
    """A reading process that was killed, as a DataError of one line; torch raises it wherever the run is just then."""
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise DataError(
            f"a process that reads images ended: {str(error).splitlines()[0]}; check the memory, or use fewer workers"
        ) from error
