"""A run's state as plain data: random numbers, history, and the file that holds it all."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import asdict
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lcnn_core.checkpoint.pickles import load_plain
from lcnn_core.errors import CheckpointError
from lcnn_core.files import atomic_write
from lcnn_core.train.evaluation import Accuracy
from lcnn_core.train.events import EpochFinished

FORMAT, FORMAT_VERSION = "lcnn-run", 1


def random_state() -> dict[str, Any]:
    """States of the global generators: torch (CPU and every GPU), NumPy, Python."""
    _, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    version, numbers, gauss_next = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [torch.from_numpy(np.asarray(keys, dtype=np.int64)), int(position), int(has_gauss), float(gauss)],
        "python": [version, torch.tensor(numbers), gauss_next],
    }


def set_random_state(state: Mapping[str, Any]) -> None:
    """Put the global generators back to ``state``."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
    keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), position, has_gauss, gauss))
    version, numbers, gauss_next = state["python"]
    random.setstate((version, tuple(numbers.tolist()), gauss_next))


def plain_epoch(event: EpochFinished) -> dict[str, Any]:
    """An epoch's record as plain data."""
    return asdict(event)


def restore_epoch(fields: Mapping[str, Any]) -> EpochFinished:
    """The record that :func:`plain_epoch` wrote down."""
    return EpochFinished(**{**fields, "validation": Accuracy(**fields["validation"])})


def save_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write ``state`` atomically: whole, or not at all, and on the disk when this returns."""
    buffer = BytesIO()
    torch.save({"format": FORMAT, "format_version": FORMAT_VERSION, **state}, buffer)
    with atomic_write(path) as file:
        file.write(buffer.getbuffer())


def load_state(path: Path) -> dict[str, Any]:
    """Read what :func:`save_state` wrote; nothing in the file is executed. Raises CheckpointError for all else."""
    if not path.is_file():
        raise CheckpointError(
            f"{path} does not exist; expected the state of a run, which lcnn train keeps in its folder"
        )
    state = load_plain(path)
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise CheckpointError(f"{path} is no state of a run; expected the state.pt of lcnn train")
    if state.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has format_version {state.get('format_version')!r}; this release reads {FORMAT_VERSION}"
        )
    return state
