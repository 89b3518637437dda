"""From a captured graph to the engine's operations: one visible table of what is covered.

Every handler takes the node and, for module calls, the module; it returns the operation's output, or None where this
use of the layer is not covered, in which case the node runs in PyTorch between native segments.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import fx, nn
from torch.nn import functional as F
from torch.nn.modules.utils import _pair

from lcnn_core.engine.ir import RELU, Activation, Operation, Value, Window, as_array
from lcnn_core.layers import LookupConv2d, LookupLinear

MOST_REACH, MOST_WINDOW = 4096, 64
"""Rows that a kernel may reach, and rows of a pooling window: more are refused by the loader (native/FORMAT.md)."""

DENSE_DENSITY = 0.4
"""Weights with fewer nonzeros than this run through the lookup kernel: about half of the matrix kernel's rate."""


@dataclass
class Lowering:
    """The state of one lowering: operations so far, the value that each node made, and the one that it stands for.

    After a step in place, all names of its input stand for its output; ``reads`` keeps what each node that PyTorch runs
    found under the names of its inputs.
    """

    modules: dict[str, nn.Module]
    batch: int
    operations: list[Operation | fx.Node] = field(default_factory=list)
    values: dict[fx.Node, Value] = field(default_factory=dict)
    made: dict[fx.Node, Value] = field(default_factory=dict)
    reads: dict[fx.Node, dict[fx.Node, Value]] = field(default_factory=dict)

    def value(self, node: Any) -> Value | None:
        return self.values.get(node) if isinstance(node, fx.Node) else None

    def add(self, kind: str, node: fx.Node, inputs: list[Value], shape: tuple[int, ...], **fields: Any) -> Value:
        output = Value(shape)
        name = str(node.target) if node.op == "call_module" else node.name
        self.operations.append(Operation(kind, name, inputs, output, **fields))
        return output


def shape_of(node: Any) -> tuple[int, ...] | None:
    """Shape without the batch, of a float32 tensor node."""
    meta = node.meta.get("shape") if isinstance(node, fx.Node) else None
    return None if meta is None else meta[1:]


Handler = Callable[[Lowering, fx.Node, Any], Value | None]


def argument(node: fx.Node, position: int, name: str, default: Any = None) -> Any:
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def _image(low: Lowering, node: fx.Node) -> Value | None:
    value = low.value(argument(node, 0, "input"))
    return value if value is not None and len(value.shape) == 3 else None


def _paddings(module: Any) -> tuple[int, int]:
    if module.padding == "valid":
        return (0, 0)
    if module.padding == "same":
        rows, columns = (d * (k - 1) // 2 for d, k in zip(module.dilation, module.kernel_size, strict=True))
        return rows, columns
    return tuple(module.padding)  # type: ignore[return-value]


def conv(low: Lowering, node: fx.Node, module: Any) -> Value | None:
    x = _image(low, node)
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
    covers = window.kernel == x.shape[1:] and window.padding == (0, 0) and shape[1:] == (1, 1)
    if covers and groups == 1:  # one output position: a linear layer over the flattened input
        flat = x if x.vector else low.add("flatten", node, [x], (int(np.prod(x.shape)),))
        return low.add("linear", node, [flat], shape, weight=weight.reshape(len(weight), -1), bias=bias)
    return low.add("conv", node, [x], shape, window=window, groups=groups, weight=weight, bias=bias)


def _lookup_conv(low: Lowering, node: fx.Node, module: LookupConv2d, x: Value, shape: Any, window: Window, bias: Any):
    dictionary = None if module.dictionary is None else as_array(module.dictionary)
    coefficients = as_array(module.effective_coefficients())
    groups, n = module.groups, len(coefficients)
    if dictionary is not None:
        dense = n * dictionary.shape[1] * int(np.prod(window.kernel)) * int(np.prod(shape[1:]))
        nonzeros = np.count_nonzero(coefficients) * int(np.prod(shape[1:]))
        if np.count_nonzero(dictionary) * int(np.prod(x.shape[1:])) + 1.7 * nonzeros > dense:
            weight = as_array(module.dense_weight())
            return _dense_conv(low, node, x, shape, window, groups, weight, bias)
        if groups == 1:
            dictionary, coefficients = _read_rows(dictionary, coefficients)
    if x.vector and window.pointwise and groups == 1:
        return low.add(
            "lookup_linear",
            node,
            [x],
            shape,
            dictionary=dictionary,
            coefficients=coefficients.reshape(n, -1),
            bias=bias,
        )
    if dictionary is not None and np.count_nonzero(dictionary) < DENSE_DENSITY * dictionary.size:
        rows = dictionary[:, :, None, None]
        x = low.add("lookup_conv", node, [x], (len(rows), *x.shape[1:]), groups=groups, coefficients=rows)
        dictionary = None
    elif (
        dictionary is not None
        and window.stride != (1, 1)
        and 2 * len(dictionary) <= x.shape[0]
        and window.kernel != (1, 1)
    ):
        # a stride splits planes into phases: there are fewer planes of S to split than of X
        rows = dictionary[:, :, None, None]
        x = low.add("conv", node, [x], (len(rows), *x.shape[1:]), groups=groups, weight=rows)
        dictionary = None
    return low.add(
        "lookup_conv", node, [x], shape, window=window, groups=groups, dictionary=dictionary,
        coefficients=coefficients, bias=bias,
    )  # fmt: skip


def _read_rows(dictionary: Any, coefficients: Any) -> tuple[Any, Any]:
    """D and P without the rows of D that no lookup reads; one row at least."""
    read = np.flatnonzero(np.moveaxis(coefficients, 1, 0).reshape(coefficients.shape[1], -1).any(axis=1))
    read = read if len(read) else np.array([0])
    return dictionary[read], coefficients[:, read]


def linear(low: Lowering, node: fx.Node, module: Any) -> Value | None:
    x = low.value(argument(node, 0, "input"))
    shape = shape_of(node)
    if x is None or shape is None or len(x.shape) != 1:
        return None
    bias = None if module.bias is None else as_array(module.bias)
    if isinstance(module, LookupLinear):
        dictionary = None if module.dictionary is None else as_array(module.dictionary)
        coefficients = as_array(module.effective_coefficients())
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
    x, shape = _image(low, node), shape_of(node)
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
        x, shape = _image(low, node), shape_of(node)
        return None if x is None or shape is None else low.add("adaptive", node, [x], shape, average=average)

    return handler


def mean(low: Lowering, node: fx.Node, module: Any) -> Value | None:
    x, dims = _image(low, node), argument(node, 1, "dim")
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
