"""The packed plan: refused when damaged, never read out of bounds; and the library's own limits."""

from __future__ import annotations

import contextlib
import struct
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lcnn_core.engine import compile, compiled, libraries, peaks
from lcnn_core.engine.compiled import Segment
from lcnn_core.engine.library import NativePlan
from lcnn_core.engine.pack import seal
from lcnn_core.errors import CheckpointError
from lcnn_core.layers import LookupConv2d, LookupLinear

pytestmark = pytest.mark.skipif(not libraries(), reason="no native library was built")


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        LookupConv2d(3, 6, 3, 2, 1, dictionary_size=2, threshold=0.0), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 4, 3, padding=1), nn.Flatten(), LookupLinear(4 * 9, 5, dictionary_size=3, threshold=0.0),
    ).eval()  # fmt: skip


def packed() -> Segment:
    model = compile(small(), torch.randn(1, 3, 12, 12))
    return next(part for part in model._parts if isinstance(part, Segment))  # type: ignore[union-attr]


SEGMENT = packed() if libraries() else None


def run(blob: bytes) -> None:
    """Load, and where it loads, run: neither may touch memory that is not the plan's (checked under ASan)."""
    plan = NativePlan(blob)
    x, y = ([torch.zeros(2, *shape) for shape in shapes] for shapes in plan.shapes())
    plan.run([t.data_ptr() for t in x], [t.data_ptr() for t in y], 2, 1)


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_damaged_plans_are_refused_or_harmless(data: st.DataObject) -> None:
    assert SEGMENT is not None
    blob = bytearray(SEGMENT.packed)
    (words,) = struct.unpack_from("<q", blob, 16)
    for _ in range(data.draw(st.integers(1, 3))):
        word = data.draw(st.integers(0, len(blob) // 8 - 1) | st.integers(3, words - 1))
        (old,) = struct.unpack_from("<q", blob, 8 * word)
        near = [v for v in (old + 1, old - 1, old * 2, old - 16) if -(1 << 63) <= v < 1 << 63]
        far = [-1, 0, 1, 2, 7, 16, 1 << 12, 1 << 20, 1 << 31, 1 << 40, (1 << 63) - 1, -(1 << 63)]
        struct.pack_into("<q", blob, 8 * word, data.draw(st.sampled_from(near + far)))
    with contextlib.suppress(CheckpointError):
        run(seal(bytes(blob)))


@pytest.mark.parametrize("size", [0, 8, 100, 127, 128, 500])
def test_truncated_plans_are_refused(size: int) -> None:
    assert SEGMENT is not None
    with pytest.raises(CheckpointError, match="packed plan refused"):
        run(SEGMENT.packed[:size])


def test_the_intact_plan_runs() -> None:
    assert SEGMENT is not None
    run(SEGMENT.packed)


def test_peaks_are_positive() -> None:
    assert all(value > 0 for value in peaks(0.01).values())


def test_without_a_library_pytorch_runs_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "choose", lambda isa=None: None)
    model, x = small(), torch.randn(2, 3, 12, 12)
    with pytest.warns(UserWarning, match="no native library: install lcnn where a C\\+\\+ compiler is present"):
        plain = compile(model, x)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("error")
        assert torch.equal(plain(x), model(x))
    assert plain.plan.fallbacks[0].name == "no native library"  # type: ignore[union-attr]
