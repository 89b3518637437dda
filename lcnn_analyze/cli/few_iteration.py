"""``lcnn few-iteration``: a shallow network's dictionaries in a deeper one, against training it from scratch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
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
from lcnn_core import ConfigError

STAGES = {"widths": (16, 32, 64, 128)}
DEPTHS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "resnet-lcnn": ({"depth": 10}, {"depth": 18}),
    "small-resnet-lcnn": ({**STAGES, "blocks": 1}, {**STAGES, "blocks": 2}),
    "digits-resnet-lcnn": ({"blocks": 1}, {"blocks": 2}),
}
"""Architecture -> the options that make the shallow network and the deeper one.

ResNet-10 and ResNet-18 are one and two blocks in each of four stages; so is the 28x28 form, at a quarter of the widths.
"""


def few_iteration(
    ctx: typer.Context,
    data: Data = "digits",
    model: Annotated[str, typer.Option(help=f"{', '.join(DEPTHS)}.")] = "digits-resnet-lcnn",
    preset: Preset = None,
    stem: Annotated[
        str | None, typer.Option(help="Of resnet-lcnn: imagenet (224 pixels), or small (28). [imagenet]")
    ] = None,
    iterations: Annotated[int, typer.Option(help="Steps of the deeper network.")] = 300,
    every: Annotated[int, typer.Option(help="Steps between two measurements.")] = 20,
    seeds: Annotated[int, typer.Option(help="Repetitions, for means and intervals.")] = 3,
    rates: Annotated[str, typer.Option(metavar="RATES", help="Learning rates; each way keeps its best.")] = "0.1,0.03",
    images: Annotated[int, typer.Option(help="Of validation and of test, to measure on.")] = 2000,
    epochs: Annotated[int, typer.Option(help="Of training the shallow network.")] = 10,
    batches_per_epoch: Batches = None,
    seed: Annotated[int, typer.Option(help="Of weights, batches and measured images.")] = 0,
    output: Output = Path("lcnn-iteration"),
    quiet: Quiet = False,
) -> None:
    """Carry a ResNet-10's dictionaries into a ResNet-18, freeze them and train P for a few iterations.

    Beside it the deeper lookup network and its dense twin, from scratch, on the same batches. The learning rate of
    each is chosen on validation images. A study that was stopped goes on when the same command is given again.
    """
    from lcnn_analyze.render.transfer import few_iteration_study
    from lcnn_core import FewIterationConfig, FewIterationResult, TrainConfig, load_dataset, summarize_few_iteration
    from lcnn_core import few_iteration as run

    if model not in DEPTHS:
        raise ConfigError(f"model is {model!r}; expected one of {', '.join(DEPTHS)}: lookup networks of two depths")
    shallow, deep = DEPTHS[model]
    dataset = load_dataset(data)
    config = FewIterationConfig(iterations, every, seeds, numbers("--rates", rates, float), images=images, seed=seed)
    family = make_family(dataset, model, preset, None, stem)
    shelf = Shelf(output, family, ctx.obj["command"], quiet)
    settings: dict[str, Any] = {
        "data": dataset.name,
        "model": model,
        "preset": preset,
        "stem": stem,
        **asdict(config),
        "depths": [_text(shallow, stem), _text(deep, stem)],
        **{"epochs": epochs, "batches_per_epoch": batches_per_epoch},
    }

    def trained(number: int) -> Any:
        training = TrainConfig(epochs=epochs, batches_per_epoch=batches_per_epoch, seed=seed + number)
        return shelf.network(f"shallow{number + 1}", "lcnn", dataset, training, shallow)

    with open_journal(output, settings, FewIterationResult) as (results, add):
        done = {result.key for result in results}
        with counting("training", 3 * seeds * len(config.rates), quiet) as show:
            for result in run(dataset, family, deep, trained, config, done):
                add(result)
                results.append(result)
                show(len(results))
    study = few_iteration_study(settings, summarize_few_iteration(results), facts(ctx.obj["command"]))
    write_study(output, study, quiet)


def _text(options: Mapping[str, Any], stem: str | None) -> str:
    """``widths 16 32, blocks 1``."""
    given = {**options, **({"stem": stem} if stem else {})}
    values = {name: " ".join(map(str, v)) if isinstance(v, tuple) else v for name, v in given.items()}
    return ", ".join(f"{name} {value}" for name, value in values.items())
