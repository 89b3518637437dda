"""``torch.compile`` with frozen weights, which lets it fold batch norm and pack weights for oneDNN."""

from __future__ import annotations

import copy
import logging
import sys
from shutil import which

import torch
from torch import Tensor

from lcnn_analyze.bench.contenders.base import Contender, Ready, UnavailableError, Work

GENERATED = "torch._inductor.runtime.compile_tasks."


def prepare(work: Work) -> Ready:
    if not any(map(which, ("c++", "g++", "clang++"))):
        raise UnavailableError("torch.compile needs a C++ compiler, and there is none")
    from torch._inductor import config  # here: two seconds that a bench without this contender does not take

    # Freezing drops the weights of the module that it compiles.
    model = copy.deepcopy(work.model)
    logging.getLogger("torch._inductor").setLevel(logging.ERROR)
    with config.patch(freezing=True):
        compiled = torch.compile(model, dynamic=False)
        with torch.no_grad():
            compiled(work.x)

    def run() -> Tensor:
        with torch.no_grad():
            return compiled(work.x)

    return Ready(run, run, "inductor, frozen")


def release() -> None:
    """Forget compiled functions, and the modules that inductor wrote, whose globals hold the packed weights."""
    if "torch._inductor" not in sys.modules:
        return
    from torch._inductor import codecache

    torch.compiler.reset()
    for name in [name for name in sys.modules if name.startswith(GENERATED)]:
        del sys.modules[name]
    codecache.PyCodeCache.cache_clear()


INDUCTOR = Contender("torch.compile", "torch.compile", "dense", "torch", prepare, release=release)
