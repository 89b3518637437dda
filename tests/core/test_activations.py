"""The peak of activations against sums by hand, and that following them leaves nothing behind."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import nn

from lcnn_core import build, describe
from lcnn_core.activations import ActivationMeter


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(4, 4, 3, padding=1)
        self.two = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x):
        x = x.repeat(1, 1, 1, 1)  # the caller holds the first one
        y = self.one(x)
        y = self.two(y)
        return x + y


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(
    ("model", "shape", "values"),
    [
        (nn.Identity(), (3, 8, 8), 192),
        (nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 1)), (3, 10, 10), 1900),
        (nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(8, 4, 1)), (3, 10, 10), 1500),
        (nn.Sequential(nn.Flatten(), nn.Linear(192, 10)), (3, 8, 8), 202),
        (Residual(), (4, 8, 8), 4 * 256),
    ],
    ids=["input", "chain", "in place", "views are free", "residual"],
)
def test_peaks_by_hand(model, shape, values, device):
    """The chain holds input, 8 channels and 8 more; then 4 in their place. The residual: input, x, and two of y."""
    assert describe(model.to(device), shape).activation_bytes == 4 * values


def test_double_precision_takes_twice_as_much():
    model = nn.Conv2d(2, 2, 1)
    single = describe(model, (2, 4, 4)).activation_bytes
    assert describe(model.double(), (2, 4, 4)).activation_bytes == 2 * single


def test_weights_and_what_is_computed_from_them_alone_do_not_count():
    with torch.no_grad():
        model = build("small-resnet-lcnn")  # masks P in every call
    lookup, dense = (describe(m, (1, 28, 28)).activation_bytes for m in (model, build("small-resnet")))
    assert dense <= lookup <= 1.3 * dense  # the responses S, never a copy of P


def test_the_meter_forgets_what_has_ended():
    meter = ActivationMeter()
    x = torch.zeros(10)
    meter.start(x)
    y = x + 1
    meter.saw((x,), y)
    del y
    gc.collect()
    z = x * 2
    meter.saw((x,), [z])
    assert meter.peak == 80
