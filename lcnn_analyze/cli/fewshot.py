"""``lcnn fewshot``: new classes from one to four images each, with frozen dictionaries, beside the dense network."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from lcnn_analyze.cli.study import (
    Batches,
    Data,
    Output,
    Preset,
    Quiet,
    Shelf,
    counting,
    facts,
    make_family,
    numbers,
    open_journal,
    write_study,
)


def fewshot(
    ctx: typer.Context,
    data: Data = "digits",
    model: Annotated[
        str, typer.Option(help="A lookup architecture; its dense twin is beside it.")
    ] = "digits-resnet-lcnn",
    preset: Preset = None,
    classifier: Annotated[int, typer.Option(help="k of the lookup classifier, whose D is carried over.", min=1)] = 16,
    novel: Annotated[int, typer.Option(help="Novel classes; the others are base classes.")] = 3,
    splits: Annotated[int, typer.Option(help="Random choices of the novel classes.")] = 5,
    resamplings: Annotated[int, typer.Option(help="Draws of the few images, for each split.")] = 20,
    shots: Annotated[str, typer.Option(metavar="COUNTS", help="Images of each novel class.")] = "1,2,4",
    rate: Annotated[float, typer.Option(help="eta, of the new classifier; others eta, eta/10, eta/100, 0.")] = 0.01,
    steps: Annotated[int, typer.Option(help="Steps of tuning, on all few images at once.")] = 30,
    epochs: Annotated[int, typer.Option(help="Of training on the base classes.")] = 10,
    batches_per_epoch: Batches = None,
    lr: Annotated[float | None, typer.Option(help="Its peak learning rate. [default: the schedule's]")] = None,
    seed: Annotated[int, typer.Option(help="Of classes, images and weights.")] = 0,
    output: Output = Path("lcnn-fewshot"),
    quiet: Quiet = False,
) -> None:
    """Train on base classes, then tune P on a few images of novel ones, dictionaries frozen; the same for the CNN.

    The share of eta at which pre-trained layers learn is chosen on validation images, for both. Writes a report with
    curves. A study that was stopped goes on where it was when the same command is given again.
    """
    from lcnn_analyze.render.transfer import few_shot_study
    from lcnn_core import Dataset, FewShotConfig, FewShotResult, TrainConfig, few_shot, load_dataset, summarize_few_shot

    dataset = load_dataset(data)
    # As many images to measure on as the protocol says, or as the smallest class has.
    measured = {
        name: min(getattr(FewShotConfig, name), int(part.labels.bincount().min()))
        for name, part in (("validation_images", dataset.validation), ("test_images", dataset.test))
    }
    few = numbers("--shots", shots, int)
    config = FewShotConfig(novel, splits, resamplings, few, rate, steps=steps, seed=seed, **measured)
    base = TrainConfig(epochs=epochs, batches_per_epoch=batches_per_epoch, lr=lr, seed=seed)
    family = make_family(dataset, model, preset, classifier)
    shelf = Shelf(output, family, ctx.obj["command"], quiet)
    settings: dict[str, Any] = {
        "data": dataset.name,
        "model": model,
        "preset": preset,
        "classifier": classifier,
        **asdict(config),
        **{"epochs": epochs, "batches_per_epoch": batches_per_epoch, "lr": lr},
    }

    def trained(split: int, kind: str, images: Dataset) -> Any:
        return shelf.network(f"split{split + 1}-{kind}", kind, images, replace(base, seed=seed + split))

    total = splits * resamplings * len(config.shots) * len(config.shares) * 2
    done: set[tuple[int, int, int, str, float]] = set()
    tunings = few_shot(dataset, family, trained, config, done)  # refuses what it cannot do, before a journal is begun
    with open_journal(output, settings, FewShotResult) as (results, add):
        done |= {result.key for result in results}
        with counting("tuning", total, quiet) as show:
            for result in tunings:
                add(result)
                results.append(result)
                show(len(results))
    study = few_shot_study(settings, summarize_few_shot(results), facts(ctx.obj["command"]))
    write_study(output, study, quiet)
