"""``lcnn evaluate``: top-1, top-5 and what is taken for what, of any network with weights on any source of images."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lcnn_core import ConfigError

if TYPE_CHECKING:
    from torch import nn

    from lcnn_core import Checkpoint, Dataset, Evaluation

SPLITS = ("test", "validation", "train")
_IMAGES, _OUTPUT = "Images", "Output"


def evaluate(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint, or a state dict.", metavar="CHECKPOINT")],
    data: Annotated[
        str, typer.Option(help="digits, idx:FOLDER, imagefolder:FOLDER, ...", rich_help_panel=_IMAGES)
    ] = "digits",
    split: Annotated[str, typer.Option(help="test, validation or train.", rich_help_panel=_IMAGES)] = "test",
    crops: Annotated[int, typer.Option(help="Views of each image: 1, 5 or 10.", rich_help_panel=_IMAGES)] = 1,
    resize: Annotated[int | None, typer.Option(help="Shorter side before the crop.", rich_help_panel=_IMAGES)] = None,
    workers: Annotated[int | None, typer.Option(help="Processes that read.", rich_help_panel=_IMAGES)] = None,
    unreadable_limit: Annotated[
        int | None, typer.Option(help="Unreadable images passed over.", rich_help_panel=_IMAGES)
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Images in a batch.", rich_help_panel=_IMAGES)] = 256,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.", rich_help_panel=_IMAGES)] = "auto",
    arch: Annotated[str | None, typer.Option(help="Network of a bare state dict.", rich_help_panel=_IMAGES)] = None,
    classes: Annotated[
        bool, typer.Option("--classes", help="Precision and recall of each class.", rich_help_panel=_OUTPUT)
    ] = False,
    confusion: Annotated[
        Path | None, typer.Option(help="PNG for the confusion matrix.", rich_help_panel=_OUTPUT)
    ] = None,
    store: Annotated[
        bool, typer.Option("--store", help="Write the accuracy into the checkpoint.", rich_help_panel=_OUTPUT)
    ] = False,
    store_as: Annotated[
        str | None, typer.Option(help="Name of the data in it, such as imagenet.", rich_help_panel=_OUTPUT)
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object instead of text.", rich_help_panel=_OUTPUT)
    ] = False,
) -> None:
    """Measure top-1 and top-5 accuracy; images are normalised as those that the network was trained on."""
    from lcnn_analyze.cli.output import check_output
    from lcnn_core import evaluate_classes, join_processes

    if split not in SPLITS:
        raise ConfigError(f"split is {split!r}; expected one of {', '.join(SPLITS)}")
    if batch_size < 1:
        raise ConfigError(f"batch size is {batch_size}; expected 1 or more")
    if store_as is not None and not store:
        raise ConfigError("--store-as names what --store writes; give both")
    if confusion is not None and confusion.suffix != ".png":
        raise ConfigError(f"confusion is {str(confusion)!r}; expected a file that ends in .png")
    check_output(confusion)
    options = {"resize": resize, "workers": workers, "unreadable_limit": unreadable_limit}
    subject = _open(checkpoint, arch, data, {k: v for k, v in options.items() if v is not None})
    if store and subject.checkpoint is None:
        raise ConfigError(f"--store: {checkpoint} is no checkpoint of this project, which alone hold accuracies")
    with join_processes(device) as (_, where):
        images = getattr(subject.dataset, split)
        found = evaluate_classes(subject.model.to(where), images, batch_size, crops)
    measured = {"dataset": subject.dataset.name, "split": split, "crops": crops}
    if store:
        _store(checkpoint, subject, found, {**measured, "dataset": f"{store_as or subject.dataset.name} ({split})"})
    if confusion is not None:
        _draw(confusion, f"{checkpoint.name} on {split} images of {subject.dataset.name}", subject, found)
    report = _json if as_json else _text
    typer.echo(report(checkpoint, subject.dataset, found, measured, len(images.unreadable), classes))


@dataclass(frozen=True)
class Subject:
    """A network with its weights, the images, and the checkpoint where it is one of ours."""

    model: nn.Module
    dataset: Dataset
    checkpoint: Checkpoint | None


def _open(path: Path, arch: str | None, data: str, options: Mapping[str, Any]) -> Subject:
    from torch import nn

    from lcnn_analyze.cli.train_job import check_fit, data_options
    from lcnn_core import load_dataset, open_model

    opened = open_model(path, arch)
    if opened.path is None:
        raise ConfigError(f"{path} is an architecture without weights; expected a checkpoint or a state dict")
    if not isinstance(opened.model, nn.Module):
        raise ConfigError(f"{path} describes a network that cannot be run here; expected a checkpoint or a state dict")
    if opened.checkpoint is not None:
        normalization, shape = opened.checkpoint.normalization, opened.checkpoint.input_shape
    else:
        normalization, shape = None, opened.input_shape or (3, 224, 224)
    dataset = load_dataset(data, normalization, data_options(options, data, shape[-1]))
    if opened.checkpoint is not None:
        check_fit(opened.checkpoint, dataset, path)
    return Subject(opened.model, dataset, opened.checkpoint)


def _store(path: Path, subject: Subject, found: Evaluation, measured: Mapping[str, Any]) -> None:
    """Write the accuracy into the checkpoint, in the place of an older one on the same images."""
    from lcnn_core import save

    assert subject.checkpoint is not None
    fresh = [
        {"name": name, "value": value, "count": found.accuracy.count, **measured}
        for name, value in (("top1", found.accuracy.top1), ("top5", found.accuracy.top5))
    ]
    kept = [m for m in subject.checkpoint.metrics if m.get("dataset") != measured["dataset"]]
    save(path, dataclasses.replace(subject.checkpoint, metrics=(*kept, *fresh)))


def _draw(path: Path, title: str, subject: Subject, found: Evaluation) -> None:
    from lcnn_analyze.cli.output import write_file
    from lcnn_analyze.render import training

    names = _names(subject.dataset, found)
    write_file(path, training.confusion(title, found.confusion.tolist(), names))


def _names(dataset: Dataset, found: Evaluation) -> list[str]:
    """A name for each output: its class's, or its number where the network has more outputs than there are names."""
    return [*dataset.class_names, *map(str, range(len(dataset.class_names), len(found.confusion)))]


def _rows(dataset: Dataset, found: Evaluation) -> list[dict[str, Any]]:
    columns = (found.precision.tolist(), found.recall.tolist(), found.confusion.sum(1).tolist())
    return [
        {"class": name, "precision": _known(precision), "recall": _known(recall), "count": count}
        for name, precision, recall, count in zip(_names(dataset, found), *columns, strict=True)
    ]


def _known(share: float) -> float | None:
    return None if math.isnan(share) else share


def _json(
    path: Path, dataset: Dataset, found: Evaluation, measured: Mapping[str, Any], unreadable: int, classes: bool
) -> str:
    plain = {"checkpoint": str(path), **measured, **asdict(found.accuracy), "unreadable": unreadable}
    return json.dumps({**plain, "classes": _rows(dataset, found)} if classes else plain)


def _text(
    path: Path, dataset: Dataset, found: Evaluation, measured: Mapping[str, Any], unreadable: int, classes: bool
) -> str:
    accuracy = found.accuracy
    line = (
        f"{path}: top-1 {accuracy.top1:.2%}, top-5 {accuracy.top5:.2%} "
        f"on {accuracy.count:,} {measured['split']} images of {dataset.name}"
    )
    line += f", {measured['crops']} crops each" if measured["crops"] > 1 else ""
    line += f"; {unreadable} could not be read" if unreadable else ""
    rows = _rows(dataset, found) if classes else []
    width = max((len(row["class"]) for row in rows), default=0)
    lines = [f"{'class':<{max(width, 5)}}  precision   recall  images"] * bool(rows)
    for row in rows:
        precision, recall = ("-" if row[key] is None else f"{row[key]:.2%}" for key in ("precision", "recall"))
        lines.append(f"{row['class']:<{max(width, 5)}}  {precision:>9}  {recall:>7}  {row['count']:>6,}")
    return "\n".join([line, *lines])
