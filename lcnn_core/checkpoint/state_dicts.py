"""State dicts from anywhere: found inside training checkpoints, cleaned of prefixes and masks, put into their network.

The architecture is the one that the caller names, or the one whose every name and shape is the state dict's; where
several fit, the caller decides. Lookup layers are seen by their parameters, whatever the network.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lcnn_core.checkpoint.bounds import check_names, is_finite
from lcnn_core.checkpoint.restore import check_fit
from lcnn_core.checkpoint.torchvision_shim import import_torchvision
from lcnn_core.checkpoint.zoo import Named, build_named, channels_option
from lcnn_core.errors import CheckpointError, ConfigError
from lcnn_core.layers import LookupLayer
from lcnn_core.layers.structure import set_lookup_layers_
from lcnn_core.models import ALIASES, MODELS, resolve
from lcnn_core.models.options import LOOKUP_OPTIONS
from lcnn_core.spec import LookupConfig

NESTS = ("state_dict", "model_state_dict", "model", "net", "network", "module", "params", "weights", "generator")
"""Keys under which training scripts keep the weights, the likeliest first."""
AVERAGES = ("ema", "ema_state_dict", "model_ema", "state_dict_ema", "ema_model", "params_ema")
"""Keys of averaged weights: used where the plain ones are absent."""
PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.", "ema_model.", "backbone.")

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True, eq=False)
class Weights:
    """A state dict by the names of the bare network, and what was done to get there."""

    tensors: dict[str, Tensor]
    notes: tuple[str, ...]


def find_weights(value: Any, source: str) -> Weights:
    """The state dict in what ``load_plain`` returned; ``source`` names the file in messages.

    Raises CheckpointError where there is none, or where masks and weights do not fit each other.
    """
    notes: list[str] = []
    found = _find(value, notes, depth=4)
    if found is None:
        first = ", ".join(map(_shown, list(value)[:6])) or "nothing in it" if isinstance(value, dict) else ""
        keys = f"a dict with {first}" if first else _shown(value)
        raise CheckpointError(
            f"{source} holds {keys}; expected a state dict, bare or under one of {', '.join(NESTS + AVERAGES)}"
        )
    kept = {
        name: tensor
        for name, tensor in found.items()
        if isinstance(name, str) and isinstance(tensor, Tensor) and name not in ("n_averaged", "")
    }
    check_names(kept.values(), source)
    tensors = _masked(_without_prefixes(kept, notes), notes, source)
    strange = [name for name, tensor in tensors.items() if tensor.layout != torch.strided or tensor.is_quantized]
    if strange:
        raise CheckpointError(f"{source}: {strange[0]!r} is a sparse or quantized tensor; expected ordinary ones")
    odd = [name for name, tensor in tensors.items() if not is_finite(tensor)]
    if odd:
        notes.append(f"{len(odd)} tensors hold NaN or infinity, {odd[0]} first; they count as nonzero")
    # One precision: half precision is stored often and runs nowhere; the conversion keeps every nonzero.
    return Weights({name: t.float() if t.is_floating_point() else t for name, t in tensors.items()}, tuple(notes))


def _find(value: Any, notes: list[str], depth: int) -> Mapping[str, Any] | None:
    if not isinstance(value, Mapping) or not depth:
        return None
    names = [name for name, item in value.items() if isinstance(name, str) and isinstance(item, Tensor)]
    if names and 2 * len(names) >= len(value):
        return value
    for key in NESTS + AVERAGES:
        found = _find(value.get(key), notes, depth - 1)
        if found is not None:
            notes.append(f"weights under {key!r}")
            return found
    return None


def _without_prefixes(tensors: dict[str, Tensor], notes: list[str]) -> dict[str, Tensor]:
    """Wrappers' prefixes taken off, as long as every name has one and none is all prefix."""
    while tensors:
        prefix = next((p for p in PREFIXES if all(n.startswith(p) and n != p for n in tensors)), None)
        if prefix is None:
            break
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
        notes.append(f"prefix {prefix!r} taken off")
    return tensors


def _masked(tensors: dict[str, Tensor], notes: list[str], source: str) -> dict[str, Tensor]:
    """``weight_orig`` times ``weight_mask``, as ``torch.nn.utils.prune`` leaves them, as ``weight``."""
    pruned = [n.removesuffix("_orig") for n in tensors if n.endswith("_orig") and n[:-5] + "_mask" in tensors]
    for name in pruned:
        weight, mask = tensors[f"{name}_orig"], tensors[f"{name}_mask"]
        if weight.shape != mask.shape:
            raise CheckpointError(
                f"{source}: {name}_orig {tuple(weight.shape)} and {name}_mask {tuple(mask.shape)} must have equal shape"
            )
        tensors[name] = weight * mask.to(weight.dtype)
    if pruned:
        notes.append(f"{len(pruned)} weights are pruned by masks, {pruned[0]} first")
    return {n: t for n, t in tensors.items() if n.rpartition("_")[0] not in pruned or n in pruned}


def restore(weights: Weights, source: str, architecture: str | None = None, **arguments: Any) -> Named:
    """The network with these weights, in evaluation mode on the CPU; ``source`` names the file in messages.

    architecture: a name that ``build_named`` knows; None to recognise it by names and shapes. num_classes follows the
    weights unless given. Raises CheckpointError where nothing fits, or several do, ConfigError for a bad name.
    """
    lookups = lookup_table(weights.tensors, source)
    shapes = dense_shapes(weights.tensors, lookups)
    if architecture is None:
        architecture = recognise(shapes, source, bool(lookups))
    named, options = _adapted(architecture, shapes, "hollow", arguments)
    _load(named, weights.tensors, lookups, source)
    if any(tensor.is_meta for tensor in (*named.model.parameters(), *named.model.buffers())):
        named = build_named(architecture, to="cpu", **options)
        _load(named, weights.tensors, lookups, source)
    return named


def lookup_table(tensors: Mapping[str, Tensor], source: str) -> dict[str, LookupConfig]:
    """Path -> configuration of every lookup layer in a state dict, its threshold 0: what is stored is what counts.

    Raises CheckpointError where coefficients reach outside their dictionary.
    """
    table = {}
    for name, coefficients in tensors.items():
        path, _, last = name.rpartition(".")
        if last != "coefficients" or coefficients.ndim < 2:
            continue
        dictionary = tensors.get(f"{path}.dictionary" if path else "dictionary")
        rows = coefficients.shape[1]
        if dictionary is not None and (dictionary.ndim != 2 or not rows or dictionary.shape[0] % rows):
            raise CheckpointError(
                f"{source}: {name} {tuple(coefficients.shape)} looks up {rows} rows of a dictionary of shape "
                f"{tuple(dictionary.shape)}: an index outside the dictionary"
            )
        table[path] = LookupConfig(None if dictionary is None else rows, threshold=0.0, l1_weight=0.0)
    return table


def dense_shapes(tensors: Mapping[str, Tensor], lookups: Mapping[str, LookupConfig]) -> Shapes:
    """Name -> shape of the dense twin: D and P stand for one weight (n, m / groups, *kernel)."""
    shapes = {}
    for name, tensor in tensors.items():
        path, dot, last = name.rpartition(".")
        if path in lookups and last == "coefficients":
            filters, rows, *kernel = tensor.shape
            dictionary = tensors.get(f"{path}{dot}dictionary")
            shapes[f"{path}{dot}weight"] = (filters, rows if dictionary is None else dictionary.shape[1], *kernel)
        elif path not in lookups or last != "dictionary":
            shapes[name] = tuple(tensor.shape)
    return shapes


def recognise(shapes: Shapes, source: str, has_lookups: bool) -> str:
    """The architecture whose dense twin has exactly these names and shapes, but for image channels and classes.

    Ours first, then torchvision's where it is installed. Raises CheckpointError where none fits, or several that are
    made for different images.
    """
    for candidates in (_ours(has_lookups), _torchvision(shapes)):
        fits: dict[str, tuple[int, ...]] = {}
        for name in candidates:
            named, _ = _adapted(name, shapes, "meta", {})
            if _comparable(_shapes_of(named.model)) == _comparable(shapes):
                fits[name] = named.input_shape
        if len(set(fits.values())) > 1:
            raise CheckpointError(f"{source} fits {' and '.join(fits)}, for different images; name one with --arch")
        if fits:
            return next(iter(fits))
    first = next(iter(shapes), "nothing")
    raise CheckpointError(
        f"{source} holds {len(shapes)} tensors, {first[:100]!r} first, of no architecture known here; "
        "name it with --arch"
    )


def _comparable(shapes: Mapping[str, tuple[int, ...]]) -> Shapes:
    """Without the counters that older releases of torch did not store."""
    return {name: shape for name, shape in shapes.items() if not name.endswith("num_batches_tracked")}


def _shapes_of(model: nn.Module) -> Shapes:
    state = model.state_dict()
    return dense_shapes(state, lookup_table(state, "the model"))


def _adapted(
    architecture: str, shapes: Shapes, to: str, arguments: Mapping[str, Any]
) -> tuple[Named, Mapping[str, Any]]:
    """The architecture with the image channels and classes of these shapes, where ``arguments`` leave them open."""
    named = build_named(architecture, to=to, **arguments)
    own = _comparable(_shapes_of(named.model))
    if own.keys() != _comparable(shapes).keys():
        return named, arguments
    first, last = next(name for name, shape in own.items() if len(shape) > 1), list(own)[-1]
    options = dict(arguments)
    if len(shapes.get(first, ())) > 1 and shapes[first][1] != own[first][1] and (key := channels_option(architecture)):
        options.setdefault(key, shapes[first][1])
    if shapes.get(last) and own[last] and shapes[last][0] != own[last][0]:
        options.setdefault("num_classes", shapes[last][0])
    return (named if options == arguments else build_named(architecture, to=to, **options)), options


def _ours(has_lookups: bool) -> Iterator[str]:
    """Our architectures, each network and image once, those with or without lookups first."""
    seen = set()
    for name in sorted((*ALIASES, *MODELS), key=lambda name: name.endswith("-lcnn") != has_lookups):
        builder, options = resolve(name)
        plain = {key: value for key, value in options.items() if key not in LOOKUP_OPTIONS}
        key = (builder.make, builder.shape(options), repr(plain))
        if key not in seen:
            seen.add(key)
            yield name


def _torchvision(shapes: Shapes) -> Iterator[str]:
    """torchvision's architectures with as many parameters, by the number that it publishes for 1000 classes.

    Which layer is the classifier is not known from an unordered file, so that every layer with a bias is tried.
    """
    try:
        models = import_torchvision().models
    except ConfigError:
        return
    total = sum(math.prod(shape) for name, shape in shapes.items() if "running_" not in name)
    heads = {(shape[0], shape[1]) for shape in shapes.values() if len(shape) in (2, 4)}
    totals = {total, *(total + (1000 - classes) * (width + 1) for classes, width in heads)}
    for name in models.list_models(module=models):
        published = models.get_model_weights(name).DEFAULT.meta["num_params"]
        if any(abs(published - total) <= 0.005 * total for total in totals):
            yield f"torchvision:{name}"


def _load(named: Named, tensors: Mapping[str, Tensor], lookups: Mapping[str, LookupConfig], source: str) -> None:
    try:
        own = [path for path, module in named.model.named_modules() if isinstance(module, LookupLayer)]
        set_lookup_layers_(named.model, {**dict.fromkeys(own), **lookups})
    except ConfigError as error:
        raise CheckpointError(f"{source} has lookup layers that do not fit {named.architecture}: {error}") from error
    counters = [name for name in named.model.state_dict() if name.endswith("num_batches_tracked")]
    complete = {**{name: torch.tensor(0) for name in counters}, **tensors}
    check_fit(named.model, complete, f"{named.architecture} in {source}")
    named.model.load_state_dict(complete, assign=True)
    named.model.eval()


def _shown(value: Any) -> str:
    return repr(value)[:60] if isinstance(value, str | int | float) else f"a {type(value).__name__}"
