"""Health: dictionaries and coefficients with known faults, and none where there are none."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lcnn_core import LookupConv2d, LookupLinear, check_health


def found(model: nn.Module) -> dict[tuple[str, str], tuple[int, int]]:
    return {(f.layer, f.problem): (f.count, f.of) for f in check_health(model)}


@torch.no_grad()
def healthy(groups: int = 1) -> LookupConv2d:
    torch.manual_seed(0)
    layer = LookupConv2d(8, 12, 3, groups=groups, dictionary_size=3)
    layer.coefficients.fill_(1)
    return layer


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_a_healthy_layer_has_no_findings(groups):
    assert check_health(nn.Sequential(healthy(groups), LookupConv2d(4, 4, 1, dictionary_size=None))) == ()


@torch.no_grad()
def test_each_fault_by_hand():
    layer = healthy(groups=2)  # rows 0-2 of group 0 for filters 0-5, rows 3-5 of group 1 for filters 6-11
    layer.coefficients[:6, 1] = 0  # nobody reads row 1
    layer.coefficients[6:, 1] = layer.threshold / 2  # nor row 4: at most the threshold
    layer.coefficients[11] = 0
    layer.dictionary[5] = -2 * layer.dictionary[3]
    model = nn.Sequential(nn.ReLU(), layer)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert found(model) == {
        ("1", "filters without lookups"): (1, 12),
        ("1", "dead rows of D"): (2, 6),
        ("1", "duplicate rows of D"): (1, 6),
    }
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    layer.dictionary[0] = 0  # a zero row is dead, and no duplicate
    layer.dictionary[2] = 0
    assert found(model)[("1", "dead rows of D")] == (4, 6)
    assert found(model)[("1", "duplicate rows of D")] == (1, 6)


@torch.no_grad()
def test_linear_layers_and_the_identity_dictionary():
    linear, plain = LookupLinear(6, 5, dictionary_size=2), LookupConv2d(4, 5, 3, dictionary_size=None)
    linear.coefficients.zero_()
    plain.coefficients[2:4] = 0
    assert found(nn.ModuleList([linear, plain])) == {
        ("0", "filters without lookups"): (5, 5),
        ("0", "dead rows of D"): (2, 2),
        ("1", "filters without lookups"): (2, 5),
    }


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 3), st.integers(1, 5), st.floats(0, 1))
def test_dead_rows_and_empty_filters_match_a_loop(seed, groups, k, density):
    generator = np.random.default_rng(seed)
    layer = LookupConv2d(4 * groups, 3 * groups, (2, 1), groups=groups, dictionary_size=k)
    with torch.no_grad():
        mask = torch.from_numpy(generator.random(tuple(layer.coefficients.shape)) < density)
        layer.coefficients.copy_(mask.float())
    p = layer.coefficients.numpy(force=True)
    dead = sum(
        all(p[g * 3 + n, r, y, x] == 0 for n in range(3) for y in range(2) for x in range(1))
        for g in range(groups)
        for r in range(k)
    )
    empty = sum(not p[n].any() for n in range(3 * groups))
    figures = found(nn.Sequential(layer))
    assert figures.get(("0", "dead rows of D"), (0,))[0] == dead
    assert figures.get(("0", "filters without lookups"), (0,))[0] == empty
