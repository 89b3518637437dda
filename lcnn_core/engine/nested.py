"""Models that torch.fx cannot trace: their own Python runs in PyTorch, what it calls inside runs natively."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from lcnn_core.engine.capture import CONTAINERS
from lcnn_core.engine.compiled import CompiledModel
from lcnn_core.engine.plan import Plan, PlanStep
from lcnn_core.layers import LookupLayer

Shapes = tuple[tuple[int, ...], ...]
Compiler = Callable[[nn.Module, tuple[Tensor, ...]], CompiledModel | None]


class NativeCall:
    """Takes the place of a module's ``forward``: native for inputs of known shapes, else the module's own."""

    def __init__(self, module: nn.Module, compiled: dict[Shapes, CompiledModel]):
        self.forward = module.forward
        self.compiled = compiled

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        native = self.compiled.get(_shapes(inputs)) if not options else None
        if native is None or native.batch not in (None, len(inputs[0])):
            return self.forward(*inputs, **options)
        return native(*inputs)


def _shapes(inputs: tuple[Any, ...]) -> Shapes:
    """Of one image of each input; empty where one is no float32 tensor, or holds another number of images."""
    if not all(isinstance(x, Tensor) and x.dtype == torch.float32 and x.ndim > 1 for x in inputs):
        return ()
    if len({len(x) for x in inputs}) != 1:
        return ()
    return tuple(tuple(x.shape[1:]) for x in inputs)


def _called(module: nn.Module, name: str) -> Iterator[tuple[nn.Module, str]]:
    """What a module holds, by itself or in lists, with full names."""
    for key, child in module.named_children():
        path = f"{name}.{key}" if name else key
        if isinstance(child, CONTAINERS):
            yield from _called(child, path)
        else:
            yield child, path


def _parts(model: nn.Module, opaque: set[nn.Module]) -> dict[nn.Module, str]:
    """What opaque modules hold that can be captured and has weights, with its name."""
    weighted = (nn.Conv2d, nn.Linear, LookupLayer)
    return {
        child: path
        for name, module in model.named_modules()
        if module in opaque
        for child, path in _called(module, name)
        if child not in opaque and any(isinstance(m, weighted) for m in child.modules())
    }


def make_native(
    model: nn.Module, example: tuple[Tensor, ...], opaque: set[nn.Module], compiler: Compiler
) -> dict[str, list[Plan]]:
    """Compile, in place, the parts of ``model`` that opaque modules call, for the inputs that the example gives them.

    Returns the plans of each part by its name. A part that the example does not reach stays as it is, and so does one
    that changes what it is given.
    """
    parts = _parts(model, opaque)
    plans: dict[str, list[Plan]] = {}
    for module, calls in _calls(model, example, parts).items():
        made = {shapes: compiler(module, inputs) for shapes, inputs in calls.items() if shapes}
        compiled = {shapes: native for shapes, native in made.items() if native is not None}
        if compiled:
            module.forward = NativeCall(module, compiled)  # type: ignore[assignment]
            plans[parts[module]] = [native.plan for native in compiled.values()]
    return plans


def _calls(
    model: nn.Module, example: tuple[Tensor, ...], parts: dict[nn.Module, str]
) -> dict[nn.Module, dict[Shapes, tuple[Tensor, ...]]]:
    """What the example gives the parts, but for those that change it."""
    seen: dict[nn.Module, dict[Shapes, tuple[Tensor, ...]]] = {module: {} for module in parts}
    versions: dict[nn.Module, list[list[int]]] = {module: [] for module in parts}
    changing: set[nn.Module] = set()

    def state(inputs: tuple[Any, ...]) -> list[int]:
        return [x._version for x in inputs if isinstance(x, Tensor)]

    def before(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        seen[module].setdefault(_shapes(inputs), inputs)
        versions[module].append(state(inputs))

    def after(module: nn.Module, inputs: tuple[Any, ...], _: Any) -> None:
        if versions[module].pop() != state(inputs):
            changing.add(module)

    hooks = [module.register_forward_pre_hook(before) for module in parts]
    hooks += [module.register_forward_hook(after) for module in parts]
    with torch.inference_mode(False), torch.no_grad():
        model(*(x.clone() for x in example))
    for hook in hooks:
        hook.remove()
    return {module: calls for module, calls in seen.items() if module not in changing}


def restore(model: nn.Module) -> None:
    """Give the modules that :func:`make_native` changed their own ``forward`` again."""
    for module in model.modules():
        call = module.__dict__.get("forward")
        if isinstance(call, NativeCall):
            del module.forward
            if module.forward != call.forward:  # it was one instance's own
                module.forward = call.forward  # type: ignore[assignment]


def join(outer: Plan, parts: dict[str, list[Plan]]) -> Plan:
    """One plan: the outer steps, then the steps of the parts that PyTorch calls, under the parts' names."""
    steps: list[PlanStep] = list(outer.steps)
    inner = [(name, plan) for name, plans in parts.items() for plan in plans]
    for name, plan in inner:
        first = max((step.segment for step in steps), default=-1) + 1
        steps += [replace(s, name=f"{name}.{s.name}", segment=first + s.segment) for s in plan.steps]
    plans = [outer, *(plan for _, plan in inner)]
    isa = next((plan.isa for plan in plans if plan.isa), None)
    return Plan(tuple(steps), isa, sum(plan.memory_bytes for plan in plans), max(plan.liveness_bytes for plan in plans))
