"""``.safetensors``: the tensors, and the document as JSON in the header's metadata under the key ``lcnn``."""

from __future__ import annotations

import json
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
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"{path} is no whole safetensors file: {error}; fetch or save it again") from error
    if _KEY not in metadata:
        raise CheckpointError(f"{path} has no {_KEY!r} metadata; expected a file written by lcnn_core.checkpoint.save")
    try:
        return json.loads(metadata[_KEY]), tensors
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: its {_KEY!r} metadata is no JSON: {error}; save it again") from error
