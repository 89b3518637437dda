"""ONNX graphs as ModelSpecs (extra ``onnx``): shapes by ONNX's own inference, nonzeros from the initializers.

Nothing is run. External data is read only from files inside the model's own folder.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lcnn_core.checkpoint.bounds import MAX_VIEWS
from lcnn_core.checkpoint.graphs import GraphRecorder, Shape, Weight
from lcnn_core.checkpoint.onnx_shapes import infer_shapes
from lcnn_core.errors import CheckpointError, ConfigError
from lcnn_core.spec import ModelSpec

MAX_BYTES = (2 << 30) - 1
"""What protobuf reads; larger models keep their weights in external data."""

FREE_OPERATORS = frozenset(
    """Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh AveragePool BitShift Cast CastLike Ceil Celu Clip
    Compress Concat Constant ConstantOfShape Cos Cosh CumSum DepthToSpace DequantizeLinear Div Dropout Elu Equal Erf
    Exp Expand EyeLike Flatten Floor Gather GatherElements GatherND Gelu GlobalAveragePool GlobalLpPool GlobalMaxPool
    Greater GreaterOrEqual HardSigmoid HardSwish Hardmax Identity IsInf IsNaN LeakyRelu Less LessOrEqual Log
    LogSoftmax LpPool Max MaxPool Mean Min Mish Mod Mul Neg NonZero Not OneHot Or PRelu Pad Pow QuantizeLinear Range
    Reciprocal ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum
    ReduceSumSquare Relu Reshape Resize Round ScatterElements ScatterND Selu Shape Sigmoid Sign Sin Sinh Size Slice
    Softmax Softplus Softsign SpaceToDepth Split Sqrt Squeeze Sub Sum Tan Tanh ThresholdedRelu Tile TopK Transpose
    Trilu Unsqueeze Upsample Where Xor DynamicQuantizeLinear Bernoulli RandomNormal RandomUniform
    RandomNormalLike RandomUniformLike Swish""".split()  # noqa: SIM905
)
"""Operators without multiplications by weights, free by convention, as element-wise ones are in ``describe``."""

_NORMS = frozenset(
    """BatchNormalization GroupNormalization InstanceNormalization LRN LayerNormalization LpNormalization
    MeanVarianceNormalization RMSNormalization SimplifiedLayerNormalization""".split()  # noqa: SIM905
)
_SAME_NONZEROS = frozenset("Cast Flatten Identity Reshape Squeeze Transpose Unsqueeze".split())  # noqa: SIM905
"""Operators between a stored weight and its use that change neither its entries' number nor which are zero."""


def read_spec(path: Path, input_shape: Sequence[int] | None = None) -> tuple[ModelSpec, tuple[str, ...]]:
    """Describe the ONNX graph at ``path`` for one image; also the names of weights that hold NaN or infinity.

    input_shape: without the batch, (channels, *spatial); needed where the file leaves sizes open, checked where it
    fixes them. Raises CheckpointError for a damaged file or external data out of bounds, ConfigError for an
    input_shape that does not fit or is missing, and where the package onnx is not installed.
    """
    reader = _Reader(path, input_shape)
    return reader.spec(), tuple(reader.not_finite)


def _onnx() -> Any:
    try:
        for module in ("numpy_helper", "reference", "shape_inference"):
            importlib.import_module(f"onnx.{module}")
        return importlib.import_module("onnx")
    except ImportError as error:
        raise ConfigError(f"onnx is not there: {error}; install it with: pip install 'lcnn[onnx]'") from error


class _Reader:
    def __init__(self, path: Path, input_shape: Sequence[int] | None) -> None:
        self.onnx = _onnx()
        self.path = path
        self.model = self._parse()
        graph = self.model.graph
        self.stored = {tensor.name: tensor for tensor in graph.initializer}
        self.made = {output: node for node in graph.node for output in node.output if output}
        for node in graph.node:
            for attribute in node.attribute if node.op_type == "Constant" else ():
                if attribute.name == "value" and attribute.HasField("t") and node.output:
                    self.stored[node.output[0]] = attribute.t
        self.weights: dict[str, Weight | None] = {}
        self.viewed = 0
        self.not_finite: list[str] = []
        self.of_image: set[str] = set()
        self.image = self._fix_input(input_shape)
        self.shapes = infer_shapes(self.onnx, self.model, self.stored)
        self.recorder = GraphRecorder()

    def refuse(self, reason: str) -> CheckpointError:
        return CheckpointError(f"{self.path}: {reason}")

    def spec(self) -> ModelSpec:
        graph = self.model.graph
        for index, node in enumerate(graph.node):
            self._record(node, node.name or f"{node.op_type}_{index}")
        statistics = {name for node in graph.node if node.op_type == "BatchNormalization" for name in node.input[3:5]}
        parameters = sum(
            math.prod(tensor.dims)
            for tensor in graph.initializer
            if tensor.name not in statistics and tensor.data_type in self._float_types()
        )
        return self.recorder.spec(graph.name or self.path.stem, self.image[1:], parameters)

    def _parse(self) -> Any:
        try:
            if self.path.stat().st_size > MAX_BYTES:
                raise self.refuse(f"is over {MAX_BYTES} bytes; save the model with its weights as external data")
            data = self.path.read_bytes()
        except OSError as error:
            raise CheckpointError(f"{self.path} cannot be read: {error.strerror}; check the path") from error
        try:
            model = self.onnx.ModelProto.FromString(data)
        except Exception as error:  # protobuf's DecodeError has no stable home to import it from
            raise self.refuse(f"is no ONNX file: {error}") from error
        if not model.graph.node or not model.graph.input:
            raise self.refuse("holds no graph with an input; expected an ONNX model")
        return model

    def _float_types(self) -> set[int]:
        kinds = self.onnx.TensorProto
        return {kinds.FLOAT, kinds.FLOAT16, kinds.DOUBLE, kinds.BFLOAT16}

    def _fix_input(self, wanted: Sequence[int] | None) -> Shape:
        """Write the batch and ``wanted`` into the graph's image input and return that shape."""
        inputs = [value for value in self.model.graph.input if value.name not in self.stored]
        if not inputs or not inputs[0].type.HasField("tensor_type"):
            raise self.refuse("has no tensor as its input")
        dims = inputs[0].type.tensor_type.shape.dim
        found = tuple(dim.dim_value if dim.dim_value > 0 else None for dim in dims)
        if wanted is not None and (
            len(found) != len(wanted) + 1 or any(f not in (None, w) for f, w in zip(found[1:], wanted, strict=True))
        ):
            raise ConfigError(f"input shape {tuple(wanted)} does not fit {self.path}, whose input is {_shown(found)}")
        sizes = (found[0] if found else None, *(wanted if wanted is not None else found[1:]))
        if len(sizes) < 2 or None in sizes[1:]:
            raise ConfigError(
                f"{self.path} leaves its input open, {_shown(found)}; give the input shape, without batch"
            )
        shape = (sizes[0] or 1, *(int(size) for size in sizes[1:] if size))
        for value in inputs:
            for dim in value.type.tensor_type.shape.dim:
                if dim.dim_value <= 0:
                    dim.dim_value = shape[0]
        for dim, size in zip(dims, shape, strict=True):
            dim.dim_value = size
        self.of_image.add(inputs[0].name)
        return shape

    def _record(self, node: Any, name: str) -> None:
        operator = node.op_type
        if not self.of_image.isdisjoint(node.input):
            self.of_image.update(node.output)
        self.recorder.batch = self.image[0] if not self.of_image.isdisjoint(node.output) else 1
        if node.domain not in ("", "ai.onnx"):
            return self.recorder.uncounted(name, f"{node.domain}.{operator}")
        if operator in FREE_OPERATORS:
            return None
        if operator in _NORMS:
            return self._norm(node, name)
        if operator not in _OPERATORS:
            return self.recorder.uncounted(name, operator)
        needed = [*node.input[:2], *node.output[:1]]
        if len(needed) < 2 or any(value not in self.shapes for value in needed):
            return self.recorder.uncounted(name, operator, "its shapes are not known")
        try:
            return _OPERATORS[operator](self, node, name)
        except (IndexError, ValueError, ZeroDivisionError, TypeError, KeyError) as error:
            raise self.refuse(f"node {name!r}: {operator} with impossible sizes: {error}") from error

    def _attributes(self, node: Any) -> dict[str, Any]:
        return {a.name: self.onnx.helper.get_attribute_value(a) for a in node.attribute}

    def conv(self, node: Any, name: str) -> None:
        x, w, y = (self.shapes[value] for value in (*node.input[:2], node.output[0]))
        given = self._attributes(node)
        space = len(w) - 2
        stride = _list(given.get("strides"), space, 1)
        dilation = _list(given.get("dilations"), space, 1)
        pads = _list(given.get("pads"), 2 * space, 0)
        padding = tuple(low + high for low, high in zip(pads[:space], pads[space:], strict=True))
        if given.get("auto_pad", b"NOTSET").startswith(b"SAME"):
            padding = _same_padding(x[-space:], y[-space:], stride, dilation, w[2:])
        self.recorder.conv(
            self.layer_name(node, name),
            *(x, y, self.weight_or_unknown(node.input[1]), self.bias(node, 2)),
            stride=stride,
            padding=padding,
            dilation=dilation,
            groups=int(given.get("group", 1)),
            transposed=node.op_type == "ConvTranspose",
        )

    def gemm(self, node: Any, name: str) -> None:
        x, y = self.shapes[node.input[0]], self.shapes[node.output[0]]
        given = self._attributes(node)
        weight = self.weight(node.input[1])
        if weight is not None and not given.get("transA"):
            return self.recorder.linear(self.layer_name(node, name), x, y, weight, self.bias(node, 2))
        left = x[::-1] if given.get("transA") else x
        right = self.shapes[node.input[1]]
        return self.recorder.matmul(name, left, right[::-1] if given.get("transB") else right)

    def matmul(self, node: Any, name: str) -> None:
        left, right, y = (self.shapes[value] for value in (*node.input[:2], node.output[0]))
        weight = self.weight(node.input[1])
        if weight is not None and len(right) == 2 and len(left) > 1:
            return self.recorder.linear(self.layer_name(node, name), left, y, weight, None)
        return self.recorder.matmul(name, left, right)

    def einsum(self, node: Any, name: str) -> None:
        equation = self._attributes(node)["equation"].decode("ascii", "replace")
        self.recorder.einsum(name, equation, [self.shapes[value] for value in node.input])

    def _norm(self, node: Any, name: str) -> None:
        x = self.shapes.get(node.input[0] if node.input else "", ())
        weights = [weight for value in node.input[1:3] if (weight := self.weight(value)) is not None]
        if x:
            self.recorder.free(self.layer_name(node, name), "norm", x, x, *weights)

    def layer_name(self, node: Any, name: str) -> str:
        """The module's path where the weight's name tells it, else the node's name."""
        weight = self.weight(node.input[1])
        stem, _, last = (weight.name if weight else "").rpartition(".")
        return stem if stem and last == "weight" else name

    def bias(self, node: Any, position: int) -> Weight | None:
        return self.weight(node.input[position]) if len(node.input) > position else None

    def weight_or_unknown(self, value: str) -> Weight:
        """A stored weight, or one that the graph computes, whose nonzeros nobody knows."""
        return self.weight(value) or Weight(value, self.shapes[value], None)

    def weight(self, value: str) -> Weight | None:
        """The stored tensor that ``value`` is, seen through operators that only move its entries; None if computed."""
        if value not in self.weights:
            origin, offset = value, None
            for _ in range(8):
                node = self.made.get(origin)
                if origin in self.stored or node is None or not node.input:
                    break
                if node.op_type == "DequantizeLinear" and offset is None:
                    offset = node
                elif node.op_type not in _SAME_NONZEROS:
                    break
                origin = node.input[0]
            tensor = self.stored.get(origin)
            known = tensor is not None and value in self.shapes
            nonzeros = self._nonzeros(tensor, offset) if known else None
            self.weights[value] = Weight(origin, self.shapes[value], nonzeros) if known else None
        return self.weights[value]

    def _nonzeros(self, tensor: Any, dequantize: Any) -> int:
        """Entries that are not zero; of a quantised weight, not at the zero point."""
        array = self._array(tensor)
        if dequantize is None or len(dequantize.input) < 3:
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                self.not_finite.append(tensor.name)
            return int(np.count_nonzero(array))
        point = self.stored.get(dequantize.input[2])
        if point is None:
            raise self.refuse(f"the zero point of {tensor.name!r} is computed; expected it stored")
        zero = self._array(point)
        if zero.size > 1:
            axis = self._attributes(dequantize).get("axis", 1)
            zero = np.reshape(zero, [-1 if at == axis % array.ndim else 1 for at in range(array.ndim)])
        return int(np.count_nonzero(array != zero))

    def _array(self, tensor: Any) -> np.ndarray:
        try:
            if tensor.data_location == self.onnx.TensorProto.EXTERNAL or tensor.external_data:
                return self._external(tensor)
            return self.onnx.numpy_helper.to_array(tensor)
        except CheckpointError:
            raise
        except Exception as error:  # ValueError, TypeError, KeyError, ... for data that does not fit its sizes
            raise self.refuse(f"initializer {tensor.name!r} does not hold what it announces: {error}") from error

    def _external(self, tensor: Any) -> np.ndarray:
        entries = {entry.key: entry.value for entry in tensor.external_data}
        dtype = self.onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
        folder = self.path.resolve().parent
        target = (folder / entries.get("location", "")).resolve()
        if not target.is_relative_to(folder) or not target.is_file():
            raise self.refuse(
                f"initializer {tensor.name!r} is in {entries.get('location', '')!r}; expected a file inside {folder}"
            )
        size = math.prod(tensor.dims) * dtype.itemsize
        offset = int(entries.get("offset", "0"))
        if int(entries.get("length", size)) != size or offset < 0 or offset + size > target.stat().st_size:
            raise self.refuse(
                f"initializer {tensor.name!r} of {size} bytes at {offset} is not all inside {target.name}"
            )
        self.viewed += size
        if self.viewed > MAX_VIEWS * target.stat().st_size:
            raise self.refuse(f"its initializers show the bytes of {target.name} over {MAX_VIEWS} times")
        return np.fromfile(target, dtype, math.prod(tensor.dims), offset=offset)


def _list(values: Any, count: int, default: int) -> tuple[int, ...]:
    numbers = tuple(int(value) for value in values) if values else (default,) * count
    if len(numbers) != count or any(number < 0 for number in numbers):
        raise ValueError(f"{numbers} where {count} sizes were expected")
    return numbers


def _same_padding(x: Shape, y: Shape, stride: Shape, dilation: Shape, kernel: Shape) -> Shape:
    """Zeros that auto_pad adds, both sides together: what the last window needs beyond the input."""
    rows = zip(x, y, stride, dilation, kernel, strict=True)
    return tuple(max(0, (out - 1) * step + gap * (size - 1) + 1 - extent) for extent, out, step, gap, size in rows)


def _shown(shape: Sequence[int | None]) -> str:
    return "(" + ", ".join("?" if size is None else str(size) for size in shape) + ")"


_OPERATORS: dict[str, Callable[[_Reader, Any, str], None]] = {
    "Conv": _Reader.conv,
    "ConvTranspose": _Reader.conv,
    "Gemm": _Reader.gemm,
    "MatMul": _Reader.matmul,
    "Einsum": _Reader.einsum,
}
"""Operators that multiply by weights or by each other, with how each is counted; all others are named as uncounted."""
