"""``open_model``: the one door for whatever a user points at: a checkpoint, a graph, or the name of an architecture.

``INPUTS`` lists what can be read, by suffix. Nothing is unpickled but by ``torch.load(weights_only=True)`` after the
file was vetted, and no failure falls back to anything less strict.
"""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from lcnn_core.checkpoint import onnx, pt2, tensors, torch7, torch7_layers
from lcnn_core.checkpoint.bounds import is_finite
from lcnn_core.checkpoint.document import FORMAT, from_document
from lcnn_core.checkpoint.pickles import load_plain
from lcnn_core.checkpoint.record import CUSTOM, Checkpoint, load_into
from lcnn_core.checkpoint.state_dicts import find_weights, restore
from lcnn_core.checkpoint.zoo import build_named, is_architecture
from lcnn_core.describe import describe
from lcnn_core.errors import CheckpointError
from lcnn_core.models import ALIASES
from lcnn_core.spec import ModelSpec

MAX_ACTIVATIONS = 4 << 30
"""Bytes that the values of one image may take at once in a network whose layers the file itself chose."""

LARGE_IMAGE = 1 << 20
"""Values of an image from which on that is looked at for our checkpoints too."""


@dataclass(frozen=True, eq=False)
class Opened:
    """A model as it was found: ready to run or, from a graph format, already described."""

    model: nn.Module | ModelSpec
    """A module shares its weights with ``checkpoint``, where there is one."""
    architecture: str
    """A name that ``build_named`` knows, or that of the graph or file."""
    input_shape: tuple[int, ...] | None
    """Without the batch; None where neither the file nor the caller says it."""
    path: Path | None = None
    """None for an architecture without weights."""
    checkpoint: Checkpoint | None = None
    """Where the file is one of ours: training data, metrics and provenance with it."""
    notes: tuple[str, ...] = ()
    """What the user should know: where the weights were found, masks, NaN or infinity, unknown thresholds."""


@dataclass(frozen=True)
class Request:
    """What the caller says beside the file."""

    path: Path
    architecture: str | None = None
    input_shape: tuple[int, ...] | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)


def open_model(
    target: str | os.PathLike[str],
    architecture: str | None = None,
    input_shape: Sequence[int] | None = None,
    **arguments: Any,
) -> Opened:
    """Open the file ``target``, by its suffix, or the architecture of that name, without weights, on the meta device.

    architecture, arguments: the network of a bare state dict and its options; not needed where the file says it or
    names and shapes leave no doubt. input_shape: without the batch. Raises CheckpointError for a file that cannot be
    read or does not fit, ConfigError for a name, a shape or an option that cannot be.
    """
    shape = None if input_shape is None else tuple(input_shape)
    path = Path(target)
    if path.is_dir():
        if not (isinstance(target, str) and is_architecture(target)):  # a run's folder may be called like its network
            raise CheckpointError(
                f"{path} is a folder; expected a file of {_suffixes()}, or the name of an architecture"
            )
    elif path.suffix in INPUTS:
        if not path.exists():
            raise CheckpointError(f"{path} does not exist; check the path")
        return INPUTS[path.suffix](Request(path, architecture, shape, arguments))
    elif path.exists():
        raise CheckpointError(f"{path} has the suffix {path.suffix!r}; expected one of {_suffixes()}")
    named = build_named(str(target), **arguments)
    return Opened(named.model, named.architecture, shape or named.input_shape)


def _torch(request: Request) -> Opened:
    """Our checkpoint, or a state dict that ``torch.save`` wrote, bare or nested."""
    document = load_plain(request.path, mapped=True)
    if isinstance(document, dict) and document.get("format") == FORMAT and isinstance(document.get("state_dict"), dict):
        return _checkpoint(request, document, document["state_dict"])
    return _state_dict(request, document)


def _safetensors(request: Request) -> Opened:
    """Our checkpoint, or a bare state dict."""
    document, weights = tensors.read_any(request.path)
    return _state_dict(request, weights) if document is None else _checkpoint(request, document, weights)


def _checkpoint(request: Request, document: Any, weights: Any) -> Opened:
    checkpoint = from_document(document, weights, str(request.path))
    shape = request.input_shape or checkpoint.input_shape
    name = checkpoint.architecture
    if name != CUSTOM:
        _check_named(request, name, checkpoint.arguments)
        model = checkpoint.build(shared=True)
    elif request.architecture is None:
        raise CheckpointError(f"{request.path} holds a custom model; name its architecture with --arch")
    else:
        name = request.architecture
        model = build_named(name, to="cpu", **request.arguments).model
        load_into(model, checkpoint)
    if math.prod(shape) > LARGE_IMAGE:
        _check_activations(request.path, model, shape)
    return Opened(model, name, shape, request.path, checkpoint, _odd(model))


def _check_named(request: Request, name: str, arguments: Mapping[str, Any]) -> None:
    """Raise CheckpointError where the caller names another architecture than the file does."""
    asked = request.architecture and request.architecture.removeprefix("lcnn:")
    canonical, pinned = ALIASES.get(asked or "", (asked, {}))
    if asked is not None and (canonical != name or not pinned.items() <= dict(arguments).items()):
        raise CheckpointError(f"{request.path} holds a {name}, not a {asked}; leave the architecture out")


def _state_dict(request: Request, value: Any) -> Opened:
    source = str(request.path)
    weights = find_weights(value, source)
    named = restore(weights, source, request.architecture, **request.arguments)
    notes = weights.notes
    if any(name.rpartition(".")[2] == "coefficients" for name in weights.tensors):
        notes += ("a bare state dict holds no thresholds: every nonzero coefficient counts",)
    return Opened(named.model, named.architecture, request.input_shape or named.input_shape, request.path, None, notes)


def _onnx(request: Request) -> Opened:
    """The graph, described; needs the onnx extra."""
    return _described(request, *onnx.read_spec(request.path, request.input_shape))


def _pt2(request: Request) -> Opened:
    """The graph that ``torch.export.save`` wrote, described from its JSON and raw tensors."""
    return _described(request, *pt2.read_spec(request.path, request.input_shape))


def _described(request: Request, spec: ModelSpec, odd: tuple[str, ...]) -> Opened:
    return Opened(spec, spec.architecture, spec.input_shape, request.path, None, _odd_note(odd))


def _torch7(request: Request) -> Opened:
    """A Torch7 network, its layers mapped to ours."""
    model = torch7_layers.to_module(torch7.read(request.path), str(request.path))
    if request.input_shape is not None:
        _check_activations(request.path, model, request.input_shape)
    return Opened(model, request.path.stem, request.input_shape, request.path, None, _odd(model))


def _check_activations(path: Path, model: nn.Module, shape: tuple[int, ...]) -> None:
    """Refuse, before anything is computed, a network of the file's own making whose values would fill the memory."""
    spec = describe(copy.deepcopy(model).to("meta"), shape)
    if (spec.activation_bytes or 0) > MAX_ACTIVATIONS:
        raise CheckpointError(
            f"{path} would take {spec.activation_bytes} bytes for the values of one image of shape {shape}; "
            f"expected at most {MAX_ACTIVATIONS}; give a smaller input shape"
        )


def _odd(model: nn.Module) -> tuple[str, ...]:
    return _odd_note(tuple(name for name, tensor in model.state_dict().items() if not is_finite(tensor)))


def _odd_note(names: Sequence[str]) -> tuple[str, ...]:
    return (f"{len(names)} tensors hold NaN or infinity, {names[0]} first; they count as nonzero",) if names else ()


INPUTS: dict[str, Callable[[Request], Opened]] = {
    **dict.fromkeys((".pt", ".pth", ".ckpt", ".bin", ".tar"), _torch),
    ".safetensors": _safetensors,
    ".onnx": _onnx,
    ".pt2": _pt2,
    ".t7": _torch7,
}
"""How a file is opened, by its suffix. (``model.pth.tar`` is a usual name for what ``torch.save`` wrote.)"""


def _suffixes() -> str:
    return ", ".join(INPUTS)
