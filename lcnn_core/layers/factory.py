"""Makes the layers of an architecture, dense or lookup, so that each network is written once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import nn

from lcnn_core.layers.base import lookup_arguments
from lcnn_core.layers.conv import LookupConv2d
from lcnn_core.layers.linear import LookupLinear
from lcnn_core.spec import LookupConfig


def reason_to_stay_dense(
    dictionary_size: int | None,
    in_channels: int,
    out_channels: int,
    kernel_size: Sequence[int] = (),
    groups: int = 1,
) -> str | None:
    """Why a layer of this shape gains nothing from k dictionary vectors; None where it can gain.

    A dictionary of k >= n * kh * kw vectors (n per group) costs as much as the dense layer itself (the published
    rule), and vectors of one input channel share nothing. The identity dictionary (k None) always makes sense.
    """
    if dictionary_size is None:
        return None
    vectors = out_channels // groups * math.prod(kernel_size)
    if dictionary_size >= vectors:
        where = "n * kh * kw" if groups == 1 else "n / groups * kh * kw"
        return f"dictionary_size {dictionary_size} is not below {where} = {vectors}, so the dictionary saves nothing"
    if in_channels == groups:
        return "one input channel per group leaves no vectors to share; the identity dictionary would make it sparse"
    return None


def make_conv(
    config: LookupConfig | None, in_channels: int, out_channels: int, kernel_size: int, **options: Any
) -> nn.Conv2d | LookupConv2d:
    """A 2-d convolution: dense where ``config`` is None or the layer gains nothing, a lookup layer elsewhere.

    ``options`` are those of ``nn.Conv2d``. The lookup layer starts as published (``reset_parameters``).
    """
    kernel, groups = (kernel_size, kernel_size), options.get("groups", 1)
    if config is None or reason_to_stay_dense(config.dictionary_size, in_channels, out_channels, kernel, groups):
        return nn.Conv2d(in_channels, out_channels, kernel_size, **options)
    arguments = lookup_arguments(config, in_channels // groups, kernel, "auto")
    return LookupConv2d(in_channels, out_channels, kernel_size, **options, **arguments)


def make_linear(
    config: LookupConfig | None, in_features: int, out_features: int, bias: bool = True
) -> nn.Linear | LookupLinear:
    """A linear layer, dense or lookup, by the rule of :func:`make_conv`."""
    if config is None or reason_to_stay_dense(config.dictionary_size, in_features, out_features):
        return nn.Linear(in_features, out_features, bias)
    return LookupLinear(in_features, out_features, bias, **lookup_arguments(config, in_features, (), "auto"))
