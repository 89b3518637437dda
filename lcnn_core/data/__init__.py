"""Data sources, one file each. ``DATASETS`` lists them; a specification is ``name`` or ``name:argument``."""

from __future__ import annotations

from lcnn_core.checkpoint import Normalization
from lcnn_core.data import digits, idx
from lcnn_core.data.base import Dataset, Source, Split
from lcnn_core.errors import ConfigError

DATASETS: dict[str, Source] = {
    "digits": Source("digits", digits.load),
    "idx": Source("idx:FOLDER", idx.load),
}


def load_dataset(spec: str, normalization: Normalization | None = None) -> Dataset:
    """Load ``digits`` or ``idx:FOLDER``; images are normalised by ``normalization``, or by the training split's own.

    Bring a checkpoint's normalisation to evaluate it on images as it was trained on. Raises ConfigError for a
    specification that names no source, DataError for a source that is absent or damaged.
    """
    name, _, argument = spec.partition(":")
    if name not in DATASETS:
        usages = ", ".join(source.usage for source in DATASETS.values())
        raise ConfigError(f"dataset {spec!r} is unknown; expected one of {usages}")
    return DATASETS[name].load(argument, normalization)


__all__ = ["DATASETS", "Dataset", "Source", "Split", "load_dataset"]
