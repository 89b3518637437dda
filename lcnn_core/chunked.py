"""Steps on a large P, a cache's worth at a time, so that no second array of its size is made.

P of a fully connected layer has more entries than all activations of its network (AlexNet's at the accurate sizes: 604
MB), and memory that the operating system has to clear first costs more than the matrix product that fills it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

aten = torch.ops.aten

SUMMED = 1 << 16
"""Entries that are summed at a time: 256 KiB."""

MULTIPLIED = 1 << 21
"""Entries that are multiplied at a time: 8 MiB; with fewer, the overhead of a matrix product shows."""

LARGE = 4 * MULTIPLIED


def is_large(coefficients: Tensor) -> bool:
    """Whether chunks pay: for a P of 32 MiB and more, on the processor, in eager mode and full precision."""
    return (
        coefficients.numel() >= LARGE
        and coefficients.device.type == "cpu"
        and coefficients.dtype in (torch.float32, torch.float64)
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and not torch.is_autocast_enabled("cpu")
    )


class ThresholdedLinear(torch.autograd.Function):
    """X hardshrink(P, eps)t for x (b, m) and P (n, m); entries of P that count as zero get no gradient."""

    @staticmethod
    def forward(x: Tensor, coefficients: Tensor, threshold: float) -> Tensor:
        y = x.new_empty(len(coefficients), len(x))
        for rows, kept in _thresholded(coefficients, threshold):
            torch.mm(kept, x.t(), out=y[rows])
        return y.t().contiguous()  # no view, which could not be changed in place

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, coefficients, ctx.threshold = inputs
        ctx.save_for_backward(x, coefficients)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, coefficients = ctx.saved_tensors
        upstream = grad.t().contiguous()
        grad_x = torch.zeros_like(x) if ctx.needs_input_grad[0] else None
        grad_coefficients = torch.empty_like(coefficients) if ctx.needs_input_grad[1] else None
        for rows, kept in _thresholded(coefficients, ctx.threshold):
            if grad_x is not None:
                grad_x.addmm_(upstream[rows].t(), kept)
            if grad_coefficients is not None:
                place = torch.mm(upstream[rows], x, out=grad_coefficients[rows])
                aten.hardshrink_backward.grad_input(place, coefficients[rows], ctx.threshold, grad_input=place)
        return grad_x, grad_coefficients, None


def _thresholded(coefficients: Tensor, threshold: float) -> Iterator[tuple[slice, Tensor]]:
    """(rows, those rows of P with the entries at or below eps zero), each in the memory of the one before."""
    n, width = coefficients.shape
    step = max(1, MULTIPLIED // width)
    memory = coefficients.new_empty(min(step, n), width)
    for first in range(0, n, step):
        rows = slice(first, min(first + step, n))
        part = coefficients[rows]
        yield rows, aten.hardshrink.out(part, threshold, out=memory[: len(part)])


class MagnitudeSum(torch.autograd.Function):
    """Sum |P| over the entries above eps; its gradient is sign(P) there and 0 elsewhere."""

    @staticmethod
    def forward(coefficients: Tensor, threshold: float) -> Tensor:
        parts = coefficients.reshape(-1).split(SUMMED)
        memory = torch.empty_like(parts[0])
        return torch.stack([_kept(part, threshold, memory).abs_().sum() for part in parts]).sum()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        coefficients, ctx.threshold = inputs
        ctx.save_for_backward(coefficients)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (coefficients,) = ctx.saved_tensors
        out = torch.empty_like(coefficients, memory_format=torch.contiguous_format)
        for part, place in zip(coefficients.reshape(-1).split(SUMMED), out.view(-1).split(SUMMED), strict=True):
            _kept(part, ctx.threshold, place).sign_().mul_(grad)
        return out, None


def _kept(part: Tensor, threshold: float, memory: Tensor) -> Tensor:
    """hardshrink of ``part``, written into as much of ``memory``."""
    return aten.hardshrink.out(part, threshold, out=memory[: len(part)])
