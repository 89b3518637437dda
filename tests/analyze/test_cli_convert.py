"""``lcnn convert`` as a user types it: what lands in the file, what is printed, one line for each mistake."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import typer
from torch import nn

from lcnn_analyze.cli.app import app
from lcnn_analyze.cli.errors import run
from lcnn_core import TrainConfig, build, checkpoint, counted_speedup, describe, evaluate, load_dataset, train


def lcnn(*arguments: object) -> int:
    return run("lcnn", typer.main.get_command(app), ["convert", *map(str, arguments)])


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    data, model = load_dataset("digits"), build("digits-resnet")
    train(model, data, TrainConfig(epochs=5, batch_size=64))
    path = tmp_path_factory.mktemp("convert") / "dense.pt"
    taken = checkpoint.Checkpoint.from_model(
        model, architecture="digits-resnet", normalization=data.normalization, class_names=data.class_names
    )
    checkpoint.save(path, taken)
    torch.save(model.state_dict(), path.with_name("bare.pth"))
    return path


def test_a_checkpoint_is_converted_fine_tuned_and_reported(
    dense: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "small.pt"
    arguments = (dense, "--speedup", 7.5, "--images", 64, "--forms", "dense,sparse", "-o", out, "-q", "--json")
    assert lcnn(*arguments) == 0
    before = checkpoint.load(out)
    assert lcnn(*arguments, "--finetune", 2) == 0
    reports = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    data = load_dataset("digits")
    saved = checkpoint.load(out)
    model = saved.build()
    assert 7.35 <= counted_speedup(describe(model, (1, 8, 8)).layers) <= 7.65
    assert saved.metrics[0]["value"] == evaluate(model, data.validation).top1 == reports[1]["metrics"][0]["value"]
    losses = [evaluate(taken.build(), data.validation).loss for taken in (before, saved)]
    assert losses[1] < losses[0]
    rows = {row["name"]: row for row in reports[0]["layers"]}
    costs = {layer.name: layer for layer in describe(before.build(), (1, 8, 8)).layers if layer.lookup}
    for name, layer in costs.items():
        assert layer.lookup is not None
        assert rows[name]["density"] == pytest.approx(layer.lookup.coefficients_nnz / layer.lookup.coefficients_size)
    assert {name for name, row in rows.items() if row["form"] == "sparse"} == set(costs)
    assert saved.provenance["conversion"]["images"] == 64


def test_a_bare_state_dict_is_named_and_the_table_says_what_each_layer_became(
    dense: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights, out = dense.with_name("bare.pth"), tmp_path / "small.safetensors"
    more = ("--images", 32, "--forms", "sparse", "--no-evaluate")
    assert lcnn("--arch", "digits-resnet", "--weights", weights, "--speedup", 3, *more, "-o", out) == 0
    said, err = capsys.readouterr()
    weighted = [n for n, m in build("digits-resnet").named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    stages = ["measuring inputs", *(f"{what}, {len(weighted)} layers" for what in ("fitting", "probing", "converting"))]
    assert err.splitlines() == stages
    lines = said.splitlines()
    assert lines[0].split() == ["layer", "form", "k", "P", "D", "output", "error", "MACs", "of", "dense"]
    assert [line.split()[0] for line in lines[1:-1]] == weighted
    assert lines[-1].startswith(f"{out}: counted speedup 3.0")
    assert lines[-1].endswith("calibrated on 32 images without labels")
    assert checkpoint.load(out).architecture == "digits-resnet"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "no network to convert; give a checkpoint, or --arch NAME --weights FILE"),
        (["nowhere.pt"], 3, "nowhere.pt does not exist"),
        (["digits-resnet"], 2, "digits-resnet holds no weights of a network that runs here"),
        (["DENSE", "--weights", "x.pth"], 2, "--weights cannot go with"),
        (["DENSE", "--speedup", "1"], 2, "speedup is 1.0; expected a finite number above 1"),
        (
            ["DENSE", "--speedup", "9999", "--forms", "sparse", "--images", "16"],
            2,
            "a speedup of 9999 cannot be met: at most",
        ),
        (["DENSE", "--images", "4"], 2, "images is 4; expected 16 or more"),
        (["DENSE", "--forms", "tiny"], 2, "forms are ('tiny',); expected one or more of dense, sparse, lookup"),
        (["DENSE", "--finetune", "-1"], 2, "finetune is -1; expected 0 epochs or more"),
        (["DENSE", "--data", "fake:40x10"], 2, "dense.pt takes images of shape (1, 8, 8)"),
        (["DENSE", "-o", "DENSE"], 2, "is the network that it is made from; choose another -o"),
        (["DENSE", "-o", "none/x.pt"], 5, "cannot write 'none/x.pt'"),
        (
            ["--arch", "resnet18", "--weights", "DENSE"],
            3,
            "holds a digits-resnet, not a resnet18; leave the arch",
        ),
        (["DENSE", "-o", "x.onnx"], 2, "output 'x.onnx' ends in .onnx; expected .pt or .safetensors"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str],
    code: int,
    message: str,
    dense: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert lcnn(*(str(dense) if argument == "DENSE" else argument for argument in arguments), "-q") == code
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert message in err
    assert not list(tmp_path.iterdir())


def test_what_is_left_of_a_budget_is_said(dense: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("--speedup", 1.2, "--forms", "lookup", "--images", 32, "--no-evaluate", "-q")
    assert lcnn(dense, *arguments, "-o", tmp_path / "out.pt") == 0
    assert "; 1.2x was asked for, but layers as lookup spend no more" in capsys.readouterr().out
