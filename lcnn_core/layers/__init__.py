"""Layer families, one file each. ``LAYERS`` lists every lookup layer with the dense layer that it replaces."""

from torch import nn

from lcnn_core.layers.base import LookupLayer
from lcnn_core.layers.conv import LookupConv2d
from lcnn_core.layers.linear import LookupLinear
from lcnn_core.layers.packed import PackedLookupConv2d, PackedLookupLayer, PackedLookupLinear

LAYERS: dict[type[nn.Module], type[LookupLayer]] = {
    nn.Conv2d: LookupConv2d,
    nn.Linear: LookupLinear,
}

__all__ = [
    "LAYERS",
    "LookupConv2d",
    "LookupLayer",
    "LookupLinear",
    "PackedLookupConv2d",
    "PackedLookupLayer",
    "PackedLookupLinear",
]
