"""Checkpoints: one record, one file per format. ``FORMATS`` lists them by suffix.

Files hold plain data and tensors, are written atomically, and reading one runs no code from it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from torch import Tensor

from lcnn_core.checkpoint import pt, tensors
from lcnn_core.checkpoint.document import from_document, to_document
from lcnn_core.checkpoint.record import CUSTOM, FORMAT_VERSION, Checkpoint, Normalization, load_into
from lcnn_core.errors import CheckpointError, ConfigError
from lcnn_core.files import atomic_write


@dataclass(frozen=True)
class Format:
    """One file format: how a document and its tensors become bytes, and back."""

    suffix: str
    doc: str
    write: Callable[[BinaryIO, dict[str, Any], dict[str, Tensor]], None]
    read: Callable[[Path], tuple[Any, dict[str, Tensor]]]


FORMATS: dict[str, Format] = {
    ".pt": Format(".pt", "PyTorch archive, read with weights_only=True", pt.write, pt.read),
    ".safetensors": Format(".safetensors", "safetensors, metadata as JSON in its header", tensors.write, tensors.read),
}


def save(path: str | os.PathLike[str], checkpoint: Checkpoint) -> None:
    """Write ``checkpoint`` to ``path`` in the format of its suffix, atomically: whole, or not at all.

    Raises ConfigError for a suffix that is not in ``FORMATS``, OSError when the file cannot be written.
    """
    path = Path(path)
    if path.suffix not in FORMATS:
        raise ConfigError(f"cannot save to {str(path)!r}: its suffix is {path.suffix!r}; expected {_suffixes()}")
    with atomic_write(path) as file:
        FORMATS[path.suffix].write(file, to_document(checkpoint), dict(checkpoint.state_dict))


def load(path: str | os.PathLike[str]) -> Checkpoint:
    """Read the checkpoint at ``path``; nothing in the file is executed.

    Raises CheckpointError, naming the file and the reason, for everything that is not a whole checkpoint of this
    format version.
    """
    path = Path(path)
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder; expected a checkpoint file ({_suffixes()})")
    if not path.exists():
        raise CheckpointError(f"{path} does not exist; expected a checkpoint file ({_suffixes()})")
    if path.suffix not in FORMATS:
        raise CheckpointError(f"{path} has the suffix {path.suffix!r}; expected {_suffixes()}")
    try:
        document, weights = FORMATS[path.suffix].read(path)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}; check the path") from error
    return from_document(document, weights, str(path))


def _suffixes() -> str:
    return " or ".join(FORMATS)


__all__ = [
    "CUSTOM",
    "FORMATS",
    "FORMAT_VERSION",
    "Checkpoint",
    "Format",
    "Normalization",
    "load",
    "load_into",
    "save",
]
