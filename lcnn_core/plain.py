"""Lookup layers as plain PyTorch layers, for runtimes that know nothing of lookups."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lcnn_core.counting import count_layer, output_positions
from lcnn_core.describe import describe
from lcnn_core.layers import LookupConv2d, LookupLayer
from lcnn_core.spec import LayerSpec

__all__ = ["PlainForm", "PlainLayer", "cheaper_forms", "plain_layers"]

PlainForm = Literal["two_layers", "dense"]


@dataclass(frozen=True)
class PlainLayer:
    """The two plain forms of one lookup layer, in MACs per image that a runtime without sparsity executes."""

    name: str
    two_layers: int
    """D at every input position, then P as if it had no zeros at every output position."""
    dense: int
    """W, the filter that D and P stand for, at every output position."""

    @property
    def form(self) -> PlainForm:
        """The form of fewer MACs; a tie goes to the single layer."""
        return "two_layers" if self.two_layers < self.dense else "dense"


@torch.no_grad()
def plain_layers(model: nn.Module, form: PlainForm | Callable[[LookupLayer], PlainForm]) -> nn.Module:
    """A copy of ``model`` without lookup layers that computes the same function.

    form: "dense" gives every lookup layer's dense twin with W = P D, one layer; "two_layers" a 1x1 convolution (or
        linear layer) with D and one with P, its zeros stored; a function chooses for each layer. A layer with the
        identity dictionary is one layer either way.
    Modules used in several places stay shared. The model is not modified.
    """
    choose = form if callable(form) else lambda layer: form
    replaced: dict[int, Any] = {
        id(layer): _plain(layer, choose(layer)) for layer in model.modules() if isinstance(layer, LookupLayer)
    }
    # deepcopy takes an object that is in its memo for already copied, so lookup layers and their P are not.
    return copy.deepcopy(model, replaced)


def cheaper_forms(model: nn.Module, input_shape: Sequence[int]) -> dict[LookupLayer, PlainLayer]:
    """What each lookup layer of ``model`` costs in either plain form on an image of ``input_shape`` (no batch).

    A layer that is called several times costs the sum. Layers that the forward pass does not reach are left out.
    """
    modules = {name: m for name, m in model.named_modules() if isinstance(m, LookupLayer)}
    costs: dict[LookupLayer, PlainLayer] = {}
    for spec in describe(model, input_shape).layers:
        layer = modules.get(spec.name)
        if layer is not None:
            known = costs.get(layer, PlainLayer(spec.name, 0, 0))
            two_layers = known.two_layers + _two_layer_macs(layer, spec)
            costs[layer] = PlainLayer(spec.name, two_layers, known.dense + count_layer(spec).dense)
    return costs


def _two_layer_macs(layer: LookupLayer, spec: LayerSpec) -> int:
    shape = spec.input_shape
    inputs = torch.Size(shape[1:] if spec.kernel_size else shape[:-1]).numel()
    dictionary = 0 if layer.dictionary is None else layer.dictionary.numel() * inputs
    return dictionary * spec.repeats + layer.coefficients.numel() * output_positions(spec)


def _plain(layer: LookupLayer, form: PlainForm) -> nn.Module:
    dictionary = layer.dictionary
    if form == "dense" or dictionary is None:
        return _weighted(layer, layer.dense_weight()).train(layer.training)
    last = _weighted(layer, layer.effective_coefficients())
    return nn.Sequential(_dictionary_layer(layer, dictionary), last).train(layer.training)


def _dictionary_layer(layer: LookupLayer, dictionary: Tensor) -> nn.Module:
    rows, width = dictionary.shape
    if not isinstance(layer, LookupConv2d):
        return _with(nn.Linear(width, rows, bias=False, device="meta"), dictionary, None)
    conv = nn.Conv2d(width * layer.groups, rows, 1, groups=layer.groups, bias=False, device="meta")
    return _with(conv, dictionary[:, :, None, None], None)


def _weighted(layer: LookupLayer, weight: Tensor) -> nn.Module:
    """The plain layer with this weight and the geometry and bias of ``layer``."""
    has_bias = layer.bias is not None
    if not isinstance(layer, LookupConv2d):
        return _with(nn.Linear(weight.shape[1], weight.shape[0], has_bias, device="meta"), weight, layer.bias)
    conv = nn.Conv2d(
        weight.shape[1] * layer.groups,
        weight.shape[0],
        layer.kernel_size,
        layer.stride,  # type: ignore[arg-type]
        layer.padding,
        layer.dilation,
        layer.groups,
        has_bias,
        layer.padding_mode,  # type: ignore[arg-type]
        device="meta",
    )
    return _with(conv, weight, layer.bias)


def _with(plain: Any, weight: Tensor, bias: Tensor | None) -> nn.Module:
    plain.weight = nn.Parameter(weight.detach().clone(), requires_grad=False)
    if bias is not None:
        plain.bias = nn.Parameter(bias.detach().clone(), requires_grad=False)
    return plain
