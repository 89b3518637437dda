"""Regrowth: entries of D and P that were pruned come back where the gradient says that they would help most."""

from __future__ import annotations

import torch

from lcnn_core.compress.budget import fill
from lcnn_core.compress.ledger import Ledger

SPROUT = 1e-3
"""Magnitude at which an entry comes back, over the root mean square of the living ones of its tensor."""


@torch.no_grad()
def regrow_(ledger: Ledger, budget: int) -> None:
    """Bring zeros of D and P back, in place, as long as all lookup layers together cost at most ``budget`` MACs.

    Those of the largest squared gradient for what they cost, over all layers: to first order, a step of one rate then
    buys the most; those without gradient, which the last cut took first, only where budget is left. They come back
    small, on the side to which the gradient would move them. The gradients are those of the last batch, with
    ``masked_gradient`` off; tensors that have none, as frozen ones, stay. Source: Evci et al. 2020 (RigL), section 3;
    Liu et al. 2021 (GraNet).
    """
    gains, costs, tensors = [], [], []
    for layer in ledger.layers:
        for tensor, cost in layer.tensors():
            gain = torch.full_like(tensor, -1.0)
            if tensor.grad is not None:
                gain = torch.where(tensor == 0, tensor.grad.square() / cost, gain)
            gains.append(gain.flatten().cpu())
            costs.append(torch.full((tensor.numel(),), cost))
            tensors.append((layer.layer, tensor))
    gain = torch.cat(gains)
    candidates = (gain >= 0).nonzero().squeeze(1)
    grown = torch.zeros_like(gain, dtype=torch.bool)
    grown[candidates] = fill(gain[candidates], torch.cat(costs)[candidates], budget - ledger.spent())
    for (owner, tensor), mask in zip(tensors, grown.split([len(part) for part in gains]), strict=True):
        if not bool(mask.any()):
            continue
        living = tensor[tensor != 0].square().mean().sqrt().nan_to_num()  # NaN: none lives
        least = 1.01 * owner.threshold if tensor is owner.coefficients else 0.0
        size = (SPROUT * living).clamp_min(least)
        back = mask.reshape(tensor.shape).to(tensor.device)
        tensor[back] = torch.where(tensor.grad[back] > 0, -size, size)  # type: ignore[index]
