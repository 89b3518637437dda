"""From settings to a job: everything decided, loaded and built. What remains is to run it."""

from __future__ import annotations

import dataclasses
import platform
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lcnn_analyze.cli.train_options import BUDGET, OPTIONS
from lcnn_core import ConfigError

if TYPE_CHECKING:
    from torch import nn

    from lcnn_core import Checkpoint, DataOptions, Dataset, Listener, TrainConfig, TrainResult

SIZES = ("preset", "first", "stages", "fc", "classifier", "threshold_scale", "l1_scale")
ARCHITECTURE = ("depth", "shortcut", "stem", "widths", "blocks", "dropout", *SIZES)
PUBLISHED = ("threshold_scale", "l1_scale")
"""Options of lookup architectures that the methods which reach a budget have too."""
BUDGETED = (*(option.name for option in OPTIONS.values() if option.panel == BUDGET), *PUBLISHED)
Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Job:
    """Everything decided and loaded."""

    title: str
    architecture: str
    arguments: dict[str, Any]
    dataset: Dataset
    model: nn.Module
    config: Any
    """A TrainConfig, or the configuration of the method."""
    source: str | None = None
    """The checkpoint that the run starts from."""
    method: str | None = None
    """The name in ``METHODS`` of what it does to reach a budget."""
    notes: tuple[str, ...] = ()
    """What the user should know before it starts."""

    @property
    def training(self) -> TrainConfig:
        """How it trains, with a budget or without."""
        return self.config.train if self.method else self.config

    def train(
        self,
        dataset: Dataset,
        training: TrainConfig,
        listen: Listener,
        resume: Mapping[str, Any] | None = None,
    ) -> TrainResult:
        """Run it on these data with this training: the network itself, or a compression that starts from it."""
        from lcnn_core import METHODS, train

        if self.method:
            config = dataclasses.replace(self.config, train=training)
            return METHODS[self.method].compress(self.model, dataset, config, listen, resume)[1]
        return train(self.model, dataset, training, listen, resume=resume)

    def provenance(self, command: str) -> dict[str, Any]:
        """How to do it again, as plain data; ``command`` is what was typed."""
        return {
            "command": command,
            "data": self.dataset.name,
            "from": self.source,
            "method": self.method,
            "config": dataclasses.asdict(self.config),
            "seed": self.training.seed,
            "versions": versions(),
        }

    def checkpoint(
        self, model: nn.Module, metrics: Sequence[Mapping[str, Any]], provenance: Mapping[str, Any]
    ) -> Checkpoint:
        """What is saved of ``model``."""
        from lcnn_core import METHODS, Checkpoint

        architecture = self.architecture
        arguments: Mapping[str, Any] = self.arguments
        if self.method:
            architecture, arguments = METHODS[self.method].saved_as(architecture, arguments, self.model, model)
        return Checkpoint.from_model(
            model,
            architecture=architecture,
            arguments=arguments,
            input_shape=self.dataset.input_shape,
            normalization=self.dataset.normalization,
            class_names=self.dataset.class_names,
            metrics=metrics,
            provenance=provenance,
        )

    def settings(self, given: Settings) -> dict[str, Any]:
        """``given`` with every default of the training filled in: what is saved beside the run."""
        from lcnn_core import METHODS

        budget: dict[str, Any] = {}
        if self.method:
            own = [name for name in BUDGETED if hasattr(self.config, name) and name not in METHODS[self.method].fixed]
            budget = {"method": self.method, **{name: getattr(self.config, name) for name in own}}
        train = {field.name: getattr(self.training, field.name) for field in dataclasses.fields(self.training)}
        named = {"data": self.dataset.name, **train, "schedule": schedule_text(self.training)}
        return {**given, **named, **budget}


def versions() -> dict[str, str]:
    """What a run was made with, for its provenance."""
    import torch

    try:
        lcnn = version("lcnn")
    except PackageNotFoundError:
        lcnn = "not installed"
    return {"lcnn": lcnn, "torch": str(torch.__version__), "python": platform.python_version()}


def schedule_text(config: TrainConfig) -> str:
    """The schedule as ``--schedule`` takes it: its name, or the rows of its table."""
    from lcnn_core import SCHEDULES

    named = (name for name, schedule in SCHEDULES.items() if schedule == config.schedule)
    return next(named, None) or str(config.schedule)


def make_job(settings: Settings) -> Job:
    """Load the data, build the network and put into it what it starts from. Raises for all that does not fit."""
    _check_start(settings)
    if _asks_for_budget(settings):
        return _budget(settings)
    job = _continued(settings) if settings.get("from") else _from_scratch(settings)
    return dataclasses.replace(job, notes=_prepared(job.model, settings))


def _asks_for_budget(settings: Settings) -> bool:
    return any(settings.get(name) is not None for name in BUDGETED if name not in PUBLISHED)


def _check_start(settings: Settings) -> None:
    """Options of the start that contradict each other."""
    budget = _asks_for_budget(settings)
    start = [name for name in ("load", "initial_sparsity", "reinit_coefficients") if settings.get(name)]
    if budget and start:
        raise ConfigError(f"{_flags(start)} cannot go with a budget, which starts from the dense weights; leave it out")
    if settings.get("from") and settings.get("load"):
        raise ConfigError("--load cannot go with --from: the weights come from one file; leave one out")
    if settings.get("reinit_coefficients") and not settings.get("from") and not settings.get("load"):
        raise ConfigError("--reinit-coefficients needs weights to keep the zeros of; give --from or --load")


def _flags(names: Sequence[str]) -> str:
    return ", ".join(f"--{name.replace('_', '-')}" for name in names)


def _sizes(settings: Settings) -> dict[str, Any]:
    """Options of the architecture that were given, sizes as numbers."""
    found = {name: settings[name] for name in ARCHITECTURE if settings.get(name) is not None}
    for name in ("first", "fc", "classifier"):
        if name in found:
            found[name] = _size(found[name])
    for name in ("stages", "widths", "blocks"):
        if name in found:
            parts = tuple(_size(part.strip()) for part in found[name].split(","))
            found[name] = parts if len(parts) > 1 or name == "widths" else parts[0]
    return found


def _size(text: str) -> int | str:
    return int(text) if re.fullmatch(r"-?[0-9]+", text) else text


def _configured(config: TrainConfig, settings: Settings) -> TrainConfig:
    """``config`` with the options that were given."""
    from lcnn_core import find_schedule

    names = [field.name for field in dataclasses.fields(config)]
    given = {name: settings[name] for name in names if settings.get(name) is not None}
    if "schedule" in given:
        given["schedule"] = find_schedule(given["schedule"])
    return dataclasses.replace(config, **given)


def data_options(settings: Settings, data: str, size: int) -> DataOptions:
    """How image files are read; ``size`` is what the network takes."""
    from lcnn_core import DATASETS, DataOptions

    names = [field.name for field in dataclasses.fields(DataOptions)]
    given = {name: settings[name] for name in names if settings.get(name) is not None}
    source = DATASETS.get(data.partition(":")[0])
    if source is not None and source.files:
        given = {"image_size": size, **given}
    return DataOptions(**given)


def _from_scratch(settings: Settings) -> Job:
    import torch

    from lcnn_core import TrainConfig, load_dataset, models

    name, sizes = settings.get("model"), _sizes(settings)
    if name is None:
        raise ConfigError("no network to train; give --model, such as --model digits-resnet")
    config = _configured(TrainConfig(), settings)
    models.resolve(name, **sizes)
    data = settings["data"]
    dataset = load_dataset(data, None, data_options(settings, data, models.input_shape_of(name, **sizes)[-1]))
    known = len(dataset.class_names)
    classes = known if settings.get("num_classes") is None else settings["num_classes"]
    if classes < known:
        raise ConfigError(f"num_classes is {classes}, but {dataset.name} has {known} classes; expected {known} or more")
    arguments = {"num_classes": classes, "in_channels": dataset.input_shape[0], **sizes}
    torch.manual_seed(config.seed)
    return Job(name, name, arguments, dataset, models.build(name, **arguments), config)


def _loaded(settings: Settings) -> tuple[Checkpoint, Dataset, str]:
    """The checkpoint of --from, and data that fit it."""
    from lcnn_core import checkpoint, load_dataset

    path = settings["from"]
    allowed = PUBLISHED if _asks_for_budget(settings) else ()
    names = [name for name in ("model", "num_classes", *ARCHITECTURE) if name not in allowed]
    given = [name for name in names if settings.get(name) is not None]
    if given:
        raise ConfigError(f"{_flags(given)} cannot go with --from, whose checkpoint decides that; leave it out")
    loaded = checkpoint.load(path)
    data = settings["data"]
    dataset = load_dataset(data, loaded.normalization, data_options(settings, data, loaded.input_shape[-1]))
    check_fit(loaded, dataset, Path(path))
    return loaded, dataset, path


def _continued(settings: Settings) -> Job:
    import torch

    from lcnn_core import TrainConfig

    config = _configured(TrainConfig(), settings)
    loaded, dataset, path = _loaded(settings)
    model = loaded.build().train()
    torch.manual_seed(config.seed)  # of what is drawn anew
    return Job(loaded.architecture, loaded.architecture, dict(loaded.arguments), dataset, model, config, path)


def _budget(settings: Settings) -> Job:
    if not settings.get("from") or settings.get("speedup") is None:
        missing = "--speedup" if settings.get("from") else "--from"
        raise ConfigError(f"a budget needs both --speedup and --from with a dense checkpoint; {missing} is missing")
    name = settings.get("method") or "from-dense"
    config = _method_config(name, settings)
    dense, dataset, path = _loaded(settings)
    title = f"{dense.architecture} at {config.speedup:g}x"
    return Job(title, dense.architecture, dict(dense.arguments), dataset, dense.build(), config, path, name)


def _method_config(name: str, settings: Settings) -> Any:
    """The method's configuration with the options that were given. Raises ConfigError for those that it has not."""
    from lcnn_core import METHODS, FromDenseConfig

    if name not in METHODS or not METHODS[name].trained:
        known = [known for known in METHODS if METHODS[known].trained]
        hint = "; lcnn convert makes a network without training" if name in METHODS else ""
        raise ConfigError(f"method is {name!r}; expected one of {', '.join(known)}{hint}")
    method = METHODS[name]
    own = {field.name for field in dataclasses.fields(method.config(speedup=settings["speedup"]))}
    given = {key: settings[key] for key in BUDGETED if key != "method" and settings.get(key) is not None}
    if foreign := [key for key in given if key not in own or key in method.fixed]:
        why = "which decides that" if foreign[0] in method.fixed else "which has no such option"
        raise ConfigError(f"{_flags(foreign)} cannot go with --method {name}, {why}; leave it out")
    config = method.config(**given)
    if isinstance(config, FromDenseConfig):  # what is saved of a run says what was meant, not that nothing was said
        config = dataclasses.replace(config, forms=config.layer_forms)
    return dataclasses.replace(config, train=_configured(config.train, settings))


def _prepared(model: nn.Module, settings: Settings) -> tuple[str, ...]:
    """Do to ``model`` what the settings say about its start; returns what to tell."""
    from lcnn_core import load_matching_, redraw_coefficients_, sparsify_

    notes = []
    if settings.get("load"):
        notes.append(f"{settings['load']}: {load_matching_(model, settings['load'])}")
    if settings.get("initial_sparsity"):
        sparsify_(model, _shares(settings["initial_sparsity"]))
    if settings.get("reinit_coefficients"):
        redraw_coefficients_(model)
    return tuple(notes)


def _shares(text: str) -> dict[str, float]:
    """``0.5`` or ``LAYER=0.5,re:PATTERN=0.9`` as a table."""
    shares = {}
    for part in text.split(","):
        name, _, share = part.rpartition("=")
        try:
            shares[name.strip()] = float(share)
        except ValueError:
            raise ConfigError(f"initial_sparsity: {part!r} is not SHARE or LAYER=SHARE, such as 0.5") from None
    return shares


def check_fit(checkpoint: Checkpoint, dataset: Dataset, path: Path) -> None:
    """Raise ConfigError unless the data has the shape and the classes that the checkpoint was trained for."""
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


def say(text: str) -> None:
    """One line on stderr."""
    print(text, file=sys.stderr)
