"""Checkpoint <-> plain document: what every file format stores beside the tensors.

- ``format``: "lcnn-checkpoint". ``format_version``: 1; a reader refuses every other number.
- ``architecture``: a name in ``MODELS``, or "custom". ``arguments``: all its options, defaults filled in.
- ``lookups``: by module path of each lookup layer, the fields of ``LookupConfig``: dictionary_size (k, null for the
  identity dictionary), threshold (eps), l1_weight (lambda), lookups_per_position (s or null), and the scales c and
  lambda' that they came from. Every other layer is dense.
- ``input_shape``: without the batch, [channels, height, width].
- ``normalization``: {"mean": [...], "std": [...]}, per channel, of pixels in [0, 1]; or null.
- ``class_names``: in the order of the outputs.
- ``metrics``: one object per figure: name, value, dataset and how it was measured.
- ``provenance``: command, seed, versions and whatever else says how the model came about.

The tensors are the module's state dict. Of a lookup layer: ``dictionary`` D (groups * k, m / groups), absent for the
identity; ``coefficients`` P (n, k, *kernel), with entries that count as zero stored as zero; ``bias`` (n,). Readers
pass over fields that they do not know, but for those of a lookup layer and of the normalization: without them the
network could be another one, and the file is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from torch import Tensor

from lcnn_core.checkpoint.bounds import check_names
from lcnn_core.checkpoint.record import FORMAT_VERSION, Checkpoint, Fresh, Normalization
from lcnn_core.errors import CheckpointError, ConfigError
from lcnn_core.spec import LookupConfig

FORMAT = "lcnn-checkpoint"

_FIELDS: Mapping[str, type | tuple[type, ...]] = {
    "architecture": str,
    "arguments": dict,
    "lookups": dict,
    "input_shape": list,
    "normalization": (dict, type(None)),
    "class_names": list,
    "metrics": list,
    "provenance": dict,
}


def to_document(checkpoint: Checkpoint) -> dict[str, Any]:
    """Everything but the tensors, JSON-ready, in a fixed order."""
    normalization = checkpoint.normalization
    return {
        "format": FORMAT,
        "format_version": checkpoint.format_version,
        "architecture": checkpoint.architecture,
        "arguments": checkpoint.arguments,
        "lookups": {name: asdict(config) for name, config in checkpoint.lookups.items()},
        "input_shape": list(checkpoint.input_shape),
        "normalization": normalization and {"mean": list(normalization.mean), "std": list(normalization.std)},
        "class_names": list(checkpoint.class_names),
        "metrics": list(checkpoint.metrics),
        "provenance": checkpoint.provenance,
    }


def from_document(document: Any, tensors: Mapping[str, Tensor], source: str) -> Checkpoint:
    """The checkpoint that a document and its tensors stand for; ``source`` names the file in messages.

    Raises CheckpointError for another format or version, a field that is absent or of another type, and values that a
    checkpoint does not take.
    """
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise CheckpointError(f"{source} is no LCNN checkpoint; expected a file written by lcnn_core.checkpoint.save")
    version = document.get("format_version")
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"{source} has format_version {version!r}; this release reads {FORMAT_VERSION}; update lcnn"
        )
    for name, kind in _FIELDS.items():
        if name not in document:
            raise CheckpointError(f"{source} has no {name!r}; the file is damaged, save it again")
        if not isinstance(document[name], kind):
            found = type(document[name]).__name__
            raise CheckpointError(f"{source}: {name!r} is a {found}, which no checkpoint holds; save it again")
    check_names((tensor for tensor in tensors.values() if isinstance(tensor, Tensor)), source)
    try:
        return Checkpoint(
            architecture=document["architecture"],
            arguments=document["arguments"],
            lookups={name: LookupConfig(**fields) for name, fields in document["lookups"].items()},
            input_shape=tuple(document["input_shape"]),
            normalization=Normalization(**document["normalization"]) if document["normalization"] else None,
            class_names=tuple(document["class_names"]),
            metrics=tuple(document["metrics"]),
            provenance=document["provenance"],
            state_dict=Fresh(tensors),
        )
    except (ConfigError, RecursionError, TypeError, ValueError, OverflowError) as error:
        raise CheckpointError(f"{source} holds a value that no checkpoint has: {error}") from error
