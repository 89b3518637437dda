"""Data sources, one file each. ``DATASETS`` lists them; a specification is ``name`` or ``name:argument``."""

from __future__ import annotations

from lcnn_core.checkpoint import Normalization
from lcnn_core.data import digits, fake, idx, imagefolder, webdataset
from lcnn_core.data.base import DataOptions, Dataset, Images, Source, Split
from lcnn_core.errors import ConfigError

DATASETS: dict[str, Source] = {
    "digits": Source("digits", digits.load),
    "idx": Source("idx:FOLDER", idx.load),
    "imagefolder": Source("imagefolder:FOLDER", imagefolder.load, files=True),
    "webdataset": Source("webdataset:FOLDER", webdataset.load, files=True),
    "fake": Source("fake:IMAGESxCLASSES", fake.load, files=True),
}


def load_dataset(spec: str, normalization: Normalization | None = None, options: DataOptions | None = None) -> Dataset:
    """Load a source of ``DATASETS``, written ``name`` or ``name:argument``: ``digits``, ``idx:FOLDER``, ...

    normalization: of the images, None for the source's own: measured on the training split where that is in memory,
    else ImageNet's. Bring a checkpoint's to see images as it was trained on them. Raises ConfigError for a
    specification that names no source and for options that it does not take, DataError for a source that is absent or
    damaged.
    """
    options = options or DataOptions()
    name, _, argument = spec.partition(":")
    if name not in DATASETS:
        usages = ", ".join(source.usage for source in DATASETS.values())
        raise ConfigError(f"dataset {spec!r} is unknown; expected one of {usages}")
    source = DATASETS[name]
    if options.given() and not source.files:
        raise ConfigError(
            f"{', '.join(options.given())} cannot go with {name}, whose images are of one size and in memory; leave "
            "it out"
        )
    return source.load(argument, normalization, options)


__all__ = ["DATASETS", "DataOptions", "Dataset", "Images", "Source", "Split", "load_dataset"]
