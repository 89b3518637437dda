"""Lookup layers in inference form: (D, I, C) as tensors, computed by one registered operator each. No gradients."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lcnn_core.errors import ConfigError, ShapeError
from lcnn_core.functional import Lookups
from lcnn_core.layers import operators
from lcnn_core.layers.inputs import batched_images, check_features, pad_images

if TYPE_CHECKING:
    from lcnn_core.layers.base import LookupLayer
    from lcnn_core.layers.conv import LookupConv2d
    from lcnn_core.layers.linear import LookupLinear


class PackedLookupLayer(nn.Module):
    """What ``LookupLayer.pack()`` gives: the layer's D and its lookups, as an ordinary module.

    State dict: ``dictionary`` (groups * k, m / groups) unless it is the identity, ``indices``, ``values`` and
    ``offsets`` as in ``functional.Lookups``, ``bias`` (n,) where there is one. A state dict with another number of
    lookups loads too; one whose lookups do not fit the layer is refused. ``dictionary_nnz`` is taken when the layer
    is packed or loaded.
    """

    dictionary: nn.Parameter | None
    indices: Tensor
    values: nn.Parameter
    offsets: Tensor
    bias: nn.Parameter | None

    def __init__(self, layer: LookupLayer) -> None:
        super().__init__()
        if layer.coefficients.is_meta:
            raise ConfigError("a layer on the meta device has no lookups to pack; load its weights first")
        lookups = layer.lookups()
        self.dense_shape = layer.dense_shape
        self.dictionary_size = layer.dictionary_size
        self.threshold, self.l1_weight = layer.threshold, layer.l1_weight
        self.register_parameter("dictionary", _frozen(layer.dictionary))
        self.register_buffer("indices", lookups.indices)
        self.register_parameter("values", _frozen(lookups.values))
        self.register_buffer("offsets", lookups.offsets)
        self.register_parameter("bias", _frozen(layer.bias))
        self._count_dictionary()
        self.train(layer.training)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape (n, k, *kernel) of the coefficients P that the lookups stand for."""
        return (self.dense_shape[0], self.dictionary_size, *self.dense_shape[2:])

    @property
    def lookups(self) -> Lookups:
        """(I, C), checked."""
        return Lookups(self.indices, self.values.detach(), self.offsets, self.shape)

    def _count_dictionary(self) -> None:
        if self.dictionary is None or self.dictionary.is_meta:
            self.dictionary_nnz = 0 if self.dictionary is None else self.dictionary.numel()
        else:
            self.dictionary_nnz = int(torch.count_nonzero(self.dictionary))

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        """As PyTorch does, once the lookups are seen to fit; their number is the state dict's, not the layer's."""
        indices, values, offsets = (state_dict.get(f"{prefix}{name}") for name in ("indices", "values", "offsets"))
        if indices is not None and values is not None and offsets is not None:
            try:
                Lookups(indices, values, offsets, self.shape)
            except ShapeError as error:
                rest[-1].append(f"{prefix.removesuffix('.') or 'the layer'}: {error}")
                return
            self.indices = self.indices.new_empty(indices.shape)
            self.values = nn.Parameter(self.values.new_empty(values.shape), requires_grad=False)
        super()._load_from_state_dict(state_dict, prefix, *rest)  # type: ignore[no-untyped-call]
        self._count_dictionary()

    def _packed_repr(self) -> str:
        size = None if self.dictionary is None else self.dictionary_size
        return f"dictionary_size={size}, lookups={len(self.values)} of {math.prod(self.shape)}"


class PackedLookupConv2d(PackedLookupLayer):
    """The inference form of ``LookupConv2d``: the same input, output and padding modes."""

    def __init__(self, layer: LookupConv2d) -> None:
        super().__init__(layer)
        self.in_channels, self.out_channels, self.groups = layer.in_channels, layer.out_channels, layer.groups
        self.kernel_size, self.stride, self.dilation = layer.kernel_size, layer.stride, layer.dilation
        self.padding, self.padding_mode = layer.padding, layer.padding_mode
        self._padding_total = layer.padding_total()

    def padding_total(self) -> tuple[int, int]:
        """Positions added per spatial dimension, both sides together."""
        return self._padding_total

    def forward(self, x: Tensor) -> Tensor:
        batched = batched_images(x, self.in_channels)
        height, width = self._padding_total
        padding = [height // 2, width // 2]
        if self.padding_mode != "zeros" or height % 2 or width % 2:
            batched, padding = pad_images(batched, self._padding_total, self.padding_mode), [0, 0]
        y = operators.lookup_conv(
            batched,
            self.dictionary,
            self.indices,
            self.values,
            self.offsets,
            self.bias,
            self.shape,
            self.dictionary_nnz,
            self.stride,
            padding,
            self.dilation,
            self.groups,
        )
        return y if x.ndim == 4 else y.squeeze(0)

    def extra_repr(self) -> str:
        text = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"
        text += f", padding={self.padding!r}, dilation={self.dilation}, groups={self.groups}"
        return f"{text}, padding_mode={self.padding_mode!r}, {self._packed_repr()}"


class PackedLookupLinear(PackedLookupLayer):
    """The inference form of ``LookupLinear``. Input (*, m), output (*, n)."""

    def __init__(self, layer: LookupLinear) -> None:
        super().__init__(layer)
        self.in_features, self.out_features = layer.in_features, layer.out_features

    def forward(self, x: Tensor) -> Tensor:
        check_features(x, self.in_features)
        return operators.lookup_linear(
            x,
            self.dictionary,
            self.indices,
            self.values,
            self.offsets,
            self.bias,
            self.shape,
            self.dictionary_nnz,
        )

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, {self._packed_repr()}"


def _frozen(tensor: Tensor | None) -> nn.Parameter | None:
    return None if tensor is None else nn.Parameter(tensor.detach().clone(), requires_grad=False)
