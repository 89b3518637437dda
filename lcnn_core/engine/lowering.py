"""The state of a lowering, and what handlers ask of a node."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import fx, nn

from lcnn_core.engine.ir import Operation, Value


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


def image_of(low: Lowering, node: fx.Node) -> Value | None:
    value = low.value(argument(node, 0, "input"))
    return value if value is not None and len(value.shape) == 3 else None
