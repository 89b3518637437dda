"""Plans as files: the format read by a parser of its own, damage refused, Python and C give the compiled outputs."""

from __future__ import annotations

import shutil
import struct
import subprocess
import zlib
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lcnn_core import CheckpointError, ConfigError, LookupConv2d, LookupLinear, ShapeError
from lcnn_core.engine import c_flags, compile, libraries, load, save
from lcnn_core.engine.library import NativePlan

ISAS = list(libraries())
pytestmark = pytest.mark.skipif(not ISAS, reason="no native library was built")


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        LookupConv2d(3, 6, 3, 2, 1, dictionary_size=2, threshold=0.0), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 4, 3, padding=1), nn.Flatten(), LookupLinear(4 * 9, 5, dictionary_size=3, threshold=0.0),
    ).eval()  # fmt: skip


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plan") / "model.lcnn"
    save(compile(network(), torch.randn(1, 3, 12, 12)), path)
    return path


class Parsed:
    """A plan read as FORMAT.md says, with nothing of the library."""

    def __init__(self, blob: bytes):
        header = struct.unpack_from("<8s15q", blob)
        self.magic, self.version, words, units, tensors, steps, inputs, outputs = header[:8]
        self.arena, self.batch, self.first_batch_step, *zeros, self.checksum = header[8:]
        assert zeros == [0, 0, 0, 0]
        at = 128
        self.ports = [struct.unpack_from("<4q", blob, at + 32 * i) for i in range(inputs + outputs)]
        at += 32 * (inputs + outputs)
        self.tensors = [struct.unpack_from("<8q", blob, at + 64 * i) for i in range(tensors)]
        at += 64 * tensors
        self.steps = [struct.unpack_from("<42q", blob, at + 336 * i) for i in range(steps)]
        at += 336 * steps
        assert at == 8 * words
        assert len(blob) == at + 4 * units
        self.data = blob[at:]
        assert self.checksum == zlib.crc32(blob[:120] + blob[128:])

    def floats(self, offset: int, count: int) -> list[float]:
        return list(struct.unpack_from(f"<{count}f", self.data, 4 * offset))

    def ints(self, offset: int, count: int) -> list[int]:
        return list(struct.unpack_from(f"<{count}i", self.data, 4 * offset))


def test_the_bytes_of_a_tiny_network() -> None:
    """conv 1x1 with D = [[2, 3]], P = [[5], [0]] on 2 channels of 1x2, then ReLU."""
    layer = LookupConv2d(2, 2, 1, bias=True, dictionary_size=1, threshold=0.0)
    with torch.no_grad():
        layer.dictionary.copy_(torch.tensor([[2.0, 3.0]]).reshape(layer.dictionary.shape))
        layer.coefficients.copy_(torch.tensor([5.0, 0.0]).reshape(layer.coefficients.shape))
        layer.bias.copy_(torch.tensor([0.5, -0.5]))
    blob = compile(nn.Sequential(layer, nn.ReLU()).eval(), torch.randn(1, 2, 1, 2)).packed()  # type: ignore[operator]
    found = Parsed(blob)
    assert (found.magic, found.version) == (b"LCNNPLAN", 5)
    assert found.ports == [(3, 2, 1, 2), (3, 2, 1, 2)]
    # lookup that reads its port, export; two tensors of two planes: 2 floats a row, then zeros to a multiple of 16
    assert [step[0] for step in found.steps] == [4, 1]
    assert [t[:6] for t in found.tensors] == [(2, 2, 1, 2, 2, 32), (0, 2, 1, 2, 2, 32)]
    assert found.arena == found.tensors[1][7] + 2 * 32
    assert (found.batch, found.first_batch_step) == (0, 2)
    lookup, exporting = found.steps
    assert exporting[1:4] == (1, -1, -1)
    assert (lookup[34], *lookup[40:]) == (0, 1, 1)
    assert found.ints(lookup[30], 2) == [0, 0]
    assert lookup[1:8] == (0, -1, 1, 1, 1, 2, 2)  # tensors; groups, k, m, n
    assert lookup[8:11] == (1, 0, struct.unpack("<i", struct.pack("<f", float("inf")))[0])
    assert found.floats(lookup[11], 2) == [0.5, -0.5]
    assert lookup[13] == 2
    assert found.floats(lookup[12], 2) == [2.0, 3.0]
    assert lookup[15] == 1
    assert found.ints(lookup[14], 3) == [0, 0, 0]
    assert found.floats(lookup[16], 1) == [5.0]
    assert found.ints(lookup[17], 3) == [0, 1, 1]
    assert lookup[36:40] == (0, -1, 0, 0)


def test_a_stem_reads_its_image_as_the_format_says() -> None:
    """S of a phase is D times every third row and second column of the image, summed lookup by lookup by hand."""
    torch.manual_seed(0)
    layer = LookupConv2d(3, 4, 5, (3, 2), 2, bias=True, dictionary_size=2, threshold=0.0)
    with torch.no_grad():
        layer.coefficients.mul_(torch.rand_like(layer.coefficients) < 0.2)
    x = torch.randn(1, 3, 11, 14)
    found = Parsed(compile(layer.eval(), x).packed())  # type: ignore[operator]
    lookup = found.steps[0]
    assert (lookup[0], lookup[34], *lookup[40:]) == (4, 0, 3, 2)
    count, phases = lookup[15], np.array(found.ints(lookup[30], 2 * lookup[29])).reshape(-1, 2)
    response = np.einsum("km,mhw->khw", np.array(found.floats(lookup[12], 6)).reshape(2, 3), x[0].double().numpy())
    response = np.pad(response, ((0, 0), (30, 30), (30, 30)))
    table = np.array(found.ints(lookup[14], 3 * count)).reshape(count, 3)
    values, starts = found.floats(lookup[16], count), found.ints(lookup[17], 5)
    y = np.zeros((4, 4, 7))
    for f, (first, last) in enumerate(pairwise(starts)):
        for (channel, row, column), value in zip(table[first:last], values[first:last], strict=True):
            (py, px), r = phases[channel // 2], channel % 2
            top, left = 30 + 3 * row + py, 30 + 2 * column + px
            y[f] += value * response[r, top : top + 12 : 3, left : left + 14 : 2]
        y[f] += found.floats(lookup[11], 4)[f]
    torch.testing.assert_close(torch.from_numpy(y)[None], layer.double()(x.double()))


@pytest.mark.parametrize(
    ("stride", "pool", "width", "joined"),
    [
        (2, nn.MaxPool2d(3, 2, 1), 32, 1),
        (1, nn.MaxPool2d(2), 16, 1),
        (2, nn.MaxPool2d(3, 2), 34, 1),  # 17 columns of outputs
        (2, nn.MaxPool2d(3, 2, 1), 30, 0),  # 15: the last window wants a 16th
        (2, nn.MaxPool2d(3, 2, ceil_mode=True), 32, 0),
        (4, nn.MaxPool2d(2), 64, 0),
        (2, nn.MaxPool2d(3, (2, 1), 1), 32, 0),
        (2, nn.MaxPool2d((2, 3), 2), 34, 1),
    ],
)
def test_columns_are_joined_where_all_of_a_window_is_there(
    stride: int, pool: nn.Module, width: int, joined: int
) -> None:
    """A lookup with value 5 at kernel column 0: the odd output column reads one stride to the right of the even one."""
    layer = LookupConv2d(1, 1, 3, stride, 1, dictionary_size=None, threshold=0.0)
    with torch.no_grad():
        layer.coefficients.zero_()[0, 0, 1, 0] = 5.0
    blob = compile(nn.Sequential(layer, pool).eval(), torch.randn(1, 1, 32, width)).packed()  # type: ignore[operator]
    found = Parsed(blob)
    importing, lookup, *_ = found.steps
    assert lookup[39] == joined
    assert (lookup[15], lookup[29]) == (1, 1 + joined if stride == 1 or joined else 1)
    assert importing[20:22] == (stride, stride * (1 + joined))
    reads = found.ints(lookup[14], 3 * (1 + joined))
    phases = found.ints(importing[30], 2 * importing[29])
    columns = [
        column * stride * (1 + joined) + phases[2 * channel + 1]
        for channel, _, column in zip(*[iter(reads)] * 3, strict=True)
    ]
    assert columns == [-1, stride - 1][: 1 + joined]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("batch", [0, 1, 5])
def test_a_loaded_plan_gives_the_same_bits(plan: Path, isa: str, batch: int) -> None:
    x = torch.randn(batch, 3, 12, 12)
    loaded = load(plan, isa=isa)
    assert (loaded.input_shapes, loaded.output_shapes) == ([(3, 12, 12)], [(5,)])
    assert torch.equal(loaded(x), compile(network(), x[:1] if batch else torch.zeros(1, 3, 12, 12), isa=isa)(x))
    with pytest.raises(ShapeError, match="compiled for"):
        loaded(torch.randn(1, 3, 12, 13))


class Pair(nn.Module):
    """Two inputs, read in the other order; two outputs, returned in the other order."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(2, 4, 1)

    def forward(self, a: Tensor, b: Tensor) -> Any:
        low = self.second(b)
        return torch.relu(self.first(a)), low


def test_ports_are_in_the_order_of_the_signature(tmp_path: Path) -> None:
    model, x = Pair().eval(), (torch.randn(2, 3, 8, 9), torch.randn(2, 2, 5, 5))
    save(compile(model, x), tmp_path / "pair.lcnn")
    loaded = load(tmp_path / "pair.lcnn")
    assert loaded.input_shapes == [(3, 8, 9), (2, 5, 5)]
    for found, expected in zip(loaded(*x), model(*x), strict=True):
        torch.testing.assert_close(found, expected)
    with pytest.raises(ShapeError, match="inputs of 2 and 1 images; expected as many of each"):
        loaded(x[0], x[1][:1])


class Dropped(Pair):
    """What changes nothing on the first input, which is then no later one than the second."""

    def forward(self, a: Tensor, b: Tensor) -> Any:
        return super().forward(nn.functional.dropout(a, training=False), b)


def test_a_first_input_that_passes_through_is_still_the_first(tmp_path: Path) -> None:
    model, x = Dropped().eval(), (torch.randn(2, 3, 8, 9), torch.randn(2, 2, 5, 5))
    save(compile(model, x), tmp_path / "dropped.lcnn")
    for found, expected in zip(load(tmp_path / "dropped.lcnn")(*x), model(*x), strict=True):
        torch.testing.assert_close(found, expected)


class Unused(nn.Module):
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.relu(a)


def test_what_a_file_cannot_hold_is_refused(tmp_path: Path) -> None:
    x = torch.randn(1, 3, 8, 8)
    for model, example, message in [
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.GELU()), x, "in PyTorch run: 1"),
        (Unused(), (x, x), r"the model takes \[a, b\]; a plan needs tensors, each once"),
    ]:
        with pytest.raises(ConfigError, match=message):
            save(compile(model, example), tmp_path / "model.lcnn")
    with pytest.raises(ConfigError, match="Conv2d has no native plan to write: not made by"):
        save(nn.Conv2d(3, 4, 3), tmp_path / "model.lcnn")
    assert not list(tmp_path.iterdir())


def test_damaged_files_are_refused(plan: Path, tmp_path: Path) -> None:
    blob, path = plan.read_bytes(), tmp_path / "damaged.lcnn"
    for size in range(len(blob)):
        with pytest.raises(CheckpointError, match=r"not an LCNN plan|plan of .* bytes; its header says"):
            NativePlan(blob[:size])
    for at in range(0, len(blob), 61):
        path.write_bytes(blob[:at] + bytes([blob[at] ^ 1 << at % 8]) + blob[at + 1 :])
        with pytest.raises(CheckpointError, match=rf"{path}: packed plan refused: .*; export it again"):
            load(path)
    path.write_bytes(blob + b"\0")
    with pytest.raises(CheckpointError, match=f"plan of {len(blob) + 1} bytes; its header says {len(blob)}"):
        load(path)
    with pytest.raises(CheckpointError, match=r"gone\.lcnn cannot be read: No such file"):
        load(tmp_path / "gone.lcnn")


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The C example, built by the line that it documents."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("this machine has no C compiler")
    folder = tmp_path_factory.mktemp("example")
    flags = c_flags().split()
    source = Path(flags[0].removeprefix("-I")) / "example.c"
    strict = ["-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Werror"]
    subprocess.run([compiler, *strict, str(source), *flags, "-o", str(folder / "example")], check=True)
    return folder / "example"


@pytest.mark.parametrize("isa", ["", *ISAS])
def test_the_c_example_gives_pytorch_outputs(
    plan: Path, example: Path, tmp_path: Path, isa: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if isa:
        monkeypatch.setenv("LCNN_ISA", isa)
    x = torch.randn(3, 3, 12, 12)
    (tmp_path / "x.f32").write_bytes(x.numpy().tobytes())
    ran = subprocess.run(
        [example, plan, tmp_path / "x.f32", tmp_path / "y.f32", "2"], check=True, capture_output=True, text=True
    )
    y = np.fromfile(tmp_path / "y.f32", "<f4").reshape(3, 5)
    with torch.no_grad():
        expected = network().double()(x.double()).numpy()
    assert np.abs(y - expected).max() <= 1e-5 * np.abs(expected).max()
    assert ran.stdout.splitlines()[:3] == [isa or ISAS[0], "input 3x12x12", "output 5"]
    assert f"image 2: largest output {expected[2].argmax()}," in ran.stdout


def test_the_c_library_says_what_is_wrong(
    plan: Path, example: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def complaint(path: Path) -> str:
        ran = subprocess.run([example, path, plan, tmp_path / "y.f32"], capture_output=True, text=True, check=False)
        assert ran.returncode == 3
        return ran.stderr

    (tmp_path / "other").write_bytes(b"something else" * 20)
    assert "not an LCNN plan" in complaint(tmp_path / "other")
    assert "is not a regular file" in complaint(tmp_path)
    assert "No such file or directory" in complaint(tmp_path / "gone")
    monkeypatch.setenv("LCNN_ISA", "sse9")
    assert "fits this processor and the environment variable LCNN_ISA" in complaint(plan)


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=400) | st.binary(max_size=400).map(lambda rest: b"LCNNPLAN" + struct.pack("<q", 2) + rest))
def test_any_bytes_are_refused(blob: bytes) -> None:
    with pytest.raises(CheckpointError, match="packed plan refused"):
        NativePlan(blob)
