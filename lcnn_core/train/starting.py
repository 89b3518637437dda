"""What is done to a network before it is trained: weights by name, zeros to begin with, fresh values for P."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from lcnn_core import checkpoint
from lcnn_core.checkpoint.pickles import load_plain
from lcnn_core.checkpoint.state_dicts import find_weights
from lcnn_core.errors import CheckpointError, ConfigError
from lcnn_core.layers import LookupLayer


@dataclass(frozen=True)
class Matched:
    """What became of the tensors of a file that was loaded by name."""

    loaded: tuple[str, ...]
    reshaped: tuple[str, ...]
    """Of the same name and another shape: left as they were."""
    absent: tuple[str, ...]
    """The model's that the file does not have: left as they were."""
    unused: tuple[str, ...]
    """The file's that the model does not have."""

    def __str__(self) -> str:
        parts = [f"{len(self.loaded)} of {len(self.loaded + self.reshaped + self.absent)} tensors loaded by name"]
        for what, names in (
            ("of another shape", self.reshaped),
            ("not in the file", self.absent),
            ("not in the model", self.unused),
        ):
            if names:
                shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
                parts.append(f"{len(names)} {what} ({shown})")
        return "; ".join(parts)


def load_matching_(model: nn.Module, path: str | os.PathLike[str]) -> Matched:
    """Put the tensors of the file ``path`` that have a name and shape of ``model``'s into it, in place.

    The file is a checkpoint of this project or any state dict that ``torch.save`` wrote; nothing in it is executed.
    Raises CheckpointError for a file that cannot be read and for one of which nothing fits.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        tensors: Mapping[str, Tensor] = checkpoint.load(path).state_dict
    elif path.is_file():
        tensors = find_weights(load_plain(path), str(path)).tensors
    else:
        raise CheckpointError(f"{path} does not exist; expected a file with weights")
    own = model.state_dict()
    fits = {name: tensors[name] for name in own if name in tensors and tensors[name].shape == own[name].shape}
    reshaped = tuple(name for name in own if name in tensors and name not in fits)
    absent = tuple(name for name in own if name not in tensors)
    if not fits:
        raise CheckpointError(
            f"nothing in {path} fits: it has {', '.join(list(tensors)[:3])}, the model {', '.join(list(own)[:3])}"
        )
    model.load_state_dict(fits, strict=False)
    return Matched(tuple(fits), reshaped, absent, tuple(name for name in tensors if name not in own))


def lookup_layers(model: nn.Module) -> Iterator[tuple[str, LookupLayer]]:
    """Every lookup layer by name. Raises ConfigError where there is none."""
    found = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, LookupLayer)]
    if not found:
        raise ConfigError(f"{type(model).__name__} has no lookup layer; choose a network whose name ends in -lcnn")
    return iter(found)


@torch.no_grad()
def sparsify_(model: nn.Module, shares: Mapping[str, float]) -> None:
    """Let each lookup layer start with this share of zeros in P: its entries of smallest magnitude, in place.

    shares: by exact name, by "re:pattern" that matches the whole name, or "" for all others; the first that fits.
    Raises ConfigError for a share outside 0 to 1 and for a name that fits no lookup layer.
    """
    layers = dict(lookup_layers(model))
    for name, share in shares.items():
        if not 0 <= share < 1:
            raise ConfigError(f"initial sparsity is {share}; expected a share of zeros from 0 to below 1")
        if not any(_fits(name, layer) for layer in layers):
            raise ConfigError(f"initial sparsity: no lookup layer is called {name!r}; there are {', '.join(layers)}")
    ordered = sorted(shares, key=lambda name: name == "")
    for layer_name, layer in layers.items():
        wanted = next((shares[name] for name in ordered if _fits(name, layer_name)), 0.0)
        flat = layer.coefficients.view(-1)
        flat[flat.abs().argsort(stable=True)[: round(wanted * len(flat))]] = 0


def _fits(pattern: str, name: str) -> bool:
    if pattern.startswith("re:"):
        try:
            return re.fullmatch(pattern[3:], name) is not None
        except re.error as error:
            raise ConfigError(f"initial sparsity: {pattern!r} is no regular expression: {error}") from error
    return pattern in ("", name)


@torch.no_grad()
def redraw_coefficients_(model: nn.Module) -> None:
    """Give the entries of P that are in use fresh values, in place; the others are zero and stay so.

    Magnitudes are uniform from eps to 1 / sqrt(kh * kw * k), the published start, so that none dies at once; signs are
    even odds.
    """
    for _, layer in lookup_layers(model):
        coefficients = layer.effective_coefficients()
        bound = 1 / math.sqrt(math.prod(coefficients.shape[1:]))
        fresh = torch.empty_like(coefficients).uniform_(-1, 1)
        fresh = fresh.sign() * (layer.threshold + fresh.abs() * (bound - layer.threshold)).clamp_min(
            1.000001 * layer.threshold
        )
        layer.coefficients.copy_(fresh * (coefficients != 0))
