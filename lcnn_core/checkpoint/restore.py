"""From names and tensors back to a module, checked before anything is changed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lcnn_core.errors import CheckpointError, ConfigError, first_line
from lcnn_core.layers.structure import set_lookup_layers_, swap
from lcnn_core.meta import NothingToFill
from lcnn_core.models import dense_twin
from lcnn_core.spec import LookupConfig


def skeleton(architecture: str, arguments: Mapping[str, Any], lookups: Mapping[str, LookupConfig]) -> nn.Module:
    """The architecture, all dense but for the lookup layers of the table, without weights (on the meta device).

    Raises ConfigError for an unknown architecture, option or layer.
    """
    with torch.device("meta"), NothingToFill():
        model = dense_twin(architecture, **arguments)
        set_lookup_layers_(model, lookups)
    return model


def assemble(
    architecture: str,
    arguments: Mapping[str, Any],
    lookups: Mapping[str, LookupConfig],
    weights: Mapping[str, Tensor],
) -> nn.Module:
    """The architecture with the lookup layers of the table and these very weights.

    No random number is drawn, and no weight is initialised only to be overwritten.
    """
    try:
        _check_blocks(arguments, len(weights))
        model = skeleton(architecture, arguments, lookups)
    except (ConfigError, RuntimeError, OverflowError, TypeError, ValueError) as error:
        raise CheckpointError(f"the checkpoint's architecture cannot be built: {first_line(error)}") from error
    check_fit(model, weights, architecture)
    model.load_state_dict(dict(weights), assign=True)
    return model


def _check_blocks(arguments: Mapping[str, Any], tensors: int) -> None:
    """Refuse more blocks than there are tensors before they are built: each has weights of its own."""
    blocks, widths = arguments.get("blocks"), arguments.get("widths")
    listed = blocks if isinstance(blocks, list | tuple) else [blocks] * (len(widths) if isinstance(widths, list) else 1)
    count = sum(number for number in listed if isinstance(number, int))
    if count > tensors:
        raise ConfigError(f"blocks are {count}, and there are {tensors} tensors; the file is damaged, save it again")


def load_weights(model: nn.Module, lookups: Mapping[str, LookupConfig], weights: Mapping[str, Tensor]) -> None:
    """Lookup layers of the table and the weights, into ``model``; on an error it is as it was."""
    try:
        replaced = set_lookup_layers_(model, lookups)
    except ConfigError as error:
        raise CheckpointError(f"the checkpoint's lookup layers do not fit the model: {error}") from error
    try:
        check_fit(model, weights, type(model).__name__)
    except CheckpointError:
        swap(model, {new: old for old, new in replaced.items()})
        raise
    model.load_state_dict(dict(weights))


def check_fit(model: nn.Module, weights: Mapping[str, Tensor], name: str) -> None:
    """Raise CheckpointError unless ``weights`` are exactly the model's, by name, shape and kind of number."""
    expected = model.state_dict()
    for key, tensor in expected.items():
        if key in weights and (wrong := _mismatch(key, weights[key], tensor)):
            raise CheckpointError(f"weights do not fit {name}: {wrong}")
    missing = [key for key in expected if key not in weights]
    unexpected = sorted((key for key in weights if key not in expected), key=str)
    if missing or unexpected:
        parts = [f"{_first(missing)} missing"] * bool(missing) + [f"{_first(unexpected)} unexpected"] * bool(unexpected)
        raise CheckpointError(f"weights do not fit {name}: {' and '.join(parts)}; expected exactly the model's names")


def _mismatch(key: str, tensor: Tensor, expected: Tensor) -> str | None:
    layer, _, weight = key.rpartition(".")
    if tensor.shape != expected.shape:
        found, wanted = tuple(tensor.shape), tuple(expected.shape)
        return f"layer {layer!r} expects a {weight} of shape {wanted}, the checkpoint holds {found}"
    if tensor.is_floating_point() != expected.is_floating_point():
        return f"layer {layer!r} expects a {weight} of {expected.dtype}, the checkpoint holds {tensor.dtype}"
    return None


def _first(names: list[str]) -> str:
    shown = ", ".join(map(repr, names[:3]))
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
