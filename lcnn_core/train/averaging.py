"""An exponential moving average of the weights, which keeps the zeros of P and D."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from lcnn_core.layers import LookupLayer
from lcnn_core.train.zeros import dead_entries


class Average:
    """weights = decay * weights + (1 - decay) * those of the model, after each step; buffers are the model's own."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.source = model
        self.averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))

    @property
    def model(self) -> nn.Module:
        """The network with the averaged weights."""
        return self.averaged.module

    def update(self) -> None:
        """Take in the model as it is."""
        self.averaged.update_parameters(self.source)
        self.keep_zeros()

    @torch.no_grad()
    def keep_zeros(self) -> None:
        """What is zero in the model is zero in the average, under the model's thresholds: what died costs nothing."""
        for layer, averaged in zip(self.source.modules(), self.model.modules(), strict=True):
            if isinstance(layer, LookupLayer) and isinstance(averaged, LookupLayer):
                averaged.threshold, averaged.l1_weight = layer.threshold, layer.l1_weight
        for (_, dead), (average, _) in zip(dead_entries(self.source), dead_entries(self.model), strict=True):
            average.masked_fill_(dead, 0)

    def state_dict(self) -> dict[str, Any]:
        return self.averaged.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.averaged.load_state_dict(state)
