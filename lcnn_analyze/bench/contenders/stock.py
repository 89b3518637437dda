"""Lookup layers with what PyTorch has today: two convolutions, or im2col and a sparse matrix product."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lcnn_analyze.bench.contenders.base import Contender, Ready, UnavailableError, Work
from lcnn_core import LookupConv2d, LookupLayer, LookupLinear, plain_layers


def prepare_two_convs(work: Work) -> Ready:
    """A 1x1 convolution with D, then one with P, whose zeros are multiplied like any number."""
    return _eager(plain_layers(work.model, "two_layers"), work.x)


def prepare_sparse_csr(work: Work) -> Ready:
    """A 1x1 convolution with D, then im2col and ``torch.sparse``'s product with P in CSR."""
    layers = {id(layer): sparse_layer(layer) for layer in work.model.modules() if isinstance(layer, LookupLayer)}
    # deepcopy takes what is in its memo for already copied: lookup layers are replaced wherever they are used.
    return _eager(copy.deepcopy(work.model, dict[int, Any](layers)), work.x)


def _eager(model: nn.Module, x: Tensor) -> Ready:
    model.eval()

    def run() -> Tensor:
        with torch.inference_mode():
            return model(x)

    return Ready(run, run)


def sparse_layer(layer: LookupLayer) -> nn.Module:
    """``layer`` with P in CSR. Raises UnavailableError for groups and for paddings other than zeros."""
    if isinstance(layer, LookupLinear):
        return SparseLinear(layer)
    if not isinstance(layer, LookupConv2d):
        raise UnavailableError(f"im2col is written for LookupConv2d and LookupLinear, not {type(layer).__name__}")
    if layer.groups != 1 or layer.padding_mode != "zeros":
        raise UnavailableError("im2col is written for groups=1 and padding_mode='zeros'")
    return SparseConv2d(layer)


class SparseLinear(nn.Module):
    """y = (P (x Dt)t)t + b with P (n, k) in CSR; x is (*, m)."""

    @torch.no_grad()
    def __init__(self, layer: LookupLayer) -> None:
        super().__init__()
        self.dictionary, self.bias = layer.dictionary, layer.bias
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # CSR is called a beta feature since 2021
            self.coefficients = layer.effective_coefficients().flatten(1).to_sparse_csr()

    def forward(self, x: Tensor) -> Tensor:
        response = x if self.dictionary is None else F.linear(x, self.dictionary)
        y = (self.coefficients @ response.flatten(0, -2).t()).t()
        y = y.reshape(*x.shape[:-1], len(self.coefficients))
        return y if self.bias is None else y + self.bias


class SparseConv2d(SparseLinear):
    """The same for (b, m, h, w): columns of S, (k * kh * kw, b * oh * ow), under P (n, k * kh * kw)."""

    def __init__(self, layer: LookupConv2d) -> None:
        super().__init__(layer)
        self.kernel_size, self.stride, self.dilation = layer.kernel_size, layer.stride, layer.dilation
        self.padding = layer.padding_total()

    def forward(self, x: Tensor) -> Tensor:
        response = x if self.dictionary is None else F.conv2d(x, self.dictionary[:, :, None, None])
        (tall, wide) = self.padding
        response = F.pad(response, (wide // 2, wide - wide // 2, tall // 2, tall - tall // 2))
        out = [
            (size - d * (extent - 1) - 1) // s + 1
            for size, extent, s, d in zip(response.shape[2:], self.kernel_size, self.stride, self.dilation, strict=True)
        ]
        columns = F.unfold(response, self.kernel_size, self.dilation, 0, self.stride)
        y = self.coefficients @ columns.transpose(0, 1).flatten(1)
        y = y.reshape(len(y), len(x), *out).transpose(0, 1)
        return y if self.bias is None else y + self.bias[:, None, None]


TWO_CONVS = Contender("two-convs", "PyTorch, 1x1 conv + masked conv", "stock", "torch", prepare_two_convs)
SPARSE_CSR = Contender("sparse-csr", "PyTorch, im2col + sparse CSR", "stock", "torch", prepare_sparse_csr)
