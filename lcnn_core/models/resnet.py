"""ResNets, dense and lookup: one network, whose layer factory makes either kind.

Module names are torchvision's (conv1, bn1, layer1.0.conv1, downsample.0, fc), so that its state dicts load by name.
Bottlenecks stride on their 3x3 convolution, as torchvision does ("v1.5"). Source: He et al., CVPR 2016; shortcuts A,
B and C are its section 4.1. In lookup networks the shortcuts stay dense, as published.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from lcnn_core.errors import ConfigError
from lcnn_core.layers import LookupConv2d
from lcnn_core.layers.factory import make_conv, make_linear
from lcnn_core.models.options import LookupPlan, Preset, check_choice, check_count, check_counts, lookup_plan
from lcnn_core.spec import LookupConfig

SHORTCUTS = ("A", "B", "C")
STEMS = ("imagenet", "small")

BASIC_BLOCKS = {8: (1, 1, 1, 1), 10: (1, 1, 1, 1), 18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}
"""Blocks per stage by depth. Depth 8 is how the released program calls the paper's ResNet-10: the same network."""
BOTTLENECK_BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}

PRESETS = {
    "fast": Preset(first=3, stages=(16, 32, 64, 128), threshold_scale=0.001, l1_scale=0.3),
    "accurate": Preset(first=3, stages=(128, 256, 512, 1024), threshold_scale=0.001, l1_scale=0.1),
}
"""Published dictionary sizes of ResNet-18; lambda' is published for AlexNet only and taken over from there."""


class ZeroPadShortcut(nn.Module):
    """Shortcut A: every ``stride``-th pixel, the missing channels filled with zeros. No parameters, no MACs."""

    def __init__(self, extra_channels: int, stride: int) -> None:
        super().__init__()
        self.extra_channels, self.stride = extra_channels, stride

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.extra_channels))

    def extra_repr(self) -> str:
        return f"extra_channels={self.extra_channels}, stride={self.stride}"


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut. (b, c, h, w) -> (b, width, h / stride, w / stride)."""

    expansion = 1

    def __init__(
        self, channels: int, width: int, stride: int, downsample: nn.Module | None, config: LookupConfig | None
    ) -> None:
        super().__init__()
        self.conv1 = make_conv(config, channels, width, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = make_conv(config, width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return self.relu(y + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(nn.Module):
    """1x1, 3x3 (with the stride) and 1x1 convolutions and a shortcut, 4 * width channels out."""

    expansion = 4

    def __init__(
        self, channels: int, width: int, stride: int, downsample: nn.Module | None, config: LookupConfig | None
    ) -> None:
        super().__init__()
        out = width * self.expansion
        self.conv1 = make_conv(config, channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = make_conv(config, width, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = make_conv(config, width, out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return self.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    """A residual network of any number of stages; the first keeps the resolution, each later one halves it.

    block: BasicBlock or Bottleneck; blocks and widths: per stage; plan: which layers are lookups.
    shortcut: A zero-padded identity, B projection where the shape changes, C projection everywhere.
    stem: "imagenet", 7x7 stride 2 and a max pool; "small", 3x3 stride 1 without pool, for images of 8 to 64 pixels.
    Input (b, in_channels, h, w), output logits (b, num_classes); any h and w.
    """

    def __init__(
        self,
        block: type[BasicBlock | Bottleneck],
        blocks: Sequence[int],
        widths: Sequence[int],
        plan: LookupPlan,
        shortcut: str = "B",
        stem: str = "imagenet",
        num_classes: int = 1000,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        large = stem == "imagenet"
        self.conv1 = make_conv(
            plan.first,
            in_channels,
            widths[0],
            7 if large else 3,
            stride=2 if large else 1,
            padding=3 if large else 1,
            bias=False,
        )
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1) if large else nn.Identity()
        channels = widths[0]
        self.stages = len(widths)
        for index, (count, width, config) in enumerate(zip(blocks, widths, plan.stages, strict=True)):
            stage = nn.Sequential()
            for position in range(count):
                stride = 2 if index and not position else 1
                out = width * block.expansion
                stage.append(block(channels, width, stride, _shortcut(shortcut, channels, out, stride), config))
                channels = out
            self.add_module(f"layer{index + 1}", stage)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = make_linear(plan.classifier, channels, num_classes)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Dense convolutions start as in He et al. (normal, fan out); lookup layers as published for them."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, LookupConv2d):
                module.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for index in range(self.stages):
            x = self.get_submodule(f"layer{index + 1}")(x)
        return self.fc(self.avgpool(x).flatten(1))


def _shortcut(kind: str, channels: int, out: int, stride: int) -> nn.Module | None:
    changes = stride != 1 or channels != out
    if kind == "C" or (kind == "B" and changes):
        return nn.Sequential(nn.Conv2d(channels, out, 1, stride=stride, bias=False), nn.BatchNorm2d(out))
    return ZeroPadShortcut(out - channels, stride) if changes else None


def resnet(depth: int, shortcut: str, num_classes: int, in_channels: int, stem: str, **lookup: Any) -> ResNet:
    """The ImageNet family: widths 64, 128, 256, 512 at a depth of the tables above."""
    depths = {**BASIC_BLOCKS, **BOTTLENECK_BLOCKS}
    blocks = depths[check_choice("depth", depth, tuple(depths))]
    return ResNet(
        BasicBlock if depth in BASIC_BLOCKS else Bottleneck,
        blocks,
        (64, 128, 256, 512),
        lookup_plan(PRESETS, 4, lookup),
        check_choice("shortcut", shortcut, SHORTCUTS),
        check_choice("stem", stem, STEMS),
        check_count("num_classes", num_classes),
        check_count("in_channels", in_channels),
    )


def small_resnet(
    widths: Sequence[int],
    blocks: int | Sequence[int],
    shortcut: str,
    num_classes: int,
    in_channels: int,
    **lookup: Any,
) -> ResNet:
    """The family for small images: basic blocks, small stem, widths and blocks as options.

    blocks: of each stage, or one number for all: 1 makes the small sibling of ResNet-10, 2 that of ResNet-18.
    Presets are this project's: a plain sparse stem, and a quarter ("fast") or half ("accurate") of each stage's width
    as dictionary size; the published sizes are too small for layers this narrow.
    """
    widths = check_counts("widths", widths)
    blocks = (
        (check_count("blocks", blocks),) * len(widths) if isinstance(blocks, int) else check_counts("blocks", blocks)
    )
    if len(widths) != len(blocks):
        raise ConfigError(f"widths {widths} and blocks {blocks} differ in length; expected one number each a stage")
    presets = {
        "fast": _share_of(widths, 4, l1_scale=0.3),
        "accurate": _share_of(widths, 2, l1_scale=0.1),
    }
    return ResNet(
        BasicBlock,
        blocks,
        widths,
        lookup_plan(presets, len(widths), lookup),
        check_choice("shortcut", shortcut, SHORTCUTS),
        "small",
        check_count("num_classes", num_classes),
        check_count("in_channels", in_channels),
    )


def _share_of(widths: Sequence[int], divisor: int, l1_scale: float) -> Preset:
    stages = tuple(max(1, width // divisor) for width in widths)
    return Preset(first="identity", stages=stages, threshold_scale=0.001, l1_scale=l1_scale)


def resnet_input_shape(arguments: Mapping[str, Any]) -> tuple[int, ...]:
    """224 pixels for the ImageNet stem, 28 for the small one. Raises ConfigError for any other."""
    size = 224 if check_choice("stem", arguments["stem"], STEMS) == "imagenet" else 28
    return (arguments["in_channels"], size, size)
