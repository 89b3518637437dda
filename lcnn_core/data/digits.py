"""``digits``: the 1,797 scanned 8x8 digits that come with scikit-learn, split once: 1,150 / 197 / 450."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

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
    table = _table()
    digits = table[:, -1].astype(np.int64)
    pixels = torch.from_numpy(table[:, :-1]).float().div(16).reshape(-1, 1, 8, 8)
    labels = torch.from_numpy(digits)
    rest, test = stratified_split(digits, TEST, SEED)
    train, validation = (rest[part] for part in stratified_split(digits[rest], VALIDATION, SEED))
    pick = [(pixels[part], labels[part]) for part in (train, validation, test)]
    return build_dataset("digits", tuple("0123456789"), (pick[0], pick[1], pick[2]), normalization)


def _table() -> np.ndarray:
    """64 pixels from 0 to 16 and the digit of every image (1797, 65), without the two seconds of importing sklearn."""
    package = find_spec("sklearn")
    if package and package.origin:
        file = Path(package.origin).with_name("datasets") / "data" / "digits.csv.gz"
        if file.is_file():
            return np.loadtxt(file, delimiter=",")
    from sklearn.datasets import load_digits  # a version that keeps the file elsewhere

    bunch = load_digits()
    return np.column_stack([bunch.data, bunch.target])
