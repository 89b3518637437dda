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

    from lcnn_core import Checkpoint


_TOP = {"top1": "top-1", "top5": "top-5"}


@dataclass(frozen=True)
class Subject:
    """One model to analyze."""

    name: str
    spec: ModelSpec
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """The options that its architecture was built with, where they are known."""
    make_module: Callable[[], nn.Module] | None = None
    """Gives the model with real weights, for a cross-check; None for a bare description."""
    source: Source | None = None
    accuracy: tuple[Accuracy, ...] = ()


def open_subject(model: Any, input_shape: Sequence[int] | None = None, name: str | None = None) -> Subject:
    """A Subject from an nn.Module, a Checkpoint, a ModelSpec, a path, or the name of an architecture.

    input_shape: without the batch; a module needs it, the others bring their own unless it is given.
    Raises ConfigError for anything else, and what reading the file raises.
    """
    if isinstance(model, ModelSpec):
        return Subject(name or model.architecture, model)
    if isinstance(model, Path) or (isinstance(model, str) and (Path(model).exists() or _looks_like_a_path(model))):
        return _from_file(Path(model), input_shape, name)
    if isinstance(model, str):
        return _from_architecture(model, input_shape, name)
    if isinstance(model, lcnn_core.Checkpoint):
        return _from_checkpoint(model, input_shape, name)
    if not callable(getattr(model, "named_modules", None)):
        raise ConfigError(
            f"cannot analyze a {type(model).__name__}; expected an nn.Module, a Checkpoint, a ModelSpec, "
            "a path or the name of an architecture"
        )
    if input_shape is None:
        raise ConfigError("a module does not say what it takes; give input_shape, for example (3, 224, 224)")
    spec = lcnn_core.describe(model, input_shape)
    return Subject(name or spec.architecture, spec, make_module=lambda: model)


def _looks_like_a_path(text: str) -> bool:
    return "/" in text or Path(text).suffix != ""


def _from_file(path: Path, input_shape: Sequence[int] | None, name: str | None) -> Subject:
    with ThreadPoolExecutor(1) as beside:
        # Hashing lets other threads run: it is done by the time that torch is imported.
        source = beside.submit(_source, path)
        return replace(_from_checkpoint(lcnn_core.load(path), input_shape, name or path.stem), source=source.result())


def _source(path: Path) -> Source:
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
            size += len(block)
    return Source(path.name, digest.hexdigest(), size)


def _from_checkpoint(
    checkpoint: Checkpoint, input_shape: Sequence[int] | None, name: str | None, source: Source | None = None
) -> Subject:
    module = checkpoint.build(shared=True)
    label = architecture_label(checkpoint.architecture, checkpoint.arguments)
    spec = lcnn_core.describe(module, input_shape or checkpoint.input_shape, architecture=label)
    known = [metric for metric in checkpoint.metrics if str(metric.get("name")) in _TOP]
    accuracy = tuple(_accuracy(metric) for metric in sorted(known, key=lambda metric: metric["name"]))
    return Subject(name or label, spec, checkpoint.arguments, lambda: module, source, accuracy)


def _from_architecture(architecture: str, input_shape: Sequence[int] | None, name: str | None) -> Subject:
    _, arguments = lcnn_core.models.resolve(architecture)
    module = _build_without_weights(architecture)
    spec = lcnn_core.describe(
        module, input_shape or lcnn_core.models.input_shape_of(architecture), architecture=architecture
    )
    return Subject(name or architecture, spec, arguments, lambda: lcnn_core.models.build(architecture))


def _build_without_weights(architecture: str, **options: Any) -> nn.Module:
    return lcnn_core.build_named(architecture, **options).model


def architecture_label(architecture: str, arguments: Mapping[str, Any]) -> str:
    """resnet-lcnn with depth 18 -> resnet18-lcnn; names without a short form stay."""
    for alias, (canonical, fixed) in lcnn_core.models.ALIASES.items():
        if canonical == architecture and fixed.items() <= dict(arguments).items():
            return alias
    return architecture


def default_reference(subject: Subject) -> str | None:
    """The dense architecture of the same family: alexnet for alexnet-lcnn; None for an unknown architecture."""
    name = subject.spec.architecture.removesuffix("-lcnn")
    return name if name in lcnn_core.models.MODELS or name in lcnn_core.models.ALIASES else None


def reference_spec(name: str, subject: Subject) -> ModelSpec:
    """The architecture ``name`` for the same image and classes as ``subject``, without allocating its weights."""
    builder, _ = lcnn_core.models.resolve(name)
    _, pinned = lcnn_core.models.ALIASES.get(name, (name, {}))
    family = name == default_reference(subject)
    wanted = {**subject.arguments, "in_channels": subject.spec.input_shape[0]}
    options = {
        key: value
        for key, value in wanted.items()
        if key in builder.defaults and key not in pinned and (family or key in ("num_classes", "in_channels"))
    }
    module = _build_without_weights(name, **options)
    try:
        return lcnn_core.describe(module, subject.spec.input_shape, architecture=name)
    except ShapeError as error:
        raise ConfigError(f"reference {name!r} does not fit {subject.name}, choose another: {error}") from None


def is_imagenet(subject: Subject) -> bool:
    """Whether the published ImageNet points may be shown beside it: by its data, else by its input and classes."""
    if subject.accuracy:
        return any(accuracy.dataset.lower().startswith("imagenet") for accuracy in subject.accuracy)
    shape = subject.spec.input_shape
    weighted = [layer for layer in subject.spec.layers if layer.weight_size]
    return len(shape) == 3 and shape[0] == 3 and shape[1] >= 160 and math.prod(weighted[-1].output_shape) == 1000


def _accuracy(metric: Mapping[str, Any]) -> Accuracy:
    """A checkpoint's metric, a share between 0 and 1, as an accuracy in percent."""
    value = metric.get("value")
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise CheckpointError(f"the metric {metric['name']!r} has the value {value!r}; expected a share from 0 to 1")
    details = {key: str(value) for key, value in metric.items() if key not in ("name", "value", "dataset")}
    return Accuracy(_TOP[metric["name"]], 100 * float(value), str(metric.get("dataset", "unknown")), details)
