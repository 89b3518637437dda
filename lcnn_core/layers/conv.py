"""``LookupConv2d``: the drop-in sibling of ``nn.Conv2d``."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.utils import _pair

from lcnn_core import functional
from lcnn_core.errors import ConfigError
from lcnn_core.layers.base import Form, LookupLayer, lookup_arguments
from lcnn_core.layers.inputs import batched_images, pad_images
from lcnn_core.layers.packed import PackedLookupConv2d
from lcnn_core.spec import LookupConfig

_PADDING_MODES = ("zeros", "reflect", "replicate", "circular")


class LookupConv2d(LookupLayer):
    """A 2-d convolution whose n filters are sparse combinations of k dictionary vectors (paper, section 3).

    Positional arguments and defaults are those of ``nn.Conv2d``; the keyword-only ones are the lookup's:

    dictionary_size: k, rows of D per group; None for the identity dictionary, a plain sparse convolution.
    threshold: eps; None for the published 0.01 / sqrt(kh * kw * k).
    l1_weight: lambda of the l1 penalty on P; 0 for none.
    lookups_per_position: s, the largest entries kept at each (filter, row, column); None keeps all above eps.
    form: how the forward pass computes: "two_convs", "dense" (rebuild W, one convolution) or "auto", by cost.

    Input (b, m, h, w) or (m, h, w), output (b, n, oh, ow) or (n, oh, ow). Parameters: dictionary
    (groups * k, m / groups), coefficients (n, k, kh, kw), bias (n,). Cost: ``lcnn_core.counting``. Raises ConfigError
    for arguments that are not allowed, and ShapeError for an input that does not fit.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: str | int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
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
        if groups < 1 or in_channels % groups or out_channels % groups:
            raise ConfigError(
                f"groups is {groups}; expected a divisor of in_channels={in_channels} and out_channels={out_channels}"
            )
        if padding_mode not in _PADDING_MODES:
            raise ConfigError(f"padding_mode is {padding_mode!r}; expected one of {', '.join(_PADDING_MODES)}")
        if isinstance(padding, str) and padding not in ("same", "valid"):
            raise ConfigError(f"padding is {padding!r}; expected 'same', 'valid', a number or a pair")
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.kernel_size, self.stride, self.dilation = _pair(kernel_size), _pair(stride), _pair(dilation)
        self.padding = padding if isinstance(padding, str) else _pair(padding)
        self.padding_mode = padding_mode
        if padding == "same" and any(s != 1 for s in self.stride):
            raise ConfigError(f"padding='same' needs stride 1, but stride is {self.stride}")
        config = LookupConfig(
            dictionary_size, threshold, l1_weight=l1_weight, lookups_per_position=lookups_per_position
        )
        self._init_lookup(in_channels // groups, out_channels, self.kernel_size, bias, config, form, device, dtype)

    @classmethod
    def like(cls, conv: nn.Conv2d, config: LookupConfig, form: Form = "auto") -> LookupConv2d:
        """A lookup layer with the shape, device, dtype and training flag of ``conv``; its weights are fresh."""
        layer = cls(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,  # type: ignore[arg-type]
            conv.stride,  # type: ignore[arg-type]
            conv.padding,  # type: ignore[arg-type]
            conv.dilation,  # type: ignore[arg-type]
            conv.groups,
            conv.bias is not None,
            conv.padding_mode,
            conv.weight.device,
            conv.weight.dtype,
            **lookup_arguments(config, conv.in_channels // conv.groups, conv.kernel_size, form),
        )
        return layer.train(conv.training)

    def pack(self) -> PackedLookupConv2d:
        return PackedLookupConv2d(self)

    def padding_total(self) -> tuple[int, int]:
        """Positions added per spatial dimension, both sides together."""
        if self.padding == "valid":
            return (0, 0)
        if self.padding == "same":
            return tuple(d * (k - 1) for d, k in zip(self.dilation, self.kernel_size, strict=True))  # type: ignore[return-value]
        return (2 * self.padding[0], 2 * self.padding[1])  # type: ignore[operator,return-value]

    def forward(self, x: Tensor) -> Tensor:
        batched = batched_images(x, self.in_channels)
        padding: Any = self.padding
        rebuild = self.uses_dense_form(self._positions(batched))
        if self.padding_mode != "zeros":
            batched, padding = pad_images(batched, self.padding_total(), self.padding_mode), 0
        if rebuild:
            y = F.conv2d(batched, self.dense_weight(), self.bias, self.stride, padding, self.dilation, self.groups)
        else:
            coefficients, threshold = self.coefficients_and_threshold()
            window = (self.stride, padding, self.dilation, self.groups)
            y = functional.lookup_conv(batched, self.dictionary, coefficients, self.bias, *window, threshold)
        return y if x.ndim == 4 else y.squeeze(0)

    def _positions(self, x: Tensor) -> int:
        """Output positions of the whole batch."""
        sizes = zip(x.shape[2:], self.padding_total(), self.kernel_size, self.stride, self.dilation, strict=True)
        return math.prod([x.shape[0], *[(size + pad - d * (k - 1) - 1) // s + 1 for size, pad, k, s, d in sizes]])

    def extra_repr(self) -> str:
        text = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"
        if self.padding not in ((0, 0), "valid"):
            text += f", padding={self.padding!r}"
        if self.dilation != (1, 1):
            text += f", dilation={self.dilation}"
        if self.groups != 1:
            text += f", groups={self.groups}"
        if self.bias is None:
            text += ", bias=False"
        if self.padding_mode != "zeros":
            text += f", padding_mode={self.padding_mode!r}"
        return f"{text}, {self._lookup_repr()}"
