"""``idx:FOLDER``: the four files of MNIST and its siblings, plain or gzip, in either usual spelling.

An IDX file is: two zero bytes, the element type, the number of dimensions, each dimension as a big-endian 32-bit
number, then the elements. Nothing is allocated on the word of a header: the file must hold what it announces.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from lcnn_core.checkpoint import Normalization
from lcnn_core.data.base import DataOptions, Dataset, build_dataset, check_classes_used, stratified_split
from lcnn_core.errors import ConfigError, DataError

VALIDATION_SHARE = 1 / 12
"""5,000 of MNIST's 60,000 training images."""
SEED = 20170726

_TYPES = {8: "uint8", 9: "int8", 11: "int16", 12: "int32", 13: "float32", 14: "float64"}
_DIMENSIONS = {"images": 3, "labels": 1}
_CHUNK = 1 << 20


def load(argument: str, normalization: Normalization | None, options: DataOptions) -> Dataset:
    """Read train and t10k images and labels from the folder ``argument``; validation is 1/12 of the training set."""
    if not argument:
        raise ConfigError("dataset 'idx:' names no folder; write idx:FOLDER, e.g. idx:data/mnist")
    folder = Path(argument).expanduser()
    pixels, labels = read_pair(folder, "train")
    test_pixels, test_labels = read_pair(folder, "t10k")
    classes = int(labels.max()) + 1
    if test_pixels.shape[1:] != pixels.shape[1:]:
        raise DataError(
            f"{folder}: test images of shape {tuple(test_pixels.shape[1:])} do not match training images of "
            f"shape {tuple(pixels.shape[1:])}"
        )
    if int(test_labels.max()) >= classes:
        raise DataError(
            f"{folder}: the test labels reach {int(test_labels.max())}, the training labels only {classes - 1}; "
            "expected the same classes"
        )
    if len(labels) < 2:
        raise DataError(f"{folder}: {len(labels)} training image; expected 2 or more, to keep some for validation")
    names = tuple(map(str, range(classes)))
    check_classes_used(str(folder), names, labels)
    held_out = max(1, round(len(labels) * VALIDATION_SHARE))
    train, validation = stratified_split(labels.numpy(), held_out, SEED)
    splits = ((pixels[train], labels[train]), (pixels[validation], labels[validation]), (test_pixels, test_labels))
    return build_dataset(f"idx:{argument}", names, splits, normalization)


def read_pair(folder: Path, prefix: str) -> tuple[Tensor, Tensor]:
    """Images in [0, 1], float32 (N, 1, h, w), and labels, int64 (N,), of the files that start with ``prefix``."""
    image_path, label_path = find(folder, prefix, "images"), find(folder, prefix, "labels")
    images, labels = read_idx(image_path, "images"), read_idx(label_path, "labels")
    if len(images) != len(labels):
        raise DataError(
            f"{image_path} holds {len(images)} images but {label_path} {len(labels)} labels; "
            "expected as many of one as of the other"
        )
    pixels = torch.from_numpy(images).unsqueeze(1).float().div_(255)
    return pixels, torch.from_numpy(labels.astype(np.int64))


def find(folder: Path, prefix: str, content: str) -> Path:
    """The file with these images or labels: ``train-images-idx3-ubyte`` or ``train-images.idx3-ubyte``, or .gz."""
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise DataError(f"{folder} {what}; expected a folder with {prefix}-{content}-idx{_DIMENSIONS[content]}-ubyte")
    names = [f"{prefix}-{content}{dot}idx{_DIMENSIONS[content]}-ubyte" for dot in "-."]
    for name in [name + suffix for name in names for suffix in ("", ".gz")]:
        if (folder / name).is_file():
            return folder / name
    raise DataError(f"{folder} has no {names[0]}[.gz] and no {names[1]}[.gz]; put the {content} of {prefix} there")


def read_idx(path: Path, content: str) -> np.ndarray:
    """One IDX file of unsigned bytes as an array: ``content`` is images (N, h, w) or labels (N,).

    Raises DataError, naming the file, what was found and what was expected, unless the file is exactly that.
    """
    try:
        with path.open("rb") as raw:
            compressed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            if not compressed:
                return _read(raw, path, content)
            with gzip.GzipFile(fileobj=raw) as stream:
                return _read(stream, path, content)  # type: ignore[arg-type]
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {error}; fetch the file again") from error


def _read(stream: BinaryIO, path: Path, content: str) -> np.ndarray:
    shape = _read_header(stream, path, content)
    size = math.prod(shape)
    data = bytearray()
    # In pieces, one byte beyond the end: a header cannot make this allocate more than the file really holds.
    while chunk := stream.read(min(_CHUNK, size + 1 - len(data))):
        data += chunk
    if len(data) != size:
        found = f"only {len(data)}" if len(data) < size else "more"
        raise DataError(
            f"{path}: the header announces {' x '.join(map(str, shape))} = {size} bytes of {content}, the file holds "
            f"{found}; fetch the file again"
        )
    return np.frombuffer(data, dtype=np.uint8).reshape(shape)


def _read_header(stream: BinaryIO, path: Path, content: str) -> tuple[int, ...]:
    head = stream.read(4)
    expected = f"0x{0x800 + _DIMENSIONS[content]:08x} ({content}, uint8)"
    if len(head) < 4:
        raise DataError(f"{path} has {len(head)} bytes; expected an IDX file of {content} with magic {expected}")
    dimensions = head[3]
    magic = f"0x{head.hex()}"
    if head[:2] != b"\0\0" or head[2] not in _TYPES or not dimensions:
        raise DataError(f"{path} is no IDX file: magic {magic}, expected {expected}")
    if head[2] != 8:
        raise DataError(f"{path} holds {_TYPES[head[2]]} (magic {magic}); expected {expected}")
    if dimensions != _DIMENSIONS[content]:
        looks = next((f", which looks like {other}" for other, d in _DIMENSIONS.items() if d == dimensions), "")
        raise DataError(f"{path} has magic {magic}: {dimensions} dimensions{looks}; expected {content}, {expected}")
    sizes = stream.read(4 * dimensions)
    if len(sizes) < 4 * dimensions:
        raise DataError(f"{path} ends within its header; expected {dimensions} dimensions after the magic {magic}")
    shape = struct.unpack(f">{dimensions}I", sizes)
    if 0 in shape:
        raise DataError(f"{path} announces {' x '.join(map(str, shape))} {content}; expected at least one, not empty")
    return shape
