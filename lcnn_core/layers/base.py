"""What every lookup layer shares: D, P, the threshold, the l1 weight and the choice of training form."""

from __future__ import annotations

import math
from typing import Literal, TypeVar, get_args

import torch
from torch import Tensor, nn

from lcnn_core import functional
from lcnn_core.errors import ConfigError
from lcnn_core.spec import LookupConfig, check_dictionary_size

Form = Literal["auto", "two_convs", "dense"]
Layer = TypeVar("Layer", bound="LookupLayer")

DENSE_FORM_RATIO = 0.85
"""Above this share of the dense layer's MACs, rebuilding W is the faster training step (measured)."""


class LookupLayer(nn.Module):
    """A layer whose filters are sparse combinations of a small dictionary.

    Parameters: ``dictionary`` D (groups * k, m / groups), or None for the identity dictionary; ``coefficients`` P
    (n, k, *kernel); ``bias`` (n,) or None. Entries of P with magnitude at or below ``threshold`` count as zero: the
    forward pass masks them, their gradient is zero, and nothing is mutated.
    """

    dictionary: nn.Parameter | None
    coefficients: nn.Parameter
    bias: nn.Parameter | None
    groups: int = 1

    def _init_lookup(
        self,
        in_features: int,
        out_features: int,
        kernel_size: tuple[int, ...],
        bias: bool,
        dictionary_size: int | None,
        threshold: float | None,
        l1_weight: float,
        lookups_per_position: int | None,
        form: Form,
        factory: dict,
    ) -> None:
        check_dictionary_size(dictionary_size)
        if form not in get_args(Form):
            raise ConfigError(f"form is {form!r}; expected one of {', '.join(get_args(Form))}")
        config = LookupConfig(
            dictionary_size, threshold, l1_weight=l1_weight, lookups_per_position=lookups_per_position
        )
        rows = in_features if dictionary_size is None else dictionary_size
        self.threshold, self.l1_weight = config.resolve(rows, kernel_size)
        self.lookups_per_position = lookups_per_position
        self.form: Form = form
        if dictionary_size is None:
            self.register_parameter("dictionary", None)
        else:
            self.dictionary = nn.Parameter(torch.empty(self.groups * rows, in_features, **factory))
        self.coefficients = nn.Parameter(torch.empty(out_features, rows, *kernel_size, **factory))
        if bias:
            self.bias = nn.Parameter(torch.empty(out_features, **factory))
        else:
            self.register_parameter("bias", None)

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
        bound = 1 / math.sqrt(self.coefficients[0].numel()) if self.coefficients.numel() else 0
        nn.init.uniform_(self.coefficients, -bound, bound)
        if self.dictionary is not None:
            nn.init.kaiming_uniform_(self.dictionary, a=math.sqrt(5))
        if self.bias is not None:
            bound = 1 / math.sqrt(max(1, math.prod(self.dense_shape[1:])))
            nn.init.uniform_(self.bias, -bound, bound)

    def effective_coefficients(self) -> Tensor:
        """P as the forward pass uses it: below-threshold entries zero, at most s per position where s is set."""
        coefficients = functional.hard_threshold(self.coefficients, self.threshold)
        if self.lookups_per_position is not None:
            coefficients = functional.keep_largest(coefficients, self.lookups_per_position)
        return coefficients

    def l1_term(self) -> Tensor:
        """lambda * sum |P| over the entries in use; its gradient is the published lambda * sign(P)."""
        return self.l1_weight * self.effective_coefficients().abs().sum()

    def dense_weight(self) -> Tensor:
        """W (n, m / groups, *kernel), differentiable."""
        return functional.dense_filter(self.dictionary, self.effective_coefficients(), self.groups)

    @torch.no_grad()
    def lookups(self) -> functional.Lookups:
        """(I, C), the inference form of P."""
        return functional.to_lookups(self.effective_coefficients())

    @torch.no_grad()
    def prune_(self: Layer) -> Layer:
        """Write the zeros that the forward pass sees into P itself, in place; the output does not change."""
        self.coefficients.copy_(self.effective_coefficients())
        return self

    def uses_dense_form(self) -> bool:
        """Whether the forward pass rebuilds W: where two steps cost over 0.85 of the dense layer's MACs.

        ``form`` set to two_convs or dense overrides the choice. The ratio takes stride into account, not the
        input's size, so that the choice is a constant of the layer and graphs can be captured.
        """
        if self.form != "auto":
            return self.form == "dense"
        if self.dictionary is None:
            return False
        n, m, *kernel = self.dense_shape
        dense = n * m * math.prod(kernel)
        two = self.dictionary.numel() * math.prod(getattr(self, "stride", ())) + self.coefficients.numel()
        return two > DENSE_FORM_RATIO * dense

    def _lookup_repr(self) -> str:
        size = "identity" if self.dictionary is None else self.dictionary_size
        text = f"dictionary_size={size}, threshold={self.threshold:.3g}, l1_weight={self.l1_weight:.3g}"
        if self.lookups_per_position is not None:
            text += f", lookups_per_position={self.lookups_per_position}"
        return text if self.form == "auto" else text + f", form={self.form!r}"
