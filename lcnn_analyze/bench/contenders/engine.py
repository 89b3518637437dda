"""This project's inference engine."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from lcnn_analyze.bench.contenders.base import Contender, Ready, StepTime, UnavailableError, Work
from lcnn_analyze.bench.native import engine_room


def prepare(work: Work, storage: str = "float32") -> Ready:
    engine = engine_room()
    if engine is None:
        raise UnavailableError("this installation has no engine")
    with warnings.catch_warnings():
        # What a compiled model runs in PyTorch is said in the detail.
        warnings.simplefilter("ignore", UserWarning)
        compiled = engine.compile(work.model, work.x, threads=work.threads, storage=storage)

    if storage != "float32" and all(step.storage == "float32" for step in compiled.plan.steps):
        raise UnavailableError(f"no fully connected layer is large enough to gain from {storage} weights")

    def run() -> torch.Tensor:
        return compiled(work.x)

    def steps() -> tuple[StepTime, ...]:
        profile = compiled.profile(work.x)
        return by_layer([StepTime(step.name, step.kind, seconds, step.macs) for step, seconds in profile])

    detail = _detail(compiled.plan)
    unread = _unread(work, compiled.plan) if storage == "float32" else 0.0
    if unread:
        detail += f"; {unread:.0%} of fully connected weights unread, their input is zero"
    return Ready(run, run, detail, steps if hasattr(compiled, "profile") else None)


def by_layer(steps: Sequence[StepTime]) -> tuple[StepTime, ...]:
    """Steps that multiply for one layer as one: a strided lookup layer runs its dictionary in a step of its own."""
    merged: dict[Any, StepTime] = {}
    for place, step in enumerate(steps):
        key = step.name if step.macs else place
        known = merged.get(key)
        if known is not None:
            kind = step.kind if step.kind == known.kind else f"{known.kind} + {step.kind}"
            step = StepTime(step.name, kind, known.seconds + step.seconds, known.macs + step.macs)
        merged[key] = step
    return tuple(merged.values())


def _unread(work: Work, plan: Any) -> float:
    """The share of fully connected weights that one image's zeros leave unread; 0 for several, which read all."""
    modules = dict(work.model.named_modules())
    dense = {
        step.name: step.macs if step.kind == "linear" else step.dictionary_macs
        for step in plan.steps
        if step.kind == "linear" or (step.kind == "lookup_linear" and _one_pixel(modules.get(step.name)))
    }
    zeros: dict[str, float] = {}

    def watch(name: str, module: torch.nn.Module) -> Any:
        def hook(_: torch.nn.Module, given: tuple[torch.Tensor, ...]) -> None:
            zeros[name] = float((given[0] == 0).float().mean())

        return module.register_forward_pre_hook(hook)

    handles = [watch(name, modules[name]) for name in dense if name in modules]
    try:
        if handles and len(work.x) == 1:
            with torch.no_grad():
                work.model(work.x)
    finally:
        for handle in handles:
            handle.remove()
    read = sum(dense[name] for name in zeros)
    return sum(zeros[name] * dense[name] for name in zeros) / read if read else 0.0


def _one_pixel(module: torch.nn.Module | None) -> bool:
    """Whether D is applied once: at more pixels it is a matrix product that reads all of it."""
    return math.prod(getattr(module, "kernel_size", ())) == 1


def _detail(plan: Any) -> str:
    fallbacks = len(plan.fallbacks)
    if plan.isa is None:
        return "no native library: PyTorch"
    return f"{plan.isa}, {fallbacks} steps in PyTorch" if fallbacks else plan.isa


ENGINE = Contender("engine", "LCNN engine", "engine", "lcnn", prepare)
ENGINE_BFLOAT16 = Contender(
    "engine-bfloat16", "LCNN engine", "engine", "lcnn", partial(prepare, storage="bfloat16"), "bfloat16"
)
ENGINE_INT8 = Contender("engine-int8", "LCNN engine", "engine", "lcnn", partial(prepare, storage="int8"), "int8")
"""Float32 arithmetic on stored weights."""
