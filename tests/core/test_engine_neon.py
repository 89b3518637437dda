"""The 64-bit ARM library, cross-compiled, runs the shape grid under qemu through plan files and the C example.

One command: ``apt-get install g++-aarch64-linux-gnu qemu-user && pytest -m slow tests/core/test_engine_neon.py``.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from engine_cases import error, layers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lcnn_core.engine import compile, libraries, save
from lcnn_core.engine.storage import STORAGES
from lcnn_core.models import build, input_shape_of

ROOT = Path(__file__).parent.parent.parent
NATIVE = ROOT / "lcnn_core" / "engine" / "native"
TOOLS = ("cmake", "aarch64-linux-gnu-g++", "qemu-aarch64")
MISSING = [tool for tool in TOOLS if shutil.which(tool) is None]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}"),
    pytest.mark.skipif(not libraries(), reason="no native library was built"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds the ARM libraries and the example built with them."""
    made = tmp_path_factory.mktemp("neon")
    toolchain = f"-DCMAKE_TOOLCHAIN_FILE={NATIVE / 'aarch64.cmake'}"
    subprocess.run(["cmake", "-S", ROOT, "-B", made, toolchain], check=True)
    subprocess.run(["cmake", "--build", made], check=True)
    flags = [f"-I{NATIVE}", f"-L{made}", f"-Wl,-rpath,{made}", "-llcnn"]
    subprocess.run(["aarch64-linux-gnu-gcc", NATIVE / "example.c", *flags, "-o", made / "example"], check=True)
    return made


def outputs_under_qemu(folder: Path, compiled: nn.Module, x: Tensor, threads: int) -> Tensor:
    save(compiled, folder / "model.lcnn")
    (folder / "x.f32").write_bytes(x.numpy().tobytes())
    command = ["qemu-aarch64", "-L", "/usr/aarch64-linux-gnu", folder / "example"]
    files = [folder / name for name in ("model.lcnn", "x.f32", "y.f32")]
    ran = subprocess.run([*command, *files, str(threads)], check=True, capture_output=True, text=True)
    assert ran.stdout.startswith("neon\n")
    return torch.from_numpy(np.fromfile(folder / "y.f32", "<f4")).reshape(compiled(x).shape)


def error_under_qemu(folder: Path, model: nn.Module, x: Tensor, threads: int) -> float:
    found = outputs_under_qemu(folder, compile(model, x[:1]), x, threads)
    return error(model, lambda _: found, x)


@settings(max_examples=150, deadline=None)
@given(layers(), st.sampled_from([1, 3, 8, 32]), st.sampled_from([1, 2]))
def test_any_convolution(folder: Path, case: tuple[nn.Module, tuple[int, int, int]], batch: int, threads: int) -> None:
    model, shape = case
    assert error_under_qemu(folder, model, torch.randn(batch, *shape), threads) <= 1e-5


@pytest.mark.parametrize("name", ["digits-resnet-lcnn", "small-alexnet-lcnn"])
def test_whole_networks(folder: Path, name: str) -> None:
    x = torch.randn(3, *input_shape_of(name))
    assert error_under_qemu(folder, build(name).eval(), x, 2) <= 1e-5


@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("storage", STORAGES)
def test_stored_weights_as_on_this_machine(folder: Path, storage: str, batch: int) -> None:
    compiled = compile(nn.Sequential(nn.Linear(517, 259), nn.ReLU()).eval(), torch.randn(1, 517), storage=storage)
    x = torch.randn(batch, 517)
    expected = compiled(x)
    assert (outputs_under_qemu(folder, compiled, x, 2) - expected).abs().max() <= 1e-5 * expected.abs().max()
