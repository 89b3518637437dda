"""How much memory the values of a forward pass take: the most bytes alive at once, as PyTorch runs the model."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves


class ActivationMeter:
    """Follows the storages of values that depend on the input, from the operation that makes each to its end.

    Parameters, and what is computed from them alone, do not count; a view shares its storage and costs nothing. Works
    on the meta device too, where storages have a size and no memory.
    """

    def __init__(self) -> None:
        self.peak = 0
        """Bytes."""
        self._live = 0
        self._storages: dict[int, Any] = {}

    def start(self, x: Tensor) -> None:
        """``x`` is the input: what is computed from it counts, itself included."""
        self._add(x)

    def saw(self, arguments: Any, results: Any) -> None:
        """An operation made ``results`` of ``arguments``."""
        if self.reached(arguments):
            for tensor in _tensors(results):
                self._add(tensor)

    def reached(self, arguments: Any) -> bool:
        """Whether any tensor among ``arguments`` depends on the input."""
        return any(self.knows(tensor) for tensor in _tensors(arguments))

    def knows(self, tensor: Tensor) -> bool:
        """Whether ``tensor`` depends on the input."""
        return tensor.untyped_storage()._cdata in self._storages

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._storages:
            return

        def ended(_: Any) -> None:
            del self._storages[key]
            self._live -= size

        self._storages[key] = weakref.ref(storage, ended)
        self._live += size
        self.peak = max(self.peak, self._live)


def _tensors(values: Any) -> Iterable[Tensor]:
    return (leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor))
