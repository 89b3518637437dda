"""``lcnn convert``: a trained dense network made cheaper on a few images, without labels and gradients."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lcnn_core import ConfigError

if TYPE_CHECKING:
    from torch import nn

    from lcnn_core import Dataset, LayerChoice, Opened, PostTrainingConfig, PostTrainingReport

SPENT = 1.02
"""Counted speedup over the one asked for, from which the report says that some of the budget is left."""
_BUDGET, _IMAGES, _OUTPUT = "Budget", "Images", "Output"


def convert(
    ctx: typer.Context,
    dense: Annotated[
        Path | None, typer.Argument(help="A dense checkpoint, or a state dict.", metavar="[DENSE]", show_default=False)
    ] = None,
    speedup: Annotated[float, typer.Option(help="Counted speedup over it.", rich_help_panel=_BUDGET)] = 4.0,
    forms: Annotated[
        str, typer.Option(help="What layers may become: dense, sparse, lookup.", rich_help_panel=_BUDGET)
    ] = "dense,sparse,lookup",
    arch: Annotated[
        str | None, typer.Option(help="Network of a bare state dict, such as resnet50.", rich_help_panel=_BUDGET)
    ] = None,
    weights: Annotated[Path | None, typer.Option(help="Its file, beside --arch.", rich_help_panel=_BUDGET)] = None,
    data: Annotated[
        str, typer.Option(help="digits, idx:FOLDER, imagefolder:FOLDER, ...", rich_help_panel=_IMAGES)
    ] = "digits",
    images: Annotated[int, typer.Option(help="Training images to calibrate on.", rich_help_panel=_IMAGES)] = 512,
    finetune: Annotated[
        int, typer.Option(help="Epochs of training afterwards, at the budget.", rich_help_panel=_BUDGET)
    ] = 0,
    evaluate: Annotated[
        bool, typer.Option(help="Measure both networks on the validation images.", rich_help_panel=_IMAGES)
    ] = True,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Checkpoint to write.", rich_help_panel=_OUTPUT)
    ] = Path("converted.pt"),
    as_json: Annotated[bool, typer.Option("--json", help="The report as JSON.", rich_help_panel=_OUTPUT)] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.", rich_help_panel=_OUTPUT)] = False,
) -> None:
    """Make a trained dense network cheaper by a counted factor; takes 512 images and no labels.

    Each layer becomes dense, sparse or lookup, with the k and density that cost the network's answers least. With
    --finetune it is then trained, taught by the dense network; what is zero stays zero.
    """
    from lcnn_analyze.cli.output import check_output
    from lcnn_core import PostTrainingConfig, calibration_images, checkpoint, convert_to_budget

    if dense is not None and weights is not None:
        raise ConfigError(f"--weights cannot go with {dense}: the weights come from one file; leave one out")
    source = dense or weights
    if source is None:
        raise ConfigError("no network to convert; give a checkpoint, or --arch NAME --weights FILE")
    if finetune < 0:
        raise ConfigError(f"finetune is {finetune}; expected 0 epochs or more")
    if output.suffix not in checkpoint.FORMATS:
        raise ConfigError(f"output {str(output)!r} ends in {output.suffix}; expected {' or '.join(checkpoint.FORMATS)}")
    check_output(output, source)
    config = PostTrainingConfig(speedup, forms=tuple(part.strip() for part in forms.split(",")), images=images)
    opened, model, dataset = _open(source, arch, data)
    with _telling(quiet) as tell:
        converted, report = convert_to_budget(model, calibration_images(dataset, images), config, tell)
    if finetune:
        _train(converted, model, dataset, finetune, quiet)
    metrics = _accuracies(converted, model, dataset) if evaluate else []
    _save(output, opened, converted, dataset, metrics, report, ctx.obj["command"])
    typer.echo(_json(report, metrics) if as_json else _text(report, metrics, output, config))


def _open(path: Path, arch: str | None, data: str) -> tuple[Opened, nn.Module, Dataset]:
    from torch import nn

    from lcnn_analyze.cli.train_job import check_fit, data_options
    from lcnn_core import load_dataset, open_model

    opened = open_model(path, arch)
    if opened.path is None or not isinstance(opened.model, nn.Module):
        raise ConfigError(f"{path} holds no weights of a network that runs here; expected a checkpoint or a state dict")
    own = opened.checkpoint
    shape = own.input_shape if own else opened.input_shape or (3, 224, 224)
    dataset = load_dataset(data, own.normalization if own else None, data_options({}, data, shape[-1]))
    if own is not None:
        check_fit(own, dataset, path)
    return opened, opened.model.eval(), dataset


@contextmanager
def _telling(quiet: bool) -> Iterator[Any]:
    """A bar on stderr that says what is being done; where that is no terminal, a line for each stage."""
    from rich.console import Console
    from rich.progress import Progress

    console, said = Console(stderr=True, highlight=False, quiet=quiet), set[str]()

    def line(what: str, done: int, total: int) -> None:
        if what not in said:
            said.add(what)
            console.print(f"{what}, {total} layers" if total > 1 else what)

    if not console.is_terminal:
        yield line
        return
    with Progress(console=console, transient=True, disable=quiet) as bars:
        task = bars.add_task("")
        yield lambda what, done, total: bars.update(task, description=what, completed=done, total=total)


def _train(converted: nn.Module, dense: nn.Module, dataset: Dataset, epochs: int, quiet: bool) -> None:
    from lcnn_analyze.cli.progress import progress
    from lcnn_core import FINE_TUNING, Distillation, train

    with progress("fine-tuning", quiet, epochs=True) as listen:
        train(converted, dataset, dataclasses.replace(FINE_TUNING, epochs=epochs), listen, Distillation(dense))
    converted.eval()


def _accuracies(converted: nn.Module, dense: nn.Module, dataset: Dataset) -> list[dict[str, Any]]:
    """Top-1 and top-5 on the validation images, and the dense network's."""
    from lcnn_core import evaluate

    ours, theirs = evaluate(converted, dataset.validation), evaluate(dense, dataset.validation)
    return [
        {
            **{"name": name, "value": getattr(ours, name), "dense": getattr(theirs, name)},
            **{"dataset": f"{dataset.name} (validation)", "count": ours.count},
        }
        for name in ("top1", "top5")
    ]


def _save(
    path: Path,
    opened: Opened,
    model: nn.Module,
    dataset: Dataset,
    metrics: list[dict[str, Any]],
    report: PostTrainingReport,
    command: str,
) -> None:
    from lcnn_analyze.cli.train_job import versions
    from lcnn_core import Checkpoint, models, save

    own = opened.checkpoint
    ours = opened.architecture in models.MODELS or opened.architecture in models.ALIASES
    provenance = {
        "command": command,
        "from": str(opened.path),
        "architecture": opened.architecture,
        "conversion": dataclasses.asdict(report),
        "versions": versions(),
    }
    taken = Checkpoint.from_model(
        model,
        architecture=opened.architecture if ours else "custom",
        arguments=own.arguments if own else None,
        input_shape=dataset.input_shape,
        normalization=dataset.normalization,
        class_names=dataset.class_names,
        metrics=metrics,
        provenance=provenance,
    )
    save(path, taken)


def _json(report: PostTrainingReport, metrics: list[dict[str, Any]]) -> str:
    import json

    return json.dumps({**dataclasses.asdict(report), "metrics": metrics})


def _text(report: PostTrainingReport, metrics: list[dict[str, Any]], output: Path, config: PostTrainingConfig) -> str:
    """The table, then one line with the speedup and the accuracies."""
    titles = ("layer", "form", "k", "P", "D", "output error", "MACs", "of dense")
    rows = [titles, *map(_cells, report.layers)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(w) if i < 2 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    lines += [f"{name}: {cost:,} MACs, left as it is" for name, cost in report.fixed.items()]
    total = f"{output}: counted speedup {report.speedup:.3f}x, calibrated on {report.images} images without labels"
    named = {"top1": "top-1", "top5": "top-5"}
    parts = [f"{named[m['name']]} {m['value']:.2%} (dense {m['dense']:.2%})" for m in metrics]
    if parts:
        total += f"; {', '.join(parts)} on {metrics[0]['count']:,} validation images"
    if report.speedup > SPENT * config.speedup:
        total += f"; {config.speedup:g}x was asked for, but layers as {', '.join(config.forms)} spend no more"
    return "\n".join([*(line.rstrip() for line in lines), total])


def _cells(row: LayerChoice) -> tuple[str, ...]:
    size = "" if row.dictionary_size is None else str(row.dictionary_size)
    stored = "" if row.dictionary_density is None else f"{row.dictionary_density:.1%}"
    share = f"{row.cost / row.dense_cost:.1%}"
    return row.name, row.form, size, f"{row.density:.1%}", stored, f"{row.error:.2%}", f"{row.cost:,}", share
