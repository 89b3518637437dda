"""``compile``: captures a model, and takes what it captured only if it gives the model's own outputs."""

from __future__ import annotations

import copy
import warnings
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from lcnn_core.engine.capture import capture, find_opaque, hooked
from lcnn_core.engine.compiled import CompiledModel, Options, PlainModel
from lcnn_core.engine.library import choose
from lcnn_core.engine.nested import join, make_native, restore
from lcnn_core.engine.plan import Plan, PlanStep
from lcnn_core.engine.storage import check_storage
from lcnn_core.errors import CheckpointError, ConfigError

ALLOWED = {"float32": 1e-3}
"""Largest difference from the model's own outputs, over the largest: more is no rounding but another function."""
ALLOWED_STORED = 0.5

Example = tuple[Tensor, ...]


def compile(
    model: nn.Module, example_input: Tensor | Example, *, threads: int | None = None, isa: str | None = None,
    storage: str = "float32",
) -> CompiledModel | PlainModel:  # fmt: skip
    """Compile ``model`` for inference on the CPU: same outputs, lookups executed as lookups.

    example_input: one input, or a tuple of them, float32, batch first; any batch size may follow that the model itself
    takes, other sizes not. threads: None follows ``torch.get_num_threads()``, as far as a call has a million MACs,
    or 8 MB to move, for each of them. isa: an instruction set, for tests; None picks the best.
    storage: of the weights and dictionaries of fully connected layers, which are bound by memory at batch 1: "float32",
    or "bfloat16" or "int8" (a scale for each row) for a half or a quarter of the bytes; arithmetic stays float32, and
    the plan tells the error on the example.
    The weights are copied; later changes of ``model`` have no effect. Returns a module with a ``plan``.
    Modules whose Python cannot be captured (it branches on values, say) run in PyTorch, and natively what they call.
    What was captured is run once on the example: should it give other outputs than the model, it is not used.
    Without a native library, or where nothing can be captured, PyTorch runs the model, after one warning.
    """
    example = example_input if isinstance(example_input, tuple) else (example_input,)
    if any(x.dtype != torch.float32 for x in example):
        raise ConfigError(f"example_input is {example[0].dtype}; the engine runs torch.float32")
    options = Options(threads, isa, check_storage(storage))
    model = copy.deepcopy(model).eval()
    if choose(isa) is None:
        advice = "install lcnn where a C++ compiler is present; PyTorch's own layers are 2 to 20 times slower"
        return _plain(model, "no native library", advice)
    exact = _outputs(model, example)
    for attempt in (_whole, _inside):
        compiled = attempt(model, example, options)
        if compiled is None:
            continue
        error = _largest_error(_outputs(compiled, example), exact)
        allowed = ALLOWED.get(storage, ALLOWED_STORED)
        if error > allowed and _largest_error(_outputs(model, example), exact) == 0:  # not a model that draws numbers
            restore(model)
            continue
        if storage != "float32":
            compiled.plan = replace(compiled.plan, storage_error=error)
        return compiled
    return _plain(
        model, "not captured", "torch.fx cannot trace this model, or a plan hold it; PyTorch runs it as it is"
    )


def _outputs(model: nn.Module, example: Example) -> Any:
    with torch.no_grad():
        return model(*(x.clone() for x in example))


def _largest_error(found: Any, exact: Any) -> float:
    """Of any tensor that a model returns: the largest difference over the largest magnitude; what is not finite counts
    only where it is not so in both."""
    if isinstance(exact, Tensor):
        if not isinstance(found, Tensor) or found.shape != exact.shape:
            return float("inf")
        if not exact.is_floating_point() or not exact.numel():
            return 0.0
        finite = exact.isfinite()
        if not torch.equal(finite, found.isfinite()):
            return float("inf")
        largest = exact[finite].abs().max().clamp_min(1e-30) if finite.any() else 1.0
        return float(((found - exact)[finite].abs() / largest).max()) if finite.any() else 0.0
    if isinstance(exact, dict):
        return max((_largest_error(found[key], value) for key, value in exact.items()), default=0.0)
    if isinstance(exact, tuple | list):
        return max((_largest_error(*pair) for pair in zip(found, exact, strict=True)), default=0.0)
    return 0.0


def _natively(module: nn.Module, inputs: Example, options: Options, opaque: set[nn.Module]) -> CompiledModel | None:
    """The module as one graph; None where it is not captured, or larger than a plan may be."""
    captured = capture(module, inputs, opaque)
    try:
        return None if captured is None else CompiledModel(captured, inputs, options)
    except CheckpointError:  # the loader's limits (native/FORMAT.md)
        return None


def _whole(model: nn.Module, example: Example, options: Options) -> CompiledModel | None:
    return None if hooked(model) else _natively(model, example, options, set())


def _inside(model: nn.Module, example: Example, options: Options) -> CompiledModel | PlainModel | None:
    """Native parts inside a model that is not captured as a whole; None where there are none."""
    opaque = find_opaque(model)

    def compiler(part: nn.Module, inputs: Example) -> CompiledModel | None:
        return _natively(part, inputs, options, opaque)

    outer = _natively(model, example, options, opaque) if opaque and model not in opaque and not hooked(model) else None
    parts = make_native(model, example, {*opaque, model} if outer is None else opaque, compiler)
    if outer is not None:
        outer.plan = join(outer.plan, parts)
        return outer
    return PlainModel(model, join(_plain_plan(type(model).__name__), parts)) if parts else None


def _plain_plan(name: str) -> Plan:
    return Plan((PlanStep("torch", name, (), (), 0, 0, 0, native=False),), None)


def _plain(model: nn.Module, reason: str, advice: str) -> PlainModel:
    warnings.warn(f"lcnn: {reason}: {advice}", stacklevel=3)
    return PlainModel(model, _plain_plan(reason))
