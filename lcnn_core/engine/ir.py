"""The engine's own graph: values without a batch, operations in execution order."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(eq=False)
class Value:
    """What one image gives at one place of the network: (channels, height, width), or a vector of features."""

    shape: tuple[int, ...]

    @property
    def vector(self) -> bool:
        """Held as a dense vector: features, or channels of a 1x1 image."""
        return len(self.shape) == 1 or self.shape[1:] == (1, 1)

    @property
    def grid(self) -> tuple[int, int, int]:
        return self.shape if len(self.shape) == 3 else (self.shape[0], 1, 1)  # type: ignore[return-value]


@dataclass(frozen=True)
class Window:
    """Where a kernel looks: sizes, steps and the zeros above and left of the image, each (rows, columns)."""

    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)

    @property
    def pointwise(self) -> bool:
        return self.kernel == (1, 1) and self.padding == (0, 0)


@dataclass(frozen=True)
class Activation:
    """A function of one number; ``a`` and ``b`` are the bounds of clamp or the slope of leaky and elu."""

    kind: str
    a: float = 0.0
    b: float = 0.0


RELU = Activation("clamp", 0.0, float("inf"))


@dataclass
class Operation:
    """One step before layout. Which of the fields are set depends on ``kind``; see the table in lower.py.

    dense: weight (n, m / groups, kh, kw) or (n, m); lookups: dictionary (groups * k, m / groups) or None and
    coefficients (n, k, kh, kw) or (n, k), each filter's times its ``factor``. What is folded is float64 until packed,
    so that folding costs no precision.
    """

    kind: str
    name: str
    inputs: list[Value]
    output: Value
    window: Window = field(default_factory=Window)
    groups: int = 1
    weight: Array | None = None
    dictionary: Array | None = None
    coefficients: Array | None = None
    factor: Array | None = None
    bias: Array | None = None
    scale: Array | None = None
    activation: Activation | None = None
    residual: Value | None = None
    pool: Window | None = None
    pool_input: tuple[int, int] = (0, 0)
    average: bool = False
    count_pad: bool = True
    divisor: int = 0

    @property
    def reads(self) -> list[Value]:
        return self.inputs if self.residual is None else [*self.inputs, self.residual]

    @property
    def filters(self) -> int:
        weights = self.coefficients if self.coefficients is not None else self.weight
        return 0 if weights is None else weights.shape[0]

    def scaled(self, scale: Array, shift: Array) -> None:
        """Fold ``y * scale + shift`` per output channel into the weights and the bias."""
        if self.coefficients is not None:
            self.factor = scale if self.factor is None else self.factor * scale
            if not scale.all():  # filters that are scaled by nothing look nothing up
                self.coefficients = self.coefficients * (scale != 0).reshape(-1, *(1,) * (self.coefficients.ndim - 1))
        else:
            assert self.weight is not None
            self.weight = self.weight * scale.reshape(-1, *(1,) * (self.weight.ndim - 1))
        self.bias = shift if self.bias is None else self.bias * scale + shift

    def lookups(self) -> tuple[tuple[Array, ...], Array]:
        """Where the coefficients are not zero, by filters, and what they are there in float32, ``factor`` included."""
        assert self.coefficients is not None
        places = np.nonzero(self.coefficients)
        values = self.coefficients[places].astype(np.float64)
        if self.factor is not None:
            values *= self.factor[places[0]]
        return places, values.astype(np.float32)


def as_array(tensor: torch.Tensor) -> Array:
    """A copy in float64."""
    return tensor.detach().to("cpu", torch.float64, copy=True).numpy()


def as_held(tensor: torch.Tensor) -> Array:
    """In float32 or float64, as it is where it can be: the zeros of a large P would fill gigabytes once more."""
    tensor = tensor.detach().cpu()
    return (tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.double()).numpy()
