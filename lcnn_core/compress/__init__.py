"""Making a trained dense network smaller. ``METHODS`` lists the ways, each with its frozen configuration."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from lcnn_core.compress.calibration import calibration_images
from lcnn_core.compress.converted import ConvertedConfig, convert_and_train, convert_only
from lcnn_core.compress.from_dense import FromDenseConfig, compress_from_dense
from lcnn_core.compress.low_rank import LowRankConfig, train_low_rank
from lcnn_core.compress.narrow import NarrowConfig, narrowed_architecture, train_narrow
from lcnn_core.compress.post_training import (
    FINE_TUNING,
    LayerChoice,
    PostTrainingConfig,
    PostTrainingReport,
    convert_to_budget,
)
from lcnn_core.compress.teacher import check_dense
from lcnn_core.train import TrainResult

Saved = tuple[str, Mapping[str, Any]]
"""Name of an architecture and its arguments."""


def _unchanged(architecture: str, arguments: Mapping[str, Any], dense: nn.Module, model: nn.Module) -> Saved:
    return architecture, arguments


@dataclass(frozen=True)
class Method:
    """A way to compress: what it does, the configuration it takes, and the function that does it."""

    doc: str
    config: Callable[..., Any]
    """Makes the frozen configuration; takes speedup, train and what else it has."""
    compress: Callable[..., tuple[nn.Module, TrainResult]]
    """(dense model, dataset, config, on_event) -> (the compressed network, what the run did)."""
    fixed: tuple[str, ...] = ()
    """Options of the configuration that make the method what it is."""
    saved_as: Callable[[str, Mapping[str, Any], nn.Module, nn.Module], Saved] = _unchanged
    """(architecture, arguments, dense model, compressed network) -> what a checkpoint of the network is saved as."""
    trained: bool = True
    """Whether it trains; one that does not makes the same network for every seed."""


METHODS: dict[str, Method] = {
    "from-dense": Method(
        "D and P from the dense filters, pruned together to a counted budget under distillation",
        FromDenseConfig,
        compress_from_dense,
    ),
    "lookup-only": Method(
        "from-dense with a dictionary in every layer that has vectors to share",
        partial(FromDenseConfig, forms="lookup"),
        compress_from_dense,
        fixed=("forms",),
    ),
    "converted": Method(
        "each layer's cheapest form fitted to a calibration set, then trained at the budget under distillation",
        ConvertedConfig,
        convert_and_train,
    ),
    "post-training": Method(
        "each layer's cheapest form fitted to a calibration set: no labels, no training",
        PostTrainingConfig,
        convert_only,
        trained=False,
    ),
    "pruning": Method(
        "gradual magnitude pruning, unstructured: from-dense by magnitude, without dictionaries",
        partial(FromDenseConfig, forms="sparse", ranking="magnitude"),
        compress_from_dense,
        fixed=("forms", "dictionary_ratio"),
    ),
    "published": Method(
        "the paper's recipe: fresh weights, whole D, l1 and threshold (lambda' 0.3, c 0.001), held to the budget",
        partial(
            FromDenseConfig,
            start="scratch",
            dictionaries="dense",
            distillation=0.0,
            threshold_scale=0.001,
            l1_scale=0.3,
            ranking="magnitude",
        ),
        compress_from_dense,
        fixed=("start", "dictionaries"),
    ),
    "low-rank": Method(
        "each convolution as two dense ones, 1x1 to few channels and kernel-sized, sparse where that saves nothing (of "
        "one channel), then trained under distillation",
        LowRankConfig,
        train_low_rank,
    ),
    "narrow": Method(
        "the dense network with fewer channels, trained from scratch under its distillation",
        NarrowConfig,
        train_narrow,
        saved_as=narrowed_architecture,
    ),
}

__all__ = [
    "FINE_TUNING",
    "METHODS",
    "ConvertedConfig",
    "FromDenseConfig",
    "LayerChoice",
    "LowRankConfig",
    "Method",
    "NarrowConfig",
    "PostTrainingConfig",
    "PostTrainingReport",
    "calibration_images",
    "check_dense",
    "compress_from_dense",
    "convert_and_train",
    "convert_only",
    "convert_to_budget",
    "train_low_rank",
    "train_narrow",
]
