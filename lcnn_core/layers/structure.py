"""Changing which layers of a model are lookup layers: structure only, no weights."""

from __future__ import annotations

import copy
from collections.abc import Mapping

from torch import nn

from lcnn_core.errors import ConfigError
from lcnn_core.layers import LAYERS
from lcnn_core.layers.base import LookupLayer, lookup_arguments
from lcnn_core.layers.conv import LookupConv2d
from lcnn_core.layers.linear import LookupLinear
from lcnn_core.spec import LookupConfig


def set_lookup_layers_(model: nn.Module, table: Mapping[str, LookupConfig | None]) -> dict[nn.Module, nn.Module]:
    """Give the layers named in ``table`` the structure of these configurations, in place; their weights are fresh.

    A configuration makes a lookup layer, None a dense one. Layers that have that structure already stay untouched, and
    so do those that are not named. Returns what was replaced, old module to new. Raises ConfigError, and changes
    nothing, for a name that is no such layer and for a model that is itself one.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    replacements: dict[nn.Module, nn.Module] = {}
    for name, config in table.items():
        if name not in modules:
            raise ConfigError(f"the model has no layer {name!r}; expected one of its modules' names")
        module = modules[name]
        if not isinstance(module, LookupLayer) and type(module) not in LAYERS:
            raise ConfigError(f"layer {name!r} is a {type(module).__name__}, which cannot become a lookup layer")
        if not _has(module, config):
            replacements[module] = _made_like(module, config)
    if model in replacements:
        raise ConfigError(f"the model itself is a {type(model).__name__} and cannot be replaced in place")
    swap(model, replacements)
    return replacements


def swap(model: nn.Module, replacements: Mapping[nn.Module, nn.Module]) -> nn.Module:
    """Put new modules in the place of old ones, wherever ``model`` holds them; the model, or its own replacement."""
    if model in replacements:
        return replacements[model]
    for parent in list(model.modules()):
        for key, child in list(parent._modules.items()):
            if child is not None and child in replacements:
                parent.register_module(key, replacements[child])
    return model


def pack(model: nn.Module) -> nn.Module:
    """A copy of ``model`` with every lookup layer in inference form: (D, I, C), one registered operator each.

    An ordinary module with state dict, copies and ``torch.export``; lookup layers get no gradients, and their weights
    are stored once. torch's flop counter counts it as published, fvcore with ``lcnn_core.handles()``. Raises
    ConfigError for a model on the meta device.
    """
    memo: dict[int, nn.Module] = {
        id(layer): layer.pack() for layer in model.modules() if isinstance(layer, LookupLayer)
    }
    return copy.deepcopy(model, memo)


def _has(module: nn.Module, config: LookupConfig | None) -> bool:
    """Whether the layer is what ``config`` makes of it, threshold and l1 weight resolved."""
    if config is None or not isinstance(module, LookupLayer):
        return config is None and not isinstance(module, LookupLayer)
    wanted = lookup_arguments(config, module.dense_shape[1], tuple(module.coefficients.shape[2:]), module.form)
    own = {name: getattr(module.config, name) for name in wanted if name != "form"}
    return all(wanted[name] == value for name, value in own.items())


def _made_like(module: nn.Module, config: LookupConfig | None) -> nn.Module:
    dense = dense_sibling(module) if isinstance(module, LookupLayer) else module
    return dense if config is None else LAYERS[type(dense)].like(dense, config)  # type: ignore[attr-defined]


def dense_sibling(layer: LookupLayer) -> nn.Module:
    """The dense layer of the same shape, device, dtype and training flag; its weights are fresh."""
    weight = layer.coefficients
    dense: nn.Module
    if isinstance(layer, LookupConv2d):
        dense = nn.Conv2d(
            layer.in_channels,
            layer.out_channels,
            layer.kernel_size,
            layer.stride,  # type: ignore[arg-type]
            layer.padding,  # type: ignore[arg-type]
            layer.dilation,
            layer.groups,
            layer.bias is not None,
            layer.padding_mode,  # type: ignore[arg-type]
            weight.device,
            weight.dtype,
        )
    elif isinstance(layer, LookupLinear):
        has_bias = layer.bias is not None
        dense = nn.Linear(layer.in_features, layer.out_features, has_bias, weight.device, weight.dtype)
    else:
        raise ConfigError(f"a {type(layer).__name__} has no dense sibling; expected a layer listed in LAYERS")
    return dense.train(layer.training)
