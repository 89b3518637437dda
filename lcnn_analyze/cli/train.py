"""``lcnn train``: train an architecture from scratch, or a dense checkpoint down to a counted budget."""

from __future__ import annotations

import dataclasses
import json
import platform
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

if TYPE_CHECKING:
    from torch import nn

    from lcnn_core import Checkpoint, Dataset, Event, FromDenseConfig, TrainConfig

_NETWORK, _RUN, _LOOKUPS, _BUDGET = "Network and data", "Run", "Lookup layers", "Budget"


def _option(help: str, panel: str, *names: str, **more: Any) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=panel, show_default=False, **more)


def train(
    ctx: typer.Context,
    model: Annotated[str | None, _option("Architecture, such as digits-resnet or resnet18-lcnn.", _NETWORK)] = None,
    data: Annotated[str, _option("digits, or idx:FOLDER with MNIST-format files. [digits]", _NETWORK)] = "digits",
    output: Annotated[
        Path, _option("Best checkpoint (.pt, .safetensors), or a folder for it. [lcnn-run]", _NETWORK, "--output", "-o")
    ] = Path("lcnn-run"),
    quiet: Annotated[bool, _option("No progress on stderr.", _NETWORK, "--quiet", "-q")] = False,
    epochs: Annotated[int | None, _option("Passes over the training images.", _RUN)] = None,
    batch_size: Annotated[int | None, _option("Images in a batch.", _RUN)] = None,
    optimizer: Annotated[str | None, _option("sgd or adam.", _RUN)] = None,
    schedule: Annotated[
        str | None, _option("alexnet, resnet (as published), constant, cosine or one-cycle.", _RUN)
    ] = None,
    lr: Annotated[float | None, _option("Peak learning rate; scales the schedule.", _RUN)] = None,
    momentum: Annotated[float | None, _option("Of SGD; the first decay rate of Adam.", _RUN)] = None,
    weight_decay: Annotated[float | None, _option("Replaces the schedule's own.", _RUN)] = None,
    clip_norm: Annotated[float | None, _option("Largest norm of all gradients together.", _RUN)] = None,
    shift: Annotated[int | None, _option("Random shifts of training images, in pixels.", _RUN)] = None,
    seed: Annotated[int, _option("Of the weights and the order of images. [0]", _RUN)] = 0,
    preset: Annotated[str | None, _option("Dictionary sizes by name: fast or accurate.", _LOOKUPS)] = None,
    first: Annotated[str | None, _option("k of the first layer: a number, identity or dense.", _LOOKUPS)] = None,
    stages: Annotated[str | None, _option("k of the stages: one, or one each, 16,32,64.", _LOOKUPS)] = None,
    fc: Annotated[str | None, _option("k of the fully connected layers.", _LOOKUPS)] = None,
    classifier: Annotated[str | None, _option("k of the classifier.", _LOOKUPS)] = None,
    threshold_scale: Annotated[float | None, _option("c of the threshold c/sqrt(kh*kw*k).", _LOOKUPS)] = None,
    l1_scale: Annotated[float | None, _option("lambda' of the l1 penalty.", _LOOKUPS)] = None,
    speedup: Annotated[float | None, _option("Counted speedup to reach, with --from.", _BUDGET)] = None,
    from_: Annotated[Path | None, _option("Dense checkpoint to start from.", _BUDGET, "--from")] = None,
    dictionary_ratio: Annotated[float | None, _option("k over input channels.", _BUDGET)] = None,
) -> None:
    """Train a network; keep its best and last epoch as checkpoints and a log as JSON lines.

    With --speedup and --from, D and P start from a trained dense network and are pruned together until the counted
    speedup over it is reached exactly. Choices are made on validation images; `lcnn evaluate` measures on test images.
    """
    run = {
        **{"epochs": epochs, "batch_size": batch_size, "optimizer": optimizer, "schedule": schedule, "lr": lr},
        **{"momentum": momentum, "weight_decay": weight_decay, "clip_norm": clip_norm, "shift": shift, "seed": seed},
    }
    sizes = {"preset": preset, "first": _size(first), "stages": _sizes(stages), "fc": _size(fc)}
    sizes |= {"classifier": _size(classifier), "threshold_scale": threshold_scale, "l1_scale": l1_scale}
    sizes = {name: value for name, value in sizes.items() if value is not None}
    if speedup is not None or from_ is not None or dictionary_ratio is not None:
        job = _from_dense(from_, speedup, dictionary_ratio, model, data, sizes, run)
    else:
        job = _from_scratch(model, data, sizes, run)
    _execute(job, Outputs.at(output), quiet, ctx.obj["command"])


@dataclass(frozen=True)
class Job:
    """Everything decided and loaded; what remains is to run it."""

    title: str
    architecture: str
    arguments: dict[str, Any]
    dataset: Dataset
    model: nn.Module
    config: TrainConfig | FromDenseConfig
    source: str | None = None
    """The dense checkpoint that the run starts from."""

    def provenance(self, command: str) -> dict[str, Any]:
        """How to do it again, as plain data; ``command`` is what was typed."""
        config = dataclasses.asdict(self.config)
        return {
            "command": command,
            "data": self.dataset.name,
            "from": self.source,
            "config": config,
            "seed": config.get("train", config)["seed"],
            "versions": versions(),
        }


@dataclass(frozen=True)
class Outputs:
    """Where a run writes."""

    best: Path
    last: Path
    log: Path

    @classmethod
    def at(cls, path: Path) -> Outputs:
        """Files beside the checkpoint ``path``, or in the folder ``path``, which is made here."""
        from lcnn_core import ConfigError, checkpoint

        if path.suffix in checkpoint.FORMATS and not path.is_dir():
            stem = path.with_suffix("")
            outputs = cls(path, Path(f"{stem}-last{path.suffix}"), Path(f"{stem}-log.jsonl"))
        elif path.suffix in (".pth", ".ckpt", ".t7", ".onnx"):
            suffixes = " or ".join(checkpoint.FORMATS)
            raise ConfigError(f"output {str(path)!r} ends in {path.suffix}; expected {suffixes}, or a folder")
        else:
            outputs = cls(path / "best.pt", path / "last.pt", path / "log.jsonl")
        try:
            outputs.best.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OSError(
                error.errno, f"cannot make the folder {str(outputs.best.parent)!r}: {error.strerror}; choose another -o"
            ) from error
        return outputs


def versions() -> dict[str, str]:
    """What a run was made with, for its provenance."""
    import torch

    try:
        lcnn = version("lcnn")
    except PackageNotFoundError:
        lcnn = "not installed"
    return {"lcnn": lcnn, "torch": str(torch.__version__), "python": platform.python_version()}


def _size(text: str | None) -> int | str | None:
    return int(text) if text is not None and re.fullmatch(r"-?[0-9]+", text) else text


def _sizes(text: str | None) -> Any:
    parts = [] if text is None else [_size(part.strip()) for part in text.split(",")]
    return tuple(parts) if len(parts) > 1 else (parts or [None])[0]


def _configured(config: TrainConfig, run: dict[str, Any]) -> TrainConfig:
    """``config`` with the options that were given."""
    from lcnn_core import SCHEDULES, ConfigError

    given = {name: value for name, value in run.items() if value is not None}
    if "schedule" in given:
        if given["schedule"] not in SCHEDULES:
            raise ConfigError(f"schedule is {given['schedule']!r}; expected one of {', '.join(SCHEDULES)}")
        given["schedule"] = SCHEDULES[given["schedule"]]
    return dataclasses.replace(config, **given)


def _from_scratch(name: str | None, data: str, sizes: dict[str, Any], run: dict[str, Any]) -> Job:
    import torch

    from lcnn_core import ConfigError, TrainConfig, load_dataset, models

    if name is None:
        raise ConfigError("no network to train; give --model, such as --model digits-resnet")
    config = _configured(TrainConfig(), run)
    models.resolve(name, **sizes)
    dataset = load_dataset(data)
    arguments = {"num_classes": len(dataset.class_names), "in_channels": dataset.input_shape[0], **sizes}
    torch.manual_seed(config.seed)
    return Job(name, name, arguments, dataset, models.build(name, **arguments), config)


def _from_dense(
    source: Path | None,
    speedup: float | None,
    ratio: float | None,
    name: str | None,
    data: str,
    sizes: dict[str, Any],
    run: dict[str, Any],
) -> Job:
    from lcnn_core import ConfigError, FromDenseConfig, checkpoint, load_dataset

    if source is None or speedup is None:
        missing = "--from" if source is None else "--speedup"
        raise ConfigError(f"a budget needs both --speedup and --from with a dense checkpoint; {missing} is missing")
    if sizes or name is not None:
        given = ["--model"] * (name is not None) + [f"--{option.replace('_', '-')}" for option in sizes]
        raise ConfigError(f"{', '.join(given)} cannot go with --from, whose checkpoint decides that; leave it out")
    config = FromDenseConfig(speedup=speedup, dictionary_ratio=ratio)
    config = dataclasses.replace(config, train=_configured(config.train, run))
    dense = checkpoint.load(source)
    dataset = load_dataset(data, dense.normalization)
    check_fit(dense, dataset, source)
    title = f"{dense.architecture} at {speedup:g}x"
    return Job(title, dense.architecture, dict(dense.arguments), dataset, dense.build(), config, str(source))


def check_fit(checkpoint: Checkpoint, dataset: Dataset, path: Path) -> None:
    """Raise ConfigError unless the data has the shape and the classes that the checkpoint was trained for."""
    from lcnn_core import ConfigError

    if checkpoint.input_shape != dataset.input_shape:
        raise ConfigError(
            f"{path} takes images of shape {checkpoint.input_shape}, {dataset.name} has {dataset.input_shape}; "
            "choose the data that it was trained on"
        )
    if checkpoint.class_names and checkpoint.class_names != dataset.class_names:
        raise ConfigError(
            f"{path} has the {len(checkpoint.class_names)} classes {', '.join(checkpoint.class_names)[:60]}, "
            f"{dataset.name} the {len(dataset.class_names)} classes {', '.join(dataset.class_names)[:60]}; "
            "choose the data that it was trained on"
        )


class Recorder:
    """Writes down what a run's events say: the log, the last epoch's checkpoint, and the best one's."""

    def __init__(self, job: Job, outputs: Outputs, log: TextIO, command: str) -> None:
        self.job, self.outputs, self.log = job, outputs, log
        self.provenance = job.provenance(command)
        self.epoch = 0
        self.write("Configured", self.provenance)

    def __call__(self, event: Event) -> None:
        from lcnn_core import BatchFinished, EpochFinished, TrainingStarted

        if isinstance(event, BatchFinished):
            return
        if isinstance(event, TrainingStarted):
            self.model = event.model
            # Before the first step, so that a folder that cannot be written costs no training.
            self.save(self.outputs.last, ())
        self.write(type(event).__name__, {k: v for k, v in vars(event).items() if k != "model"})
        if isinstance(event, EpochFinished):
            self.epoch = event.epoch
            dataset, validation = f"{self.job.dataset.name} (validation)", event.validation
            metrics = [
                {"name": name, "value": value, "dataset": dataset, "count": validation.count, "epoch": event.epoch}
                for name, value in (("top1", validation.top1), ("top5", validation.top5))
            ]
            self.save(self.outputs.last, metrics)
            if event.best:
                self.save(self.outputs.best, metrics)

    def write(self, event: str, fields: Mapping[str, Any]) -> None:
        """One line of the log, on the disk when this returns."""
        plain = {k: dataclasses.asdict(v) if dataclasses.is_dataclass(v) else v for k, v in fields.items()}  # type: ignore[arg-type]
        self.log.write(json.dumps({"event": event, **plain}) + "\n")
        self.log.flush()

    def save(self, path: Path, metrics: Sequence[Mapping[str, Any]]) -> None:
        from lcnn_core import checkpoint

        job = self.job
        checkpoint.save(
            path,
            checkpoint.Checkpoint.from_model(
                self.model,
                architecture=job.architecture,
                arguments=job.arguments,
                input_shape=job.dataset.input_shape,
                normalization=job.dataset.normalization,
                class_names=job.dataset.class_names,
                metrics=metrics,
                provenance=self.provenance | {"epoch": self.epoch},
            ),
        )


def _execute(job: Job, outputs: Outputs, quiet: bool, command: str) -> None:
    """Run the job; what it wrote stands whole however it ends."""
    from lcnn_analyze.cli.progress import progress
    from lcnn_core import ConfigError, FromDenseConfig, compress_from_dense
    from lcnn_core import train as train_model

    with _open_log(outputs.log) as log, progress(job.title, quiet, epochs=True) as show:
        recorder = Recorder(job, outputs, log, command)

        def listen(event: Event) -> None:
            recorder(event)
            show(event)

        try:
            if isinstance(job.config, FromDenseConfig):
                result = compress_from_dense(job.model, job.dataset, job.config, listen)[1]
            else:
                result = train_model(job.model, job.dataset, job.config, listen)
        except ConfigError:  # refused before it started
            outputs.log.unlink(missing_ok=True)
            raise
        except KeyboardInterrupt:
            typer.echo(f"interrupted; {outputs.last} holds the network after epoch {recorder.epoch}", err=True)
            raise typer.Exit(130) from None
    best = result.history[result.best_epoch - 1]
    typer.echo(
        f"{outputs.best}: epoch {best.epoch} of {best.epochs}, validation top-1 {best.validation.top1:.2%}, "
        f"top-5 {best.validation.top5:.2%}, counted speedup {best.counted_speedup:.2f}x"
    )


@contextmanager
def _open_log(path: Path) -> Iterator[TextIO]:
    try:
        log = path.open("w", encoding="utf-8")
    except OSError as error:
        raise OSError(error.errno, f"cannot write {str(path)!r}: {error.strerror}; choose another -o") from error
    with log:
        yield log
