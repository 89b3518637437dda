"""``imagefolder:FOLDER``: ``train/CLASS/*`` and ``val/CLASS/*``, and ``test/CLASS/*`` where there is one.

Without ``val``, a twelfth of the training images is held out; without ``test``, the validation images serve as test
images too, as ImageNet's do.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import torch
from torch import Tensor

from lcnn_core.checkpoint import Normalization
from lcnn_core.checkpoint.torchvision_shim import import_torchvision
from lcnn_core.data.base import DataOptions, Dataset, stratified_split
from lcnn_core.data.files import IMAGE_SIZE, IMAGENET, ImageFiles
from lcnn_core.errors import ConfigError, DataError

VALIDATION_SHARE = 1 / 12
SEED = 20170726
VALIDATION_NAMES = ("val", "validation", "valid")


def load(argument: str, normalization: Normalization | None, options: DataOptions) -> Dataset:
    """Index the folder ``argument``; images are read when they are used, and normalised by ImageNet's figures."""
    if not argument:
        raise ConfigError("dataset 'imagefolder:' names no folder; write imagefolder:FOLDER, e.g. imagefolder:imagenet")
    folder = Path(argument).expanduser()
    if not (folder / "train").is_dir():
        raise DataError(f"{folder} has no folder 'train'; expected train/CLASS/IMAGE and val/CLASS/IMAGE")
    classes, train = scan(folder / "train")
    found = {"train": train}
    for name, places in (("validation", VALIDATION_NAMES), ("test", ("test",))):
        for place in places:
            if (folder / place).is_dir():
                others, found[name] = scan(folder / place)
                check_classes(folder, classes, place, others)
    return from_samples(f"imagefolder:{argument}", classes, found, normalization, options)


Samples = tuple[list[str], Tensor]
"""Paths and their labels."""


def scan(folder: Path) -> tuple[tuple[str, ...], Samples]:
    """Classes and images of one split. Raises DataError for a folder without classes and for an empty class."""
    import_torchvision()
    reader = import_module("torchvision.datasets.folder")
    try:
        classes, numbers = reader.find_classes(folder)
        samples = reader.make_dataset(folder, numbers, extensions=reader.IMG_EXTENSIONS)
    except (FileNotFoundError, OSError) as error:
        reason = str(error).split(" Supported")[0].rstrip(".")
        raise DataError(f"{folder}: {reason}; expected a folder of images for each class") from error
    return tuple(classes), ([path for path, _ in samples], torch.tensor([label for _, label in samples]))


def check_classes(folder: Path, classes: tuple[str, ...], place: str, others: tuple[str, ...]) -> None:
    """Raise DataError unless both splits have the same classes."""
    missing, more = sorted(set(classes) - set(others)), sorted(set(others) - set(classes))
    if missing or more:
        what = [f"{place} lacks {', '.join(missing[:3])}"] * bool(missing)
        what += [f"train lacks {', '.join(more[:3])}"] * bool(more)
        raise DataError(
            f"{folder}: train has {len(classes)} classes, {place} {len(others)}: {' and '.join(what)}; "
            "expected the same classes"
        )


class Paths:
    """``open`` of :class:`ImageFiles` for images that are files."""

    def __init__(self, paths: list[str]) -> None:
        self.paths = paths

    def __call__(self, index: int) -> bytes:
        return Path(self.paths[index]).read_bytes()


def from_samples(
    name: str,
    classes: tuple[str, ...],
    found: dict[str, Samples],
    normalization: Normalization | None,
    options: DataOptions,
) -> Dataset:
    """A Dataset of files; ``found`` holds train, and validation and test where there are some."""

    def split(samples: Samples) -> ImageFiles:
        return ImageFiles(samples[0], samples[1], Paths(samples[0]), normalization or IMAGENET, options)

    if "validation" not in found:
        paths, labels = found["train"]
        if len(paths) < 2:
            raise DataError(f"{name}: {len(paths)} training image; expected 2 or more, to keep some for validation")
        parts = stratified_split(labels.numpy(), max(1, round(len(paths) * VALIDATION_SHARE)), SEED)
        found["train"], found["validation"] = (([paths[i] for i in part], labels[part]) for part in parts)
    size = options.image_size or IMAGE_SIZE
    train, validation = split(found["train"]), split(found["validation"])
    test = split(found["test"]) if "test" in found else validation
    return Dataset(name, (3, size, size), classes, train, validation, test, normalization or IMAGENET)
