"""Torch7 modules as PyTorch modules: ``CLASSES`` lists those that are known, all others are named and refused.

The published lookup layer is recognised by its fields, whatever its class is called: ``poolconv``, the 1x1 dictionary
convolution; ``alignconv``, whose weight is P; ``sparseTh``, the threshold.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lcnn_core.checkpoint.torch7 import Object, Table
from lcnn_core.errors import CheckpointError, first_line
from lcnn_core.layers import LookupConv2d

MAX_CALLS = 10_000
"""Layers that one image passes; shared modules count at every call."""
MAX_GROWTH = 1024
"""Pixels that all paddings together may add to a side beyond what the kernels take off it."""
MAX_GEOMETRY = 1024
"""Largest kernel size, stride or padding."""


def to_module(value: Any, source: str) -> nn.Module:
    """The network in a value that ``torch7.read`` returned: the value itself, or the first field or entry that is one.

    Shared modules stay shared, and so do weights that lie in one storage. Raises CheckpointError, naming ``source``,
    for a class that is not in ``CLASSES``, modules that contain themselves, and sizes that do not fit the weights.
    """
    try:
        builder = _Builder()
        return builder.build(_find_network(value)).eval()
    except CheckpointError as error:
        raise CheckpointError(f"{source}: {error}") from error
    except (RuntimeError, OverflowError) as error:
        raise CheckpointError(f"{source}: a layer's sizes cannot be: {first_line(error)}") from error


def _find_network(value: Any) -> Object:
    candidates = [value]
    if isinstance(value, Table):
        candidates = [value.items[name] for name in ("model", "net", "network") if name in value.items]
        candidates += value.array()
    for candidate in candidates:
        if isinstance(candidate, Object):
            return candidate
    raise CheckpointError("holds no network; expected a module, or a table with one under 'model', 'net' or 1")


class _Fields:
    """The fields of one module, read with checks."""

    def __init__(self, module: Object) -> None:
        self.class_name, self.fields = module.class_name, module.fields

    def refuse(self, reason: str) -> CheckpointError:
        return CheckpointError(f"a {self.class_name[:100]!r} {reason}")

    def number(self, name: str, default: int | None = None, low: int = 0) -> int:
        value = self.fields.get(name, default)
        if not isinstance(value, float | int) or value != _whole(value) or not low <= value:
            raise self.refuse(f"has {name} {_shown(value)}; expected a whole number of {low} or more")
        return int(value)

    def pair(self, height: str, width: str, default: int | None = None, low: int = 0) -> tuple[int, int]:
        pair = (self.number(height, default, low), self.number(width, default, low))
        if max(pair) > MAX_GEOMETRY:
            raise self.refuse(f"has {height} and {width} {pair}; expected {MAX_GEOMETRY} or less")
        return pair

    def real(self, name: str, default: float) -> float:
        value = self.fields.get(name, default)
        if not isinstance(value, float | int) or not math.isfinite(value):
            raise self.refuse(f"has {name} {_shown(value)}; expected a finite number")
        return float(value)

    def tensor(self, name: str, *shape: int) -> Tensor:
        value = self.fields.get(name)
        if not isinstance(value, Tensor) or not value.is_floating_point() or value.numel() != math.prod(shape):
            found = tuple(value.shape) if isinstance(value, Tensor) else _shown(value)
            raise self.refuse(f"has the {name} {found}; expected numbers of shape {shape}")
        return value.reshape(shape)

    def module(self, name: str) -> Object:
        value = self.fields.get(name)
        if not isinstance(value, Object):
            raise self.refuse(f"has no module {name}")
        return value

    def modules(self) -> list[Object]:
        table = self.fields.get("modules")
        modules = table.array() if isinstance(table, Table) else []
        if not isinstance(table, Table) or not all(isinstance(module, Object) for module in modules):
            raise self.refuse("has no list of modules")
        return modules


def _whole(value: float) -> float:
    return int(value) if math.isfinite(value) else math.nan


def _shown(value: Any) -> str:
    return repr(value)[:40] if isinstance(value, float | str | bool | None) else f"a {type(value).__name__.lower()}"


class _Builder:
    """Builds each module once, and knows how many calls and how much padding the whole comes to."""

    def __init__(self) -> None:
        self.built: dict[int, tuple[nn.Module, int, int]] = {}
        self.open: set[int] = set()
        self.calls = 0
        self.growth = 0

    def build(self, value: Object) -> nn.Module:
        if id(value) in self.open:
            raise CheckpointError(f"a {value.class_name[:100]!r} contains itself")
        if id(value) not in self.built:
            calls, growth, self.calls, self.growth = self.calls, self.growth, 0, 0
            self.open.add(id(value))
            module = self._make(value)
            self.open.remove(id(value))
            self.built[id(value)] = (module, self.calls + 1, self.growth)
            self.calls, self.growth = calls, growth
        module, calls, growth = self.built[id(value)]
        self.calls, self.growth = self.calls + calls, self.growth + growth
        if self.calls > MAX_CALLS or self.growth > MAX_GROWTH:
            raise CheckpointError(
                f"the network calls {self.calls} layers that add {self.growth} pixels; "
                f"expected at most {MAX_CALLS} and {MAX_GROWTH}"
            )
        return module

    def _make(self, value: Object) -> nn.Module:
        fields = _Fields(value)
        if all(name in value.fields for name in ("poolconv", "alignconv", "sparseTh")):
            return self.grown(_lookup(fields))
        name = value.class_name.rpartition(".")[2]
        if name not in CLASSES or not value.class_name.startswith(("nn.", "cudnn.", "cunn.")):
            raise CheckpointError(
                f"the class {value.class_name[:100]!r} is not known; expected modules of {', '.join(CLASSES)}"
            )
        return self.grown(CLASSES[name](fields, self))

    def grown(self, module: nn.Module) -> nn.Module:
        if isinstance(module, nn.Conv2d | LookupConv2d):
            pads = zip(module.padding, module.kernel_size, strict=True)
            self.growth += max(0, *(2 * int(pad) - (kernel - 1) for pad, kernel in pads))
        return module


def _conv_options(fields: _Fields) -> dict[str, Any]:
    options: dict[str, Any] = {
        "in_channels": fields.number("nInputPlane", low=1),
        "out_channels": fields.number("nOutputPlane", low=1),
        "kernel_size": fields.pair("kH", "kW", low=1),
        "stride": fields.pair("dH", "dW", 1, low=1),
        "padding": fields.pair("padH", "padW", 0),
        "groups": fields.number("groups", 1, low=1),
    }
    if options["in_channels"] % options["groups"] or options["out_channels"] % options["groups"]:
        raise fields.refuse(f"has groups {options['groups']}, which do not divide its channels")
    return options


def _conv_weight(fields: _Fields, options: Mapping[str, Any]) -> Tensor:
    width = options["in_channels"] // options["groups"]
    return fields.tensor("weight", options["out_channels"], width, *options["kernel_size"])


def _conv(fields: _Fields, builder: _Builder) -> nn.Conv2d:
    options = _conv_options(fields)
    weight = _conv_weight(fields, options)
    has_bias = fields.fields.get("bias") is not None
    module = nn.Conv2d(**options, bias=has_bias, device="meta", dtype=weight.dtype)
    return _filled(module, weight=weight, **_bias(fields, options["out_channels"], has_bias))


def _bias(fields: _Fields, size: int, has_bias: bool) -> dict[str, Tensor]:
    return {"bias": fields.tensor("bias", size)} if has_bias else {}


def _filled(module: Any, **tensors: Tensor) -> Any:
    """``module``, made on the meta device, with these tensors as its parameters and buffers."""
    dtype = module.weight.dtype if getattr(module, "weight", None) is not None else None
    state = {name: tensor if dtype is None else tensor.to(dtype) for name, tensor in tensors.items()}
    module.load_state_dict(state, strict=False, assign=True)
    return module


def _lookup(fields: _Fields) -> LookupConv2d:
    """The published layer: S = poolconv(x), entries of alignconv's weight at or below sparseTh count as zero."""
    pool, align = _Fields(fields.module("poolconv")), _Fields(fields.module("alignconv"))
    first, second = _conv_options(pool), _conv_options(align)
    threshold = fields.real("sparseTh", 0.0)
    if threshold < 0:
        raise fields.refuse(f"has sparseTh {threshold}; expected 0 or more")
    if first["kernel_size"] != (1, 1) or first["stride"] != (1, 1) or first["groups"] != 1 or second["groups"] != 1:
        raise fields.refuse("has a poolconv that is no 1x1 convolution with stride 1, or groups")
    if second["in_channels"] != first["out_channels"]:
        raise fields.refuse(
            f"has a dictionary of {first['out_channels']} vectors and lookups into {second['in_channels']} of them: "
            "an index outside the dictionary"
        )
    if isinstance(pool.fields.get("bias"), Tensor) and bool(torch.count_nonzero(pool.fields["bias"])):
        raise fields.refuse("has a dictionary with a bias; expected none")
    coefficients = _conv_weight(align, second)
    has_bias = align.fields.get("bias") is not None
    layer = LookupConv2d(
        first["in_channels"],
        second["out_channels"],
        second["kernel_size"],
        second["stride"],
        # D has no bias, so padding its input or its response is the same.
        (first["padding"][0] + second["padding"][0], first["padding"][1] + second["padding"][1]),
        bias=has_bias,
        dictionary_size=first["out_channels"],
        threshold=threshold,
        device="meta",
        dtype=coefficients.dtype,
    )
    tensors = {
        "dictionary": pool.tensor("weight", first["out_channels"], first["in_channels"]),
        "coefficients": coefficients,
        **_bias(align, second["out_channels"], has_bias),
    }
    layer.load_state_dict({name: t.to(coefficients.dtype) for name, t in tensors.items()}, assign=True)
    return layer


def _linear(fields: _Fields, builder: _Builder) -> nn.Linear:
    weight = fields.fields.get("weight")
    if not isinstance(weight, Tensor) or weight.ndim != 2:
        raise fields.refuse("has no weight of two dimensions")
    rows, columns = weight.shape
    has_bias = fields.fields.get("bias") is not None
    module = nn.Linear(columns, rows, has_bias, device="meta", dtype=weight.dtype)
    return _filled(module, weight=fields.tensor("weight", rows, columns), **_bias(fields, rows, has_bias))


def _norm(kind: type[nn.Module]) -> Callable[[_Fields, _Builder], nn.Module]:
    def make(fields: _Fields, builder: _Builder) -> nn.Module:
        mean = fields.fields.get("running_mean")
        if not isinstance(mean, Tensor) or mean.ndim != 1:
            raise fields.refuse("has no running_mean")
        size = len(mean)
        affine = fields.fields.get("weight") is not None
        module = kind(size, eps=fields.real("eps", 1e-5), affine=affine, device="meta", dtype=mean.dtype)  # type: ignore[call-arg]
        names = ("running_mean", "running_var", *(("weight", "bias") if affine else ()))
        tensors = {name: fields.tensor(name, size).to(mean.dtype) for name in names}
        module.load_state_dict({**tensors, "num_batches_tracked": torch.tensor(0)}, assign=True)
        return module

    return make


def _pool(kind: type[nn.MaxPool2d | nn.AvgPool2d]) -> Callable[[_Fields, _Builder], nn.Module]:
    def make(fields: _Fields, builder: _Builder) -> nn.Module:
        kernel, padding = fields.pair("kH", "kW", low=1), fields.pair("padH", "padW", 0)
        if any(2 * pad > size for pad, size in zip(padding, kernel, strict=True)):
            raise fields.refuse(f"has padding {padding}; expected at most half of its kernel {kernel}")
        return kind(kernel, fields.pair("dH", "dW", 1, low=1), padding, ceil_mode=bool(fields.fields.get("ceil_mode")))

    return make


class Reshape(nn.Module):
    """``nn.View`` and ``nn.Reshape`` of Torch7 on a batch: (b, ...) -> (b, *sizes)."""

    def __init__(self, sizes: tuple[int, ...]) -> None:
        super().__init__()
        self.sizes = sizes

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(x.shape[0], *self.sizes)


def _reshape(fields: _Fields, builder: _Builder) -> Reshape:
    sizes = fields.fields.get("size")
    if not isinstance(sizes, Tensor) or sizes.ndim != 1 or not 1 <= len(sizes) <= 8:
        raise fields.refuse("has no list of sizes")
    numbers = tuple(int(size) for size in sizes)
    return Reshape(numbers[1:] if len(numbers) > 1 and numbers[0] == -1 else numbers)


class Branches(nn.ModuleList):
    """``nn.ConcatTable``: one input through every branch, a list out."""

    def forward(self, x: Tensor) -> list[Tensor]:
        return [branch(x) for branch in self]


class Concat(nn.ModuleList):
    """``nn.Concat``: one input through every branch, the outputs joined along ``dim``, which counts the batch."""

    def __init__(self, branches: list[nn.Module], dim: int) -> None:
        super().__init__(branches)
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self], self.dim)


class Sum(nn.Module):
    """``nn.CAddTable``: the sum of a list."""

    def forward(self, x: list[Tensor]) -> Tensor:
        return torch.stack(x).sum(0)


class Join(nn.Module):
    """``nn.JoinTable``: a list joined along the channels."""

    def forward(self, x: list[Tensor]) -> Tensor:
        return torch.cat(x, 1)


def _children(fields: _Fields, builder: _Builder) -> list[nn.Module]:
    return [builder.build(module) for module in fields.modules()]


def _inner(fields: _Fields, builder: _Builder) -> nn.Module:
    """A wrapper for several devices: its first module is the network."""
    modules = fields.modules()
    if not modules:
        raise fields.refuse("has no module")
    return builder.build(modules[0])


def _simple(kind: Callable[[], nn.Module]) -> Callable[[_Fields, _Builder], nn.Module]:
    return lambda fields, builder: kind()


CLASSES: dict[str, Callable[[_Fields, _Builder], nn.Module]] = {
    "Sequential": lambda fields, builder: nn.Sequential(*_children(fields, builder)),
    "ConcatTable": lambda fields, builder: Branches(_children(fields, builder)),
    "Concat": lambda fields, builder: Concat(_children(fields, builder), fields.number("dimension", low=1) - 1),
    "DataParallelTable": _inner,
    "CAddTable": _simple(Sum),
    "JoinTable": _simple(Join),
    "SpatialConvolution": _conv,
    "SpatialConvolutionMM": _conv,
    "SpatialBatchNormalization": _norm(nn.BatchNorm2d),
    "BatchNormalization": _norm(nn.BatchNorm1d),
    "SpatialMaxPooling": _pool(nn.MaxPool2d),
    "SpatialAveragePooling": _pool(nn.AvgPool2d),
    "Linear": _linear,
    "View": _reshape,
    "Reshape": _reshape,
    "ReLU": _simple(nn.ReLU),
    "Tanh": _simple(nn.Tanh),
    "Sigmoid": _simple(nn.Sigmoid),
    "Identity": _simple(nn.Identity),
    "Dropout": _simple(nn.Dropout),
    "SpatialDropout": _simple(nn.Dropout2d),
    "SoftMax": _simple(lambda: nn.Softmax(1)),
    "LogSoftMax": _simple(lambda: nn.LogSoftmax(1)),
}
"""Modules of ``nn`` and ``cudnn`` that convolutional networks are made of, by name."""
