"""What a set of images says about a network without labels: covariances of every layer's input, batch-norm statistics.

A layer's output error is a quadratic form in its weights: with E = W - W' and C the covariance of the input patches,
the mean squared error of the outputs, their means corrected, is trace(E C E^T). Means are corrected in the layer's
bias, or by the batch norm behind it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from lcnn_core.data import Dataset
from lcnn_core.errors import ConfigError

PATCHES = 65_536
"""Patches of a layer's input that its covariance is measured on, where it has more; or 16 for each patch's entry."""
UNFOLDED = 1 << 25
"""Entries of patches that are taken from a layer's input at a time."""
CHUNK = 32
"""Images that go through the network at a time."""
WIDEST = 8192
"""Entries of a patch up to which a whole covariance is kept; beyond it, only the variances."""
LEAST_IMAGES = 16
"""Images that a calibration set has at least."""

FAR = 100.0
"""Squared mean of a layer's inputs over their variance, from which on the mean is taken from them before products are
summed: float32 keeps seven digits, and the variance would be in the last ones."""


@dataclass
class Moments:
    """Second moments of a layer's input patches less ``origin``, sums over what was seen so far.

    products: (groups, d, d), d = (m / groups) * kh * kw in the order of the layer's weight; sums: (groups, d).
    origin: (groups, 1, d), or None for 0.
    """

    products: Tensor
    sums: Tensor
    count: int = 0
    origin: Tensor | None = None

    def add(self, patches: Tensor) -> None:
        """patches: (groups, count, d)."""
        if not self.count:
            mean = patches.mean(1, keepdim=True)
            if float(mean.square().mean()) > FAR * float((patches - mean).square().mean()):
                self.origin = mean
        if self.origin is not None:
            patches = patches - self.origin
        self.count += patches.shape[1]
        self.sums += patches.sum(1)
        if self.products.shape[1] == self.products.shape[2]:
            self.products.baddbmm_(patches.transpose(1, 2), patches)
        else:
            self.products += patches.square().sum(1, keepdim=True)

    def mean(self) -> Tensor:
        """Of the patches, (groups, d)."""
        mean = self.sums / self.count
        return mean if self.origin is None else mean + self.origin[:, 0]

    def covariance(self, centred: bool) -> Tensor:
        """(groups, d, d), or without ``centred`` the mean product; its diagonal raised by a ten-thousandth of its mean.

        The diagonal alone, (groups, d), where patches are wider than ``WIDEST``. The raise keeps inputs that are never
        on, or always on together, from leaving their weights undecided.
        """
        whole = self.products.shape[1] == self.products.shape[2]

        def squared(mean: Tensor) -> Tensor:
            return mean[:, :, None] * mean[:, None, :] if whole else mean.square()[:, None]

        found = self.products / self.count
        if centred or self.origin is not None:
            found = found - squared(self.sums / self.count)
        if self.origin is not None and not centred:
            found = found + squared(self.mean())
        if not whole:
            found = found[:, 0]
        diagonal = found.diagonal(dim1=1, dim2=2) if whole else found
        diagonal += 1e-4 * diagonal.mean(1, keepdim=True).clamp_min(1e-12)
        return found


def patches_of(layer: nn.Module, x: Tensor, generator: torch.Generator, most: int) -> Tensor:
    """Patches of ``x`` that the layer multiplies by its weight, at most about ``most``: (groups, count, d)."""
    if not isinstance(layer, nn.Conv2d):
        rows = x.reshape(-1, x.shape[-1])
        return rows[_some(len(rows), generator, most).to(x.device)][None]
    if isinstance(layer.padding, str) or layer.padding_mode != "zeros":
        sides = layer._reversed_padding_repeated_twice
        x = F.pad(x, sides, mode="constant" if layer.padding_mode == "zeros" else layer.padding_mode)
        padding: tuple[int, ...] = (0, 0)
    else:
        padding = layer.padding  # type: ignore[assignment]
    found = F.unfold(x, layer.kernel_size, layer.dilation, padding, layer.stride)
    positions = found.shape[2]
    chosen = _some(len(found) * positions, generator, most).to(x.device)
    return found[chosen // positions, :, chosen % positions].unflatten(1, (layer.groups, -1)).transpose(0, 1)


def _some(count: int, generator: torch.Generator, most: int) -> Tensor:
    """Which of ``count`` to look at: all, or ``most`` of them at random."""
    return torch.arange(count) if count <= most else torch.randperm(count, generator=generator)[:most]


def _pieces(layer: nn.Module, x: Tensor) -> Sequence[Tensor]:
    """``x`` in parts of whole images whose patches all together fit into memory."""
    area = math.prod(layer.kernel_size) if isinstance(layer, nn.Conv2d) else 1
    return x.split(max(1, UNFOLDED // (area * x[0].numel())))


@contextmanager
def watching(layers: Mapping[str, nn.Module], images: int) -> Iterator[dict[str, Moments]]:
    """Moments of the inputs of ``layers``, by name, of what the network is called on in the block."""
    moments: dict[str, Moments] = {}
    generator = torch.Generator()

    def watch(name: str, layer: nn.Module) -> torch.utils.hooks.RemovableHandle:
        weight: Tensor = layer.weight  # type: ignore[assignment]
        groups, width = getattr(layer, "groups", 1), weight[0].numel()

        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            x = args[0].detach().float()
            if not x.numel():
                return
            if x.ndim == 3 and isinstance(module, nn.Conv2d):
                x = x[None]
            if name not in moments:
                side = width if width <= WIDEST else 1
                moments[name] = Moments(x.new_zeros(groups, side, width), x.new_zeros(groups, width))
            for piece in _pieces(layer, x):
                share = max(PATCHES, 16 * width) * len(piece) // images + 1
                moments[name].add(patches_of(layer, piece, generator, share))

        return layer.register_forward_pre_hook(hook)

    handles = [watch(name, layer) for name, layer in layers.items()]
    try:
        yield moments
    finally:
        for handle in handles:
            handle.remove()


def check_count(images: int) -> None:
    """Raise ConfigError for a number of images that is too small to calibrate on."""
    if images < LEAST_IMAGES:
        raise ConfigError(
            f"images is {images}; expected {LEAST_IMAGES} or more to calibrate on, 512 are usual; give more"
        )


def check_images(images: Tensor) -> None:
    """Raise ConfigError for too few images (N, c, h, w) to calibrate on, or damaged ones."""
    if len(images) < LEAST_IMAGES:
        raise ConfigError(
            f"{len(images)} calibration images; expected {LEAST_IMAGES} or more, 512 are usual; give more"
        )
    if not bool(images.isfinite().all()):
        raise ConfigError("the calibration images hold NaN or infinity; check how they were normalised")


@torch.no_grad()
def run(model: nn.Module, images: Tensor) -> Tensor:
    """What ``model`` answers, as it is, piece by piece: (N, ...)."""
    device = next(model.parameters()).device
    return torch.cat([model(piece.to(device)).float().cpu() for piece in images.split(CHUNK)])


@torch.no_grad()
def input_moments(model: nn.Module, layers: Mapping[str, nn.Module], images: Tensor) -> dict[str, Moments]:
    """Moments of the input of each of ``layers`` that ``images`` (N, c, h, w) reach, in evaluation mode."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    with watching(layers, len(images)) as moments:
        run(model, images)
    for module in training:  # each alone: parts may have been in evaluation mode
        module.training = True
    return moments


def has_batch_norm(model: nn.Module) -> bool:
    """Whether a batch norm with statistics of its own is in ``model``."""
    return any(isinstance(module, _BatchNorm) and module.track_running_stats for module in model.modules())


@torch.no_grad()
def reestimate_batch_norm_(model: nn.Module, images: Tensor) -> None:
    """Measure the running statistics of every batch norm anew on ``images``, in place; the model is left in eval mode.

    Two images or more. The mean over all pieces of what each piece shows, which is what each norm sees in training.
    """
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    momenta = [norm.momentum for norm in norms]
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    if norms:
        pieces = images.split(4 * CHUNK)
        for piece in pieces if len(pieces[-1]) > 1 else pieces[:-1]:
            model(piece.to(next(model.parameters()).device))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    model.eval()


def calibration_images(dataset: Dataset, count: int) -> Tensor:
    """``count`` training images (N, c, h, w), or all, drawn with a fixed seed; their labels are not looked at."""
    order = torch.randperm(len(dataset.train), generator=torch.Generator().manual_seed(0))[:count]
    return torch.cat([images for images, _ in dataset.train.read(list(order.sort().values.split(64)))])
