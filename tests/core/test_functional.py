"""The paper's equations against loops over numpy scalars and against float64 convolutions; nothing is shared."""

from __future__ import annotations

import itertools
import math
import re
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from lcnn_core import functional as lf
from lcnn_core.errors import ShapeError

CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}


@dataclass(frozen=True)
class Case:
    """One lookup convolution over numpy arrays, float64."""

    x: np.ndarray
    dictionary: np.ndarray | None
    coefficients: np.ndarray
    bias: np.ndarray | None
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    @property
    def geometry(self) -> dict:
        return {"stride": self.stride, "padding": self.padding, "dilation": self.dilation, "groups": self.groups}

    def tensors(self, dtype: torch.dtype) -> list:
        arrays = (self.x, self.dictionary, self.coefficients, self.bias)
        return [None if array is None else torch.tensor(array, dtype=dtype) for array in arrays]

    def rounded(self, dtype: torch.dtype) -> Case:
        """The same case with values that ``dtype`` holds exactly."""
        arrays = [None if t is None else t.double().numpy() for t in self.tensors(dtype)]
        return Case(*arrays, self.stride, self.padding, self.dilation, self.groups)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    space = draw(st.integers(1, 3))
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    width, per_group, k = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 4))
    identity = draw(st.booleans())
    k = width if identity else k

    def sizes(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw(st.integers(low, high)) for _ in range(space))

    kernel, stride = sizes(1, 4 if space < 3 else 2), sizes(1, 3)
    padding, dilation, extra = sizes(0, 2), sizes(1, 3 if space < 3 else 2), sizes(0, 4 if space < 3 else 2)
    spans = [d * (extent - 1) + 1 for d, extent in zip(dilation, kernel, strict=True)]
    size = [max(1, span - 2 * p) + more for span, p, more in zip(spans, padding, extra, strict=True)]
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    coefficients = rng.standard_normal((groups * per_group, k, *kernel))
    coefficients[rng.random(coefficients.shape) < draw(st.sampled_from([0.0, 0.5, 0.9]))] = 0
    return Case(
        x=rng.standard_normal((draw(st.integers(1, 2)), groups * width, *size)),
        dictionary=None if identity else rng.standard_normal((groups * k, width)),
        coefficients=coefficients,
        bias=rng.standard_normal(groups * per_group) if draw(st.booleans()) else None,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
    )


def loops(case: Case) -> np.ndarray:
    """The layer as the paper tells it, one output number at a time: read a pixel, match it with D, weigh with P."""
    n, k, *kernel = case.coefficients.shape
    x = np.pad(case.x, [(0, 0), (0, 0), *((p, p) for p in case.padding)])
    width = x.shape[1] // case.groups
    out = []
    for size, extent, s, d in zip(x.shape[2:], kernel, case.stride, case.dilation, strict=True):
        out.append(len(range(0, size - d * (extent - 1), s)))
    y = np.zeros((len(x), n, *out))
    for f, corner in itertools.product(range(n), itertools.product(*map(range, out))):
        group = f // (n // case.groups)
        for at in itertools.product(*map(range, kernel)):
            where = tuple(c * s + a * d for c, s, a, d in zip(corner, case.stride, at, case.dilation, strict=True))
            pixel = x[(slice(None), slice(group * width, (group + 1) * width), *where)]
            for row in range(k):
                weight = case.coefficients[(f, row, *at)]
                if weight == 0:
                    continue
                matched = pixel[:, row] if case.dictionary is None else pixel @ case.dictionary[group * k + row]
                y[(slice(None), f, *corner)] += weight * matched
        if case.bias is not None:
            y[(slice(None), f, *corner)] += case.bias[f]
    return y


def filter_loops(case: Case) -> np.ndarray:
    """W, entry by entry."""
    n, k, *kernel = case.coefficients.shape
    width = case.x.shape[1] // case.groups
    rows = np.tile(np.eye(width), (case.groups, 1)) if case.dictionary is None else case.dictionary
    dense = np.zeros((n, width, *kernel))
    for f, channel, at in itertools.product(range(n), range(width), itertools.product(*map(range, kernel))):
        for row in range(k):
            vector = rows[f // (n // case.groups) * k + row]
            dense[(f, channel, *at)] += case.coefficients[(f, row, *at)] * vector[channel]
    return dense


def relative_error(y: torch.Tensor, reference: np.ndarray | torch.Tensor) -> float:
    """Largest error over largest reference value."""
    reference = torch.as_tensor(reference)
    assert y.shape == reference.shape
    return float((y.double() - reference).abs().max() / max(float(reference.abs().max()), 1e-300))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@settings(max_examples=150)
@given(drawn=cases())
def test_all_forms_agree_with_loops_and_with_float64_convolution(dtype, drawn):
    case = drawn.rounded(dtype)
    x, dictionary, coefficients, bias = case.tensors(dtype)
    space = x.ndim - 2
    reference = loops(case)
    dense = torch.tensor(filter_loops(case))
    convolved = CONV[space](x.double(), dense, None if bias is None else bias.double(), **case.geometry)
    assert relative_error(convolved, reference) <= 1e-12, "the two references disagree"

    filters = lf.dense_filter(dictionary, coefficients, case.groups)
    forms = {
        "(D, P)": lf.lookup_conv(x, dictionary, coefficients, bias, **case.geometry),
        "(D, I, C)": lf.lookup_conv_from_lookups(x, dictionary, lf.to_lookups(coefficients), bias, **case.geometry),
        "W": CONV[space](x, filters, bias, **case.geometry),
    }
    assert relative_error(filters, dense) <= TOLERANCE[dtype]
    for name, y in forms.items():
        assert y.dtype == dtype
        assert relative_error(y, reference) <= TOLERANCE[dtype], name


@settings(max_examples=20)
@given(drawn=cases())
def test_response_is_the_dot_product_of_every_pixel_with_every_row(drawn):
    x, dictionary, *_ = drawn.tensors(torch.float64)
    if dictionary is None:
        dictionary = torch.eye(x.shape[1] // drawn.groups, dtype=x.dtype).repeat(drawn.groups, 1)
    pixels = x.numpy().reshape(len(x), drawn.groups, -1, math.prod(x.shape[2:]))
    rows = dictionary.numpy().reshape(drawn.groups, -1, dictionary.shape[1])
    expected = np.stack([[rows[g] @ pixels[i, g] for g in range(drawn.groups)] for i in range(len(x))])
    response = lf.dictionary_response(x, dictionary, drawn.groups)
    assert relative_error(response, expected.reshape(len(x), -1, *x.shape[2:])) <= 1e-12


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize(("padding", "kernel"), [("same", (2, 3)), ("valid", (3, 1)), ("same", (4, 4))])
def test_named_padding_follows_conv2d(padding, kernel):
    x, dictionary = torch.randn(2, 3, 6, 7).double(), torch.randn(4, 3).double()
    coefficients = torch.randn(5, 4, *kernel).double()
    geometry = {"padding": padding, "dilation": (2, 1)}
    expected = F.conv2d(x, lf.dense_filter(dictionary, coefficients), **geometry)
    assert relative_error(lf.lookup_conv(x, dictionary, coefficients, **geometry), expected) <= 1e-12


@pytest.mark.parametrize("identity", [False, True])
@pytest.mark.parametrize("lead", [(), (4,), (2, 3), (0,)])
def test_linear_forms_agree_with_loops(lead, identity):
    x, bias = torch.randn(*lead, 5).double(), torch.randn(4).double()
    dictionary = None if identity else torch.randn(3, 5).double()
    coefficients = lf.hard_threshold(torch.randn(4, 5 if identity else 3).double(), 0.5)
    rows = np.eye(5) if identity else dictionary.numpy()
    expected = np.zeros((*lead, 4))
    for at in itertools.product(*map(range, lead)):
        for f in range(4):
            expected[(*at, f)] = float(bias[f]) + sum(
                float(coefficients[f, row]) * float(np.dot(rows[row], x[at].numpy())) for row in range(len(rows))
            )
    y = lf.lookup_linear(x, dictionary, coefficients, bias)
    assert y.shape == expected.shape
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-12)
    if len(lead) == 1:
        from_lookups = lf.lookup_conv_from_lookups(x, dictionary, lf.to_lookups(coefficients), bias)
        np.testing.assert_allclose(from_lookups, expected, rtol=0, atol=1e-12)


def test_grouped_linear_lookups_use_the_dictionary_of_their_group():
    x, dictionary, coefficients = torch.randn(3, 4), torch.randn(6, 2), torch.randn(4, 3)
    y = lf.lookup_conv_from_lookups(x, dictionary, lf.to_lookups(coefficients), groups=2)
    halves = [x[:, :2] @ dictionary[:3].T @ coefficients[:2].T, x[:, 2:] @ dictionary[3:].T @ coefficients[2:].T]
    torch.testing.assert_close(y, torch.cat(halves, 1))


@pytest.mark.parametrize("groups", [1, 2])
def test_gradients_reach_x_d_p_and_bias_through_every_form(groups):
    x, dictionary = torch.randn(1, 4, 4, 3).double(), torch.randn(3 * groups, 4 // groups).double()
    coefficients, bias = torch.randn(2, 3, 2, 2).double(), torch.randn(2).double()
    inputs = [t.requires_grad_() for t in (x, dictionary, coefficients, bias)]
    assert torch.autograd.gradcheck(lambda *a: lf.lookup_conv(*a, padding=1, groups=groups), inputs)
    assert torch.autograd.gradcheck(
        lambda x, d, p, b: F.conv2d(x, lf.dense_filter(d, p, groups), b, padding=1, groups=groups), inputs
    )
    lookups = lf.to_lookups(coefficients)
    fixed = lambda x, d, b: lf.lookup_conv_from_lookups(x, d, lookups, b, padding=1, groups=groups)  # noqa: E731
    assert torch.autograd.gradcheck(fixed, [x, dictionary, bias])


# What does not fit


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"x": (1, 5, 4, 4)},
            "input (1, 5, 4, 4) and dictionary (3, 4) with groups=1 do not fit: expected an input (b, 4, ...)",
        ),
        (
            {"x": (4, 4, 4)},
            "input (4, 4, 4) and coefficients (6, 3, 2, 2) do not fit: expected 4 dimensions, the batch among them",
        ),
        (
            {"coefficients": (6, 2, 2, 2)},
            "response with 3 channels and coefficients (6, 2, 2, 2) with groups=1 do not fit: expected 2 channels",
        ),
        ({"dictionary": (3, 2), "groups": 2}, "dictionary (3, 2) with groups=2 do not fit"),
        (
            {"dictionary": (6, 2), "coefficients": (5, 3, 2, 2), "groups": 2},
            "with groups=2 do not fit: expected 6 channels and filters divisible by 2",
        ),
    ],
)
@pytest.mark.parametrize("from_lookups", [False, True], ids=["(D, P)", "(D, I, C)"])
def test_shapes_that_do_not_fit_are_quoted(arguments, message, from_lookups):
    shapes = {"x": (1, 4, 4, 4), "dictionary": (3, 4), "coefficients": (6, 3, 2, 2), **arguments}
    groups = shapes.pop("groups", 1)
    x, dictionary, coefficients = (torch.randn(*shape) for shape in shapes.values())
    form = lf.lookup_conv_from_lookups if from_lookups else lf.lookup_conv
    filters = lf.to_lookups(coefficients) if from_lookups else coefficients
    with pytest.raises(ShapeError, match=re.escape(message)):
        form(x, dictionary, filters, groups=groups)


def test_kernel_larger_than_the_padded_input():
    lookups = lf.to_lookups(torch.ones(1, 2, 3, 2))
    with pytest.raises(ShapeError, match=re.escape("padded input (4, 5) is smaller than the dilated kernel (5, 3)")):
        lf.lookup_conv_from_lookups(torch.ones(1, 2, 4, 3), None, lookups, padding=(0, 1), dilation=2)


@pytest.mark.parametrize(("dictionary", "groups"), [((4, 2), 1), ((3, 2), 3)])
def test_dense_filter_shapes_that_do_not_fit(dictionary, groups):
    message = (
        f"dictionary {dictionary} and coefficients (4, 3, 1) do not fit groups={groups}: expected {3 * groups} dict"
    )
    with pytest.raises(ShapeError, match=re.escape(message)):
        lf.dense_filter(torch.ones(dictionary), torch.ones(4, 3, 1), groups)
