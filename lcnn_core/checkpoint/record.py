"""``Checkpoint``: everything that a trained model is, as plain data and tensors."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lcnn_core.checkpoint.restore import assemble, check_fit, load_weights, skeleton
from lcnn_core.errors import CheckpointError, ConfigError
from lcnn_core.layers import LookupLayer
from lcnn_core.models import resolve
from lcnn_core.spec import LookupConfig

FORMAT_VERSION = 1
MAX_PLAIN = 200_000
"""Values, of all levels, of each field of a checkpoint that is no tensor."""
CUSTOM = "custom"
"""The architecture of a model that is not in ``MODELS``: it can be saved, and loaded into the user's own module."""


@dataclass(frozen=True)
class Normalization:
    """Mean and standard deviation of each channel, of pixels in [0, 1]: x -> (x - mean) / std."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", tuple(float(value) for value in self.mean))
        object.__setattr__(self, "std", tuple(float(value) for value in self.std))
        if len(self.mean) != len(self.std):
            raise ConfigError(f"mean {self.mean} and std {self.std} differ in length; expected one number a channel")
        if not all(map(math.isfinite, self.mean)) or not all(value > 0 and math.isfinite(value) for value in self.std):
            raise ConfigError(f"mean is {self.mean} and std {self.std}; expected finite numbers, std above 0")


class Fresh(dict[str, Tensor]):
    """Tensors that nobody else holds, as those just read from a file: a checkpoint takes them without a copy."""


@dataclass(frozen=True)
class Checkpoint:
    """One model, whole: what to build, its weights, what they were trained on and what they reach.

    All fields but the weights are plain data (text, numbers, lists, dicts with text keys), and become so when the
    checkpoint is made. The weights are a snapshot: contiguous copies on the CPU that no later training changes. Their
    values are not judged, so NaN is kept and given back. Raises ConfigError for what is not plain.
    """

    architecture: str
    """A name in ``MODELS``, or "custom"."""
    arguments: Mapping[str, Any]
    """All options of the architecture."""
    lookups: Mapping[str, LookupConfig]
    """Resolved configuration of every lookup layer, by module path; every other layer is dense."""
    input_shape: tuple[int, ...]
    """Without the batch: (channels, *spatial)."""
    state_dict: Mapping[str, Tensor] = field(repr=False, compare=False)
    normalization: Normalization | None = None
    class_names: tuple[str, ...] = ()
    metrics: tuple[Mapping[str, Any], ...] = ()
    """One dict per figure: name, value, dataset and whatever else says how it was measured."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """How it came about: command, seed, versions, ..."""
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        shape = tuple(self.input_shape)
        if not shape or any(isinstance(size, bool) or not isinstance(size, int) or size < 1 for size in shape):
            raise ConfigError(f"input_shape is {shape}; expected whole numbers of 1 or more: (channels, height, width)")
        copied = not isinstance(self.state_dict, Fresh)
        own = {
            "input_shape": shape,
            "arguments": plain(dict(self.arguments), "arguments"),
            "lookups": dict(self.lookups),
            "class_names": tuple(plain(list(self.class_names), "class_names")),
            "metrics": tuple(plain([dict(metric) for metric in self.metrics], "metrics")),
            "provenance": plain(dict(self.provenance), "provenance"),
            "state_dict": {name: _own(name, tensor, copied) for name, tensor in self.state_dict.items()},
        }
        for name, value in own.items():
            object.__setattr__(self, name, value)

    @classmethod
    def from_model(
        cls,
        model: nn.Module,
        *,
        architecture: str = CUSTOM,
        arguments: Mapping[str, Any] | None = None,
        input_shape: Sequence[int] | None = None,
        normalization: Normalization | None = None,
        class_names: Sequence[str] = (),
        metrics: Sequence[Mapping[str, Any]] = (),
        provenance: Mapping[str, Any] | None = None,
    ) -> Checkpoint:
        """A snapshot of ``model``; in it, entries of P that count as zero are zero. The model is not changed.

        architecture, arguments: what ``build`` was called with; the defaults are filled in, so that a later change of
        a default does not change the checkpoint. input_shape: by default the architecture's own; a custom model needs
        it. Raises ConfigError for an unknown architecture or option, for a model that is not what they build, and for
        what is not plain data.
        """
        complete: dict[str, Any] = dict(arguments or {})
        if architecture != CUSTOM:
            builder, complete = resolve(architecture, **complete)
            architecture = builder.name
            input_shape = builder.shape(complete) if input_shape is None else input_shape
        if input_shape is None:
            raise ConfigError("input_shape is missing; a custom model needs it, for example (3, 224, 224)")
        tensors = dict(model.state_dict())
        lookups = {}
        for name, module in model.named_modules(remove_duplicate=False):
            if isinstance(module, LookupLayer):
                lookups[name] = module.config
                tensors[f"{name}.coefficients" if name else "coefficients"] = module.effective_coefficients()
        if architecture != CUSTOM:
            _check_builds(architecture, complete, lookups, tensors)
        return cls(
            architecture=architecture,
            arguments=complete,
            lookups=lookups,
            input_shape=tuple(input_shape),
            state_dict=tensors,
            normalization=normalization,
            class_names=tuple(class_names),
            metrics=tuple(metrics),
            provenance=provenance or {},
        )

    def build(self, *, shared: bool = False) -> nn.Module:
        """The model, weights in, in evaluation mode, on the CPU; the random number generators are left alone.

        shared: the model holds the checkpoint's own tensors, not copies, for use without changing either.
        Raises CheckpointError for a custom or unknown architecture, and for weights that do not fit it.
        """
        if self.architecture == CUSTOM:
            raise CheckpointError(
                "the checkpoint holds a custom model, which cannot be built from its name; "
                "make the model and call load_into(model, checkpoint)"
            )
        weights = self.state_dict if shared else {name: tensor.clone() for name, tensor in self.state_dict.items()}
        return assemble(self.architecture, self.arguments, self.lookups, weights).eval()


def load_into(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Put the checkpoint's lookup layers and weights into the user's ``model``, in place.

    Dense layers that the checkpoint holds as lookup layers become so. Device, dtype and training flag of the model
    stay. Raises CheckpointError, and changes nothing, when layers or weights do not fit.
    """
    load_weights(model, checkpoint.lookups, checkpoint.state_dict)


def _check_builds(
    architecture: str, arguments: Mapping[str, Any], lookups: Mapping[str, LookupConfig], tensors: Mapping[str, Tensor]
) -> None:
    """Refuse to make what could not be loaded: another network, or one wrapped by torch.compile or for many GPUs."""
    try:
        check_fit(skeleton(architecture, arguments, lookups), tensors, architecture)
    except (ConfigError, CheckpointError) as error:
        raise ConfigError(f"the model is not the {architecture} that it is saved as: {error}") from error


def plain(value: Any, where: str, room: Iterator[int] | None = None) -> Any:
    """``value`` as text, finite numbers, booleans, None, lists and dicts with text keys; else ConfigError.

    room: what is left of ``MAX_PLAIN``; a list that holds another twice over and over is short in a file only.
    """
    room = iter(range(MAX_PLAIN)) if room is None else room
    if next(room, None) is None:
        raise ConfigError(f"{where.partition('[')[0]} holds over {MAX_PLAIN} values; expected a few that describe it")
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise ConfigError(f"{where} has the key {key!r}; expected text")
        return {str(key): plain(item, f"{where}[{key!r}]", room) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, f"{where}[{index}]", room) for index, item in enumerate(value)]
    if value is None or isinstance(value, bool):
        return value
    for kind in (str, int, float):
        if isinstance(value, kind) and value == value and value not in (math.inf, -math.inf):
            return kind(value)
    raise ConfigError(
        f"{where} is {value!r} ({type(value).__name__}); expected text, a finite number, a list, a dict or None"
    )


def _own(name: str, tensor: Any, copied: bool) -> Tensor:
    if not isinstance(tensor, Tensor) or tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized:
        raise ConfigError(f"state_dict[{name!r}] is {_kind(tensor)}; expected an ordinary tensor with values")
    return tensor.detach().to("cpu", copy=copied).contiguous()


def _kind(value: Any) -> str:
    return f"a {value.layout} tensor on {value.device}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
