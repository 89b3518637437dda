"""``digits``: the 1,797 scanned 8x8 digits that come with scikit-learn, split once: 1,150 / 197 / 450."""

from __future__ import annotations

import numpy as np
import torch

from lcnn_core.checkpoint import Normalization
from lcnn_core.data.base import DataOptions, Dataset, build_dataset, stratified_split
from lcnn_core.errors import ConfigError

TEST, VALIDATION = 450, 197
SEED = 20170726


def load(argument: str, normalization: Normalization | None, options: DataOptions) -> Dataset:
    """The digits with their fixed, stratified split; takes no argument after the name."""
    if argument:
        raise ConfigError(f"dataset 'digits:{argument}' takes nothing after the name; write 'digits'")
    from sklearn.datasets import load_digits  # a second to import, and only this source needs it

    bunch = load_digits()
    pixels = torch.from_numpy(bunch.images).float().div(16).unsqueeze(1)
    labels = torch.from_numpy(bunch.target.astype(np.int64))
    rest, test = stratified_split(bunch.target, TEST, SEED)
    train, validation = (rest[part] for part in stratified_split(bunch.target[rest], VALIDATION, SEED))
    pick = [(pixels[part], labels[part]) for part in (train, validation, test)]
    return build_dataset("digits", tuple("0123456789"), (pick[0], pick[1], pick[2]), normalization)
