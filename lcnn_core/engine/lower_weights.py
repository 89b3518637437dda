"""Handlers of layers with weights: convolutions, linear layers, batch norm. See lower.py."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import fx

from lcnn_core.engine.ir import Value, Window, as_array, as_held
from lcnn_core.engine.lowering import Lowering, argument, image_of, shape_of
from lcnn_core.layers import LookupConv2d, LookupLinear

MOST_REACH = 4096
"""Rows that a kernel may reach: more is refused by the loader (native/FORMAT.md)."""

DENSE_DENSITY = 0.4
"""Weights with fewer nonzeros than this run through the lookup kernel: about half of the matrix kernel's rate."""


def _paddings(module: Any) -> tuple[int, int]:
    if module.padding == "valid":
        return (0, 0)
    if module.padding == "same":
        rows, columns = (d * (k - 1) // 2 for d, k in zip(module.dilation, module.kernel_size, strict=True))
        return rows, columns
    return tuple(module.padding)  # type: ignore[return-value]


def conv(low: Lowering, node: fx.Node, module: Any) -> Value | None:
    x = image_of(low, node)
    shape = shape_of(node)
    if x is None or shape is None or module.padding_mode != "zeros":
        return None
    if max(d * (k - 1) for k, d in zip(module.kernel_size, module.dilation, strict=True)) > MOST_REACH:
        return None
    window = Window(tuple(module.kernel_size), tuple(module.stride), _paddings(module), tuple(module.dilation))
    bias = None if module.bias is None else as_array(module.bias)
    if isinstance(module, LookupConv2d):
        return _lookup_conv(low, node, module, x, shape, window, bias)
    weight = as_array(module.weight)
    sparse = np.count_nonzero(weight) < DENSE_DENSITY * weight.size
    thin = weight.shape[0] // module.groups < 4 and weight[0].size < 64
    if not (x.vector and window.pointwise) and (sparse or thin):
        return low.add(
            "lookup_conv", node, [x], shape, window=window, groups=module.groups, coefficients=weight, bias=bias
        )
    return _dense_conv(low, node, x, shape, window, module.groups, weight, bias)


def _dense_conv(
    low: Lowering, node: fx.Node, x: Value, shape: Any, window: Window, groups: int, weight: Any, bias: Any
):
    if groups == 1 and _covers(window, x):  # one output position: a linear layer over the flattened input
        flat = _flat(low, node, x)
        return low.add("linear", node, [flat], shape, weight=weight.reshape(len(weight), -1), bias=bias)
    return low.add("conv", node, [x], shape, window=window, groups=groups, weight=weight, bias=bias)


def _covers(window: Window, x: Value) -> bool:
    """Whether the only position of the window is the whole input."""
    return window.kernel == tuple(x.shape[1:]) and window.padding == (0, 0)


def _flat(low: Lowering, node: fx.Node, x: Value) -> Value:
    return x if x.vector else low.add("flatten", node, [x], (int(np.prod(x.shape)),))


def _lookup_conv(low: Lowering, node: fx.Node, module: LookupConv2d, x: Value, shape: Any, window: Window, bias: Any):
    dictionary = None if module.dictionary is None else as_array(module.dictionary)
    coefficients = as_held(module.effective_coefficients())
    groups, n = module.groups, len(coefficients)
    if dictionary is not None:
        dense = n * dictionary.shape[1] * int(np.prod(window.kernel)) * int(np.prod(shape[1:]))
        nonzeros = np.count_nonzero(coefficients) * int(np.prod(shape[1:]))
        positions = int(np.prod((shape if window.pointwise else x.shape)[1:]))
        if np.count_nonzero(dictionary) * positions + 1.7 * nonzeros > dense:
            weight = as_array(module.dense_weight())
            return _dense_conv(low, node, x, shape, window, groups, weight, bias)
        if groups == 1:
            dictionary, coefficients = _read_rows(dictionary, coefficients)
    if dictionary is not None and not x.vector and np.count_nonzero(dictionary) < DENSE_DENSITY * dictionary.size:
        rows = dictionary[:, :, None, None]
        image, first = x.shape[1:], Window()
        if window.pointwise:  # S is read only where the stride goes: let D go there
            image, first, window = shape[1:], window, Window()
        x = low.add("lookup_conv", node, [x], (len(rows), *image), window=first, groups=groups, coefficients=rows)
        dictionary = None
    elif (
        dictionary is not None
        and window.stride != (1, 1)
        and 2 * len(dictionary) <= x.shape[0]
        and window.kernel != (1, 1)
        and not (groups == 1 and _covers(window, x))
    ):
        # a stride splits planes into phases: there are fewer planes of S to split than of X
        rows = dictionary[:, :, None, None]
        x = low.add("conv", node, [x], (len(rows), *x.shape[1:]), groups=groups, weight=rows)
        dictionary = None
    if groups == 1 and _covers(window, x):  # one output position: lookups in S of the flattened input
        return low.add(
            "lookup_linear", node, [_flat(low, node, x)], shape, dictionary=dictionary,
            coefficients=coefficients.reshape(n, -1), bias=bias,
        )  # fmt: skip
    return low.add(
        "lookup_conv", node, [x], shape, window=window, groups=groups, dictionary=dictionary,
        coefficients=coefficients, bias=bias,
    )  # fmt: skip


def _read_rows(dictionary: Any, coefficients: Any) -> tuple[Any, Any]:
    """D and P without the rows of D that no lookup reads; one row at least."""
    rows = coefficients.any(axis=0).reshape(coefficients.shape[1], -1).any(axis=1)
    if rows.all():
        return dictionary, coefficients
    read = np.flatnonzero(rows) if rows.any() else np.array([0])
    return dictionary[read], coefficients[:, read]


def linear(low: Lowering, node: fx.Node, module: Any) -> Value | None:
    x = low.value(argument(node, 0, "input"))
    shape = shape_of(node)
    if x is None or shape is None or len(x.shape) != 1:
        return None
    bias = None if module.bias is None else as_array(module.bias)
    if isinstance(module, LookupLinear):
        dictionary = None if module.dictionary is None else as_array(module.dictionary)
        coefficients = as_held(module.effective_coefficients())
        cost = np.count_nonzero(coefficients) * 2 + (0 if dictionary is None else dictionary.size)
        if dictionary is not None and cost > len(coefficients) * dictionary.shape[1]:
            return low.add("linear", node, [x], shape, weight=as_array(module.dense_weight()), bias=bias)
        if dictionary is not None:
            dictionary, coefficients = _read_rows(dictionary, coefficients)
        return low.add("lookup_linear", node, [x], shape, dictionary=dictionary, coefficients=coefficients, bias=bias)
    weight = as_array(module.weight)
    if np.count_nonzero(weight) < DENSE_DENSITY / 2 * weight.size:
        return low.add("lookup_linear", node, [x], shape, coefficients=weight, bias=bias)
    return low.add("linear", node, [x], shape, weight=weight, bias=bias)


def batch_norm(low: Lowering, node: fx.Node, module: Any) -> Value | None:
    x = low.value(argument(node, 0, "input"))
    if x is None or module.running_mean is None:
        return None
    scale = 1 / np.sqrt(as_array(module.running_var) + module.eps)
    if module.weight is not None:
        scale = scale * as_array(module.weight)
    shift = -as_array(module.running_mean) * scale
    if module.bias is not None:
        shift = shift + as_array(module.bias)
    return low.add("affine", node, [x], x.shape, scale=scale, bias=shift)
