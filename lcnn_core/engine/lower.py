"""From a captured graph to the engine's operations: one visible table of what is covered.

Every handler takes the node and, for module calls, the module; it returns the operation's output, or None where this
use of the layer is not covered, in which case the node runs in PyTorch between native segments.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import fx, nn
from torch.nn import functional as F
from torch.nn.modules.utils import _pair

from lcnn_core.engine.ir import RELU, Activation, Value, Window
from lcnn_core.engine.lower_weights import batch_norm, conv, linear
from lcnn_core.engine.lowering import Handler, Lowering, argument, image_of, shape_of
from lcnn_core.layers import LookupConv2d, LookupLinear

MOST_WINDOW = 64
"""Rows of a pooling window: more is refused by the loader (native/FORMAT.md)."""


def activation(make: Callable[[Any], Activation]) -> Handler:
    """Of a module: ``make`` of it."""
    return lambda low, node, module: _activate(low, node, make(module))


def activation_function(kind: str, *parameters: tuple[str, float]) -> Handler:
    """Of a function whose arguments after the input are numbers: their names and defaults."""

    def handler(low: Lowering, node: fx.Node, module: Any) -> Value | None:
        numbers = [argument(node, i, name, default) for i, (name, default) in enumerate(parameters, 1)]
        numbers = [default if given is None else given for given, (_, default) in zip(numbers, parameters, strict=True)]
        return _activate(low, node, Activation(kind, *numbers)) if all(map(_number, numbers)) else None

    return handler


def _number(value: Any) -> bool:
    return isinstance(value, int | float)


def _activate(low: Lowering, node: fx.Node, kind: Activation) -> Value | None:
    x = low.value(argument(node, 0, "input"))
    return None if x is None else low.add("activate", node, [x], x.shape, activation=kind)


def _module_activation(module: Any) -> Activation:
    return {
        nn.ReLU: lambda m: RELU,
        nn.ReLU6: lambda m: Activation("clamp", 0.0, 6.0),
        nn.Hardtanh: lambda m: Activation("clamp", m.min_val, m.max_val),
        nn.LeakyReLU: lambda m: Activation("leaky", m.negative_slope),
        nn.SiLU: lambda m: Activation("silu"),
        nn.Sigmoid: lambda m: Activation("sigmoid"),
        nn.Hardswish: lambda m: Activation("hard_swish"),
        nn.Hardsigmoid: lambda m: Activation("hard_sigmoid"),
        nn.Tanh: lambda m: Activation("tanh"),
        nn.ELU: lambda m: Activation("elu", m.alpha),
    }[type(module)](module)


def pool_module(average: bool) -> Handler:
    def handler(low: Lowering, node: fx.Node, module: Any) -> Value | None:
        return _pool(low, node, average, {**module.__dict__})

    return handler


def pool_function(average: bool) -> Handler:
    names = (
        "kernel_size",
        "stride",
        "padding",
        *(("ceil_mode", "count_include_pad", "divisor_override") if average else ("dilation", "ceil_mode")),
    )

    def handler(low: Lowering, node: fx.Node, module: Any) -> Value | None:
        options = {**dict(zip(names, node.args[1:], strict=False)), **node.kwargs}
        return _pool(low, node, average, options)

    return handler


def _pool(low: Lowering, node: fx.Node, average: bool, options: dict[str, Any]) -> Value | None:
    x, shape = image_of(low, node), shape_of(node)
    if x is None or shape is None or options.get("return_indices"):
        return None
    kernel = _two(options["kernel_size"])
    window = Window(
        kernel, _two(options.get("stride") or kernel), _two(options.get("padding", 0)), _two(options.get("dilation", 1))
    )
    if kernel[0] > MOST_WINDOW:
        return None
    return low.add(
        "pool", node, [x], shape, window=window, average=average,
        count_pad=bool(options.get("count_include_pad", True)), divisor=options.get("divisor_override") or 0,
    )  # fmt: skip


def _two(size: Any) -> tuple[int, int]:
    """A size for rows and columns: a number, or a tuple or list of one or two."""
    pair = tuple(size) * 2 if isinstance(size, tuple | list) else _pair(size)
    return pair[0], pair[1]


def adaptive(average: bool) -> Handler:
    def handler(low: Lowering, node: fx.Node, module: Any) -> Value | None:
        x, shape = image_of(low, node), shape_of(node)
        return None if x is None or shape is None else low.add("adaptive", node, [x], shape, average=average)

    return handler


def mean(low: Lowering, node: fx.Node, module: Any) -> Value | None:
    x, dims = image_of(low, node), argument(node, 1, "dim")
    shape = shape_of(node)
    dims = [dims] if isinstance(dims, int) else dims
    if x is None or shape is None or dims is None or sorted(d % 4 for d in dims) != [2, 3]:
        return None
    pooled = low.add("adaptive", node, [x], (x.shape[0], 1, 1), average=True)
    pooled.shape = shape
    return pooled


def add(low: Lowering, node: fx.Node, module: Any) -> Value | None:
    a, b = low.value(argument(node, 0, "input")), low.value(argument(node, 1, "other"))
    if a is None or b is None or a.shape != b.shape or node.kwargs.get("alpha", 1) != 1:
        return None
    return low.add("add", node, [a, b], a.shape)


def multiply(low: Lowering, node: fx.Node, module: Any) -> Value | None:
    a, b = low.value(argument(node, 0, "input")), low.value(argument(node, 1, "other"))
    if a is None or b is None or len(a.shape) != 3 or len(b.shape) != 3 or a.shape[0] != b.shape[0]:
        return None
    if a.vector and not b.vector:
        a, b = b, a
    return low.add("multiply", node, [a, b], a.shape) if b.vector else None


def concat(low: Lowering, node: fx.Node, module: Any) -> Value | None:
    given = argument(node, 0, "tensors")
    parts = [low.value(part) for part in given] if isinstance(given, tuple | list) else [None]
    dim, shape = argument(node, 1, "dim", 0), shape_of(node)
    if shape is None or any(part is None or part.shape[1:] != shape[1:] for part in parts):
        return None
    return low.add("concat", node, parts, shape) if dim % (len(shape) + 1) == 1 else None  # type: ignore[arg-type]


def flatten(low: Lowering, node: fx.Node, module: Any) -> Value | None:
    x, shape = low.value(argument(node, 0, "input")), shape_of(node)
    if x is None or shape is None or len(shape) != 1 or shape[0] != int(np.prod(x.shape)):
        return None
    return low.add("flatten", node, [x], shape)


def same(low: Lowering, node: fx.Node, module: Any) -> Value | None:
    return low.value(argument(node, 0, "input")) if node.meta.get("same") else None


def _inactive(low: Lowering, node: fx.Node, module: Any) -> Value | None:
    """``F.dropout``, which is active unless told otherwise."""
    return same(low, node, module) if argument(node, 2, "training", True) is False else None


def _constant(kind: Activation) -> Handler:
    return lambda low, node, module: _activate(low, node, kind)


_CLAMP = activation_function("clamp", ("min", -np.inf), ("max", np.inf))

MODULES: dict[type, Handler] = {
    nn.Conv2d: conv,
    LookupConv2d: conv,
    nn.Linear: linear,
    LookupLinear: linear,
    nn.BatchNorm2d: batch_norm,
    nn.BatchNorm1d: batch_norm,
    **{
        kind: activation(_module_activation)
        for kind in (nn.ReLU, nn.ReLU6, nn.Hardtanh, nn.LeakyReLU, nn.SiLU, nn.Sigmoid, nn.Hardswish, nn.Hardsigmoid,
                     nn.Tanh, nn.ELU)
    },
    nn.MaxPool2d: pool_module(False),
    nn.AvgPool2d: pool_module(True),
    nn.AdaptiveAvgPool2d: adaptive(True),
    nn.AdaptiveMaxPool2d: adaptive(False),
    nn.Flatten: flatten,
    nn.Identity: same,
    nn.Dropout: same,
    nn.Dropout2d: same,
}  # fmt: skip


FUNCTIONS: dict[Any, Handler] = {
    F.relu: _constant(RELU),
    torch.relu: _constant(RELU),
    F.relu6: _constant(Activation("clamp", 0.0, 6.0)),
    F.hardtanh: activation_function("clamp", ("min_val", -1.0), ("max_val", 1.0)),
    torch.clamp: _CLAMP,
    F.leaky_relu: activation_function("leaky", ("negative_slope", 0.01)),
    F.elu: activation_function("elu", ("alpha", 1.0)),
    F.silu: _constant(Activation("silu")),
    F.sigmoid: _constant(Activation("sigmoid")),
    torch.sigmoid: _constant(Activation("sigmoid")),
    F.hardswish: _constant(Activation("hard_swish")),
    F.hardsigmoid: _constant(Activation("hard_sigmoid")),
    F.tanh: _constant(Activation("tanh")),
    torch.tanh: _constant(Activation("tanh")),
    operator.add: add,
    operator.iadd: add,
    torch.add: add,
    operator.mul: multiply,
    operator.imul: multiply,
    torch.mul: multiply,
    torch.cat: concat,
    torch.flatten: flatten,
    F.max_pool2d: pool_function(False),
    F.avg_pool2d: pool_function(True),
    F.adaptive_avg_pool2d: adaptive(True),
    F.adaptive_max_pool2d: adaptive(False),
    F.dropout: _inactive,
    torch.mean: mean,
}

METHODS: dict[str, Handler] = {
    "relu": FUNCTIONS[F.relu],
    "relu_": FUNCTIONS[F.relu],
    "sigmoid": FUNCTIONS[torch.sigmoid],
    "tanh": FUNCTIONS[torch.tanh],
    "clamp": _CLAMP,
    "clamp_": _CLAMP,
    "add": add,
    "add_": add,
    "mul": multiply,
    "mul_": multiply,
    "flatten": flatten,
    "view": flatten,
    "reshape": flatten,
    "contiguous": same,
    "mean": mean,
}
