"""``analyze`` as a gate of a user's CI: limits, baselines of every kind, differences, plans and times."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
from analyze_runs import save_sparse
from torch import nn
from torch.nn.utils import prune

import lcnn_analyze
import lcnn_core
from lcnn_analyze import Report
from lcnn_core import LookupLayer, build

MACS = {"dense": 1_058_432}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """dense.pt, two lookup networks of falling density, a pruned state dict and an ONNX file of it."""
    where = tmp_path_factory.mktemp("gates")
    torch.manual_seed(0)
    for file, name, density in (
        ("dense.pt", "digits-resnet", 1.0),
        ("a.pt", "digits-resnet-lcnn", 0.3),
        ("b.pt", "digits-resnet-lcnn", 0.1),
    ):
        save_sparse(where / file, name, density)
    pruned = build("digits-resnet").eval()
    for module in pruned.modules():
        if isinstance(module, nn.Conv2d):
            prune.random_unstructured(module, "weight", 0.5)
    torch.save({"state_dict": pruned.state_dict()}, where / "pruned.pth")
    for module in pruned.modules():
        if isinstance(module, nn.Conv2d):
            prune.remove(module, "weight")
    lcnn_core.export_onnx(pruned, torch.zeros(1, 1, 8, 8), where / "pruned.onnx")
    return where


def made(out: str) -> Report:
    return Report.from_json(out)


def test_limits_that_are_kept_say_nothing(analyze):
    code, _, err = analyze("a.pt", "--max-macs", "2M", "--fail-under-speedup", "1.5", "--baseline", "twin")
    assert (code, err) == (0, "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["dense.pt", "--max-macs", "1M"], "limit: dense: 1,058,432 MACs counted as published; the limit is 1,000,000"),
        (["dense.pt", "--max-macs", "1058431"], "the limit is 1,058,431"),
        (["dense.pt", "--fail-under-speedup", "1.01", "--baseline", "twin"], "1.000x counted speedup over dense twin"),
        (["dense.pt", "--fail-under-speedup", "2", "--baseline", "digits-resnet"], "over digits-resnet counted as"),
        (["a.pt", "--fail-under-speedup", "1", "--baseline", "b.pt"], "x counted speedup over b counted as published"),
        (["digits-resnet-lcnn", "--max-macs", "1k"], "(partial: weights are not loaded"),
        (
            ["a.pt", "--fail-under-speedup", "0.1", "--baseline", "digits-resnet-lcnn"],
            "digits-resnet-lcnn is no exact count: weights are not loaded: every entry of P counts as nonzero, an",
        ),
    ],
)
def test_limits_that_are_broken_exit_1_and_name_the_figures(analyze, arguments, message):
    code, out, err = analyze(*arguments)
    assert code == 1
    assert message in err
    assert "total" in out  # the report is there all the same
    assert err.count("\n") == 1


def test_a_named_pipe_gets_the_whole_report(folder):
    """In a process of its own: its reader must not see an end before the report is there."""
    os.mkfifo(folder / "pipe")
    command = [sys.executable, "-m", "lcnn_analyze", "analyze", "a.pt", "--format", "json", "-q", "-o", "pipe"]
    with subprocess.Popen(command, cwd=folder) as writer:
        read = subprocess.run(["cat", "pipe"], cwd=folder, capture_output=True, timeout=120, check=True)
        assert writer.wait(timeout=120) == 0
    assert Report.from_json(read.stdout.decode()).model.name == "a"


def test_every_model_is_held_to_the_limits(analyze):
    code, _, err = analyze("dense.pt", "a.pt", "b.pt", "--max-macs", "100")
    assert (code, err.count("limit: ")) == (1, 3)
    assert analyze("dense.pt", "--max-macs", "1058432")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a.pt", "--fail-under-speedup", "3"], "--fail-under-speedup 3 needs --baseline: name twin"),
        (["a.pt", "--fail-under-speedup", "0", "--baseline", "twin"], "expected a finite number above 0"),
        (["a.pt", "--fail-under-speedup", "nan", "--baseline", "twin"], "expected a finite number above 0"),
        (["a.pt", "--max-macs", "12 M"], "--max-macs is '12 M'; expected a number of MACs such as 700000000, 700M"),
        (["a.pt", "--diff"], "a difference is between two models, and there are 1; give two"),
        (["a.pt", "b.pt", "dense.pt", "--diff"], "there are 3; give two"),
        (["digits-resnet-lcnn", "--convention", "executed"], "has no weights, and a plan depends on them"),
        (["pruned.onnx", "--convention", "executed"], "is a description without a model"),
        (["pruned.onnx", "--latency"], "is a description without a model; only a model can be timed"),
        (["a.pt", "--baseline", "missing.pt"], "missing.pt does not exist"),
        (["a.pt", "--baseline", ""], "--baseline is empty; expected twin, an architecture or a file"),
        (["a.pt", "-o", "."], "'.' ends in ''"),
        (["a.pt", "-f", "md", "-o", "."], "output '.' is a folder; expected a file to write"),
        (["a.pt", "--arch", "resnet18"], "a.pt holds a digits-resnet-lcnn, not a resnet18; leave the architecture out"),
        (["pruned.pth"], "pruned.pth fits small-resnet and digits-resnet, for different images; name one with --arch"),
        (["pruned.pth", "--arch", "digits-resnut"], "unknown architecture 'digits-resnut'; did you mean digits-resnet"),
    ],
)
def test_bad_input_is_one_line(analyze, arguments, message):
    code, out, err = analyze(*arguments)
    assert code in (2, 3)
    assert (out, err.count("\n")) == ("", 1)
    assert message in err


@pytest.fixture(scope="module")
def kept(folder):
    """A report of a.pt against b.pt, and one of a model that is counted in part."""
    (folder / "kept.json").write_text(lcnn_analyze.analyze(folder / "a.pt", baseline=str(folder / "b.pt")).to_json())
    resized = nn.Sequential(nn.Upsample(scale_factor=2, mode="bilinear"), nn.Conv2d(1, 2, 3))
    (folder / "part.json").write_text(lcnn_analyze.analyze(resized, (1, 8, 8), name="resized").to_json())


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["kept.json", "--baseline", "resnet18"], 2, "kept.json compares a with dense twin and b; analyze it again"),
        (["kept.json", "--fail-under-speedup", "9", "--baseline", "dense.pt"], 2, "--baseline is 'dense.pt', and kept"),
        (["kept.json", "--fail-under-speedup", "9", "--baseline", "./b.pt"], 1, "x counted speedup over b counted as"),
        (["kept.json", "--convention", "executed"], 2, "--convention is 'executed', and kept.json counts as published"),
        (["kept.json", "--input-shape", "1x16x16"], 2, "--input-shape cannot go with kept.json, a report made before"),
        (["kept.json", "--latency"], 2, "--latency cannot go with kept.json"),
        (["kept.json", "--check"], 1, "check: a: its report holds no second count; analyze it again"),
        (["part.json", "--strict"], 4, "part.json: resized is counted in part: 1 calls of operations without"),
    ],
)
@pytest.mark.usefixtures("kept")
def test_a_report_that_is_not_what_was_asked_for_is_no_pass(analyze, arguments, code, message):
    found, _, err = analyze(*arguments)
    assert (found, err.count("\n")) == (code, 1)
    assert message in err


@pytest.mark.usefixtures("kept")
def test_a_report_that_is_what_was_asked_for_passes(analyze):
    asked = ("--convention", "published", "--baseline", "b.pt", "--fail-under-speedup", "0.1", "--strict")
    assert analyze("kept.json", *asked)[::2] == (0, "")
    assert analyze("kept.json", "--baseline", "twin", "--fail-under-speedup", "1")[::2] == (0, "")


def test_another_checkpoint_is_a_baseline(analyze):
    baseline = made(analyze("b.pt", "--baseline", "a.pt", "--json")[1]).model.reference
    own, other = (made(analyze(file, "--json")[1]).model.costs.totals["macs"] for file in ("b.pt", "a.pt"))
    assert (baseline.kind, baseline.name, baseline.macs) == ("checkpoint", "a", other)
    assert baseline.speedup == other / own > 1


def test_the_twin_alone(analyze):
    assert [b.kind for b in made(analyze("b.pt", "--baseline", "twin", "--json")[1]).model.baselines] == ["twin"]


def test_a_pruned_network_is_counted_alike_from_every_file(analyze, folder):
    """Masks, ONNX: the nonzeros of the file's own tensors, counted here, at the positions of a dense count."""
    state = torch.load(folder / "pruned.pth")["state_dict"]
    nonzeros = sum(int((state[n] * state[n.replace("orig", "mask")]).count_nonzero()) for n in state if "_orig" in n)
    fc = state["fc.weight"].numel()
    for arguments in (["pruned.pth", "--arch", "digits-resnet"], ["pruned.onnx"]):
        model = made(analyze(*arguments, "--json")[1]).model
        assert model.costs.totals["macs"] == MACS["dense"], arguments
        assert model.costs.totals["weights_nnz"] == nonzeros + fc
        assert 0.45 < model.costs.totals["zero_macs"] / MACS["dense"] < 0.55
        assert model.costs.totals["nonzero_macs"] == MACS["dense"] - model.costs.totals["zero_macs"]
    _, out, _ = analyze("pruned.pth", "--arch", "digits-resnet")
    assert "if zeros were skipped" in out
    assert "if its zeros were skipped" in out
    assert "note" in out


def test_a_difference_names_the_layers_that_changed(analyze):
    code, out, _ = analyze("a.pt", "b.pt", "--diff")
    assert code == 0
    assert "a → b" in out
    changes = {c.layer: c for c in made(analyze("a.pt", "b.pt", "--diff", "--json")[1]).changes}
    assert {name for name, change in changes.items() if change.state == "changed"} == {
        name for name, layer in build("digits-resnet-lcnn").named_modules() if isinstance(layer, LookupLayer)
    }
    assert "layers are the same in both" in analyze("a.pt", "b.pt", "--diff", "-f", "md")[1]
    assert "From a to b" in analyze("a.pt", "b.pt", "--diff", "-f", "html")[1]


@pytest.mark.parametrize("file", ["dense.pt", "a.pt", "b.pt", "pruned.pth"])
def test_executed_is_the_plan_of_the_engine(analyze, folder, file):
    """In total what the plan says; baselines stay the published dense counts."""
    arch = "digits-resnet" if file.endswith("pth") else None
    model = lcnn_core.open_model(folder / file, arch).model
    plan = lcnn_core.compile(model, torch.zeros(1, 1, 8, 8)).plan
    report = made(analyze(file, "--convention", "executed", "--json", *(["--arch", arch] if arch else []))[1])
    assert report.model.costs.totals["macs"] == plan.macs
    assert report.model.costs.totals["dense_macs"] == report.model.twin.macs == MACS["dense"]
    assert report.model.costs.status["macs"].state == "complete"
    assert "executed" in report.convention.name


def test_health_and_memory_reach_every_page(analyze, folder):
    _, out, _ = analyze("b.pt", "--json")
    report = json.loads(out)["models"][0]
    assert report["memory"]["packed"] == sum(
        layer["values"]["packed_bytes"] or 0 for layer in report["costs"]["layers"]
    )
    assert report["memory"]["activations"] > 0
    assert "filters without lookups" in {finding["problem"] for finding in report["health"]}
    for form in ("table", "md", "html"):
        page = analyze("b.pt", "-f", form)[1]
        assert "filters without lookups" in page
        assert "packed, indices included" in page


def test_latency_gives_measured_speedups_with_all_they_depend_on(analyze, monkeypatch):
    from lcnn_analyze.bench import measured

    monkeypatch.setattr(measured, "QUICK", ("engine", "pytorch"))
    monkeypatch.setattr(measured.measure_model, "__defaults__", (None, None, 1))
    code, out, _ = analyze("b.pt", "--latency", "--json")
    assert code == 0
    found = made(out).model.latency
    assert [m.baseline for m in found] == ["dense twin"]
    assert found[0].speedup == found[0].dense.median / found[0].engine.median
    assert found[0].counted == pytest.approx(made(out).model.twin.speedup)
    assert (found[0].batch, found[0].threads) == (1, 1)


def test_no_measured_speedup_where_outputs_disagree(analyze, monkeypatch):
    from lcnn_analyze.bench import measured, run

    monkeypatch.setattr(measured, "QUICK", ("engine", "pytorch"))
    monkeypatch.setattr(run, "_tolerance", lambda contender, own: 0.0 if contender.role == "engine" else None)
    code, out, err = analyze("b.pt", "--latency")
    assert (code, out) == (5, "")
    assert "outputs are off by" in err
    assert "no speedup is shown" in err


def test_no_limit_holds_for_a_model_that_is_counted_in_part(analyze, folder):
    report = json.loads(analyze("dense.pt", "--json")[1])
    report["models"][0]["costs"]["uncounted"] = [
        {"name": "body", "operation": "aten.lstm", "calls": 1, "reason": "no formula"}
    ]
    (folder / "part.json").write_text(json.dumps(report))
    (folder / "alone.json").write_text(lcnn_analyze.analyze(nn.Conv2d(1, 2, 3), (1, 8, 8), baseline="twin").to_json())
    code, _, err = analyze("alone.json", "--fail-under-speedup", "0.1", "--baseline", "b.pt")
    assert code == 2
    assert "compares Conv2d with dense twin; analyze it again" in err
    (folder / "empty.json").write_text("")
    code, _, err = analyze("empty.json")
    assert (code, err.count("\n")) == (3, 1)
    assert "empty.json: not a report" in err
    code, _, err = analyze("part.json", "--max-macs", "100G")
    assert code == 1
    assert "aten.lstm in body has no formula (1 such operations); a limit cannot be checked" in err
    assert analyze("part.json")[0] == 0
