"""A run that is resumed: what was measured and chosen at its start is read from its state, and not measured anew.

Measured anew it could differ by rounding, on another machine or with other threads, and the weights would not fit.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from lcnn_core.convert import convert
from lcnn_core.spec import LookupConfig


def kept_sizes(state: Mapping[str, Tensor]) -> dict[str, int | None]:
    """Dictionary size, or None for the identity, of every lookup layer of the network that these weights are of."""
    end = ".coefficients"
    names = [name.removesuffix(end) for name in state if name.endswith(end)]
    return {name: state[name + end].shape[1] if f"{name}.dictionary" in state else None for name in names}


def kept_network(dense: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    """A copy of ``dense`` with the lookup layers that these weights are of, to load them into."""
    return of_sizes(dense, kept_sizes(state))


def of_sizes(dense: nn.Module, sizes: Mapping[str, int | None]) -> nn.Module:
    """A copy of ``dense`` with lookup layers of these dictionary sizes, where only zeros count as zero."""

    def choose(name: str, module: nn.Module) -> LookupConfig | None:
        return LookupConfig(sizes[name], threshold=0.0, l1_weight=0.0) if name in sizes else None

    return convert(dense, choose)[0]
