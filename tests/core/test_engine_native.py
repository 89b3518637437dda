"""The packed plan: refused when damaged, never read out of bounds; and the library's own limits."""

from __future__ import annotations

import contextlib
import ctypes
import math
import struct
import warnings
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lcnn_core.engine import compile, compiled, libraries, peaks, read_rate, storage
from lcnn_core.engine.library import NativePlan, choose
from lcnn_core.engine.pack import OPERATIONS, seal
from lcnn_core.errors import CheckpointError
from lcnn_core.layers import LookupConv2d, LookupLinear

pytestmark = pytest.mark.skipif(not libraries(), reason="no native library was built")


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        LookupConv2d(3, 6, 3, 2, 1, dictionary_size=2, threshold=0.0), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 4, 3, padding=1), nn.Flatten(), LookupLinear(4 * 9, 5, dictionary_size=3, threshold=0.0),
    ).eval()  # fmt: skip


class Every(nn.Module):
    """Every kind of step: two inputs, residuals, phases, groups, gates, concatenation, all poolings, activations."""

    def __init__(self) -> None:
        super().__init__()
        self.a = LookupConv2d(2, 8, 3, 2, 1, dictionary_size=1, threshold=0.0)
        self.b = LookupConv2d(8, 8, 3, padding=1, groups=2, dictionary_size=2, threshold=0.0)
        self.c, self.norm = nn.Conv2d(16, 8, 3, 2, 1), nn.BatchNorm2d(8)
        self.gate, self.pool = nn.Conv2d(8, 8, 1), nn.AvgPool2d(3, 1, 1)
        self.head, self.last = LookupLinear(40, 12, dictionary_size=3, threshold=0.0), nn.Linear(12, 5)

    def forward(self, x: Tensor, v: Tensor) -> Tensor:
        x = torch.relu(self.a(x))
        x = torch.cat([x, nn.functional.silu(self.b(x) + x)], 1)
        x = self.norm(self.pool(nn.functional.hardswish(self.c(x))))
        x = x * torch.sigmoid(self.gate(nn.functional.adaptive_avg_pool2d(x, 1)))
        x = nn.functional.adaptive_max_pool2d(x + x, 2).flatten(1)
        return torch.tanh(self.last(torch.relu(self.head(torch.cat([x, v], 1)))))


def packed(model: nn.Module, *x: Tensor, stored: str = "float32") -> bytes:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(storage, "LEAST", 1)
        return compile(model.eval(), x, storage=stored).packed()  # type: ignore[union-attr]


@cache
def plans() -> list[bytes]:
    torch.manual_seed(0)
    x = torch.randn(1, 3, 12, 12)
    return [
        *(packed(small(), x, stored=stored) for stored in storage.STORAGES),
        packed(Every(), torch.randn(1, 2, 12, 10), torch.randn(1, 8)),
    ]


def test_the_plans_hold_every_operation() -> None:
    found = set()
    for blob in plans():
        words = np.frombuffer(blob[: len(blob) // 8 * 8], "<i8")
        ports, tensors, steps = words[6] + words[7], words[4], words[5]
        first = 16 + 4 * ports + 8 * tensors
        found |= set(words[first : first + 40 * steps : 40].tolist())
    assert found == set(range(len(OPERATIONS)))


def images(shapes: list[tuple[int, ...]]) -> list[Tensor]:
    """Two of each; a port that no step reads may have any size."""
    return [torch.zeros(2, *shape) if math.prod(shape) < 1 << 24 else torch.zeros(2) for shape in shapes]


def run(blob: bytes) -> None:
    """Load, and where it loads, run: neither may touch memory that is not the plan's (checked under ASan)."""
    with contextlib.suppress(CheckpointError, MemoryError):
        plan = NativePlan(blob)
        x, y = (images(shapes) for shapes in plan.shapes())
        plan.run([t.data_ptr() for t in x], [t.data_ptr() for t in y], 2, 1)


def run_file(path: Path) -> None:
    """The same through the door for files."""
    library = choose()
    assert library is not None
    library.lcnn_load_file.restype = ctypes.c_void_p
    handle = ctypes.c_void_p(library.lcnn_load_file(str(path).encode(), ctypes.create_string_buffer(99), 99))
    if handle:
        library.lcnn_free(handle)
        run(path.read_bytes())


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """One to three numbers of a plan changed, most of them in its records, with the checksum made to fit."""
    blob = bytearray(draw(st.sampled_from(plans())))
    (words,) = struct.unpack_from("<q", blob, 16)
    for _ in range(draw(st.integers(1, 3))):
        word = draw(st.integers(0, len(blob) // 8 - 1) | st.integers(3, words - 1))
        (old,) = struct.unpack_from("<q", blob, 8 * word)
        near = [v for v in (old + 1, old - 1, old * 2, old - 16) if -(1 << 63) <= v < 1 << 63]
        far = [-1, 0, 1, 2, 7, 16, 1 << 12, 1 << 20, 1 << 31, 1 << 40, (1 << 63) - 1, -(1 << 63)]
        struct.pack_into("<q", blob, 8 * word, draw(st.sampled_from(near + far)))
    return seal(bytes(blob))


@settings(max_examples=600, deadline=None)
@given(damaged())
def test_damaged_plans_are_refused_or_harmless(blob: bytes) -> None:
    run(blob)


@settings(max_examples=100, deadline=None)
@given(damaged())
def test_damaged_plan_files_are_refused_or_harmless(tmp_path_factory: pytest.TempPathFactory, blob: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.lcnn"
    path.write_bytes(blob)
    run_file(path)


@pytest.mark.parametrize("size", [0, 8, 100, 127, 128, 500])
def test_truncated_plans_are_refused(size: int) -> None:
    with pytest.raises(CheckpointError, match="packed plan refused"):
        NativePlan(plans()[0][:size])


def test_intact_plans_run() -> None:
    for blob in plans():
        NativePlan(blob)
        run(blob)


def test_peaks_are_positive() -> None:
    assert all(value > 0 for value in [*peaks(0.01).values(), read_rate(1 << 20, 0.01)])


def test_without_a_library_pytorch_runs_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "choose", lambda isa=None: None)
    model, x = small(), torch.randn(2, 3, 12, 12)
    with pytest.warns(UserWarning, match="no native library: install lcnn where a C\\+\\+ compiler is present"):
        plain = compile(model, x)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("error")
        assert torch.equal(plain(x), model(x))
    assert plain.plan.fallbacks[0].name == "no native library"  # type: ignore[union-attr]
