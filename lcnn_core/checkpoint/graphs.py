"""Operations of a stored graph as LayerSpecs: what the ONNX and torch.export readers share. No tensors, no torch.

A graph is fixed to some batch; every figure here is for one image, so sizes that hold the batch are divided by it.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from lcnn_core.spec import LayerSpec, ModelSpec, Uncounted

Shape = tuple[int, ...]

_EINSUM = re.compile(r"([a-zA-Z]+),([a-zA-Z]+)->([a-zA-Z]*)")


@dataclass(frozen=True)
class Weight:
    """One stored tensor: where it is from, and its nonzeros where they are known."""

    name: str
    shape: Shape
    nonzeros: int | None

    @property
    def size(self) -> int:
        return math.prod(self.shape)


@dataclass
class GraphRecorder:
    """Collects the layers of a graph in call order, and what no rule covers."""

    batch: int = 1
    """Images that the next operation works on: the graph's batch, 1 for what is computed from weights alone."""
    layers: list[LayerSpec] = field(default_factory=list)
    unknown: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    weights_known: bool = True
    _seen: set[str] = field(default_factory=set)
    _calls: Counter[str] = field(default_factory=Counter)

    def conv(self, name: str, x: Shape, y: Shape, weight: Weight, bias: Weight | None, **geometry: Any) -> None:
        """A convolution; ``geometry`` holds stride, padding (both sides together), dilation, groups, transposed."""
        space = len(weight.shape) - 2
        batched = len(x) == space + 2
        repeats = x[0] // self.batch if batched else 1
        if batched and x[0] % self.batch:
            return self.uncounted(name, "convolution", f"{x[0]} inputs do not divide by the batch of {self.batch}")
        shapes = (x[1:], y[1:]) if batched else (x, y)
        spec = LayerSpec(name, "conv", *shapes, kernel_size=weight.shape[2:], repeats=repeats, **geometry)
        return self._weighted(spec, weight, bias)

    def linear(self, name: str, x: Shape, y: Shape, weight: Weight, bias: Weight | None) -> None:
        """x (*, m) times a stored matrix."""
        rows, out = self.per_image(x[:-1]), self.per_image(y[:-1])
        if rows is None or out is None:
            return self.uncounted(name, "linear", f"{x} does not divide by the batch of {self.batch}")
        return self._weighted(LayerSpec(name, "linear", (*rows, x[-1]), (*out, y[-1])), weight, bias)

    def matmul(self, name: str, left: Shape, right: Shape) -> None:
        """(*, a, b) x (*, b, c), the leading sizes broadcast; a vector on either side is a matrix of one row."""
        left = left if len(left) > 1 else (1, *left)
        right = right if len(right) > 1 else (*right, 1)
        lead = _broadcast(left[:-2], right[:-2])
        if lead is None or left[-1] != right[-2]:
            return self.uncounted(name, "matmul", f"{left} and {right} do not fit each other")
        batch, a, b, c = math.prod(lead), left[-2], left[-1], right[-1]
        if batch % self.batch == 0:
            batch //= self.batch
        elif a % self.batch == 0:
            a //= self.batch
        else:
            return self.uncounted(name, "matmul", f"{left} and {right} do not divide by the batch of {self.batch}")
        spec = LayerSpec(name, "matmul", (batch, a, b), (batch, a, c), matmul=(batch, a, b, c))
        return self._add(spec)

    def einsum(self, name: str, equation: str, shapes: Sequence[Shape]) -> None:
        """A product of two tensors by index letters, as a matrix product; sums over a single tensor are free."""
        match = _EINSUM.fullmatch(equation.replace(" ", ""))
        if (
            len(shapes) != 2
            or match is None
            or any(len(t) != len(s) for t, s in zip(match.groups(), shapes, strict=False))
        ):
            return self.uncounted(name, f"einsum {equation[:100]}", "only products of two tensors are counted")
        left, right, out = match.groups()
        sizes = {**dict(zip(left, shapes[0], strict=True)), **dict(zip(right, shapes[1], strict=True))}
        both = set(left) & set(right)

        def size(letters: set[str]) -> int:
            return math.prod(sizes[letter] for letter in letters)

        summed = size(both - set(out))
        rows, columns = size(set(left) & set(out) - both), size(set(right) & set(out) - both)
        return self.matmul(name, (size(both & set(out)), rows, summed), (size(both & set(out)), summed, columns))

    def free(self, name: str, kind: str, x: Shape, y: Shape, *weights: Weight) -> None:
        """A layer without multiplications by weights: norm or embedding, listed for its parameters."""
        shapes = self.per_image(x), self.per_image(y)
        if shapes[0] is None or shapes[1] is None:
            return self.uncounted(name, kind, f"{x} does not divide by the batch of {self.batch}")
        parameters = sum(self._once(weight) for weight in weights)
        return self._add(LayerSpec(name, kind, shapes[0], shapes[1], parameters=parameters))

    def uncounted(self, name: str, operation: str, reason: str = "no formula for this operation") -> None:
        self.unknown[name, operation, reason] += 1

    def per_image(self, shape: Shape) -> Shape | None:
        """Without the batch; a size that windows or heads are folded into is divided by it. None if none divides."""
        for at, size in enumerate(shape):
            if size % self.batch == 0:
                size //= self.batch
                return (*shape[:at], *((size,) if size > 1 or at else ()), *shape[at + 1 :])
        return None if self.batch > 1 else shape

    def spec(self, architecture: str, input_shape: Shape, parameters: int) -> ModelSpec:
        uncounted = tuple(Uncounted(name, op, calls, why) for (name, op, why), calls in self.unknown.items())
        return ModelSpec(architecture, input_shape, tuple(self.layers), uncounted, parameters, self.weights_known)

    def _weighted(self, spec: LayerSpec, weight: Weight, bias: Weight | None) -> None:
        self.weights_known = self.weights_known and weight.nonzeros is not None
        self._add(
            replace(
                spec,
                weight_size=weight.size,
                weight_nnz=weight.nonzeros,
                bias_size=bias.size if bias else 0,
                parameters=self._once(weight) + (self._once(bias) if bias else 0),
            )
        )

    def _once(self, weight: Weight) -> int:
        """The entries of a weight at its first use, 0 after that."""
        if weight.name in self._seen:
            return 0
        self._seen.add(weight.name)
        return weight.size

    def _add(self, spec: LayerSpec) -> None:
        self.layers.append(replace(spec, call=self._calls[spec.name]))
        self._calls[spec.name] += 1


def _broadcast(left: Sequence[int], right: Sequence[int]) -> Shape | None:
    """The shape of two broadcast together, None where they do not fit."""
    length = max(len(left), len(right))
    left, right = (1,) * (length - len(left)) + tuple(left), (1,) * (length - len(right)) + tuple(right)
    if any(a != b and 1 not in (a, b) for a, b in zip(left, right, strict=True)):
        return None
    return tuple(a if b == 1 else b for a, b in zip(left, right, strict=True))
