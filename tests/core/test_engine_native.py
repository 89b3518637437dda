"""The packed plan: refused when damaged, never read out of bounds; and the library's own limits."""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import struct
import subprocess
import sys
import warnings
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lcnn_core.engine import compile, compiler, libraries, peaks, read_rate, storage
from lcnn_core.engine.library import NativePlan, addresses, choose
from lcnn_core.engine.pack import DATA, FIELDS, MAGIC, OPERATIONS, STEP_WORDS, VERSION, seal
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


def covering() -> nn.Module:
    """A kernel as large as the image: a lookup_linear with several positions."""
    layer = LookupConv2d(6, 150, (3, 2), dictionary_size=4, threshold=0.0)
    return nn.Sequential(layer, nn.ReLU(), nn.Flatten(), LookupLinear(150, 3, dictionary_size=2, threshold=0.0))


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
        packed(small(), torch.randn(1, 3, 12, 13)),  # under its pooling rows are joined, but not columns
        packed(Every(), torch.randn(1, 2, 12, 10), torch.randn(1, 8)),
        packed(covering(), torch.randn(1, 6, 3, 2)),
    ]


def test_the_plans_hold_every_operation() -> None:
    found = set()
    for blob in plans():
        words = np.frombuffer(blob[: len(blob) // 8 * 8], "<i8")
        ports, tensors, steps = words[6] + words[7], words[4], words[5]
        first = 16 + 4 * ports + 8 * tensors
        found |= set(words[first : first + STEP_WORDS * steps : STEP_WORDS].tolist())
    assert found == set(range(len(OPERATIONS)))


def images(shapes: list[tuple[int, ...]]) -> list[Tensor]:
    """Two of each; a port that no step reads may have any size."""
    return [torch.zeros(2, *shape) if math.prod(shape) < 1 << 24 else torch.zeros(2) for shape in shapes]


def run(blob: bytes, threads: int = 1, count: int = 2) -> None:
    """Load, and where it loads, run: neither may touch memory that is not the plan's (checked under ASan)."""
    with contextlib.suppress(CheckpointError, MemoryError):
        plan = NativePlan(blob)
        x, y = (images(shapes) for shapes in plan.shapes())
        plan.run(addresses([t.data_ptr() for t in x]), addresses([t.data_ptr() for t in y]), count, threads)


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
@given(damaged(), st.integers(1, 3), st.integers(1, 2))
def test_damaged_plans_are_refused_or_harmless(blob: bytes, threads: int, count: int) -> None:
    run(blob, threads, count)


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
    monkeypatch.setattr(compiler, "choose", lambda isa=None: None)
    model, x = small(), torch.randn(2, 3, 12, 12)
    with pytest.warns(UserWarning, match="no native library: install lcnn where a C\\+\\+ compiler is present"):
        plain = compile(model, x)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("error")
        assert torch.equal(plain(x), model(x))
    assert plain.plan.fallbacks[0].name == "no native library"  # type: ignore[union-attr]


def i32(*numbers: int) -> np.ndarray:
    return np.array(numbers, "<i4")


def one_lookup_layer(x: list[int], y: list[int], *, first: int = 3, **fields: object) -> bytes:
    """A plan by hand: import (unless the layer splits its port), a lookup layer between two tensors (records of
    FORMAT.md), export."""
    ones = np.ones(1, "<f4")
    layer = {
        "op": "lookup", "input": 0, "output": 1, "groups": 1, "width": x[1], "filters": y[1], "phases": 1, "rows": 0,
        "table": i32(0, 0, 0), "table_count": 1, "values": ones, "starts": i32(0, *[1] * y[1]), **fields,
    }  # fmt: skip
    grid = {
        "conv_height": x[2],
        "conv_width": x[3],
        "width": x[1],
        "sy": 1,
        "sx": 1,
        "phases": 1,
        "phase_list": i32(0, 0),
    }
    records = [{"op": "import_", "output": 0, **grid}, layer, {"op": "export_", "input": 1}]
    if layer.get("split_x"):
        del records[0]
    steps, data, units = np.zeros((len(records), STEP_WORDS), "<i8"), [], 0
    for row, step in zip(steps, records, strict=True):
        for name, value in ({"input": -1, "second": -1, "output": -1} | dict.fromkeys(DATA, -1) | step).items():
            number = OPERATIONS.index(value) if name == "op" else value
            if isinstance(value, np.ndarray):
                number, units = units, units + value.size
                data.append(value.tobytes())
            row[FIELDS.index(name)] = number
    ports, tensors = np.array([[3, x[1] // layer["phases"], *x[2:4]], [3, *y[1:4]]], "<i8"), np.array([x, y], "<i8")
    arena = y[6] + y[1] * y[5]
    words, split = 16 + 8 + 16 + steps.size, min(first, len(steps))
    head = [MAGIC, VERSION, words, units, 2, len(steps), 1, 1, arena, 0, split, 0, 0, 0, 0, 0]
    return seal(b"".join([np.array(head, "<i8").tobytes(), ports.tobytes(), tensors.tobytes(), steps.tobytes(), *data]))


def wide(channels: int, height: int, width: int, stride: int, offset: int) -> list[int]:
    return [0, channels, height, width, stride, (height * stride + 31) // 16 * 16, offset + 16, 16]


def rows_of_dictionary(rows: int) -> dict[str, object]:
    return {"rows": rows, "weights": np.ones(rows, "<f4"), "weights_count": rows}


MANY = 1 << 20
BEYOND = pow(MANY - 1, -1, 1 << 64)  # times MANY - 1 it is 1 in 64 bits
POOL = {"pooled": 1, "kh": 1, "kw": 1, "sy": 1, "sx": 1, "py": 0, "px": 0, "dy": 1, "dx": 1}
GRID = [2, 1, 4, 4, 5, 48, 0, 0]
SPLIT = {"split_y": 1, "split_x": 1, "port": 0, "phase_list": i32(0, 0), **rows_of_dictionary(1)}
TWICE = {"width": 1, "phases": 2, "phase_list": i32(0, 0, 0, 0)}
JOINED = POOL | {"kh": 2, "kw": 2, "sy": 2, "sx": 2, "joined": 1, "table": i32(0, 0, 0, 0, 0, 0)}
HANDMADE = {
    "columns joined without a pooling": (
        one_lookup_layer(wide(1, 4, 4, 5, 0), wide(1, 4, 4, 5, 100), joined=1, table=i32(0, 0, 0, 0, 0, 0)),
        "this pooling cannot join columns",
    ),
    "columns joined beyond the outputs": (
        one_lookup_layer(wide(1, 4, 4, 5, 0), wide(1, 2, 4, 5, 100), **JOINED, conv_height=4, conv_width=7),
        "this pooling cannot join columns",
    ),
    "columns joined, three of them": (
        one_lookup_layer(wide(1, 4, 4, 5, 0), wide(1, 2, 4, 5, 100), **JOINED | {"joined": 2}, conv_height=4,
                         conv_width=8),
        "joined is 2; expected 0 to 1",
    ),
    "an odd column that is read outside": (
        one_lookup_layer(wide(1, 4, 4, 5, 0), wide(1, 2, 4, 5, 100), **JOINED | {"table": i32(0, 0, 0, 1, 0, 0)},
                         conv_height=4, conv_width=8),
        "lookup channel is 1; expected 0 to 0",
    ),
    "columns joined": (
        one_lookup_layer(wide(1, 4, 4, 5, 0), wide(1, 2, 4, 5, 100), **JOINED, conv_height=4, conv_width=8), None,
    ),
    "lookups in the batch-wide part": (
        one_lookup_layer(wide(1, 8, 64, 65, 0), wide(1, 8, 64, 65, 800), first=0, **rows_of_dictionary(4096)),
        "this operation cannot be batch-wide",
    ),
    "scratch beyond 64 bits": (
        one_lookup_layer(wide(1, 1, 1, 1 << 21, 0), [0, MANY, 1, 1, 1, 32, 1 << 22, 16],
                         **POOL | {"kh": 64, "dy": 1 << 16, "conv_height": 1, "conv_width": 1}),
        "pooled tile is 17592190238720; expected 0 to 17179869184",
    ),
    "a vector of sizes whose product is 1 beyond 64 bits": (
        one_lookup_layer(wide(1, 1, 1, 1, 0), [0, 1, 1, MANY - 1, BEYOND - (BEYOND >> 63 << 64), 1, 100, 16]),
        "vector size is 1048575; expected 1 to 1",
    ),
    "a column a whole stride aside": (
        one_lookup_layer(wide(1, 1, 2, MANY, 0), wide(1, 1, 2, MANY, 2 * MANY), table=i32(0, 0, MANY),
                         **rows_of_dictionary(1)), None,
    ),
    "columns beyond the input under a pooling": (
        one_lookup_layer(wide(1, 1, 1, MANY, 0), wide(1, 1, 1, 8, 2 * MANY), **POOL,
                         conv_height=1, conv_width=MANY), None,
    ),
    "an image split": (one_lookup_layer(GRID, wide(1, 4, 4, 5, 0), **SPLIT), None),
    "an image split by 3": (
        one_lookup_layer(GRID, wide(1, 4, 4, 5, 0), **SPLIT | {"split_x": 3}),
        "columns are split by 3; expected 1, 2, 4 or 8",
    ),
    "an image split without a dictionary": (
        one_lookup_layer(GRID, wide(1, 4, 4, 5, 0), **SPLIT | {"rows": 0}),
        "split rows of the dictionary is 0; expected 1 to 1048576",
    ),
    "an image of another size split": (
        one_lookup_layer(GRID, wide(1, 4, 4, 5, 0), **SPLIT | {"split_x": 2, "phase_list": i32(0, 1)}),
        "the grid of a split input does not fit its port",
    ),
    "a phase outside a split": (
        one_lookup_layer(GRID, wide(1, 4, 4, 5, 0), **SPLIT | {"phase_list": i32(0, 1)}), "phase is 1; expected 0 to 0",
    ),
    "a phase split twice": (
        one_lookup_layer([2, 2, *GRID[2:]], wide(1, 4, 4, 5, 0), **SPLIT | TWICE),
        "a phase of a split stands twice",
    ),
    "an output without memory": (
        one_lookup_layer(GRID, wide(1, 4, 4, 5, 0), **SPLIT | {"output": 0}),
        "a step uses tensor 0, which no memory holds",
    ),
    "a residual without memory": (
        one_lookup_layer(GRID, wide(1, 4, 4, 5, 0), **SPLIT | {"second": 0}),
        "a step uses tensor 0, which no memory holds",
    ),
    "a place of what no memory holds": (
        one_lookup_layer([*GRID[:6], 1 << 33, 0], wide(1, 4, 4, 5, 0), **SPLIT),
        "offset of a tensor that no memory holds is 8589934592; expected 0 to 0",
    ),
    "many channels split": (
        one_lookup_layer([2, 17, *GRID[2:]], wide(1, 4, 4, 5, 0), **SPLIT), "split channels is 17; expected 1 to 16",
    ),
    "a split of a port that is not there": (
        one_lookup_layer(GRID, wide(1, 4, 4, 5, 0), **SPLIT | {"port": 1}), "input is 1; expected 0 to 0",
    ),
    "a dictionary of another size split": (
        one_lookup_layer(GRID, wide(1, 4, 4, 5, 0), **SPLIT | {"weights_count": 2}),
        "dictionary does not have groups \\* k \\* m entries",
    ),
    "a split into memory": (
        one_lookup_layer(wide(1, 4, 4, 5, 0), wide(1, 4, 4, 5, 100), **SPLIT),
        "the grid of a split input does not fit its port",
    ),
    "a grid without memory imported": (
        one_lookup_layer(GRID, wide(1, 4, 4, 5, 0)), "a step uses tensor 0, which no memory holds",
    ),
    "a plain one": (one_lookup_layer(wide(1, 4, 4, 5, 0), wide(1, 4, 4, 5, 100), **rows_of_dictionary(3)), None),
}  # fmt: skip


@pytest.mark.parametrize("name", HANDMADE)
@pytest.mark.parametrize("threads", [1, 2])
def test_plans_by_hand_are_refused_or_harmless(name: str, threads: int) -> None:
    """What a fuzz would not find: plans that are right in all but one respect (run under ASan by `-m slow`)."""
    blob, message = HANDMADE[name]
    if message is None:
        NativePlan(blob)
    else:
        with pytest.raises(CheckpointError, match=f"(step [01]|refused): {message}"):
            NativePlan(blob)
    run(blob, threads)


def test_a_pipe_is_no_plan(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.lcnn")
    library, message = choose(), ctypes.create_string_buffer(300)
    assert library is not None
    library.lcnn_load_file.restype = ctypes.c_void_p
    assert not library.lcnn_load_file(str(tmp_path / "pipe.lcnn").encode(), message, 300)
    assert b"is not a regular file" in message.value


FORKED = """
import os, torch
from torch import nn
from lcnn_core.engine import compile
torch.set_num_threads(1)  # PyTorch's own threads do not survive a fork
model, x = nn.Sequential(nn.Conv2d(3, 64, 3), nn.ReLU()).eval(), torch.randn(4, 3, 30, 30)
compiled = compile(model, x, threads=2)
expected = compiled(x)
child = os.fork()
if not child:
    os._exit(0 if torch.equal(compiled(x), expected) and torch.equal(compiled(x[:1]), expected[:1]) else 1)
print(os.waitpid(child, 0)[1], torch.equal(compiled(x), expected))
"""


def printed(program: str, folder: Path) -> list[str]:
    """By a process of its own; in a folder of its own, so that it imports the package that is installed."""
    command = [sys.executable, "-c", program]
    return subprocess.run(
        command, cwd=folder, stdout=subprocess.PIPE, text=True, timeout=120, check=True
    ).stdout.splitlines()


def test_a_forked_process_has_threads_of_its_own(tmp_path: Path) -> None:
    assert printed(FORKED, tmp_path) == ["0 True"]


STARVED = """
import resource, torch
from lcnn_core.engine import compile
from lcnn_core.layers import LookupLinear
from torch import nn
model = nn.Sequential(LookupLinear(4000, 10, dictionary_size=None, threshold=0.0)).eval()
few, many = torch.randn(8, 4000), torch.randn(2000, 4000)
compiled = compile(model, few, threads=2)
compiled(few)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 20), resource.RLIM_INFINITY))
for _ in range(2):
    try:
        compiled(many)
    except MemoryError as error:
        print(error)
print(torch.allclose(compiled(few), model(few), atol=1e-2))
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print(torch.allclose(compiled(many), model(many), atol=1e-2))
"""


def test_a_call_that_runs_out_of_memory_says_so_and_the_next_one_works(tmp_path: Path) -> None:
    """Images side by side, 32 MB of them here, need room."""
    said = "not enough memory to run 2000 images; use a smaller batch"
    assert printed(STARVED, tmp_path) == [said, said, "True", "True"]
