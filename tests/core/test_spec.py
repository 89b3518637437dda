"""Configurations and specs: defaults as published, refusals by message, plain data that travels without torch."""

from __future__ import annotations

import dataclasses
import inspect
import json
import math
import pickle
import re

import pytest

from lcnn_core import errors, spec
from lcnn_core.errors import ConfigError, LcnnError
from lcnn_core.spec import LayerSpec, LookupConfig, LookupSpec, ModelSpec, Uncounted, default_threshold


@pytest.mark.parametrize(
    ("k", "kernel", "scale", "eps"),
    [
        (3, (11, 11), 0.01, 0.01 / 363**0.5),
        (30, (5, 5), 0.01, 0.01 / 750**0.5),
        (512, (), 0.01, 0.01 / 512**0.5),
        (16, (3, 3), 0.001, 0.001 / 144**0.5),
    ],
)
def test_threshold_and_l1_weight_as_published(k, kernel, scale, eps):
    assert default_threshold(k, kernel, scale) == pytest.approx(eps, rel=1e-12)
    assert LookupConfig(k, threshold_scale=scale, l1_scale=0.3).resolve(k, kernel) == pytest.approx((eps, 0.3 * eps))


def test_values_given_replace_the_published_ones():
    assert LookupConfig(4, threshold=0.2).resolve(4, (3, 3)) == pytest.approx((0.2, 0.02))
    assert LookupConfig(4, threshold=0.0, l1_weight=0.5).resolve(4, (3, 3)) == (0.0, 0.5)
    eps = 0.01 / math.sqrt(36)
    assert LookupConfig(4, l1_weight=0.0).resolve(4, (3, 3)) == pytest.approx((eps, 0.0))
    # the identity dictionary has as many rows as the layer has inputs
    assert LookupConfig(None).resolve(9, (2, 2))[0] == pytest.approx(0.01 / 6)


def test_defaults():
    config = LookupConfig(8)
    assert dataclasses.asdict(config) == {
        "dictionary_size": 8,
        "threshold": None,
        "threshold_scale": 0.01,
        "l1_weight": None,
        "l1_scale": 0.1,
        "lookups_per_position": None,
    }
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.dictionary_size = 9  # type: ignore[misc]


@pytest.mark.parametrize("name", ["dictionary_size", "lookups_per_position"])
@pytest.mark.parametrize("value", [0, -1, 2.0, True, False, "3", math.nan])
def test_counts_that_are_not_positive_whole_numbers(name, value):
    message = f"{name} is {value!r}; expected a whole number of 1 or more, or None for"
    with pytest.raises(ConfigError, match=re.escape(message)):
        LookupConfig(**{"dictionary_size": 1, name: value})


@pytest.mark.parametrize("name", ["threshold", "threshold_scale", "l1_weight", "l1_scale"])
@pytest.mark.parametrize("value", [-1e-9, math.nan, math.inf, -math.inf, True, "0.1"])
def test_scales_that_are_not_finite_and_positive(name, value):
    with pytest.raises(ConfigError, match=re.escape(f"{name} is {value!r}; expected a finite number of 0 or more")):
        LookupConfig(4, **{name: value})


@pytest.mark.parametrize("name", ["threshold_scale", "l1_scale"])
def test_scales_are_not_optional(name):
    with pytest.raises(ConfigError, match=f"{name} is None; expected a finite number of 0 or more$"):
        LookupConfig(4, **{name: None})


def test_whole_numbers_are_fine_scales():
    assert LookupConfig(4, threshold=0, l1_weight=1).resolve(4, ()) == (0, 1)


def test_specs_are_plain_data():
    lookup = LookupSpec(2, 8, 144, 20, 0.01, 0.0)
    layer = LayerSpec("conv", "lookup_conv", (4, 8, 8), (8, 6, 6), (3, 3), (1, 1), (0, 0), (1, 1), lookup=lookup)
    model = ModelSpec("net", (4, 8, 8), (layer,), (Uncounted("x", "aten::fft", 1, "no formula"),))
    assert pickle.loads(pickle.dumps(model)) == model
    assert hash(model) == hash(dataclasses.replace(model))
    assert json.loads(json.dumps(dataclasses.asdict(model)))["layers"][0]["lookup"]["coefficients_nnz"] == 20


@pytest.mark.parametrize(
    "cls", [cls for _, cls in inspect.getmembers(spec, dataclasses.is_dataclass)], ids=lambda cls: cls.__name__
)
def test_every_spec_is_frozen_and_documented(cls):
    assert cls.__dataclass_params__.frozen
    assert cls.__doc__
    assert not cls.__doc__.startswith(f"{cls.__name__}(")  # the text that dataclass makes up when there is none


def test_every_error_is_an_lcnn_error():
    classes = [cls for _, cls in inspect.getmembers(errors, inspect.isclass)]
    assert len(classes) >= 7
    assert all(issubclass(cls, LcnnError) and cls.__doc__ for cls in classes)
    # what a caller of PyTorch-like functions would catch
    assert issubclass(errors.ShapeError, ValueError)
    assert issubclass(ConfigError, ValueError)
