"""The engine against float64 PyTorch: layers of every shape, batch and thread count, on every instruction set here."""

from __future__ import annotations

import gc
import threading
import time
import tracemalloc
from collections.abc import Callable

import pytest
import torch
from engine_cases import bytes_of_rows, error, halves, layers, native, sparsify
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lcnn_core.engine import Plan, compile, libraries
from lcnn_core.engine.storage import STORAGES
from lcnn_core.errors import ConfigError, ShapeError
from lcnn_core.layers import LookupConv2d, LookupLinear

ISAS = list(libraries())
pytestmark = pytest.mark.skipif(not ISAS, reason="no native library was built")


@settings(max_examples=150, deadline=None)
@given(layers(), st.sampled_from([1, 3, 8, 32]), st.sampled_from([1, 2, 3, 5]), st.sampled_from(ISAS or ["none"]))
def test_any_convolution(case: tuple[nn.Module, tuple[int, int, int]], batch: int, threads: int, isa: str) -> None:
    model, shape = case
    x = torch.randn(batch, *shape)
    compiled = compile(model, x[:1], threads=threads, isa=isa)
    assert not compiled.plan.fallbacks
    assert error(model, compiled, x) <= 1e-5
    for part in (x[:1], x):  # of one image the threads divide the layer, of many the images
        assert torch.equal(compiled(part), compile(model, x[:1], threads=1, isa=isa)(part))


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 70), st.integers(1, 70), st.sampled_from([0, None, 1, 7, 33]), st.sampled_from([1, 3, 8, 32]),
    st.sampled_from([1, 2]), st.sampled_from(ISAS or ["none"]), st.booleans(),
)  # fmt: skip
def test_any_linear(m: int, n: int, rows: int | None, batch: int, threads: int, isa: str, relu: bool) -> None:
    torch.manual_seed(m * 100 + n)
    layer = nn.Linear(m, n) if rows == 0 else LookupLinear(m, n, dictionary_size=rows, threshold=0.0)
    model = sparsify(nn.Sequential(layer, nn.ReLU() if relu else nn.Identity(), nn.Linear(n, 5)), 0.3, 2)
    x = torch.randn(batch, m)
    assert error(model, native(compile(model, x[:1], threads=threads, isa=isa)), x) <= 1e-5


@settings(max_examples=60, deadline=None)
@given(
    st.booleans(), st.integers(1, 4), st.integers(1, 4), st.integers(0, 2), st.booleans(), st.booleans(),
    st.integers(4, 23), st.integers(4, 23), st.sampled_from(ISAS or ["none"]),
)  # fmt: skip
def test_any_pooling(
    average: bool, kernel: int, stride: int, padding: int, ceil: bool, fused: bool, h: int, w: int, isa: str
) -> None:
    padding = min(padding, kernel // 2)
    pool = (
        nn.AvgPool2d(kernel, stride, padding, ceil, count_include_pad=fused)
        if average
        else nn.MaxPool2d(kernel, stride, padding, ceil_mode=ceil)
    )
    torch.manual_seed(h * w)
    conv = (
        LookupConv2d(3, 5, 3, padding=1, dictionary_size=2, threshold=0.0) if fused else nn.Conv2d(3, 5, 3, padding=1)
    )
    model = sparsify(nn.Sequential(conv, nn.ReLU(), pool, nn.Conv2d(5, 4, 1)), 0.5, 3)
    x = torch.randn(2, 3, h, w)
    assert error(model, native(compile(model, x, isa=isa)), x) <= 1e-5


@settings(max_examples=80, deadline=None)
@example((2, 0), False, None, (5, 2, 2), 15, 13, 2, 1, (ISAS or ["none"])[0])  # two threads, rows under a vector
@example((2, 0), False, None, (5, 2, 2), 15, 15, 2, 1, (ISAS or ["none"])[0])  # the same, columns joined
@example((3, 1), False, 2, (3, 1, 1), 14, 95, 1, 1, (ISAS or ["none"])[0])  # as many vectors as registers take
@example((3, 1), False, 2, (3, 1, 1), 15, 94, 1, 1, (ISAS or ["none"])[0])  # joined: an odd number of rows
@example((3, 1), False, 2, (3, 1, 1), 9, 130, 1, 3, (ISAS or ["none"])[0])  # two groups, from left to right
@example((3, 0), False, 2, (3, 1, 1), 9, 131, 2, 3, (ISAS or ["none"])[0])  # and from right to left
@given(
    st.sampled_from([(2, 0), (2, 1), (3, 0), (3, 1)]), st.booleans(), st.sampled_from([None, 2, 5]),
    st.sampled_from([(3, 1, 1), (5, 2, 2), (7, 2, 3), (11, 4, 2)]), st.integers(13, 70), st.integers(13, 110),
    st.sampled_from([1, 2]), st.sampled_from([1, 3]), st.sampled_from(ISAS or ["none"]),
)  # fmt: skip
def test_any_stem_with_its_pooling_fused(
    window: tuple[int, int], ceil: bool, rows: int | None, conv: tuple[int, int, int], h: int, w: int, threads: int,
    batch: int, isa: str,
) -> None:  # fmt: skip
    """Rows joined two by two, windows over the edges, rows shared between threads; no ReLU, so that signs matter."""
    torch.manual_seed(h * w)
    kernel, stride, padding = conv
    assume((min(h, w) + 2 * padding - kernel) // stride + 1 >= window[0])
    layer = LookupConv2d(3, 9, kernel, stride, padding, dictionary_size=rows, threshold=0.0)
    model = sparsify(nn.Sequential(layer, nn.MaxPool2d(window[0], 2, window[1], ceil_mode=ceil)), 0.2, 5)
    x = torch.randn(batch, 3, h, w)
    assert error(model, native(compile(model, x, threads=threads, isa=isa)), x) <= 1e-5


@settings(max_examples=60, deadline=None)
@example(8, 3, 3, (3, 300), 1, 1, (ISAS or ["none"])[0])  # a last part of less than a vector
@example(2, 3, 2, (9, 130), 2, 1, (ISAS or ["none"])[0])  # two threads, rows that end within a vector
@example(4, 2, 2, (10, 64), 1, 3, (ISAS or ["none"])[0])
@example(1, 3, 3, (40, 2), 3, 1, (ISAS or ["none"])[0])  # vectors that reach over several rows, of other threads too
@example(8, 3, 3, (40, 24), 2, 1, (ISAS or ["none"])[0])
@given(
    st.sampled_from([1, 2, 4, 8]), st.sampled_from([1, 2, 3, 5, 16]), st.sampled_from([1, 3, 6]),
    st.tuples(st.integers(3, 40), st.integers(1, 9) | st.integers(3, 300)), st.sampled_from([1, 2, 3]),
    st.sampled_from([1, 3]), st.sampled_from(ISAS or ["none"]),
)  # fmt: skip
def test_an_image_is_split_as_its_response_is_made(
    stride: int, width: int, rows: int, size: tuple[int, int], threads: int, batch: int, isa: str
) -> None:
    torch.manual_seed(stride * size[1])
    kernel, padding = ((3, stride), (1, 0)) if size[1] % stride == 0 else (3, 1)  # patches side by side, or not
    layer = LookupConv2d(width, 80, kernel, (2, stride), padding, dictionary_size=rows, threshold=0.0)
    model = sparsify(nn.Sequential(layer, nn.ReLU()), 0.05, 5)
    x = torch.randn(batch, width, *size)
    compiled = native(compile(model, x, threads=threads, isa=isa))
    if rows >= width and layer.coefficients.any():  # else D is a convolution of its own, before the image is divided
        assert compiled.plan.steps[0].kind == "lookup"
    assert error(model, compiled, x) <= 1e-5


class Residuals(nn.Module):
    """Lookups that each add what came before the last one; ``kept``: the first of these is read again at the end."""

    def __init__(self, width: int, kept: bool):
        super().__init__()
        self.layers = nn.ModuleList(
            LookupConv2d(width, width, 3, padding=1, dictionary_size=rows, threshold=0.0)
            for rows in (width - 8, width - 8, width - 8, width - 8, None)
        )
        self.kept = kept

    def forward(self, x: Tensor) -> Tensor:
        first = before = torch.relu(self.layers[0](x))
        now = torch.relu(self.layers[1](before))
        for layer in list(self.layers)[2:]:
            before, now = now, torch.relu(layer(now) + before)
        return now + first if self.kept else now


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize(("width", "size"), [(24, (9, 7)), (128, (35, 50)), (64, (5, 70))])
def test_outputs_are_written_over_residuals(
    isa: str, threads: int, kept: bool, width: int, size: tuple[int, int]
) -> None:
    """Also where partial sums are: blocks of the 120 rows; and where vectors reach past the rows of a tile."""
    torch.manual_seed(0)
    model = sparsify(Residuals(width, kept), 0.05, 7)
    x = torch.randn(3, width, *size)
    compiled = native(compile(model, x[:1], threads=threads, isa=isa))
    assert [step.kind for step in compiled.plan.steps].count("lookup") == 5
    assert error(model, compiled, x) <= 1e-5
    assert error(model, compiled, x[:1]) <= 1e-5
    alive = 2 + kept  # the source and the residual, where the output goes
    assert compiled.plan.liveness_bytes == 4 * (alive * width + width - 8) * size[0] * size[1]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(
    ("layers", "shape"),
    [
        ([nn.Conv2d(2, 3, 1), nn.MaxPool2d(2)], (2, 40, 40)),
        ([nn.Conv2d(2, 3, 1), nn.MaxPool2d(3, 1, 1)], (2, 19, 37)),
        ([nn.Conv2d(2, 3, 1), nn.MaxPool2d((3, 2), (2, 3))], (2, 20, 39)),
        ([nn.Conv2d(2, 3, 1), nn.MaxPool2d(5, 2, 2), nn.ReLU()], (2, 33, 40)),
        ([nn.Conv2d(2, 3, 1), nn.AdaptiveMaxPool2d(3)], (2, 30, 60)),
        ([nn.Conv2d(2, 3, 1), nn.AdaptiveMaxPool2d(1)], (2, 11, 41)),
        ([LookupConv2d(2, 3, 3, 2, 1, dictionary_size=None, threshold=0.0), nn.MaxPool2d(3, 2, 1)], (2, 47, 80)),
        ([LookupConv2d(2, 3, 3, 2, 1, dictionary_size=None, threshold=0.0), nn.MaxPool2d(2, 2)], (2, 48, 80)),
        ([LookupConv2d(2, 3, 3, 2, 1, dictionary_size=None, threshold=0.0), nn.MaxPool2d(3, 2, 1)], (2, 47, 82)),
        ([LookupConv2d(2, 3, 3, 2, 1, dictionary_size=None, threshold=0.0), nn.MaxPool2d(3, 2)], (2, 47, 81)),
    ],
)
def test_pooling_keeps_nan_where_pytorch_does(layers: list[nn.Module], shape: tuple[int, ...], isa: str) -> None:
    model = nn.Sequential(*layers).eval()
    x = torch.randn(4, *shape, generator=torch.Generator().manual_seed(0))
    for image, (row, column) in zip(x, [(0, 0), (7, 8), (10, 20), (shape[1] - 1, shape[2] - 1)], strict=True):
        image[0, row, column] = torch.nan
    expected, found = model(x), native(compile(model, x, isa=isa))(x)
    assert 0 < int(expected.isnan().sum()) < expected.numel() or expected[0, 0].numel() == 1
    assert torch.equal(found.isnan(), expected.isnan())
    torch.testing.assert_close(found, expected.detach(), equal_nan=True)


class Branches(nn.Module):
    """Residual additions, concatenation, a gate, in-place ReLU, strides that share phases, an uncovered operation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = LookupConv2d(3, 16, 7, 2, 3, dictionary_size=3, threshold=0.0)
        self.norm = nn.BatchNorm2d(16)
        self.a = LookupConv2d(16, 16, 3, 1, 1, dictionary_size=6, threshold=0.0)
        self.b = nn.Conv2d(16, 16, 3, 1, 1)
        self.down = nn.Conv2d(16, 24, 1, 2)
        self.c = LookupConv2d(16, 24, 3, 2, 1, dictionary_size=5, threshold=0.0)
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(24, 4, 1), nn.SiLU(), nn.Conv2d(4, 24, 1), nn.Sigmoid()
        )
        self.relu = nn.ReLU(inplace=True)
        self.gelu = nn.GELU()
        self.fc = LookupLinear(48 * 4, 10, dictionary_size=6, threshold=0.0)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.max_pool2d(self.relu(self.norm(self.stem(x))), 3, 2, 1)
        y = self.relu(self.b(self.relu(self.a(x))) + x)
        z = self.down(y)
        z += self.c(y)
        z = self.relu(z)
        z = torch.cat([z * self.gate(z), self.gelu(z)], 1)
        return self.fc(nn.functional.adaptive_avg_pool2d(z, 2).flatten(1))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("batch", [1, 3, 8, 32])
def test_branches(isa: str, threads: int, batch: int) -> None:
    torch.manual_seed(0)
    model = sparsify(Branches(), 0.2, 4)
    compiled = compile(model, torch.randn(2, 3, 44, 36), threads=threads, isa=isa)
    assert [step.name for step in compiled.plan.fallbacks] == ["gelu"]
    assert error(model, compiled, torch.randn(batch, 3, 44, 36)) <= 1e-5


class Biased(nn.Module):
    """Adds a map that its weights alone make, as attention's position biases are: one for all windows of all images."""

    def __init__(self) -> None:
        super().__init__()
        self.coordinates = nn.Parameter(torch.randn(1, 2, 6, 6))
        self.bias = nn.Conv2d(2, 4, 1)
        self.conv = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        windows = self.conv(x).repeat(2, 1, 1, 1)
        return windows + torch.sigmoid(self.bias(self.coordinates))


@pytest.mark.parametrize("batch", [1, 3])
def test_what_follows_from_weights_alone_is_no_image(batch: int) -> None:
    model = Biased().eval()
    compiled = compile(model, torch.randn(1, 3, 6, 6))
    assert any(step.native for step in compiled.plan.steps)
    assert error(model, compiled, torch.randn(batch, 3, 6, 6)) <= 1e-5


def test_the_model_is_left_alone_and_its_later_changes_ignored() -> None:
    model = sparsify(Branches(), 0.2, 4).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    compiled = compile(model, torch.randn(1, 3, 32, 32))
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    x = torch.randn(1, 3, 32, 32)
    expected = compiled(x)
    with torch.no_grad():
        model.fc.coefficients.zero_()
    assert torch.equal(compiled(x), expected)


def test_a_dead_dictionary_row_is_not_computed() -> None:
    layer = LookupConv2d(8, 6, 3, padding=1, dictionary_size=4, threshold=0.0)
    full = compile(layer, torch.randn(1, 8, 16, 16)).plan.macs
    with torch.no_grad():
        layer.coefficients[:, 2] = 0
    assert compile(layer, torch.randn(1, 8, 16, 16)).plan.macs < full
    x = torch.randn(1, 8, 16, 16)
    assert error(layer.eval(), compile(layer, x), x) <= 1e-5


@pytest.mark.parametrize("seconds", [2, pytest.param(60, marks=pytest.mark.slow)])
def test_eight_threads_give_identical_outputs(seconds: int) -> None:
    torch.manual_seed(0)
    compiled = compile(sparsify(Branches(), 0.2, 4), torch.randn(1, 3, 32, 32), threads=2)
    batches = [torch.randn(n, 3, 32, 32) for n in (1, 3, 8)]
    expected, wrong, calls = [compiled(x) for x in batches], [], []
    end = time.monotonic() + seconds

    def call() -> None:
        while time.monotonic() < end:
            for x, y in zip(batches, expected, strict=True):
                calls.append(1)
                if not torch.equal(compiled(x), y):
                    wrong.append(len(x))

    callers = [threading.Thread(target=call) for _ in range(8)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert len(calls) >= 24 * seconds
    assert not wrong


@pytest.mark.slow
def test_a_batch_larger_than_one_chunk() -> None:
    """Batch-wide steps take 2^26 floats at a time (run.cpp): here 16,768 images, then 232."""
    model = nn.Sequential(nn.Linear(4000, 2)).eval()
    x = torch.randn(17_000, 4000)
    assert error(model, native(compile(model, x[:1], threads=2)), x) <= 1e-5


@pytest.mark.parametrize(
    ("pool", "width", "columns"),
    [
        (nn.MaxPool2d(2), 32, 32),
        (nn.MaxPool2d(2), 31, 30),  # joined: the last column is in no window
        (nn.MaxPool2d(3, 2), 31, 32),  # the last window's third column is the first of a pair
        (nn.MaxPool2d(3, 2, 1), 31, 31),  # row by row
        (nn.MaxPool2d(3, 3), 31, 32),  # several rows at once: a column of padding each
    ],
)
def test_executed_multiplications_of_a_pooled_lookup_by_hand(pool: nn.Module, width: int, columns: int) -> None:
    model = nn.Sequential(LookupConv2d(3, 4, 3, padding=1, dictionary_size=None, threshold=0.0), pool)
    plan = compile(model.eval(), torch.randn(1, 3, 32, width)).plan
    assert sum(step.macs for step in plan.steps) == 4 * 27 * 32 * columns


def test_the_liveness_bound_by_hand() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), LookupConv2d(8, 4, 1, dictionary_size=2))
    plan = compile(model.eval(), torch.randn(1, 3, 40, 40)).plan
    assert plan.liveness_bytes == 4 * (8 + 2 + 4) * 40 * 40  # the second layer's input, its S, its output
    assert "liveness bound 0.090 MB" in str(plan)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("storage", "rounded", "most"), [
    ("bfloat16", halves, 1e-2), ("int8", bytes_of_rows, 3e-2)
])  # fmt: skip
def test_stored_weights(isa: str, storage: str, rounded: Callable[[Tensor], Tensor], most: float) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(515, 131), nn.ReLU(), LookupLinear(131, 517, dictionary_size=90, threshold=0.0), nn.ReLU(),
        LookupLinear(517, 1200, dictionary_size=129, threshold=0.0), nn.Linear(1200, 57),
    ).eval()  # fmt: skip
    sparsify(model, 0.05, 1)
    compiled = compile(model, torch.randn(4, 515), isa=isa, storage=storage)
    plan: Plan = compiled.plan  # type: ignore[assignment]
    small = "float32"  # 131 x 90
    assert [s.storage for s in plan.steps if s.macs] == [storage, small, storage, storage]
    batches = [torch.randn(n, 515) for n in (1, 3, 8, 33)]
    for x in batches:  # against float64: as far as the plan says
        found = error(model, compiled, x)
        assert 1e-5 < found <= most
        assert found <= 3 * plan.storage_error  # type: ignore[operator]
    with torch.no_grad():
        for layer, name in ((0, "weight"), (4, "dictionary"), (5, "weight")):
            weights = getattr(model[layer], name)
            weights.copy_(rounded(weights.flatten(1)).reshape(weights.shape))
    for x in batches:  # against float64 with weights rounded in the same way: float32 arithmetic
        assert error(model, compiled, x) <= 1e-5
    assert f"stored weights change the example's outputs by {plan.storage_error:.1e} of the largest" in str(plan)


class OwnWeight(nn.Module):
    """Uses a layer, and its weight by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1500, 1500)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) * self.layer.weight.sum(1).cos()


def test_weights_are_held_packed_and_native_only() -> None:
    model, x = nn.Sequential(nn.Linear(1500, 1500)), torch.randn(2, 1500)
    tracemalloc.start()
    compiled = compile(model, x)
    gc.collect()
    held, _ = tracemalloc.get_traced_memory()  # numpy's and Python's: the packed plan, no working copies in float64
    tracemalloc.stop()
    assert 4 * 1500 * 1500 <= held <= 4.4 * 1500 * 1500
    assert not list(compiled._module[0].parameters())  # type: ignore[union-attr]
    assert error(model.eval(), compiled, x) <= 1e-5
    own = OwnWeight().eval()
    assert error(own, compile(own, x), x) <= 1e-5


def test_storage_is_checked_and_saves_bytes() -> None:
    model, x = nn.Sequential(nn.Linear(600, 400)), torch.randn(1, 600)
    sizes = {s: compile(model, x, storage=s)._only_segment().native.memory()["weights"] for s in STORAGES}
    assert sizes == {"float32": 600 * 400 * 4, "bfloat16": 600 * 400 * 2, "int8": 600 * 400 + 4 * 400}
    assert compile(model, x).plan.storage_error is None
    with pytest.raises(ConfigError, match="storage is 'int4'; expected one of float32, bfloat16, int8"):
        compile(model, x, storage="int4")


def test_wrong_inputs_are_refused() -> None:
    compiled = compile(nn.Conv2d(3, 4, 3), torch.randn(1, 3, 8, 8))
    with pytest.raises(ShapeError, match=r"inputs of shape \[\(3, 9, 8\)\] per image; compiled for \[\(3, 8, 8\)\]"):
        compiled(torch.randn(1, 3, 9, 8))
    with pytest.raises(ConfigError, match="float32 tensors on the CPU"):
        compiled(torch.randn(1, 3, 8, 8).double())
    with pytest.raises(ConfigError, match="instruction set 'sse9' is not available"):
        compile(nn.Conv2d(3, 4, 3), torch.randn(1, 3, 8, 8), isa="sse9")
