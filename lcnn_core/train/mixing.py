"""Mixup and cutmix: two images in one, and their labels in the same shares. torchvision's transforms do it."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from lcnn_core.data.files import transforms

Mix = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(images (b, c, h, w), labels (b,)) -> (images, labels (b,) or shares of the classes (b, classes))."""


def plain(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """No mixing."""
    return images, labels


def mixing(mixup: float, cutmix: float, classes: int) -> Mix:
    """Mixup, cutmix, or one of the two at random; an alpha of 0 leaves one out. Draws from torch's generator.

    Source: Zhang et al. 2018; Yun et al. 2019. Raises ConfigError where torchvision is not installed.
    """
    if not mixup and not cutmix:
        return plain
    v2 = transforms()
    kinds = [v2.MixUp(alpha=mixup, num_classes=classes)] if mixup else []
    kinds += [v2.CutMix(alpha=cutmix, num_classes=classes)] if cutmix else []
    return kinds[0] if len(kinds) == 1 else v2.RandomChoice(kinds)
