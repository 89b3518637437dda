"""Captures a model as a graph, with the shape of every tensor, and lowers what the engine covers."""

from __future__ import annotations

import operator
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, fx, nn

from lcnn_core.engine.ir import Value
from lcnn_core.engine.lower import FUNCTIONS, METHODS, MODULES, Handler, Lowering
from lcnn_core.layers import LookupLayer


class _Tracer(fx.Tracer):
    """Does not look inside lookup layers, nor inside ``opaque`` modules."""

    def __init__(self, opaque: Collection[nn.Module] = ()):
        super().__init__()
        self.opaque = opaque

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        leaf = isinstance(m, LookupLayer) or m in self.opaque
        return leaf or super().is_leaf_module(m, module_qualified_name)


class _Shapes(fx.Interpreter):
    """Runs the graph once and notes the shape of every float32 tensor."""

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Tensor):
            n.meta["is_tensor"] = True
            if result.dtype == torch.float32 and result.ndim >= 1:
                n.meta["val_shape"] = tuple(result.shape)
        return result


def _in_place(node: fx.Node, module: nn.Module | None) -> bool:
    if node.op == "call_module":
        return bool(getattr(module, "inplace", False))
    if node.op == "call_method":
        return str(node.target).endswith("_")
    return bool(node.kwargs.get("inplace")) or node.target in (operator.iadd, operator.imul)


def capture(model: nn.Module, example: tuple[Tensor, ...], opaque: Collection[nn.Module] = ()) -> fx.GraphModule | None:
    """The model as a graph of leaf layers, ``opaque`` modules among them, or None where it cannot be traced.

    The model must be in eval mode; its parameters are shared, not copied.
    """
    tracer = _Tracer(opaque)
    if tracer.is_leaf_module(model, "") and not isinstance(model, nn.Sequential):
        model = nn.Sequential(model)  # a single layer is a network of one layer, not traced inside
    try:
        graph = tracer.trace(model)
        module = fx.GraphModule(model, graph)
        with torch.no_grad():
            _Shapes(module).run(*(x.clone() for x in example))
    except Exception:
        return None
    return module


CONTAINERS = (nn.ModuleList, nn.ModuleDict)


def find_opaque(model: nn.Module) -> set[nn.Module]:
    """Modules whose own ``forward`` torch.fx cannot trace, such as one that branches on the values of a tensor."""
    opaque: set[nn.Module] = set()
    for module in reversed(list(model.modules())):  # children before their parents
        tracer = _Tracer(opaque)
        if isinstance(module, CONTAINERS) or tracer.is_leaf_module(module, ""):
            continue
        try:
            tracer.trace(module)
        except Exception:
            opaque.add(module)
    return opaque


def _handler(node: fx.Node, child: nn.Module | None) -> Handler | None:
    if node.op == "call_module":
        return MODULES.get(type(child))
    return FUNCTIONS.get(node.target) if node.op == "call_function" else METHODS.get(str(node.target))


def lower(module: fx.GraphModule, batch: int) -> Lowering:
    """Operations of the engine where a handler covers the node, the node itself elsewhere, in execution order."""
    low = Lowering(dict(module.named_modules()), batch)
    images: set[fx.Node] = set()  # what follows from the inputs; a constant may have their first dimension by chance
    for node in module.graph.nodes:
        if node.op == "placeholder" or not images.isdisjoint(node.all_input_nodes):
            images.add(node)
        if node.op in ("placeholder", "output", "get_attr"):
            low.operations.append(node)
            shape = node.meta.get("val_shape")
            if node.op == "placeholder" and shape and shape[0] == batch and len(shape) in (2, 4):
                low.values[node] = low.made[node] = Value(shape[1:])
            continue
        child = low.modules.get(str(node.target)) if node.op == "call_module" else None
        handler = _handler(node, child)
        shape = node.meta.get("val_shape") if node in images else None
        covered = handler is not None and shape is not None and shape[0] == batch
        value = handler(low, node, child) if covered and handler is not None else None
        if value is None:
            low.operations.append(node)
            if shape and shape[0] == batch and len(shape) in (2, 4):
                low.values[node] = Value(shape[1:])
            value = low.values.get(node)
        if value is not None:
            low.values[node] = low.made[node] = value
            source = node.args[0] if node.args else None
            if _in_place(node, child) and source in low.values:
                old = low.values[source]
                for other in [n for n, v in low.values.items() if v is old and n is not node]:
                    low.values[other] = value
    return low
