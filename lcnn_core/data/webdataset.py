"""``webdataset:FOLDER``: tar shards on a disk, ``*train*.tar``, ``*val*.tar`` and, if any, ``*test*.tar``.

A sample is the members of one name: its image (``000123.jpg``) and its class number as text (``000123.cls``). Shards
are indexed once, by their headers, and then read at any place: the order of images is as random, and a run as
restartable, as with files. Class names: ``classes.txt`` in the folder, one a line; else the numbers.
"""

from __future__ import annotations

import re
import tarfile
from pathlib import Path

import torch

from lcnn_core.checkpoint import Normalization
from lcnn_core.data.base import DataOptions, Dataset, check_classes_used
from lcnn_core.data.files import IMAGE_SIZE, IMAGENET, ImageFiles
from lcnn_core.errors import ConfigError, DataError

IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp", "ppm", "bmp")
_SPLITS = {"train": r"train", "validation": r"val", "test": r"test"}


def load(argument: str, normalization: Normalization | None, options: DataOptions) -> Dataset:
    """Index the shards in the folder ``argument``; without test shards the validation images serve as such too."""
    if not argument:
        raise ConfigError("dataset 'webdataset:' names no folder; write webdataset:FOLDER")
    folder = Path(argument).expanduser()
    shards = sorted(folder.rglob("*.tar")) if folder.is_dir() else []
    found = {}
    for split, pattern in _SPLITS.items():
        own = [shard for shard in shards if re.search(pattern, str(shard.relative_to(folder)))]
        if not own and split != "test":
            raise DataError(f"{folder} has no *{pattern}*.tar; expected shards for training and for validation")
        if own:
            found[split] = Shards(own)
    top = max(max(shards.labels) for shards in found.values())
    images = len(found["train"].labels)
    if top >= images:
        raise DataError(f"{folder} has the label {top}, and {images} training images; expected images of every class")
    names = _class_names(folder, top)
    check_classes_used(str(folder), names, torch.tensor(found["train"].labels))
    parts = {
        split: ImageFiles(s.names, torch.tensor(s.labels), s, normalization or IMAGENET, options)
        for split, s in found.items()
    }
    size = options.image_size or IMAGE_SIZE
    return Dataset(
        f"webdataset:{argument}",
        (3, size, size),
        names,
        parts["train"],
        parts["validation"],
        parts.get("test", parts["validation"]),
        normalization or IMAGENET,
    )


def _class_names(folder: Path, top: int) -> tuple[str, ...]:
    listed = folder / "classes.txt"
    if not listed.is_file():
        return tuple(map(str, range(top + 1)))
    names = tuple(line.strip() for line in listed.read_text(encoding="utf-8").splitlines() if line.strip())
    if len(names) <= top:
        raise DataError(
            f"{listed} lists {len(names)} classes, but a label in the shards is {top}; expected a name each"
        )
    return names


class Shards:
    """``open`` of :class:`ImageFiles` for images inside tar files: where each one lies."""

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths
        self.names: list[str] = []
        self.labels: list[int] = []
        self.places: list[tuple[int, int, int]] = []
        """Shard, offset and size in bytes."""
        for number, path in enumerate(paths):
            try:
                with tarfile.open(path, "r:") as tar:
                    self._index(number, path, tar)
            except (tarfile.TarError, OSError) as error:
                raise DataError(f"{path} cannot be read as a tar file: {error}; fetch it again") from error
        if not self.places:
            raise DataError(f"{paths[0]}: no sample with an image and a .cls in {len(paths)} shards")

    def _index(self, number: int, path: Path, tar: tarfile.TarFile) -> None:
        images: dict[str, tarfile.TarInfo] = {}
        classes: dict[str, str] = {}
        for member in tar:
            folder, _, file = member.name.rpartition("/")
            stem, _, suffix = file.partition(".")
            key = f"{folder}/{stem}"
            if suffix.lower() in IMAGE_SUFFIXES:
                images[key] = member
            elif suffix == "cls" and (content := tar.extractfile(member)):
                classes[key] = content.read(20).decode("ascii", "replace").strip()
        for key, member in images.items():
            label = classes.get(key, "")
            if not label.isdecimal():
                what = f"has the class {label!r}" if label else "has no .cls"
                raise DataError(f"{path}: {member.name} {what}; expected a class number of 0 or more in its .cls")
            self.names.append(f"{path}:{member.name}")
            self.labels.append(int(label))
            self.places.append((number, member.offset_data, member.size))

    def __call__(self, index: int) -> bytes:
        number, offset, size = self.places[index]
        with self.paths[number].open("rb") as file:
            file.seek(offset)
            return file.read(size)
