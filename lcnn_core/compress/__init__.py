"""Making a trained dense network smaller. ``METHODS`` lists the ways, each with its frozen configuration."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from lcnn_core.compress.from_dense import FromDenseConfig, compress_from_dense
from lcnn_core.compress.post_training import (
    FINE_TUNING,
    LayerChoice,
    PostTrainingConfig,
    PostTrainingReport,
    convert_to_budget,
)
from lcnn_core.train import TrainResult


@dataclass(frozen=True)
class Method:
    """A way to compress: what it does, the configuration it takes, and the function that does it."""

    doc: str
    config: type
    compress: Callable[..., tuple[nn.Module, TrainResult]]
    """(dense model, dataset, config, on_event) -> (the compressed network, what the run did)."""


METHODS: dict[str, Method] = {
    "from-dense": Method(
        "D and P from the dense filters, pruned together to a counted budget under distillation",
        FromDenseConfig,
        compress_from_dense,
    ),
}

__all__ = [
    "FINE_TUNING",
    "METHODS",
    "FromDenseConfig",
    "LayerChoice",
    "Method",
    "PostTrainingConfig",
    "PostTrainingReport",
    "compress_from_dense",
    "convert_to_budget",
]
