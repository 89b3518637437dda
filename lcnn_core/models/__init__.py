"""Architectures, one file per family. ``MODELS`` lists them; ``build`` makes one by name.

An architecture whose name ends in ``-lcnn`` is the network with lookup layers; ``preset="dense"`` makes its dense
twin, and :func:`dense_twin` does so for any name.
"""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any

from torch import nn

from lcnn_core.errors import ConfigError
from lcnn_core.models.alexnet import alexnet, alexnet_lcnn, small_alexnet
from lcnn_core.models.registry import ModelBuilder, lookup_options, square
from lcnn_core.models.resnet import BASIC_BLOCKS, BOTTLENECK_BLOCKS, resnet, resnet_input_shape, small_resnet

_ALEXNET = {"num_classes": 1000, "in_channels": 3, "dropout": 0.5}
_RESNET = {"depth": 18, "shortcut": "B", "num_classes": 1000, "in_channels": 3, "stem": "imagenet"}
_SMALL_RESNET = {
    "widths": (16, 32, 64),
    "blocks": (1, 1, 2),
    "shortcut": "B",
    "num_classes": 10,
    "in_channels": 1,
}
_SMALL_ALEXNET = {"widths": (24, 48, 96, 64, 64, 256), "num_classes": 10, "in_channels": 1, "dropout": 0.5}

_BUILDERS = (
    ModelBuilder("alexnet", "AlexNet, the dense reference of the published speedups", alexnet, _ALEXNET, square(224)),
    ModelBuilder(
        "alexnet-lcnn",
        "the published lookup AlexNet, narrower and with batch norm",
        alexnet_lcnn,
        _ALEXNET | lookup_options(),
        square(224),
    ),
    ModelBuilder("resnet", "ResNet of depth 8 to 152", resnet, _RESNET, resnet_input_shape),
    ModelBuilder(
        "resnet-lcnn",
        "ResNet with lookup layers, shortcuts dense",
        resnet,
        _RESNET | lookup_options("fc"),
        resnet_input_shape,
    ),
    ModelBuilder("small-resnet", "ResNet for 28x28 images, 13.0 M MACs", small_resnet, _SMALL_RESNET, square(28)),
    ModelBuilder(
        "small-resnet-lcnn",
        "small-resnet with lookup layers",
        small_resnet,
        _SMALL_RESNET | lookup_options("fc"),
        square(28),
    ),
    ModelBuilder("digits-resnet", "ResNet for 8x8 images, 1.06 M MACs", small_resnet, _SMALL_RESNET, square(8)),
    ModelBuilder(
        "digits-resnet-lcnn",
        "digits-resnet with lookup layers",
        small_resnet,
        _SMALL_RESNET | lookup_options("fc"),
        square(8),
    ),
    ModelBuilder("small-alexnet", "AlexNet for 28x28 images, 10 M MACs", small_alexnet, _SMALL_ALEXNET, square(28)),
    ModelBuilder(
        "small-alexnet-lcnn",
        "small-alexnet with lookup layers",
        small_alexnet,
        _SMALL_ALEXNET | lookup_options(),
        square(28),
    ),
)

MODELS: dict[str, ModelBuilder] = {builder.name: builder for builder in _BUILDERS}
"""Every architecture by name."""

ALIASES: dict[str, tuple[str, dict[str, Any]]] = {
    f"resnet{depth}{suffix}": (f"resnet{suffix}", {"depth": depth})
    for depth in (*BASIC_BLOCKS, *BOTTLENECK_BLOCKS)
    for suffix in ("", "-lcnn")
}
"""Short names: the architecture and the options that each stands for."""


def resolve(name: str, /, **arguments: Any) -> tuple[ModelBuilder, dict[str, Any]]:
    """The builder and the complete options that ``build(name, **arguments)`` would use.

    Raises ConfigError for an unknown name or option.
    """
    canonical, fixed = ALIASES.get(name, (name, {}))
    if canonical not in MODELS:
        known = [*MODELS, *ALIASES]
        close = get_close_matches(name, known, n=3)
        hint = f"did you mean {' or '.join(close)}?" if close else f"expected one of {', '.join(known)}"
        raise ConfigError(f"unknown architecture {name!r}; {hint}")
    builder = MODELS[canonical]
    options = {key: value for key, value in builder.defaults.items() if key not in fixed}
    for option in arguments:
        if option not in options:
            raise ConfigError(f"{name} has no option {option!r}; its options are {', '.join(options)}")
    return builder, {**builder.defaults, **fixed, **arguments}


def build(name: str, /, **arguments: Any) -> nn.Module:
    """Make the architecture ``name``, freshly initialised, in training mode.

    Options and their defaults: ``MODELS[name].defaults``. Raises ConfigError for an unknown name, an unknown option
    or a value that an option does not take.
    """
    builder, options = resolve(name, **arguments)
    return builder.make(**options)


def dense_twin(name: str, /, **arguments: Any) -> nn.Module:
    """The same network with every layer dense: what ``build(name, **arguments)`` is compared with."""
    builder, options = resolve(name, **arguments)
    if builder.has_lookups:
        options |= {key: value for key, value in lookup_options().items() if key in options} | {"preset": "dense"}
    return builder.make(**options)


def input_shape_of(name: str, /, **arguments: Any) -> tuple[int, ...]:
    """The input shape, without the batch, that the architecture is made for: (channels, height, width)."""
    builder, options = resolve(name, **arguments)
    return builder.shape(options)


__all__ = ["ALIASES", "MODELS", "ModelBuilder", "build", "dense_twin", "input_shape_of", "resolve"]
