"""Architectures by name, without weights: ours, torchvision's and timm's, built on the meta device.

``SOURCES`` lists where names come from. A plain name is looked for in that order; ``torchvision:resnet50`` and
``timm:resnet50`` say which.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from lcnn_core.checkpoint.torchvision_shim import import_torchvision
from lcnn_core.errors import ConfigError
from lcnn_core.meta import NothingToFill
from lcnn_core.models import ALIASES, MODELS, build, input_shape_of


@dataclass(frozen=True)
class Source:
    """Where architectures come from; ``names`` and ``make`` raise ConfigError where its package is not installed."""

    names: Callable[[], Sequence[str]]
    make: Callable[..., nn.Module]
    shape: Callable[..., tuple[int, ...]]
    """(name, model, arguments) -> the input shape that the architecture is made for, without the batch."""
    channels: str | None
    """The option that sets the image's channels."""


@dataclass(frozen=True, eq=False)
class Named:
    """An architecture found by its name."""

    architecture: str
    """The plain name for ours, else source:name."""
    model: nn.Module
    """In evaluation mode, on the meta device unless asked for otherwise."""
    input_shape: tuple[int, ...]


def build_named(architecture: str, *, to: str = "meta", **arguments: Any) -> Named:
    """The architecture ``name`` or ``source:name``, without memory for its weights.

    arguments: options of the architecture, such as num_classes. to="hollow" keeps what the constructor computes (tables
    and buffers) on the CPU, only weights are on the meta device then; to="cpu" makes and draws everything. Raises
    ConfigError for an unknown name, a package that is not installed, and options that the architecture does not take.
    """
    source, name = find(architecture)
    try:
        with nullcontext() if to == "cpu" else _WeightsOnMeta(), NothingToFill():
            model = SOURCES[source].make(name, **arguments)
    except (TypeError, ValueError, RuntimeError, AssertionError, KeyError) as error:
        if isinstance(error, ConfigError):
            raise
        shown = ", ".join(f"{key}={value!r}" for key, value in arguments.items()) or "no options"
        raise ConfigError(f"{architecture} cannot be built with {shown}: {error}; check its options") from error
    model.eval()
    full = name if source == "lcnn" else f"{source}:{name}"
    return Named(full, model.to("meta") if to == "meta" else model, SOURCES[source].shape(name, model, arguments))


def find(architecture: str) -> tuple[str, str]:
    """(source, name) of an architecture. Raises ConfigError, with the nearest names, when no source has it."""
    prefix, colon, name = architecture.partition(":")
    if colon and prefix not in SOURCES:
        raise ConfigError(f"unknown source {prefix!r} in {architecture!r}; expected one of {', '.join(SOURCES)}")
    wanted = (prefix,) if colon else tuple(SOURCES)
    name = name if colon else architecture
    known: list[str] = []
    missing: list[str] = []
    for source in wanted:
        try:
            names = SOURCES[source].names()
        except ConfigError as error:
            missing.append(str(error))
            continue
        if name in names:
            return source, name
        known += names
    close = get_close_matches(name, dict.fromkeys(known), n=3)
    hint = [f"did you mean {' or '.join(close)}?"] if close else []
    hint = hint or ([f"expected a name such as {', '.join(known[:3])}"] if known else [])
    raise ConfigError("; ".join([f"unknown architecture {architecture!r}", *hint, *missing]))


def is_architecture(name: str) -> bool:
    """Whether some source has an architecture of that name. Paths are none, and nothing is searched for them."""
    if not name.strip(".") or "/" in name or os.sep in name:
        return False
    try:
        find(name)
    except ConfigError:
        return False
    return True


def channels_option(architecture: str) -> str | None:
    """What the option for the image's channels is called, None where there is none."""
    return SOURCES[find(architecture)[0]].channels


class _WeightsOnMeta(TorchFunctionMode):
    """Tensors that weights are made of take no memory; small computations of a constructor stay real.

    ``torch.device("meta")`` moves everything, and constructors that compute widths with tensors (RegNet, Swin) fail.
    """

    _MAKERS = frozenset((torch.empty, torch.zeros, torch.ones, torch.full, torch.randn, torch.rand))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in self._MAKERS and kwargs.get("device") is None:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


def _torchvision_names() -> Sequence[str]:
    models = import_torchvision().models
    return tuple(models.list_models(module=models))


def _torchvision_make(name: str, **arguments: Any) -> nn.Module:
    if name in ("googlenet", "inception_v3"):
        arguments = {"init_weights": False, **arguments}  # their default draws with SciPy, for minutes
    return import_torchvision().models.get_model(name, weights=None, **arguments)


def _torchvision_shape(name: str, model: nn.Module, arguments: Any) -> tuple[int, ...]:
    """The size that torchvision publishes figures for, unless the model itself fixes one (ViT)."""
    transforms = import_torchvision().models.get_model_weights(name).DEFAULT.transforms.keywords
    crop = transforms["crop_size"]
    size = int(getattr(model, "image_size", crop[0] if isinstance(crop, Sequence) else crop))  # type: ignore[arg-type]
    return (3, size, size)


def _timm() -> Any:
    import_torchvision()
    try:
        return importlib.import_module("timm")
    except (ImportError, RuntimeError) as error:
        raise ConfigError(f"timm is not there: {error}; install it with: pip install timm") from error


def _timm_make(name: str, **arguments: Any) -> nn.Module:
    return _timm().create_model(name, pretrained=False, **arguments)


def _timm_shape(name: str, model: Any, arguments: Any) -> tuple[int, ...]:
    _, *sides = model.pretrained_cfg.get("input_size", (3, 224, 224))
    return (int(arguments.get("in_chans", 3)), *map(int, sides))


SOURCES: dict[str, Source] = {
    "lcnn": Source(
        lambda: (*MODELS, *ALIASES),
        build,
        lambda name, model, arguments: input_shape_of(name, **arguments),
        "in_channels",
    ),
    "torchvision": Source(_torchvision_names, _torchvision_make, _torchvision_shape, None),
    "timm": Source(lambda: _timm().list_models(), _timm_make, _timm_shape, "in_chans"),
}
"""Where names are looked for, in this order."""
