"""Weights in fewer bytes than float32, for fully connected layers, whose time at batch 1 is that of reading them."""

from __future__ import annotations

import numpy as np
import torch

from lcnn_core.engine.ir import Array
from lcnn_core.errors import ConfigError

STORAGES = ("float32", "bfloat16", "int8")
"""In the order of their numbers in a plan (native/FORMAT.md)."""

LEAST = 1 << 16
"""Matrices of fewer entries stay float32: they stay in the cache, so that fewer bytes gain nothing."""


def check_storage(storage: str) -> str:
    """Raises ConfigError for a name that is not in ``STORAGES``."""
    if storage not in STORAGES:
        raise ConfigError(f"storage is {storage!r}; expected one of {', '.join(STORAGES)}")
    return storage


def store(weights: Array, storage: str) -> tuple[int, dict[str, Array]]:
    """The number of the storage used and the arrays of ``weights`` (rows, depth) in it, by their names in a plan."""
    if weights.size < LEAST or storage == "float32":
        return 0, {"weights": weights.astype(np.float32)}
    if storage == "bfloat16":
        rounded = torch.from_numpy(weights.astype(np.float32)).to(torch.bfloat16)
        return 1, {"weights": rounded.view(torch.uint16).numpy()}
    scales = np.abs(weights).max(axis=1, keepdims=True) / 127
    steps = np.rint(weights / np.where(scales == 0, 1, scales))
    return 2, {"weights": steps.astype(np.int8), "scales": scales.ravel().astype(np.float32)}
