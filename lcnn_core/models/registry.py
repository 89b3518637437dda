"""The record that an architecture is registered as."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from lcnn_core.models.options import LOOKUP_OPTIONS


@dataclass(frozen=True)
class ModelBuilder:
    """One architecture: how to make it and with which options.

    defaults: every option with its default value; nothing else is accepted.
    shape: the input shape, without the batch, that a complete set of options stands for.
    """

    name: str
    doc: str
    make: Callable[..., nn.Module]
    defaults: Mapping[str, Any]
    shape: Callable[[Mapping[str, Any]], tuple[int, ...]]

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Input shape with the default options: (channels, height, width)."""
        return self.shape(self.defaults)

    @property
    def has_lookups(self) -> bool:
        """Whether this architecture has lookup layers of its own, so takes the options of dictionary sizes."""
        return "preset" in self.defaults


def lookup_options(*left_out: str) -> dict[str, Any]:
    """The common lookup options but for those that an architecture has no layer for."""
    return {name: value for name, value in LOOKUP_OPTIONS.items() if name not in left_out}


def square(size: int) -> Callable[[Mapping[str, Any]], tuple[int, ...]]:
    """The shape function of an architecture for images of ``size`` pixels a side."""

    def shape(arguments: Mapping[str, Any]) -> tuple[int, ...]:
        return (arguments["in_channels"], size, size)

    return shape
