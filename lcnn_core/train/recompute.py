"""Gradient checkpointing: blocks keep their input only, and are computed again in the backward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from lcnn_core.errors import ConfigError

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """The outermost modules that hold others and are no mere container: residual blocks and their like."""
    found: list[nn.Module] = []
    for child in model.children():
        if isinstance(child, _CONTAINERS):
            found += blocks_of(child)
        elif any(child.children()):
            found.append(child)
    return found


def recompute_blocks(model: nn.Module) -> Callable[[], None]:
    """From now on ``model`` recomputes its blocks; returns a function that ends this.

    Random numbers are the same the second time, and running statistics move once. Raises ConfigError for a model
    without blocks.
    """
    blocks = blocks_of(model)
    if not blocks:
        raise ConfigError(f"gradient_checkpointing: {type(model).__name__} has no blocks to recompute; leave it out")
    for block in blocks:
        block.forward = partial(_forward, block, block.forward)  # type: ignore[method-assign]

    def end() -> None:
        for block in blocks:
            del block.forward

    return end


def _forward(block: nn.Module, forward: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    if not torch.is_grad_enabled() or not block.training:
        return forward(*arguments, **named)

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), buffers_kept(block)

    return checkpoint(forward, *arguments, use_reentrant=False, context_fn=contexts, **named)


@contextmanager
def buffers_kept(module: nn.Module) -> Iterator[None]:
    """Put the module's buffers (running statistics) back at the end."""
    before = [buffer.clone() for buffer in module.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, old in zip(module.buffers(), before, strict=True):
                buffer.copy_(old)
