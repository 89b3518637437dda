"""Every contender of the registry computes the network it is given, whatever else it does."""

from __future__ import annotations

import gc
import os
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import nn

from lcnn_analyze.bench.contenders import CONTENDERS, StepTime, UnavailableError, Work
from lcnn_analyze.bench.contenders import base as base_module
from lcnn_analyze.bench.contenders.engine import by_layer
from lcnn_analyze.bench.contenders.stock import SparseConv2d, SparseLinear, sparse_layer
from lcnn_analyze.bench.native import engine_room
from lcnn_analyze.bench.trial import error_of, float64_outputs
from lcnn_core import LookupConv2d, LookupLinear, plain_layers

STATM = Path("/proc/self/statm")
HAS_ENGINE = engine_room() is not None


def tiny() -> nn.Module:
    """A dictionary, no dictionary, batch norm to fold, a pool and a lookup head."""
    torch.manual_seed(0)
    model = nn.Sequential(
        LookupConv2d(3, 8, 3, padding=1, dictionary_size=None, threshold=0.1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        LookupConv2d(8, 8, 3, stride=2, padding=1, dictionary_size=2, threshold=0.1, bias=False),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        LookupLinear(8, 5, dictionary_size=3, threshold=0.1),
    )
    nn.init.uniform_(model[1].running_var, 0.5, 2)
    return model.eval()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory):
    return {role: tmp_path_factory.mktemp(role) for role in ("engine", "dense", "stock")}


@pytest.mark.parametrize("name", CONTENDERS)
def test_every_contender_computes_the_network(name, folders, monkeypatch):
    monkeypatch.setattr("lcnn_core.engine.storage.LEAST", 1)  # else layers as small as these stay float32
    if name == "engine" and not HAS_ENGINE:
        pytest.skip("the engine is not merged yet")
    contender = CONTENDERS[name]
    model = tiny()
    x = torch.randn(3, 3, 10, 10)
    expected, _ = float64_outputs(model, x)
    run = plain_layers(model, "dense").eval() if contender.role == "dense" else model
    ready = contender.prepare(Work(run, x, 1, folders[contender.role]))
    error = error_of(ready.output(), expected)
    assert error is not None
    assert error < {"float32": 1e-5, "bfloat16": 1e-2, "int8": 0.2}[contender.precision]
    ready.run()
    assert name == contender.name
    assert find_spec(contender.package) or contender.package == "lcnn"


@pytest.mark.parametrize("name", ["pytorch", "torch.compile"])
def test_released_contenders_keep_no_weights(name, tmp_path):
    if not STATM.exists():
        pytest.skip("the memory in use is read from /proc")
    contender = CONTENDERS[name]
    model = nn.Linear(4096, 2048).eval()  # 34 MB
    x = torch.randn(1, 4096)
    after = []
    for _ in range(3):
        contender.prepare(Work(model, x, 1, tmp_path)).run()
        contender.release()
        gc.collect()
        after.append(resident_bytes())
    assert after[2] - after[0] < 30e6


def resident_bytes() -> float:
    """Bytes of this process in memory."""
    return int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_int8_is_another_precision(folders):
    """The quantized file rounds: were it float32 under another name, its error would be as small."""
    model = tiny()
    x = torch.randn(3, 3, 10, 10)
    work = Work(plain_layers(model, "dense").eval(), x, 1, folders["dense"])
    expected, _ = float64_outputs(model, x)
    for name in ("onnxruntime-int8", "openvino-int8"):
        error = error_of(CONTENDERS[name].prepare(work).output(), expected)
        assert error is not None
        assert error > 1e-4, name


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(
    "options",
    [
        {"stride": 2, "padding": 1},
        {"padding": "same", "dilation": 2},
        {"kernel_size": (1, 3), "padding": (0, 2), "bias": False},
        {"dictionary_size": None, "stride": (2, 1)},
    ],
)
def test_im2col_is_the_convolution(options, batch):
    arguments = {"kernel_size": 3, "dictionary_size": 2, **options}
    layer = LookupConv2d(4, 6, threshold=0.2, **arguments)
    x = torch.randn(batch, 4, 9, 7)
    expected = layer.double()(x.double()).detach()
    error = error_of(SparseConv2d(layer.float())(x).detach(), expected)
    assert error is not None
    assert error < 1e-6


def test_sparse_linear_takes_any_leading_shape():
    layer = LookupLinear(4, 6, dictionary_size=None, threshold=0.2)
    x = torch.randn(2, 3, 4)
    torch.testing.assert_close(SparseLinear(layer)(x), layer(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "layer",
    [
        LookupConv2d(4, 4, 3, groups=2, dictionary_size=2),
        LookupConv2d(4, 4, 3, padding=1, padding_mode="reflect", dictionary_size=2),
    ],
)
def test_im2col_says_what_it_does_not_cover(layer):
    with pytest.raises(UnavailableError, match="written for groups=1 and padding_mode='zeros'"):
        sparse_layer(layer)


@pytest.mark.parametrize(
    ("name", "missing"),
    [("onnxruntime", {"onnxruntime"}), ("openvino", {"openvino"}), ("onnxruntime", {"onnx", "onnxscript"})],
)
def test_a_missing_package_is_named_with_how_to_get_it(monkeypatch, tmp_path, name, missing):
    monkeypatch.setattr(base_module, "find_spec", lambda package: None if package in missing else find_spec(package))
    work = Work(nn.Conv2d(3, 4, 1).eval(), torch.randn(1, 3, 4, 4), 1, tmp_path)
    verb = "is" if len(missing) == 1 else "are"
    with pytest.raises(UnavailableError, match=rf"{verb} not installed \(pip install 'lcnn\[bench\]'\)") as raised:
        CONTENDERS[name].prepare(work)
    assert all(package in str(raised.value) for package in missing)


def test_without_a_compiler_torch_compile_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr("lcnn_analyze.bench.contenders.inductor.which", lambda program: None)
    work = Work(nn.Conv2d(3, 4, 1).eval(), torch.randn(1, 3, 4, 4), 1, tmp_path)
    with pytest.raises(UnavailableError, match="needs a C\\+\\+ compiler"):
        CONTENDERS["torch.compile"].prepare(work)


def test_steps_of_one_layer_are_one():
    steps = [
        StepTime("input", "import", 1.0, 0),
        StepTime("conv1", "gemm", 2.0, 10),
        StepTime("layout", "relayout", 3.0, 0),
        StepTime("conv1", "lookup", 4.0, 20),
        StepTime("layout", "relayout", 5.0, 0),
        StepTime("fc", "linear", 6.0, 30),
    ]
    merged = by_layer(steps)
    assert StepTime("conv1", "gemm + lookup", 6.0, 30) in merged
    assert [step.seconds for step in merged] == [1.0, 6.0, 3.0, 5.0, 6.0]


@pytest.mark.skipif(not HAS_ENGINE, reason="no native library was built")
@pytest.mark.parametrize(
    ("batch", "unread"), [(1, "; 30% of fully connected weights unread, their input is zero"), (2, "")]
)
def test_the_engine_says_what_zeros_save_it(batch: int, unread: str, tmp_path: Path) -> None:
    """Half of what the first layer reads and a tenth of what the second does are zeros; both have 400 weights."""
    model = nn.Sequential(nn.Linear(20, 20), nn.ReLU(), nn.Linear(20, 20)).eval()
    with torch.no_grad():
        model[0].bias.copy_(torch.tensor([-1e6] * 2 + [1e6] * 18))
    x = torch.tensor([[0.0] * 10 + [1.0] * 10] * batch)
    ready = CONTENDERS["engine"].prepare(Work(model, x, 1, tmp_path))
    assert ready.detail.endswith(unread)
    assert ("unread" in ready.detail) == bool(unread)


def test_an_installation_without_engine_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr("lcnn_analyze.bench.contenders.engine.engine_room", lambda: None)
    work = Work(nn.Conv2d(3, 4, 1).eval(), torch.randn(1, 3, 4, 4), 1, tmp_path)
    with pytest.raises(UnavailableError, match="this installation has no engine"):
        CONTENDERS["engine"].prepare(work)
