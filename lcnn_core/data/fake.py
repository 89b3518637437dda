"""``fake:IMAGESxCLASSES``: noise as JPEGs in memory, decoded and augmented as files are, to measure throughput."""

from __future__ import annotations

import io
import re

import numpy as np
import torch

from lcnn_core.checkpoint import Normalization
from lcnn_core.data.base import DataOptions, Dataset
from lcnn_core.data.files import IMAGE_SIZE, IMAGENET, RESIZE_RATIO, ImageFiles
from lcnn_core.errors import ConfigError

IMAGES, CLASSES = 10_000, 1000
DIFFERENT = 16
"""JPEGs that are really made."""


def load(argument: str, normalization: Normalization | None, options: DataOptions) -> Dataset:
    """``fake``, ``fake:640`` images, or ``fake:640x10``, of 10 classes; validation and test have a tenth as many."""
    if not re.fullmatch(r"([1-9][0-9]*(x[1-9][0-9]*)?)?", argument):
        raise ConfigError(f"dataset 'fake:{argument}' is no size; write fake:IMAGES or fake:IMAGESxCLASSES")
    images, _, classes = argument.partition("x")
    count, class_count = int(images or IMAGES), int(classes or CLASSES)
    size = options.image_size or IMAGE_SIZE
    pictures = Pictures(options.resize or round(size * RESIZE_RATIO))
    parts = []
    for part in (count, -(-count // 10), -(-count // 10)):
        files = [f"fake {number}" for number in range(part)]
        parts.append(ImageFiles(files, torch.arange(part) % class_count, pictures, normalization or IMAGENET, options))
    names = tuple(map(str, range(class_count)))
    spec = f"fake:{argument}" if argument else "fake"
    return Dataset(spec, (3, size, size), names, parts[0], parts[1], parts[2], normalization or IMAGENET)


class Pictures:
    """``open`` of :class:`ImageFiles`: a few JPEGs of smooth noise, over and over."""

    def __init__(self, size: int) -> None:
        from PIL import Image

        random = np.random.RandomState(0)
        self.jpegs = []
        for _ in range(DIFFERENT):
            small = Image.fromarray(random.randint(0, 256, (size // 8 + 1, size // 8 + 1, 3)).astype(np.uint8))
            stream = io.BytesIO()
            small.resize((size, size), Image.Resampling.BICUBIC).save(stream, "JPEG", quality=90)
            self.jpegs.append(stream.getvalue())

    def __call__(self, index: int) -> bytes:
        return self.jpegs[index % len(self.jpegs)]
