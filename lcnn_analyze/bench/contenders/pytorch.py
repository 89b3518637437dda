"""PyTorch as it comes: traced, frozen, and in whichever of its layouts is faster here."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

from lcnn_analyze.bench.contenders.base import Contender, Ready, Work
from lcnn_analyze.latency import Protocol, measure

RACE = Protocol(rounds=3, sample_seconds=0, budget_seconds=1)
WARMING_CALLS = 3
"""Calls until TorchScript's profiling executor has settled on a graph."""


def prepare(work: Work) -> Ready:
    """Race the two frozen forms briefly: oneDNN's own layout, and channels last."""
    channels_last = copy.deepcopy(work.model).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    runs = {
        "optimize_for_inference": _frozen(work.model, work.x, optimize=True),
        "frozen, channels_last": _frozen(channels_last, _channels_last(work.x), optimize=False),
    }
    times = measure(runs, RACE)
    fastest = min(runs, key=lambda name: times[name].median)
    return Ready(runs[fastest], runs[fastest], fastest)


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x


def _frozen(model: nn.Module, x: Tensor, optimize: bool) -> Callable[[], Tensor]:
    with warnings.catch_warnings(), torch.no_grad():
        # TorchScript is deprecated and says so at every step; it still is what freezes a model in place.
        warnings.simplefilter("ignore")
        module = torch.jit.freeze(torch.jit.trace(model, x))
        if optimize:
            module = torch.jit.optimize_for_inference(module)
        for _ in range(WARMING_CALLS):
            module(x)

    def run() -> Tensor:
        with torch.inference_mode():
            return module(x)

    return run


def release() -> None:
    """Drop TorchScript's registry of classes, which keeps every frozen module and its weights."""
    torch._C._jit_clear_class_registry()


PYTORCH = Contender("pytorch", "PyTorch", "dense", "torch", prepare, release=release)
