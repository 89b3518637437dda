"""``.safetensors``: the tensors, and the document as JSON in the header's metadata under the key ``lcnn``."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any, BinaryIO

import safetensors
import safetensors.torch
from torch import Tensor

from lcnn_core.errors import CheckpointError

_KEY = "lcnn"


def write(file: BinaryIO, document: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    # One metadata key and sorted JSON: the same checkpoint always gives the same bytes.
    metadata = {_KEY: json.dumps(document, sort_keys=True, allow_nan=False)}
    file.write(safetensors.torch.save(tensors, metadata))


def read(path: Path) -> tuple[Any, dict[str, Tensor]]:
    document, tensors = read_any(path)
    if document is None:
        raise CheckpointError(f"{path} has no {_KEY!r} metadata; expected a file written by lcnn_core.checkpoint.save")
    return document, tensors


def read_any(path: Path) -> tuple[Any, dict[str, Tensor]]:
    """The tensors of any safetensors file, and the document where it is one of ours, else None."""
    # Read, not mapped: tensors over a mapped file end the process (SIGBUS) when another one cuts the file short.
    content = path.read_bytes()
    try:
        tensors = dict(sorted(safetensors.torch.load(content).items()))
    except (safetensors.SafetensorError, KeyError) as error:
        raise CheckpointError(f"{path} is no whole safetensors file: {error}; fetch or save it again") from error
    (size,) = struct.unpack("<Q", content[:8])
    try:
        metadata = json.loads(content[8 : 8 + size], object_pairs_hook=_distinct).get("__metadata__") or {}
    except ValueError as error:
        raise CheckpointError(f"{path} has a header with {error}; fetch or save it again") from error
    if _KEY not in metadata:
        return None, tensors
    try:
        return json.loads(metadata[_KEY]), tensors
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: its {_KEY!r} metadata is no JSON: {error}; save it again") from error


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object whose keys are all different; ``json`` alone would keep the last of equal ones in silence."""
    result = dict(pairs)
    if len(result) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in result if names.count(name) > 1)
        raise ValueError(f"the entry {twice!r} twice")
    return result
