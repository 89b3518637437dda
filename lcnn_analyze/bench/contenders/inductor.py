"""``torch.compile`` with frozen weights, which lets it fold batch norm and pack weights for oneDNN."""

from __future__ import annotations

import copy
import logging
import sys
from shutil import which

import torch
import torch._inductor.config
from torch import Tensor
from torch._inductor import codecache

from lcnn_analyze.bench.contenders.base import Contender, Ready, UnavailableError, Work

GENERATED = "torch._inductor.runtime.compile_tasks."


def prepare(work: Work) -> Ready:
    if not any(map(which, ("c++", "g++", "clang++"))):
        raise UnavailableError("torch.compile needs a C++ compiler, and there is none")
    # Freezing drops the weights of the module that it compiles.
    model = copy.deepcopy(work.model)
    logging.getLogger("torch._inductor").setLevel(logging.ERROR)
    with torch._inductor.config.patch(freezing=True):
        compiled = torch.compile(model, dynamic=False)
        with torch.no_grad():
            compiled(work.x)

    def run() -> Tensor:
        with torch.no_grad():
            return compiled(work.x)

    return Ready(run, run, "inductor, frozen")


def release() -> None:
    """Forget compiled functions, and the modules that inductor wrote, whose globals hold the packed weights."""
    torch.compiler.reset()
    for name in [name for name in sys.modules if name.startswith(GENERATED)]:
        del sys.modules[name]
    codecache.PyCodeCache.cache_clear()


INDUCTOR = Contender("torch.compile", "torch.compile", "dense", "torch", prepare, release=release)
