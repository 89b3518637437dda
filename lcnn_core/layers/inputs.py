"""What every form of a lookup layer asks of its input, and how it pads it."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from lcnn_core.errors import ShapeError


def batched_images(x: Tensor, channels: int) -> Tensor:
    """x (b, m, h, w), or (m, h, w) as a batch of one. Raises ShapeError for anything else."""
    if x.ndim not in (3, 4) or x.shape[-3] != channels:
        raise ShapeError(f"input {tuple(x.shape)} does not fit; expected (b, {channels}, h, w) or ({channels}, h, w)")
    return x if x.ndim == 4 else x.unsqueeze(0)


def check_features(x: Tensor, features: int) -> None:
    """Raise ShapeError unless x is (*, features)."""
    if x.shape[-1:] != (features,):
        raise ShapeError(f"input {tuple(x.shape)} does not fit; expected (*, {features})")


def pad_images(x: Tensor, total: tuple[int, int], mode: str) -> Tensor:
    """x with ``total`` (rows, columns) more, the odd one at the end; ``mode`` as ``nn.Conv2d``'s padding_mode."""
    height, width = total
    sides = [width // 2, width - width // 2, height // 2, height - height // 2]
    return F.pad(x, sides, mode="constant" if mode == "zeros" else mode)
