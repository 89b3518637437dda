"""The shape of every value of an ONNX graph, node by node, sizes that the graph computes itself included.

ONNX's own inference gives up where a graph works its sizes out from the shape of its input, as exports of ShuffleNet
and Swin do. Here each small integer result is folded as soon as it is known and handed to the inference of the next
node. Only operators in ``FOLDED`` are ever evaluated, and only on at most ``MAX_FOLDED`` numbers.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

MAX_FOLDED = 1024

FOLDED = frozenset(
    """Abs Add And Cast Ceil Concat Constant ConstantOfShape Div Equal Expand Floor Gather Greater GreaterOrEqual
    Identity Less LessOrEqual Max Min Mod Mul Neg Not Or Range ReduceProd ReduceSum Reshape ScatterND Slice Split Sqrt
    Squeeze Sub Transpose Unsqueeze Where""".split()  # noqa: SIM905
)


def infer_shapes(onnx: Any, model: Any, stored: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Name -> shape, for every value whose sizes are all known. ``stored``: initializers by name, data not needed."""
    inference = _Inference(onnx, model, stored)
    for node in model.graph.node:
        inference.visit(node)
    return inference.shapes


class _Inference:
    def __init__(self, onnx: Any, model: Any, stored: Mapping[str, Any]) -> None:
        self.onnx = onnx
        self.model = model
        self.versions = {opset.domain: opset.version for opset in model.opset_import}
        self.types: dict[str, Any] = {}
        self.values: dict[str, np.ndarray] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        for value in model.graph.input:
            self.learn(value.name, value.type)
        for name, tensor in stored.items():
            self.learn(name, onnx.helper.make_tensor_type_proto(tensor.data_type, list(tensor.dims)))
            if math.prod(tensor.dims) <= MAX_FOLDED and not tensor.external_data:
                with contextlib.suppress(ValueError, TypeError, KeyError):
                    self.values[name] = onnx.numpy_helper.to_array(tensor)

    def learn(self, name: str, kind: Any) -> None:
        self.types[name] = kind
        dims = kind.tensor_type.shape.dim
        if kind.tensor_type.HasField("shape") and all(dim.dim_value > 0 for dim in dims):
            self.shapes[name] = tuple(dim.dim_value for dim in dims)

    def visit(self, node: Any) -> None:
        """Infer the node's outputs, then its values where they are sizes."""
        if any(attribute.type in (5, 10) for attribute in node.attribute) or node.domain not in self.versions:
            return  # control flow, and operators that ONNX does not know
        version = self.versions[node.domain]
        inputs = [name for name in node.input if name]
        if any(name not in self.types for name in inputs):
            return
        data = {
            name: self.onnx.numpy_helper.from_array(self.values[name], name) for name in inputs if name in self.values
        }
        try:
            schema = self.onnx.defs.get_schema(node.op_type, version, node.domain)
            found = self.onnx.shape_inference.infer_node_outputs(
                *(schema, node, {name: self.types[name] for name in inputs}, data),
                opset_imports=list(self.model.opset_import),
            )
        except Exception:  # the C++ side's many kinds: the shapes stay unknown, and its users are named as uncounted
            return
        for name, kind in found.items():
            self.learn(name, kind)
        self.fold(node, inputs)

    def fold(self, node: Any, inputs: list[str]) -> None:
        if node.op_type == "Shape" and inputs[0] in self.shapes:
            shape = np.array(self.shapes[inputs[0]], dtype=np.int64)
            bounds = {attribute.name: attribute.i for attribute in node.attribute}
            self.values[node.output[0]] = shape[bounds.get("start", 0) : bounds.get("end", len(shape))]
            return
        sizes = [math.prod(self.shapes[name]) if name in self.shapes else math.inf for name in node.output if name]
        if node.op_type not in FOLDED or any(name not in self.values for name in inputs) or max(sizes) > MAX_FOLDED:
            return
        with contextlib.suppress(Exception):  # numpy's many kinds: the values stay unknown
            evaluator = self.onnx.reference.ReferenceEvaluator(self._single(node, inputs))
            results = evaluator.run(None, {name: self.values[name] for name in inputs})
            self.values.update(zip([name for name in node.output if name], results, strict=True))

    def _single(self, node: Any, inputs: list[str]) -> Any:
        helper = self.onnx.helper
        given = [helper.make_value_info(name, self.types[name]) for name in dict.fromkeys(inputs)]
        made = [helper.make_value_info(name, self.types[name]) for name in node.output if name]
        graph = helper.make_graph([node], "sizes", given, made)
        return helper.make_model(graph, opset_imports=list(self.model.opset_import), ir_version=self.model.ir_version)
