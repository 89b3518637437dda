"""What every lookup layer shares: D, P, the threshold, the l1 weight and the choice of training form."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Literal, TypeVar, get_args

import torch
from torch import Tensor, nn

from lcnn_core import functional
from lcnn_core.errors import ConfigError
from lcnn_core.layers.packed import PackedLookupLayer
from lcnn_core.spec import LookupConfig

Form = Literal["auto", "two_convs", "dense"]
Layer = TypeVar("Layer", bound="LookupLayer")

DENSE_FORM_RATIO = 0.85
"""Above this share of the dense layer's MACs, rebuilding W is the faster training step (measured)."""


IN_CACHE = 1 << 18
"""Entries that are looked at together."""


class LookupLayer(nn.Module):
    """A layer whose filters are sparse combinations of a small dictionary.

    Parameters: ``dictionary`` D (groups * k, m / groups), or None for the identity dictionary; ``coefficients`` P
    (n, k, *kernel); ``bias`` (n,) or None. Entries of P with magnitude at or below ``threshold`` count as zero: the
    forward pass masks them, their gradient is zero, and nothing is mutated. The threshold is compared in P's dtype.
    ``threshold``, ``l1_weight``, ``lookups_per_position`` and ``form`` are plain attributes and not in the state dict,
    and so is ``masked_gradient``: False lets the gradient reach entries that count as zero, to see what they are worth.
    """

    dictionary: nn.Parameter | None
    coefficients: nn.Parameter
    bias: nn.Parameter | None
    groups: int = 1
    stride: tuple[int, ...] = ()

    def _init_lookup(
        self,
        in_features: int,
        out_features: int,
        kernel_size: tuple[int, ...],
        bias: bool,
        config: LookupConfig,
        form: Form,
        device: Any,
        dtype: Any,
    ) -> None:
        """Make and start the parameters; ``in_features`` is m / groups."""
        if form not in get_args(Form):
            raise ConfigError(f"form is {form!r}; expected one of {', '.join(get_args(Form))}")
        if min(in_features, out_features, *kernel_size) < 1:
            sizes = f"{in_features} inputs per group, {out_features} outputs and kernel {kernel_size}"
            raise ConfigError(f"a layer of {sizes} has no weights; expected 1 or more of each")
        rows = config.dictionary_size or in_features
        self.threshold, self.l1_weight = config.resolve(rows, kernel_size)
        self.lookups_per_position = config.lookups_per_position
        self.form: Form = form
        self.masked_gradient = True

        def parameter(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(shape, device=device, dtype=dtype))

        stored = config.dictionary_size is not None
        self.register_parameter("dictionary", parameter(self.groups * rows, in_features) if stored else None)
        self.register_parameter("coefficients", parameter(out_features, rows, *kernel_size))
        self.register_parameter("bias", parameter(out_features) if bias else None)
        self.reset_parameters()

    @property
    def dictionary_size(self) -> int:
        """k: rows of D per group; the input channels per group for the identity dictionary."""
        return self.coefficients.shape[1]

    @property
    def dense_shape(self) -> tuple[int, ...]:
        """Shape of the dense filter W that the layer stands for: (n, m / groups, *kernel)."""
        width = self.dictionary_size if self.dictionary is None else self.dictionary.shape[1]
        return (self.coefficients.shape[0], width, *self.coefficients.shape[2:])

    @property
    def config(self) -> LookupConfig:
        """The resolved configuration that rebuilds this layer from its dense sibling."""
        return LookupConfig(
            dictionary_size=None if self.dictionary is None else self.dictionary_size,
            threshold=self.threshold,
            l1_weight=self.l1_weight,
            lookups_per_position=self.lookups_per_position,
        )

    def reset_parameters(self) -> None:
        """P uniform in +-1/sqrt(kh * kw * k), as published; D as PyTorch starts a 1x1 convolution; bias likewise."""
        bound = 1 / math.sqrt(math.prod(self.coefficients.shape[1:]))
        nn.init.uniform_(self.coefficients, -bound, bound)
        if self.dictionary is not None:
            nn.init.kaiming_uniform_(self.dictionary, a=math.sqrt(5))
        if self.bias is not None:
            bound = 1 / math.sqrt(math.prod(self.dense_shape[1:]))
            nn.init.uniform_(self.bias, -bound, bound)

    def effective_coefficients(self) -> Tensor:
        """P as the forward pass uses it: below-threshold entries zero, at most s per position where s is set."""
        return self._effective(self.coefficients)

    def coefficients_and_threshold(self) -> tuple[Tensor, float | None]:
        """P as it is with the threshold that applies to it, where nothing else does; else the effective P and None."""
        if self.lookups_per_position is None and self.masked_gradient:
            return self.coefficients, self.threshold
        return self.effective_coefficients(), None

    def _effective(self, coefficients: Tensor) -> Tensor:
        """The same of some filters' rows of P."""
        kept = functional.hard_threshold(coefficients, self.threshold)
        if self.lookups_per_position is not None:
            kept = functional.keep_largest(kept, self.lookups_per_position)
        return kept if self.masked_gradient else coefficients + (kept - coefficients).detach()

    @torch.no_grad()
    def coefficients_nnz(self) -> int:
        """nnz(P): entries in use. No copy of P is made."""
        return sum(int(torch.count_nonzero(part)) for part in self._parts())

    @torch.no_grad()
    def rows_in_use(self) -> Tensor:
        """Which dictionary rows each filter reads, (n, k) bool. No copy of P is made."""
        # Sums of magnitudes by a matrix product: several times faster than a reduction of so few entries.
        ones = self.coefficients.new_ones(self.coefficients[0, 0].numel())
        return torch.cat([part.abs().reshape(*part.shape[:2], -1) @ ones != 0 for part in self._parts()])

    def _parts(self) -> Iterator[Tensor]:
        """The effective P, a few filters at a time, so that it stays in the cache: P may hold 10^8 entries."""
        filters = max(1, IN_CACHE // max(1, self.coefficients[0].numel()))
        return map(self._effective, self.coefficients.split(filters))

    def l1_term(self) -> Tensor:
        """lambda * sum |P| over the entries in use; its gradient is the published lambda * sign(P)."""
        if self.lookups_per_position is None:
            return functional.l1_term(self.coefficients, self.threshold, self.l1_weight)
        return self.l1_weight * self.effective_coefficients().abs().sum()

    def dense_weight(self) -> Tensor:
        """W (n, m / groups, *kernel), differentiable."""
        return functional.dense_filter(self.dictionary, self.effective_coefficients(), self.groups)

    @torch.no_grad()
    def lookups(self) -> functional.Lookups:
        """(I, C), the inference form of P."""
        return functional.to_lookups(self.effective_coefficients())

    def pack(self) -> PackedLookupLayer:
        """The layer in inference form: a snapshot of D and the lookups in a module of its own, without gradients.

        ConfigError for a layer on the meta device, which has no lookups.
        """
        raise NotImplementedError

    @torch.no_grad()
    def prune_(self: Layer) -> Layer:
        """Write the zeros that the forward pass sees into P itself, in place; the output does not change."""
        self.coefficients.copy_(self.effective_coefficients())
        return self

    def uses_dense_form(self, positions: int) -> bool:
        """Whether the forward pass rebuilds W: where two steps cost over 0.85 of the dense layer's MACs.

        positions: output positions of the whole batch, over which the MACs of rebuilding W are spread. ``form`` set to
        two_convs or dense overrides the choice. Counted per output position: the dictionary runs at stride 1, so it
        costs its size times the stride's area; zeros of P are multiplied in training. A graph that is exported may be
        for batches of any size, so there positions are taken to be enough.
        """
        if self.form != "auto":
            return self.form == "dense"
        if self.dictionary is None:
            return False
        two_convs = self.dictionary.numel() * math.prod(self.stride) + self.coefficients.numel()
        rebuilding = self.coefficients.numel() * self.dictionary.shape[1]
        gain = two_convs - DENSE_FORM_RATIO * math.prod(self.dense_shape)
        return gain > 0 and (torch.compiler.is_exporting() or rebuilding < gain * positions)

    def _lookup_repr(self) -> str:
        size = self.config.dictionary_size
        text = f"dictionary_size={size}, threshold={self.threshold:.3g}, l1_weight={self.l1_weight:.3g}"
        if self.lookups_per_position is not None:
            text += f", lookups_per_position={self.lookups_per_position}"
        return text if self.form == "auto" else text + f", form={self.form!r}"


def lookup_arguments(
    config: LookupConfig, in_features: int, kernel_size: tuple[int, ...], form: Form
) -> dict[str, Any]:
    """The keyword arguments that give a layer of these sizes this configuration; ``in_features`` is m / groups."""
    threshold, l1_weight = config.resolve(config.dictionary_size or in_features, kernel_size)
    return {
        "dictionary_size": config.dictionary_size,
        "threshold": threshold,
        "l1_weight": l1_weight,
        "lookups_per_position": config.lookups_per_position,
        "form": form,
    }
