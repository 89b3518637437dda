"""P <-> (I, C), thresholds and the l1 term against plain Python loops over every entry."""

from __future__ import annotations

import itertools
import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lcnn_core import functional as lf
from lcnn_core.errors import ConfigError, ShapeError


@st.composite
def coefficient_arrays(draw: st.DrawFn) -> np.ndarray:
    space = draw(st.integers(0, 3))
    shape = tuple(draw(st.integers(1, 4)) for _ in range(2 + space))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    array = rng.standard_normal(shape).round(1)
    array[rng.random(shape) < draw(st.floats(0, 1))] = 0
    return array


@given(array=coefficient_arrays(), threshold=st.sampled_from([0.0, 0.1, 0.5, 10.0]))
def test_lookups_list_every_entry_above_the_threshold_in_order(array, threshold):
    lookups = lf.to_lookups(torch.tensor(array), threshold)
    expected_indices, expected_values, offsets = [], [], [0]
    for filter_entries in array.reshape(len(array), -1).tolist():
        for index, value in enumerate(filter_entries):
            if abs(value) > threshold:
                expected_indices.append(index)
                expected_values.append(value)
        offsets.append(len(expected_indices))
    assert lookups.indices.tolist() == expected_indices
    assert lookups.values.tolist() == expected_values
    assert lookups.offsets.tolist() == offsets
    assert lookups.shape == array.shape
    owners = [f for f in range(len(array)) for _ in range(offsets[f], offsets[f + 1])]
    assert lookups.filters.tolist() == owners
    thresholded = np.where(np.abs(array) > threshold, array, 0)
    assert torch.equal(lf.from_lookups(lookups), torch.tensor(thresholded))


@given(array=coefficient_arrays(), dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.half]))
def test_lookups_round_trip_without_loss(array, dtype):
    coefficients = torch.tensor(array).to(dtype)
    lookups = lf.to_lookups(coefficients)
    back = lf.from_lookups(lookups)
    assert back.dtype == dtype
    assert torch.equal(back, coefficients)
    again = lf.to_lookups(back)
    for name in ("indices", "values", "offsets"):
        assert torch.equal(getattr(again, name), getattr(lookups, name))


def test_lookups_keep_nan_and_infinity():
    coefficients = torch.tensor([[math.nan, 0.0, math.inf], [-math.inf, 1e-320, 0.0]], dtype=torch.float64)
    assert torch.equal(lf.from_lookups(lf.to_lookups(coefficients)).nan_to_num(7), coefficients.nan_to_num(7))


def make_lookups(**changes):
    parts = {
        "indices": torch.tensor([0, 5, 2]),
        "values": torch.tensor([1.0, 2.0, 3.0]),
        "offsets": torch.tensor([0, 2, 3]),
        "shape": (2, 3, 2),
    }
    return lf.Lookups(**{**parts, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"values": torch.ones(4)}, "indices (3,) and values (4,) must have one shape (nnz,)"),
        (
            {"indices": torch.zeros(1, 3, dtype=torch.long), "values": torch.ones(1, 3)},
            "indices (1, 3) and values (1, 3) must have one shape (nnz,)",
        ),
        ({"offsets": torch.tensor([0, 3])}, "offsets (2,) must have shape (3,): one more than the filters"),
        ({"offsets": torch.tensor([0, 2, 2])}, "offsets must rise from 0 to 3, the number of lookups"),
        ({"offsets": torch.tensor([1, 2, 3])}, "offsets must rise from 0 to 3, the number of lookups"),
        ({"offsets": torch.tensor([0, 4, 3])}, "offsets must rise from 0 to 3, the number of lookups"),
        (
            {"indices": torch.tensor([0, 6, 2])},
            "indices reach from 0 to 6; expected 0 to 5 for a filter of shape (3, 2)",
        ),
        (
            {"indices": torch.tensor([-1, 5, 2])},
            "indices reach from -1 to 5; expected 0 to 5 for a filter of shape (3, 2)",
        ),
        ({"indices": torch.tensor([5, 0, 2])}, "indices must rise within each filter"),
        ({"indices": torch.tensor([4, 4, 2])}, "indices must rise within each filter"),
    ],
)
def test_damaged_lookups_are_refused(changes, message):
    with pytest.raises(ShapeError, match=re.escape(message)):
        make_lookups(**changes)


def test_lookups_without_any_lookup():
    lookups = make_lookups(
        indices=torch.zeros(0, dtype=torch.long), values=torch.zeros(0), offsets=torch.tensor([0, 0, 0])
    )
    assert torch.equal(lf.from_lookups(lookups), torch.zeros(2, 3, 2))


# Thresholds and the l1 term


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.half])
@pytest.mark.parametrize("eps", [0.1, 0.3, 0.25, 1e-3])
def test_hard_threshold_keeps_strictly_above(dtype, eps):
    at = torch.tensor(eps, dtype=dtype)
    above = torch.nextafter(at, torch.tensor(1.0, dtype=dtype))
    below = torch.nextafter(at, torch.tensor(0.0, dtype=dtype))
    coefficients = torch.stack([above, at, below, -above, -at, -below, torch.zeros((), dtype=dtype)])
    kept = lf.hard_threshold(coefficients, eps)
    zero = torch.zeros((), dtype=dtype)
    assert torch.equal(kept, torch.stack([above, zero, zero, -above, zero, zero, zero]))
    assert kept.dtype == dtype


def test_hard_threshold_of_zero_only_drops_zeros_and_nan_stays():
    coefficients = torch.tensor([1e-45, -0.0, 0.0, -3.0, math.nan, math.inf])
    kept = lf.hard_threshold(coefficients, 0.0)
    assert torch.equal(kept.nan_to_num(9), coefficients.nan_to_num(9))
    assert lf.hard_threshold(torch.tensor([math.nan, 1.0]), 100.0).isnan().tolist() == [True, False]


def kept_by_loops(array: np.ndarray, s: int) -> np.ndarray:
    """Which entries stay: at each (filter, *position) the s largest magnitudes, the lower row first among equals."""
    kept = np.zeros(array.shape, dtype=bool)
    n, k, *kernel = array.shape
    for f, at in itertools.product(range(n), itertools.product(*map(range, kernel))):
        ranked = sorted(range(k), key=lambda row, f=f, at=at: (-abs(array[(f, row, *at)]), row))
        for row in ranked[:s]:
            kept[(f, row, *at)] = True
    return kept


@given(array=coefficient_arrays(), s=st.integers(1, 5))
def test_keep_largest_with_ties(array, s):
    array = array.round()  # few distinct values: many ties
    coefficients = torch.tensor(array, requires_grad=True)
    kept = lf.keep_largest(coefficients, s)
    mask = kept_by_loops(array, s)
    assert np.array_equal(kept.detach().numpy(), np.where(mask, array, 0))
    kept.sum().backward()
    assert np.array_equal(coefficients.grad.numpy(), mask.astype(float))


def test_ties_in_a_large_dictionary_go_to_the_lower_rows():
    kept = lf.keep_largest(torch.ones(1, 5000, 2), 3)
    assert torch.equal(kept[:, :3], torch.ones(1, 3, 2))
    assert kept.count_nonzero() == 6


def test_keep_largest_counts_nan_as_largest_and_returns_a_new_tensor():
    coefficients = torch.tensor([[5.0, math.nan, -7.0]])
    assert torch.equal(lf.keep_largest(coefficients, 1).nan_to_num(9), torch.tensor([[0.0, 9.0, 0.0]]))
    everything = lf.keep_largest(coefficients, 3)
    assert everything.data_ptr() != coefficients.data_ptr()


@pytest.mark.parametrize("s", [0, -1])
def test_keep_largest_refuses_no_lookups(s):
    with pytest.raises(ConfigError, match=f"lookups_per_position is {s}; expected 1 or more"):
        lf.keep_largest(torch.ones(2, 2), s)


@given(array=coefficient_arrays(), eps=st.sampled_from([0.0, 0.3, 1.0]), weight=st.sampled_from([0.0, 0.25, 2.0]))
def test_l1_term_and_its_gradient(array, eps, weight):
    coefficients = torch.tensor(array, requires_grad=True)
    term = lf.l1_term(coefficients, eps, weight)
    assert term.item() == pytest.approx(weight * sum(abs(v) for v in array.flatten() if abs(v) > eps), abs=1e-12)
    term.backward()
    for value, gradient in zip(array.flatten(), coefficients.grad.flatten().tolist(), strict=True):
        assert gradient == (weight * math.copysign(1, value) if abs(value) > eps else 0)


def test_thresholds_mutate_nothing_and_pass_gradients_only_where_kept():
    coefficients = torch.tensor([0.5, -0.05, 0.1, -2.0], requires_grad=True)
    before = coefficients.detach().clone()
    lf.hard_threshold(coefficients, 0.1).mul(torch.tensor([1.0, 2.0, 3.0, 4.0])).sum().backward()
    assert coefficients.grad.tolist() == [1.0, 0.0, 0.0, 4.0]
    assert torch.equal(coefficients.detach(), before)


@pytest.mark.parametrize(("k", "kernel", "scale"), [(3, (11, 11), 0.01), (512, (), 0.01), (16, (3, 3), 0.001)])
def test_default_threshold_is_the_share_of_zeros_at_the_start(k, kernel, scale):
    eps = lf.default_threshold(k, kernel, scale)
    bound = 1 / math.sqrt(math.prod(kernel) * k)  # P starts uniform in +-bound
    assert eps / bound == pytest.approx(scale)
