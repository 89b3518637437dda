"""``.pt``: a zip archive of ``torch.save`` with one dict, the document's fields and ``state_dict``.

Read with ``torch.load(weights_only=True)`` after ``load_plain`` has vetted it, and in no other way.
"""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from lcnn_core.checkpoint.pickles import load_plain
from lcnn_core.errors import CheckpointError


def write(file: BinaryIO, document: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    # By way of memory: where the file itself fails (a full disk), torch's writer hides the reason behind its own error.
    buffer = BytesIO()
    torch.save({**document, "state_dict": tensors}, buffer)
    file.write(buffer.getbuffer())


def read(path: Path) -> tuple[Any, dict[str, Tensor]]:
    with path.open("rb") as file:
        head = file.read(4)
    if head != b"PK\3\4":
        shown = "is empty" if not head else f"starts with {head!r}"
        raise CheckpointError(f"{path} {shown}; expected a .pt archive written by lcnn_core.checkpoint.save")
    document = load_plain(path)
    if not isinstance(document, dict) or not isinstance(document.get("state_dict"), dict):
        raise CheckpointError(f"{path} holds no state_dict; expected a file written by lcnn_core.checkpoint.save")
    return document, document["state_dict"]
