"""``lcnn bench`` and ``lcnn export``: exit codes, streams, files, one-line errors."""

from __future__ import annotations

import json

import numpy as np
import onnxruntime
import pytest
import torch

import lcnn_analyze.cli.bench
import lcnn_analyze.cli.export
import lcnn_core
from lcnn_analyze.bench import bench as bench_module
from lcnn_analyze.bench import kernels as kernels_module
from lcnn_analyze.bench.contenders import CONTENDERS, Contender, Ready, StepTime
from lcnn_analyze.bench.kernels import KernelShare, kernel_shares
from lcnn_analyze.bench.report import BenchReport, Peaks, Reading
from lcnn_analyze.bench.suites import SUITES, Configuration
from lcnn_analyze.cli.app import single_command
from lcnn_analyze.cli.errors import run
from lcnn_core import Checkpoint, build, save

PEAKS = Peaks("avx2", 50.0, 25.0, (Reading(1 << 20, 20.0), Reading(96 << 20, 10.0)))
MODEL = "digits-resnet-lcnn"


def stand_in(name: str, role: str, off: float = 0.0) -> Contender:
    def prepare(work):
        def output():
            with torch.no_grad():
                return work.model(work.x) * (1 + off)

        return Ready(output, output, steps=lambda: (StepTime("conv1", "lookup", 0.002, 4_000_000),))

    return Contender(name, name.title(), role, "torch", prepare)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def registry(monkeypatch):
    """An engine and a dense runtime that are PyTorch, and no native library to measure."""
    for name in list(CONTENDERS):
        monkeypatch.delitem(CONTENDERS, name)
    monkeypatch.setitem(CONTENDERS, "engine", stand_in("engine", "engine"))
    monkeypatch.setitem(CONTENDERS, "dense", stand_in("dense", "dense"))
    monkeypatch.setattr(bench_module, "measure_peaks", lambda seconds, sizes, cores: PEAKS)


def bench(*arguments: str) -> int:
    return run("lcnn", single_command("bench", lcnn_analyze.cli.bench.bench), [*arguments, "--rounds", "2"])


def export(*arguments: str) -> int:
    return run("lcnn", single_command("export", lcnn_analyze.cli.export.export), list(arguments))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory):
    path = tmp_path_factory.mktemp("model") / "small.pt"
    metrics = [{"name": "top1", "value": 0.974, "dataset": "digits"}]
    save(path, Checkpoint.from_model(build(MODEL), architecture=MODEL, metrics=metrics))
    return path


def test_a_checkpoint_is_timed_and_told_as_a_table(checkpoint, capsys):
    assert bench(str(checkpoint), "--batch", "1,2") == 0
    captured = capsys.readouterr()
    for expected in ("small, batch 1, 1 thread", "small, batch 2, 1 thread", "97.4 % top-1 on digits", "counted"):
        assert expected in captured.out
    assert captured.err == ""


def test_json_on_stdout_is_a_report_and_nothing_else(checkpoint, capsys):
    assert bench(str(checkpoint), "--format", "json") == 0
    captured = capsys.readouterr()
    report = BenchReport.from_json(captured.out)
    assert report.command.startswith("lcnn ")
    assert [case.name for case in report.cases] == ["small"]
    assert "small, batch 1, 1 thread: " in captured.err


def test_files_are_written_by_suffix(checkpoint, tmp_path, capsys):
    assert bench(str(checkpoint), "-o", str(tmp_path / "b.md"), "--plot", str(tmp_path / "b.svg"), "-q") == 0
    assert capsys.readouterr() == ("", "")
    assert (tmp_path / "b.md").read_text().startswith("### small, batch 1, 1 thread")
    assert (tmp_path / "b.svg").read_bytes().startswith(b"<?xml")


def test_outputs_that_disagree_end_in_exit_code_5(monkeypatch, capsys):
    monkeypatch.setitem(CONTENDERS, "engine", stand_in("engine", "engine", off=1e-3))
    assert bench(MODEL, "--format", "json") == 5
    captured = capsys.readouterr()
    assert json.loads(captured.out)["cases"][0]["speedups"] == []
    last = captured.err.strip().splitlines()[-1]
    assert last.startswith(
        "bench: digits-resnet-lcnn, batch 1, 1 thread: outputs are off by 1.0e-03; allowed is 1.0e-05"
    )


def test_a_suite_runs_its_configurations_at_batch_1_and_8(monkeypatch, capsys):
    tiny = Configuration("tiny", MODEL, lambda name: 0.1)
    monkeypatch.setitem(SUITES, "tiny", (tiny,))
    assert bench("--suite", "tiny", "--format", "json", "-q") == 0
    cases = BenchReport.from_json(capsys.readouterr().out).cases
    assert [(case.name, case.batch) for case in cases] == [("tiny", 1), ("tiny", 8)]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "nothing to time; give a checkpoint, --suite published, or --kernels"),
        (["--suite", "nope"], 2, "--suite is 'nope'; expected published, robust"),
        ([MODEL, "--batch", "1,x"], 2, "--batch is '1,x'; expected whole numbers such as 1,8"),
        ([MODEL, "--threads", "0"], 2, "--threads is '0'; expected whole numbers"),
        ([MODEL, "--input-shape", "3,8,8"], 2, "--input-shape is '3,8,8'; expected sizes such as 3x224x224"),
        ([MODEL, "--input-shape", "3x8x8"], 2, "does not run through the model"),
        ([MODEL, "--format", "html"], 2, "--format is 'html'; expected one of table, json, md"),
        ([MODEL, "-o", "x.pdf"], 2, "output file 'x.pdf'; expected .json, .md, .txt, or give --format"),
        ([MODEL, "--plot", "x.pdf"], 2, "--plot is 'x.pdf'; expected a file that ends in .png or .svg"),
        ([MODEL, "--only", "nope"], 2, "unknown contender 'nope'"),
        ([MODEL, "--reference", "alexnot"], 2, "unknown architecture 'alexnot'"),
        (["gone.pt"], 3, "gone.pt does not exist"),
        ([MODEL, "-f", "md", "-o", "."], 2, "output '.' is a folder; expected a file to write"),
        ([MODEL, "-o", "none/b.md"], 5, "cannot write 'none/b.md'"),
    ],
)
def test_errors_are_one_line_and_an_exit_code(arguments, code, message, capsys):
    assert bench(*arguments) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert message in captured.err


def test_kernels_are_shares_of_the_peak(monkeypatch, capsys):
    tiny = Configuration("tiny", MODEL, lambda name: 0.1)
    with tiny.open() as trial:
        (share,) = kernel_shares(trial, PEAKS)
        stem = next(layer for layer in trial.lcnn.spec.layers if layer.name == "conv1")
    lookups = 64 * round(0.1 * 16 * 9)
    assert stem.lookup is not None
    assert share == KernelShare("tiny", "lookup", 1, 0.002, 4_000_000, pytest.approx(lookups / 25e9))
    monkeypatch.setattr(kernels_module, "PUBLISHED", (tiny,))
    monkeypatch.setattr(kernels_module, "measure_peaks", lambda: None)
    assert bench("--kernels") == 2
    assert "there is no native library to measure; reinstall lcnn where" in capsys.readouterr().err


def test_an_exported_model_runs_in_onnx_runtime(checkpoint, tmp_path, capsys):
    path = tmp_path / "model.onnx"
    assert export(str(checkpoint), str(path)) == 0
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "9 lookup layers: 8 as two dense nodes" in captured.err
    assert "checked in ONNX Runtime: outputs within" in captured.err
    from lcnn_core import load

    model, x = load(checkpoint).build(), torch.randn(4, 1, 8, 8)
    with torch.no_grad():
        expected = model(x).numpy()
    found = onnxruntime.InferenceSession(path).run(None, {"input": x.numpy()})[0]
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize(("name", "where"), [("m.onnx", "in ONNX Runtime"), ("m.lcnn", "when loaded again")])
def test_an_export_that_computes_something_else_leaves_the_file_as_it_was(name, where, monkeypatch, tmp_path, capsys):
    real = lcnn_analyze.cli.export.TOLERANCE
    monkeypatch.setattr(lcnn_analyze.cli.export, "TOLERANCE", 0.0)
    assert real > 0
    (tmp_path / name).write_text("older")
    assert export(MODEL, str(tmp_path / name), "-q") == 5
    assert f"{name} was not written: outputs {where} are off by" in capsys.readouterr().err
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(name, "older")]


def test_an_exported_plan_gives_pytorch_outputs(checkpoint, tmp_path, capsys):
    path = tmp_path / "model.lcnn"
    assert export(str(checkpoint), str(path)) == 0
    captured = capsys.readouterr()
    assert captured.out == ""
    assert f"wrote {path}, " in captured.err
    assert "checked when loaded again: outputs within" in captured.err
    from lcnn_core import load
    from lcnn_core.engine import load as load_plan

    model, x = load(checkpoint).build(), torch.randn(4, 1, 8, 8)
    with torch.no_grad():
        expected = model.double()(x.double())
    assert (load_plan(path)(x) - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_stored_weights_are_exported_to_plans_only(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("lcnn_core.engine.storage.LEAST", 1)
    assert export(MODEL, str(tmp_path / "float.lcnn"), "-q") == 0
    assert export(MODEL, str(tmp_path / "bytes.lcnn"), "-q", "--storage", "int8") == 0
    assert (tmp_path / "bytes.lcnn").stat().st_size < (tmp_path / "float.lcnn").stat().st_size
    assert export(MODEL, str(tmp_path / "m.onnx"), "--storage", "int8") == 2
    assert "--storage int8 is for FILE.lcnn; .onnx holds float32, leave it out" in capsys.readouterr().err


def test_what_is_no_network_of_ours_is_named_or_refused(tmp_path, capsys):
    torch.save({"fc.weight": torch.ones(2, 3)}, tmp_path / "odd.pt")
    torch.save(build(MODEL).state_dict(), tmp_path / "bare.pt")
    lcnn_core.export_onnx(build(MODEL), torch.zeros(1, 1, 8, 8), tmp_path / "graph.onnx")
    capsys.readouterr()
    for call in (lambda *a: export(*a, str(tmp_path / "out.lcnn")), bench):
        assert call(str(tmp_path / "graph.onnx")) == 2
        assert "graph.onnx is a description without a model; give a checkpoint" in capsys.readouterr().err
        assert call(str(tmp_path / "odd.pt")) == 3
        assert "name it with --arch" in capsys.readouterr().err
    assert export(str(tmp_path / "bare.pt"), str(tmp_path / "out.lcnn"), "--arch", MODEL) == 0
    assert bench(str(tmp_path / "bare.pt"), "--arch", MODEL) == 0


def test_unknown_formats_are_refused_before_anything_is_read(capsys):
    assert export("gone.pt", "model.tflite") == 2
    assert "output file is 'model.tflite'; expected a name that ends in .onnx" in capsys.readouterr().err
