"""AlexNets, dense and lookup.

``AlexNet`` is the dense reference behind the published speedups: one column, no groups, no response normalisation.
``AlexNetLcnn`` is the network that the paper converts: narrower, fully connected layers written as convolutions, batch
norm after every layer but the last. The first convolution is padded by 2, so that 224 pixels give 55, 27, 13 and 6.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from lcnn_core.errors import ConfigError
from lcnn_core.layers.factory import make_conv
from lcnn_core.models.options import LookupPlan, Preset, check_count, check_counts, check_probability, lookup_plan

PRESETS = {
    "fast": Preset(first=3, stages=(30, 30, 30, 30), fc=512, threshold_scale=0.01, l1_scale=0.3),
    "accurate": Preset(first=3, stages=(500, 500, 500, 500), fc=1024, threshold_scale=0.01, l1_scale=0.1),
}
"""Published dictionary sizes. The worked example of the accurate one has 30 for conv5: stages=(500, 500, 500, 30)."""

SMALL_PRESETS = {
    "fast": Preset(first="identity", stages=(6, 12, 24, 16), fc=32, threshold_scale=0.01, l1_scale=0.3),
    "accurate": Preset(first="identity", stages=(12, 24, 48, 32), fc=64, threshold_scale=0.01, l1_scale=0.1),
}
"""This project's: a plain sparse stem, then a quarter or half of each layer's input channels."""


class AlexNet(nn.Module):
    """The dense reference: 1,135,256,096 MACs on (3, 224, 224). Input (b, c, 224, 224), output (b, num_classes)."""

    def __init__(self, num_classes: int = 1000, in_channels: int = 3, dropout: float = 0.5) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 96, 11, stride=4, padding=2)
        self.conv2 = nn.Conv2d(96, 256, 5, padding=2)
        self.conv3 = nn.Conv2d(256, 384, 3, padding=1)
        self.conv4 = nn.Conv2d(384, 384, 3, padding=1)
        self.conv5 = nn.Conv2d(384, 256, 3, padding=1)
        self.fc6 = nn.Linear(256 * 6 * 6, 4096)
        self.fc7 = nn.Linear(4096, 4096)
        self.fc8 = nn.Linear(4096, num_classes)
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.MaxPool2d(3, stride=2)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.relu(self.conv1(x)))
        x = self.pool(self.relu(self.conv2(x)))
        x = self.relu(self.conv3(x))
        x = self.relu(self.conv4(x))
        x = self.pool(self.relu(self.conv5(x)))
        x = self.dropout(self.relu(self.fc6(x.flatten(1))))
        x = self.dropout(self.relu(self.fc7(x)))
        return self.fc8(x)


class AlexNetLcnn(nn.Module):
    """The convolutional AlexNet, every layer but the last with batch norm and ReLU; layers dense or lookup by plan.

    widths: channels of conv1 to conv5; features: channels of fc6 and fc7; stem: kernel, stride and padding of conv1;
    grid: pixels a side that reach fc6, whose kernel covers them all. Output logits (b, num_classes).
    """

    def __init__(
        self,
        widths: tuple[int, int, int, int, int],
        features: int,
        stem: tuple[int, int, int],
        grid: int,
        plan: LookupPlan,
        num_classes: int,
        in_channels: int,
        dropout: float,
    ) -> None:
        super().__init__()
        kernel, stride, padding = stem
        c1, c2, c3, c4, c5 = widths
        k2, k3, k4, k5 = plan.stages
        self.conv1 = make_conv(plan.first, in_channels, c1, kernel, stride=stride, padding=padding, bias=False)
        self.bn1 = nn.BatchNorm2d(c1)
        self.conv2 = make_conv(k2, c1, c2, 5, padding=2, bias=False)
        self.bn2 = nn.BatchNorm2d(c2)
        self.conv3 = make_conv(k3, c2, c3, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(c3)
        self.conv4 = make_conv(k4, c3, c4, 3, padding=1, bias=False)
        self.bn4 = nn.BatchNorm2d(c4)
        self.conv5 = make_conv(k5, c4, c5, 3, padding=1, bias=False)
        self.bn5 = nn.BatchNorm2d(c5)
        self.fc6 = make_conv(plan.fc, c5, features, grid, bias=False)
        self.bn6 = nn.BatchNorm2d(features)
        self.fc7 = make_conv(plan.fc, features, features, 1, bias=False)
        self.bn7 = nn.BatchNorm2d(features)
        self.fc8 = make_conv(plan.classifier, features, num_classes, 1)
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.MaxPool2d(3, stride=2)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.relu(self.bn1(self.conv1(x))))
        x = self.pool(self.relu(self.bn2(self.conv2(x))))
        x = self.relu(self.bn3(self.conv3(x)))
        x = self.relu(self.bn4(self.conv4(x)))
        x = self.pool(self.relu(self.bn5(self.conv5(x))))
        x = self.dropout(self.relu(self.bn6(self.fc6(x))))
        x = self.dropout(self.relu(self.bn7(self.fc7(x))))
        return self.fc8(x).flatten(1)


def alexnet(num_classes: int, in_channels: int, dropout: float) -> AlexNet:
    """The dense reference."""
    return AlexNet(
        check_count("num_classes", num_classes),
        check_count("in_channels", in_channels),
        check_probability("dropout", dropout),
    )


def alexnet_lcnn(num_classes: int, in_channels: int, dropout: float, **lookup: Any) -> AlexNetLcnn:
    """The published lookup network for 224 pixels; all dense it has 714,188,480 MACs."""
    return AlexNetLcnn(
        (64, 192, 384, 256, 256),
        4096,
        (11, 4, 2),
        6,
        lookup_plan(PRESETS, 4, lookup),
        check_count("num_classes", num_classes),
        check_count("in_channels", in_channels),
        check_probability("dropout", dropout),
    )


def small_alexnet(
    widths: Sequence[int], num_classes: int, in_channels: int, dropout: float, **lookup: Any
) -> AlexNetLcnn:
    """The same layout for 28 pixels: 28, 13, 6 and 2 pixels a side. widths: of conv1 to conv5, and of fc6 and fc7."""
    widths = check_counts("widths", widths)
    if len(widths) != 6:
        raise ConfigError(f"widths are {widths}; expected 6 numbers: conv1 to conv5, and fc6, which fc7 has too")
    c1, c2, c3, c4, c5, features = widths
    return AlexNetLcnn(
        (c1, c2, c3, c4, c5),
        features,
        (5, 1, 2),
        2,
        lookup_plan(SMALL_PRESETS, 4, lookup),
        check_count("num_classes", num_classes),
        check_count("in_channels", in_channels),
        check_probability("dropout", dropout),
    )
