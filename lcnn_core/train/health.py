"""Where a training that went wrong went wrong: the first layer whose output or gradient is not finite."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from lcnn_core.train.objective import Objective, l1_penalty


def all_finite(model: nn.Module) -> bool:
    """Whether every parameter and floating-point buffer (running statistics) of the model is finite."""
    tensors = [*model.parameters(), *model.buffers()]
    return all(bool(tensor.isfinite().all()) for tensor in tensors if tensor.is_floating_point())


def gradient_norm(model: nn.Module) -> Tensor:
    """2-norm of all gradients together, a scalar; it is not finite where any of them is not."""
    return torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])


def diagnose_outputs(model: nn.Module, images: Tensor) -> str:
    """Run ``images`` through the model as it is, and say which layer's output is not finite first; "" if none is."""
    return _diagnose(model, images, None)


def diagnose(model: nn.Module, objective: Objective, images: Tensor, labels: Tensor) -> str:
    """Run the batch again with every layer watched, and say what is not finite first, forwards, then backwards."""

    def loss(logits: Tensor) -> Tensor:
        return objective(logits, images, labels) + l1_penalty(model)

    return _diagnose(model, images, loss) or "every layer's output and gradient is finite, but too large to add up"


def _diagnose(model: nn.Module, images: Tensor, objective: Callable[[Tensor], Tensor] | None) -> str:
    if not bool(images.isfinite().all()):
        return "the images of this batch are not finite"
    outputs: list[str] = []
    gradients: list[str] = []
    handles = [
        module.register_forward_hook(_watch(name or type(module).__name__, outputs, gradients))
        for name, module in model.named_modules()
        if not any(module.children())
    ]
    try:
        with torch.set_grad_enabled(objective is not None):
            logits = model(images)
            if objective and not outputs and bool((loss := objective(logits)).isfinite()):
                model.zero_grad()
                loss.backward()
    finally:
        for handle in handles:
            handle.remove()
    if outputs:
        damaged = first_damaged(model)
        return f"the output of layer {outputs[0]!r} is not finite" + (f", nor is {damaged!r}" if damaged else "")
    if gradients:
        return f"the gradient at the output of layer {gradients[0]!r} is not finite"
    for name, parameter in model.named_parameters():
        if parameter.grad is not None and not bool(parameter.grad.isfinite().all()):
            return f"the gradient of {name!r} is not finite"
    return ""


def first_damaged(model: nn.Module) -> str:
    """Name of the first parameter or buffer that is not finite, in registration order; "" if there is none."""
    named = [*model.named_parameters(), *model.named_buffers()]
    bad = (name for name, tensor in named if tensor.is_floating_point() and not bool(tensor.isfinite().all()))
    return next(bad, "")


def _watch(name: str, outputs: list[str], gradients: list[str]) -> Callable[[nn.Module, object, object], None]:
    def hook(module: nn.Module, arguments: object, output: object) -> None:
        if not isinstance(output, Tensor) or not output.is_floating_point():
            return
        if not bool(output.isfinite().all()):
            outputs.append(name)
        elif output.requires_grad:
            output.register_hook(lambda grad: None if bool(grad.isfinite().all()) else gradients.append(name))

    return hook
