"""Once zero, stays zero: the paper's rule for P, kept through momentum and weight decay."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lcnn_core.layers import LookupLayer


def dead_entries(model: nn.Module) -> Iterator[tuple[nn.Parameter, Tensor]]:
    """Every P with a mask of the entries that the forward pass sees as zero, every D with one of its exact zeros."""
    for layer in model.modules():
        if isinstance(layer, LookupLayer):
            yield layer.coefficients, layer.effective_coefficients() == 0
            if layer.dictionary is not None:
                yield layer.dictionary, layer.dictionary == 0


def keep_zeros(optimizer: Optimizer, model: nn.Module) -> Callable[[], None]:
    """From now on, what is zero before a step of ``optimizer`` is exactly zero after it, and so is its state there.

    "Zero" is what the forward pass sees as zero: |P| <= eps, or not among the s largest; for D, an exact zero. The
    paper says that such entries stay zero; momentum, Adam's moments and weight decay alike would move them, so value
    and state (momentum, moments) are cleared after each step. Returns a function that ends this.
    """
    dead: list[tuple[nn.Parameter, Tensor]] = []

    @torch.no_grad()
    def before(*_: object) -> None:
        dead[:] = dead_entries(model)

    @torch.no_grad()
    def after(*_: object) -> None:
        for parameter, mask in dead:
            parameter.masked_fill_(mask, 0)
            for value in optimizer.state.get(parameter, {}).values():
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    value.masked_fill_(mask, 0)

    handles = [optimizer.register_step_pre_hook(before), optimizer.register_step_post_hook(after)]

    def end() -> None:
        for handle in handles:
            handle.remove()

    return end
