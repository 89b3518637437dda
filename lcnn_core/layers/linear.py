"""``LookupLinear``: the drop-in sibling of ``nn.Linear``."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from lcnn_core import functional
from lcnn_core.layers.base import Form, LookupLayer, lookup_arguments
from lcnn_core.layers.inputs import check_features
from lcnn_core.layers.packed import PackedLookupLinear
from lcnn_core.spec import LookupConfig


class LookupLinear(LookupLayer):
    """A linear layer whose n rows are sparse combinations of k dictionary vectors: a 1x1 lookup convolution.

    Positional arguments and defaults are those of ``nn.Linear``; the keyword-only ones as in ``LookupConv2d``.
    Input (*, m), output (*, n). Parameters: dictionary (k, m), coefficients (n, k), bias (n,).
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        dictionary_size: int | None,
        threshold: float | None = None,
        l1_weight: float = 0.0,
        lookups_per_position: int | None = None,
        form: Form = "auto",
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        config = LookupConfig(
            dictionary_size, threshold, l1_weight=l1_weight, lookups_per_position=lookups_per_position
        )
        self._init_lookup(in_features, out_features, (), bias, config, form, device, dtype)

    @classmethod
    def like(cls, linear: nn.Linear, config: LookupConfig, form: Form = "auto") -> LookupLinear:
        """A lookup layer with the shape, device, dtype and training flag of ``linear``; its weights are fresh."""
        layer = cls(
            linear.in_features,
            linear.out_features,
            linear.bias is not None,
            linear.weight.device,
            linear.weight.dtype,
            **lookup_arguments(config, linear.in_features, (), form),
        )
        return layer.train(linear.training)

    def pack(self) -> PackedLookupLinear:
        return PackedLookupLinear(self)

    def forward(self, x: Tensor) -> Tensor:
        check_features(x, self.in_features)
        if self.uses_dense_form(math.prod(x.shape[:-1])):
            return F.linear(x, self.dense_weight(), self.bias)
        coefficients, threshold = self.coefficients_and_threshold()
        return functional.lookup_linear(x, self.dictionary, coefficients, self.bias, threshold)

    def extra_repr(self) -> str:
        bias = "" if self.bias is not None else ", bias=False"
        return f"in_features={self.in_features}, out_features={self.out_features}{bias}, {self._lookup_repr()}"
