"""What is wasted in a trained lookup network: parts of D and P that cost and do nothing, each with what to change."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from lcnn_core.layers import LookupLayer
from lcnn_core.spec import Finding

PARALLEL = 1 - 1e-5
"""Cosine from which two rows of D are one vector up to a factor."""

ROWS_COMPARED = 4096
"""Rows of D that are compared with each other, at most, so that memory stays within 64 MB."""


@torch.no_grad()
def check_health(model: nn.Module) -> tuple[Finding, ...]:
    """Dead and duplicate rows of D, and filters without lookups, of every lookup layer, in the model's order.

    model: with weights; it is left as it is. A row of D is dead when it is zero or no filter of its group reads it;
    it is a duplicate when it is a multiple of a row before it. P is looked at in parts, not copied.
    """
    layers = ((name, layer) for name, layer in model.named_modules() if isinstance(layer, LookupLayer))
    return tuple(finding for name, layer in layers for finding in _findings(name, layer))


def _findings(name: str, layer: LookupLayer) -> Iterator[Finding]:
    used = layer.rows_in_use()  # (n, k)
    filters = len(used)
    empty = int((~used.any(1)).sum())
    if empty:
        change = "they give their bias only: remove them, or train with a lower threshold or l1 weight"
        yield Finding(name, "filters without lookups", empty, filters, change)
    if layer.dictionary is None:
        return
    read = used.view(layer.groups, filters // layer.groups, -1).any(1).flatten()
    dead = ~read | (layer.dictionary == 0).all(1)
    if int(dead.sum()):
        change = "they are computed and change nothing: lower dictionary_size by as many in each group"
        yield Finding(name, "dead rows of D", int(dead.sum()), len(dead), change)
    count = _duplicates(layer.dictionary.view(layer.groups, -1, layer.dictionary.shape[1]), dead.view(layer.groups, -1))
    if count:
        change = "each is a multiple of a row before it: add their columns of P together and drop them"
        yield Finding(name, "duplicate rows of D", count, len(dead), change)


def _duplicates(dictionary: Tensor, dead: Tensor) -> int:
    """Rows that are a multiple of a living row before them in the same group."""
    count = 0
    for rows, gone in zip(dictionary, dead, strict=True):
        unit = nn.functional.normalize(rows[~gone][:ROWS_COMPARED].double(), dim=1)
        count += int(((unit @ unit.T).abs() > PARALLEL).tril(-1).any(1).sum())
    return count
