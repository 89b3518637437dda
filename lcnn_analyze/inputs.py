"""Whatever a user hands to the analyzer -> ``Subject``: a description, and the module itself where there is one."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lcnn_core
from lcnn_analyze.report import Accuracy, Source
from lcnn_core import CheckpointError, ConfigError, ModelSpec, ShapeError

if TYPE_CHECKING:
    from torch import nn

    from lcnn_core import Checkpoint, Opened, Plan, PlanStep


_TOP = {"top1": "top-1", "top5": "top-5"}


@dataclass(frozen=True)
class Subject:
    """One model to analyze."""

    name: str
    spec: ModelSpec
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """The options that its architecture was built with, where they are known."""
    make_module: Callable[[], nn.Module] | None = None
    """Gives the model with memory for its weights, to run it; None for a bare description."""
    source: Source | None = None
    accuracy: tuple[Accuracy, ...] = ()
    notes: tuple[str, ...] = ()
    """What the reader of the file wants said."""


def open_subject(
    model: Any, input_shape: Sequence[int] | None = None, name: str | None = None, architecture: str | None = None
) -> Subject:
    """A Subject from an nn.Module, a Checkpoint, a ModelSpec, a path, or the name of an architecture.

    input_shape: without the batch; a module needs it, the others bring their own unless it is given. architecture:
    the name of what a bare state dict holds. Raises ConfigError for anything else, and what reading the file raises.
    """
    if isinstance(model, ModelSpec):
        return Subject(name or model.architecture, model)
    if isinstance(model, str | Path):
        with ThreadPoolExecutor(1) as beside:
            # Reading and hashing let other threads run: it is done by the time that torch is imported.
            source = beside.submit(_source, Path(model))
            opened = lcnn_core.open_model(model, architecture, input_shape)
        return _opened(opened, name, source.result() if opened.path else None)
    if isinstance(model, lcnn_core.Checkpoint):
        return _from_checkpoint(model, model.build(), input_shape or model.input_shape, name)
    if not callable(getattr(model, "named_modules", None)):
        raise ConfigError(
            f"cannot analyze a {type(model).__name__}; expected an nn.Module, a Checkpoint, a ModelSpec, "
            "a path or the name of an architecture"
        )
    if input_shape is None:
        raise ConfigError("a module does not say what it takes; give input_shape, for example (3, 224, 224)")
    spec = lcnn_core.describe(model, input_shape)
    return Subject(name or spec.architecture, spec, make_module=lambda: model)


def _opened(opened: Opened, name: str | None, source: Source | None) -> Subject:
    """What ``open_model`` found, described, with the file that it was in."""
    label = name or (opened.path.stem if opened.path else None)
    if isinstance(opened.model, ModelSpec):
        subject = Subject(label or opened.architecture, opened.model)
    elif opened.input_shape is None:
        raise ConfigError(f"{opened.path} does not say what its model takes; give --input-shape, for example 3x224x224")
    elif opened.checkpoint is not None:
        subject = _from_checkpoint(opened.checkpoint, opened.model, opened.input_shape, label, opened.architecture)
    else:
        subject = _from_module(opened, label)
    return replace(subject, source=source, notes=opened.notes)


def _from_module(opened: Opened, name: str | None) -> Subject:
    module, architecture = opened.model, opened.architecture
    assert not isinstance(module, ModelSpec)
    assert opened.input_shape is not None
    spec = lcnn_core.describe(module, opened.input_shape, architecture=architecture)
    _, arguments = lcnn_core.models.resolve(architecture) if _is_ours(architecture) else (None, {})

    def make() -> nn.Module:
        return module if spec.weights_known else lcnn_core.build_named(architecture, to="cpu").model

    return Subject(name or architecture, spec, arguments, make)


def _source(path: Path) -> Source:
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
            size += len(block)
    return Source(path.name, digest.hexdigest(), size)


def _from_checkpoint(
    checkpoint: Checkpoint, module: nn.Module, input_shape: Sequence[int], name: str | None, built: str = ""
) -> Subject:
    label = architecture_label(built or checkpoint.architecture, checkpoint.arguments)
    spec = lcnn_core.describe(module, input_shape, architecture=label)
    known = [metric for metric in checkpoint.metrics if str(metric.get("name")) in _TOP]
    accuracy = tuple(_accuracy(metric) for metric in sorted(known, key=lambda metric: metric["name"]))
    return Subject(name or label, spec, checkpoint.arguments, lambda: module, None, accuracy)


def architecture_label(architecture: str, arguments: Mapping[str, Any]) -> str:
    """resnet-lcnn with depth 18 -> resnet18-lcnn; names without a short form stay."""
    for alias, (canonical, fixed) in lcnn_core.models.ALIASES.items():
        if canonical == architecture and fixed.items() <= dict(arguments).items():
            return alias
    return architecture


def plan_steps(subject: Subject) -> tuple[PlanStep, ...]:
    """The steps of the engine's plan for the model. Raises ConfigError where there can be none, with the reason."""
    if subject.make_module is None:
        raise ConfigError(f"{subject.name} is a description without a model; convention 'executed' needs a model")
    if not subject.spec.weights_known and any(layer.lookup for layer in subject.spec.layers):
        raise ConfigError(f"{subject.name} has no weights, and a plan depends on them; give a trained checkpoint")
    import torch

    compiled: Any = lcnn_core.compile(subject.make_module(), torch.zeros(1, *subject.spec.input_shape))
    plan: Plan = compiled.plan
    if plan.isa is None:
        raise ConfigError("convention 'executed' counts the engine's plan, and there is no native library here")
    return plan.steps


def default_reference(subject: Subject) -> str | None:
    """The dense architecture of the same family: alexnet for alexnet-lcnn; None for an unknown architecture."""
    name = subject.spec.architecture.removesuffix("-lcnn")
    return name if _is_ours(name) else None


def _is_ours(name: str) -> bool:
    return name in lcnn_core.models.MODELS or name in lcnn_core.models.ALIASES


def is_file(name: str) -> bool:
    """Whether a baseline is a path rather than the name of an architecture, which a folder may have too."""
    path = Path(name)
    return path.suffix in lcnn_core.INPUTS or (
        path.exists() and not (path.is_dir() and lcnn_core.is_architecture(name))
    )


def reference_spec(name: str, subject: Subject, options: Mapping[str, Any]) -> ModelSpec:
    """The architecture ``name``, with these options, for the image of ``subject``; no weights are allocated.

    Raises ConfigError for one that does not take that image.
    """
    dense = not any(layer.lookup for layer in subject.spec.layers)
    if dense and name == subject.spec.architecture and not _is_ours(name):
        return subject.spec  # whatever options its source gave it
    module = lcnn_core.build_named(name, **options).model
    try:
        return lcnn_core.describe(module, subject.spec.input_shape, architecture=name)
    except ShapeError as error:
        raise ConfigError(f"reference {name!r} does not fit {subject.name}, choose another: {error}") from None


_OF_IMAGES = ("num_classes", "in_channels", "stem")
"""Options of architectures that follow from the images."""


def reference_options(
    name: str, spec: ModelSpec, arguments: Mapping[str, Any], whole: bool = False
) -> Mapping[str, Any]:
    """The options of a named reference: the image and classes of the model that ``spec`` describes.

    arguments: the options that model was built with. whole: take over all of them that the reference has, as its
    dense counterpart does, and not only what follows from the images.
    """
    if not _is_ours(name):
        return {}
    builder, _ = lcnn_core.models.resolve(name)
    _, pinned = lcnn_core.models.ALIASES.get(name, (name, {}))
    weighted = [layer for layer in spec.layers if layer.weight_size]
    wanted = {**arguments, "in_channels": spec.input_shape[0]}
    if weighted:
        wanted["num_classes"] = weighted[-1].output_shape[0]
    return {
        key: value
        for key, value in wanted.items()
        if key in builder.defaults and key not in pinned and (whole or key in _OF_IMAGES)
    }


def chosen_reference(subject: Subject, asked: str | None) -> tuple[str, Mapping[str, Any]] | None:
    """The named reference of ``subject`` and its options: what was asked for, else the family's network of its size.

    None where nothing was asked for and there is no family.
    """
    name = asked or default_reference(subject)
    if name is None:
        return None
    return name, reference_options(name, subject.spec, subject.arguments, whole=asked is None)


def is_imagenet(subject: Subject) -> bool:
    """Whether the published ImageNet points may be shown beside it: by its data, else by its input and classes."""
    if subject.accuracy:
        return any(accuracy.dataset.lower().startswith("imagenet") for accuracy in subject.accuracy)
    shape = subject.spec.input_shape
    weighted = [layer for layer in subject.spec.layers if layer.weight_size]
    if not weighted or len(shape) != 3:
        return False
    return shape[0] == 3 and shape[1] >= 160 and math.prod(weighted[-1].output_shape) == 1000


def _accuracy(metric: Mapping[str, Any]) -> Accuracy:
    """A checkpoint's metric, a share between 0 and 1, as an accuracy in percent."""
    value = metric.get("value")
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise CheckpointError(f"the metric {metric['name']!r} has the value {value!r}; expected a share from 0 to 1")
    details = {key: str(value) for key, value in metric.items() if key not in ("name", "value", "dataset")}
    return Accuracy(_TOP[metric["name"]], 100 * float(value), str(metric.get("dataset", "unknown")), details)
