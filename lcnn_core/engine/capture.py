"""Captures a model as a graph, with the shape of every tensor, and lowers what the engine covers."""

from __future__ import annotations

import operator
from collections.abc import Collection, Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn

from lcnn_core.engine.ir import Value
from lcnn_core.engine.lower import FUNCTIONS, METHODS, MODULES
from lcnn_core.engine.lowering import Handler, Lowering
from lcnn_core.layers import LookupLayer


class _Proxy(fx.Proxy):
    """Records ``x += y`` as a step in place, as Python runs it; torch.fx alone would record ``x = x + y``."""


def _record(function: Any) -> Any:
    return lambda self, other: self.tracer.create_proxy("call_function", function, (self, other), {})


for _name in ("iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "iand", "ior", "ixor"):
    setattr(_Proxy, f"__{_name}__", _record(getattr(operator, _name)))


class _Tracer(fx.Tracer):
    """Does not look inside lookup layers, nor inside ``opaque`` modules."""

    def __init__(self, opaque: Collection[nn.Module] = ()):
        super().__init__()
        self.opaque = opaque

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        leaf = isinstance(m, LookupLayer) or m in self.opaque
        return leaf or super().is_leaf_module(m, module_qualified_name)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)


class _Aliased(Exception):
    """A step changes a tensor of which another name, read later, shows a part or another shape."""


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _tensors(item)


class _Notes(fx.Interpreter):
    """Runs the graph once. Notes in the meta of every node what lowering has to know:

    shape: of a float32 tensor. changed: nodes read later whose tensor this node changes in place and returns. same:
    whether it returns its first argument.
    """

    def run_node(self, n: fx.Node) -> Any:
        before = {node: [t._version for t in _tensors(value)] for node, value in self.env.items()}
        result = super().run_node(n)
        over = self.user_to_last_uses.get(n, [])
        changed = [
            node for node, versions in before.items()
            if node not in over and versions != [t._version for t in _tensors(self.env[node])]
        ]  # fmt: skip
        if any(self.env[node] is not result for node in changed):
            raise _Aliased
        n.meta["changed"] = changed
        n.meta["same"] = bool(n.all_input_nodes) and self.env[n.all_input_nodes[0]] is result
        n.meta["shape"] = _shape(result)
        return result


class _Shapes(fx.Interpreter):
    """Runs the graph with another number of images: what has another shape otherwise is no batch of images."""

    def __init__(self, module: fx.GraphModule, sizes: tuple[int, int]):
        super().__init__(module)
        self.sizes = sizes

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        old, new = n.meta["shape"], _shape(result)
        if old is not None and (new is None or (old[0], new[0]) != self.sizes or old[1:] != new[1:]):
            n.meta["shape"] = None
        return result


def _shape(value: Any) -> tuple[int, ...] | None:
    usable = isinstance(value, Tensor) and value.dtype == torch.float32 and value.ndim >= 1
    return tuple(value.shape) if usable else None


def capture(model: nn.Module, example: tuple[Tensor, ...], opaque: Collection[nn.Module] = ()) -> fx.GraphModule | None:
    """The model as a graph of leaf layers, ``opaque`` modules among them, or None where it cannot be traced.

    The model must be in eval mode; its parameters are shared, not copied. ``meta["batch"]`` of the result is None where
    the model takes any number of images, else the example's.
    """
    tracer = _Tracer(opaque)
    if tracer.is_leaf_module(model, "") and not isinstance(model, nn.Sequential):
        model = nn.Sequential(model)  # a single layer is a network of one layer, not traced inside
    with torch.inference_mode(False), torch.no_grad():
        try:
            graph = tracer.trace(model)
            module = fx.GraphModule(model, graph)
            _Notes(module).run(*(x.clone() for x in example))
        except Exception:
            return None
        batch = len(example[0])
        try:
            _Shapes(module, (batch, batch + 1)).run(*(torch.cat([x, x[:1]]) for x in example))
        except Exception:
            module.meta["batch"] = batch
        else:
            module.meta["batch"] = None
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


def hooked(module: nn.Module) -> bool:
    """Whether a call of the module does more than its ``forward``."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _handler(node: fx.Node, child: nn.Module | None) -> Handler | None:
    if child is not None:
        return None if hooked(child) else MODULES.get(type(child))
    return FUNCTIONS.get(node.target) if node.op == "call_function" else METHODS.get(str(node.target))


def lower(module: fx.GraphModule, batch: int) -> Lowering:
    """Operations of the engine where a handler covers the node, the node itself elsewhere, in execution order."""
    low = Lowering(dict(module.named_modules()), batch)
    for node in module.graph.nodes:
        shape = node.meta.get("shape")
        images = shape is not None and shape[0] == batch
        if node.op in ("placeholder", "output", "get_attr"):
            value = None
        else:
            child = low.modules.get(str(node.target)) if node.op == "call_module" else None
            handler = _handler(node, child)
            value = handler(low, node, child) if images and handler is not None else None
        if value is None:
            low.operations.append(node)
            low.reads[node] = {name: low.values[name] for name in node.all_input_nodes if name in low.values}
            if images and len(shape) in (2, 4) and node.op not in ("output", "get_attr"):
                value = Value(shape[1:])
        if value is None:
            continue
        low.values[node] = low.made[node] = value
        for other in node.meta.get("changed", ()):  # names of one tensor: all stand for what it is now
            if other in low.values:
                low.values[other] = value
    return low
