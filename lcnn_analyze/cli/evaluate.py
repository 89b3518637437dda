"""``lcnn evaluate``: top-1 and top-5 of a checkpoint on images that it was not trained on."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

SPLITS = ("test", "validation", "train")


def evaluate(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint of lcnn train.", metavar="CHECKPOINT")],
    data: Annotated[str, typer.Option(help="digits, or idx:FOLDER with MNIST-format files.")] = "digits",
    split: Annotated[str, typer.Option(help="test, validation or train.")] = "test",
    batch_size: Annotated[int, typer.Option(help="Images in a batch.")] = 256,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of text.")] = False,
) -> None:
    """Measure a checkpoint's top-1 and top-5 accuracy; images are normalised as those it was trained on."""
    from lcnn_analyze.cli.train import check_fit
    from lcnn_core import ConfigError, load_dataset
    from lcnn_core import checkpoint as checkpoints
    from lcnn_core import evaluate as measure

    if split not in SPLITS:
        raise ConfigError(f"split is {split!r}; expected one of {', '.join(SPLITS)}")
    if batch_size < 1:
        raise ConfigError(f"batch size is {batch_size}; expected 1 or more")
    loaded = checkpoints.load(checkpoint)
    dataset = load_dataset(data, loaded.normalization)
    check_fit(loaded, dataset, checkpoint)
    accuracy = measure(loaded.build(), getattr(dataset, split), batch_size)
    if as_json:
        found = {"checkpoint": str(checkpoint), "dataset": dataset.name, "split": split, **asdict(accuracy)}
        typer.echo(json.dumps(found))
    else:
        typer.echo(
            f"{checkpoint}: top-1 {accuracy.top1:.2%}, top-5 {accuracy.top5:.2%} "
            f"on {accuracy.count:,} {split} images of {dataset.name}"
        )
