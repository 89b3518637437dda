"""``lcnn train`` and ``lcnn evaluate`` as a user types them: files, figures, exit codes, one line for each mistake."""

from __future__ import annotations

import io
import json
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from rich.console import Console

from lcnn_analyze.cli.app import app
from lcnn_analyze.cli.errors import run
from lcnn_analyze.cli.progress import epoch_table, progress
from lcnn_core import (
    Accuracy,
    BatchFinished,
    EpochFinished,
    LayerDied,
    Preparing,
    TrainingFinished,
    TrainingStarted,
    checkpoint,
    counted_speedup,
    describe,
    evaluate,
    load_dataset,
)
from lcnn_core.compress import from_dense, measured

TINY = ("--model", "digits-resnet", "--batch-size", "128", "--lr", "0.1")


def lcnn(command: str, *arguments: object) -> int:
    return run("lcnn", typer.main.get_command(app), [command, *map(str, arguments)])


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("dense") / "dense.pt"
    assert lcnn("train", *TINY, "--epochs", 2, "-o", path, "-q") == 0
    return path


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_train_writes_best_last_and_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert lcnn("train", *TINY, "--epochs", 2, "--seed", 4, "-o", tmp_path / "run") == 0
    out, err = capsys.readouterr()
    assert out.startswith(f"{tmp_path}/run/best.pt: epoch ")
    assert [line.split("  ")[0] for line in err.splitlines()] == ["epoch 1/2", "epoch 2/2"]
    names = ["best.pt", "config.yaml", "curves.png", "last.pt", "log.jsonl", "report.md", "state.pt"]
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == names
    log = lines(tmp_path / "run" / "log.jsonl")
    assert [line["event"] for line in log] == [
        "Configured", "TrainingStarted", "EpochFinished", "EpochFinished", "TrainingFinished"
    ]  # fmt: skip
    assert (log[0]["seed"], log[0]["config"]["lr"], log[0]["config"]["batch_size"]) == (4, 0.1, 128)
    data = load_dataset("digits")
    for name, epoch in (("best", log[-1]["best_epoch"]), ("last", 2)):
        saved = checkpoint.load(tmp_path / "run" / f"{name}.pt")
        assert saved.architecture == "digits-resnet"
        assert saved.input_shape == (1, 8, 8)
        assert saved.normalization == data.normalization
        assert saved.class_names == data.class_names
        assert saved.provenance["epoch"] == epoch
        assert saved.provenance["command"].startswith("lcnn train --model digits-resnet")
        measured = evaluate(saved.build(), data.validation)
        assert {m["name"]: m["value"] for m in saved.metrics} == {"top1": measured.top1, "top5": measured.top5}
        assert {m["dataset"] for m in saved.metrics} == {"digits (validation)"}
        assert log[1 + epoch]["validation"]["top1"] == measured.top1


def test_the_same_command_gives_the_same_bytes_of_weights(tmp_path: Path) -> None:
    for name in ("a", "b"):
        assert lcnn("train", *TINY, "--epochs", 1, "--shift", 1, "-o", tmp_path / f"{name}.safetensors", "-q") == 0
    first, second = (checkpoint.load(tmp_path / f"{name}.safetensors").state_dict for name in "ab")
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_published_recipe_options_reach_the_network(tmp_path: Path) -> None:
    out = tmp_path / "lookup.pt"
    sizes = (
        "--first",
        "identity",
        "--stages",
        "4,8,12",
        "--classifier",
        7,
        "--l1-scale",
        0.2,
        "--threshold-scale",
        0.005,
    )
    run_options = (
        "--epochs",
        1,
        "--schedule",
        "resnet",
        "--optimizer",
        "adam",
        "--weight-decay",
        0.01,
        "--clip-norm",
        2,
    )
    assert lcnn("train", "--model", "digits-resnet-lcnn", *sizes, *run_options, "-o", out, "-q") == 0
    saved = checkpoint.load(out)
    assert saved.lookups["layer2.0.conv1"].dictionary_size == 8
    assert saved.lookups["layer3.1.conv2"].dictionary_size == 12
    assert saved.lookups["fc"].dictionary_size == 7
    threshold = 0.005 / (9 * 8) ** 0.5
    assert saved.lookups["layer2.0.conv2"].threshold == pytest.approx(threshold)
    assert saved.lookups["layer2.0.conv2"].l1_weight == pytest.approx(0.2 * threshold)
    started = lines(tmp_path / "lookup-log.jsonl")
    assert started[0]["config"]["optimizer"] == "adam"
    assert started[2]["weight_decay"] == 0.01
    assert started[2]["learning_rate"] == pytest.approx(0.1 / 50)
    assert set(started[2]["densities"]) == set(saved.lookups)


def test_a_budget_from_a_dense_checkpoint(dense: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--from", dense, "--speedup", 7.5, "--epochs", 2, "--batch-size", 64, "-o", tmp_path, "-q")
    assert lcnn("train", *options) == 0
    out = capsys.readouterr().out
    assert "counted speedup 7.50x" in out
    saved = checkpoint.load(tmp_path / "best.pt")
    landed = counted_speedup(describe(saved.build(), (1, 8, 8)).layers)
    assert 7.5 <= landed < 7.65
    assert saved.provenance["from"] == str(dense)
    assert lines(tmp_path / "log.jsonl")[-2]["counted_speedup"] == landed


def test_evaluate_prints_what_is_measured(dense: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expected = evaluate(checkpoint.load(dense).build(), load_dataset("digits").test)
    assert lcnn("evaluate", dense) == 0
    text = f"{dense}: top-1 {expected.top1:.2%}, top-5 {expected.top5:.2%} on 450 test images of digits\n"
    assert capsys.readouterr().out == text
    assert lcnn("evaluate", dense, "--json", "--split", "test", "--batch-size", 33) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["top1"], found["top5"], found["count"]) == (expected.top1, expected.top5, 450)
    assert (found["dataset"], found["split"], found["checkpoint"]) == ("digits", "test", str(dense))


def idx_folder(folder: Path, size: int, classes: int) -> str:
    random = np.random.RandomState(0)
    for prefix, count in (("train", 40), ("t10k", 10)):
        pixels = random.randint(0, 256, (count, size, size)).astype(np.uint8)
        (folder / f"{prefix}-images-idx3-ubyte").write_bytes(
            struct.pack(">4I", 0x803, *pixels.shape) + pixels.tobytes()
        )
        labels = (np.arange(count) % classes).astype(np.uint8)
        (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(struct.pack(">2I", 0x801, count) + labels.tobytes())
    return f"idx:{folder}"


def test_training_and_evaluation_on_idx_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = idx_folder(tmp_path, 12, 3)
    assert lcnn("train", "--model", "small-resnet", "--data", data, "--epochs", 1, "-o", tmp_path / "m.pt", "-q") == 0
    saved = checkpoint.load(tmp_path / "m.pt")
    assert saved.arguments["num_classes"] == 3
    assert saved.input_shape == (1, 12, 12)
    assert lcnn("evaluate", tmp_path / "m.pt", "--data", data) == 0
    assert "on 10 test images of idx:" in capsys.readouterr().out
    assert lcnn("evaluate", tmp_path / "m.pt") == 2
    assert "takes images of shape (1, 12, 12), digits has (1, 8, 8); choose the data" in capsys.readouterr().err
    other = tmp_path / "other"
    other.mkdir()
    assert lcnn("evaluate", tmp_path / "m.pt", "--data", idx_folder(other, 12, 4)) == 2
    assert "has the 3 classes 0, 1, 2, idx:" in capsys.readouterr().err


MISTAKES: dict[str, tuple[int, list[str], str]] = {
    "no model": (2, [], "no network to train; give --model, such as --model digits-resnet"),
    "unknown model": (
        2,
        ["--model", "digit-resnet"],
        "unknown architecture 'digit-resnet'; did you mean digits-resnet",
    ),
    "unknown data": (2, [*TINY, "--data", "mnist"], "dataset 'mnist' is unknown; expected one of digits, idx:FOLDER"),
    "no such folder": (3, [*TINY, "--data", "idx:/nowhere"], "/nowhere does not exist; expected a folder"),
    "schedule": (2, [*TINY, "--schedule", "step"], "schedule is 'step'; expected one of alexnet, resnet, constant"),
    "optimizer": (2, [*TINY, "--optimizer", "lion"], "optimizer is 'lion'; expected one of sgd, adam"),
    "epochs": (2, [*TINY, "--epochs", "0"], "epochs is 0; expected a whole number of 1 or more"),
    "epochs text": (2, [*TINY, "--epochs", "ten"], "Invalid value for '--epochs': Input should be a valid integer"),
    "batch": (2, [*TINY, "--batch-size", "-4"], "batch_size is -4; expected a whole number of 1 or more"),
    "rate": (2, ["--model", "digits-resnet", "--lr", "nan"], "lr is nan; expected a number above 0"),
    "decay": (2, [*TINY, "--weight-decay", "-1"], "weight_decay is -1.0; expected a number from 0"),
    "clip": (2, [*TINY, "--clip-norm", "0"], "clip_norm is 0.0; expected a number above 0"),
    "seed": (2, [*TINY, "--seed", "-1"], "seed is -1; expected a whole number of 0 or more"),
    "k of 0": (2, ["--model", "digits-resnet-lcnn", "--stages", "0"], "stages is 0; expected a whole number of 1 or"),
    "k negative": (2, ["--model", "digits-resnet-lcnn", "--first", "-3"], "first is -3; expected a whole number of 1"),
    "k text": (2, ["--model", "digits-resnet-lcnn", "--classifier", "big"], "classifier is 'big'; expected a whole"),
    "two of three stages": (2, ["--model", "digits-resnet-lcnn", "--stages", "4,8"], "stages is (4, 8); expected one"),
    "k of a dense model": (2, [*TINY, "--stages", "4"], "digits-resnet has no option 'stages'; its options are"),
    "too small images": (2, ["--model", "alexnet", "--epochs", "1"], "input of shape (1, 8, 8) does not run through"),
    "budget alone": (2, ["--speedup", "5"], "a budget needs both --speedup and --from with a dense checkpoint; --from"),
    "ratio alone": (
        2,
        ["--from", "DENSE", "--dictionary-ratio", "0.5"],
        "a budget needs both --speedup and --from with a dense checkpoint; --speedup",
    ),
    "budget and model": (2, ["--from", "DENSE", "--speedup", "5", *TINY], "--model cannot go with --from, whose"),
    "budget of 1": (2, ["--from", "DENSE", "--speedup", "1"], "speedup is 1.0; expected a finite number above 1"),
    "too much": (2, ["--from", "DENSE", "--speedup", "5000"], "a speedup of 5000 cannot be met: at most"),
    "from nowhere": (3, ["--from", "nowhere.pt", "--speedup", "5"], "nowhere.pt does not exist"),
    "suffix": (2, [*TINY, "-o", "x.pth"], "output 'x.pth' ends in .pth; expected .pt or .safetensors, or a folder"),
    "NaN": (5, ["--model", "digits-resnet", "--lr", "100000", "--epochs", "2"], "is not finite"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_are_one_line_and_the_right_exit_code(
    case: str, dense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, arguments, message = MISTAKES[case]
    monkeypatch.chdir(tmp_path)
    assert lcnn("train", *(str(dense) if argument == "DENSE" else argument for argument in arguments), "-q") == code
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert err.count("\n") == 1
    assert not list(tmp_path.rglob("best.pt"))


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["nowhere.pt"], 3, "nowhere.pt does not exist; check the path"),
        (["."], 3, ". is a folder; expected a file of .pt"),
        (["digits-resnet"], 2, "digits-resnet is an architecture without weights; expected a checkpoint or a state"),
        (["DENSE", "--store-as", "x"], 2, "--store-as names what --store writes; give both"),
        (["DENSE", "--confusion", "x.gif"], 2, "confusion is 'x.gif'; expected a file that ends in .png"),
        (["DENSE", "--confusion", "none/c.png"], 5, "cannot write 'none/c.png'"),
        (["DENSE", "--arch", "resnet18"], 3, "not a resnet18; leave the architecture out"),
        (["DENSE", "--crops", "10"], 2, "crops is 10; expected 1: these images are just as large"),
        (["DENSE", "--split", "dev"], 2, "split is 'dev'; expected one of test, validation, train"),
        (["DENSE", "--batch-size", "0"], 2, "batch size is 0; expected 1 or more"),
        (["DENSE", "--data", "cifar"], 2, "dataset 'cifar' is unknown"),
        ([], 2, "Missing argument 'CHECKPOINT'; see `lcnn evaluate --help`"),
    ],
)
def test_mistakes_of_evaluate(
    arguments: list[str], code: int, message: str, dense: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert lcnn("evaluate", *(str(dense) if argument == "DENSE" else argument for argument in arguments)) == code
    assert message in capsys.readouterr().err


def file_as_folder(path: Path) -> Path:
    path.joinpath("file").write_text("")
    return path / "file" / "run"


def folder_as_checkpoint(path: Path) -> Path:
    (path / "run" / "last.pt").mkdir(parents=True)
    return path / "run"


def folder_as_log(path: Path) -> Path:
    (path / "run" / "log.jsonl").mkdir(parents=True)
    return path / "run"


@pytest.mark.parametrize(
    "place", [file_as_folder, folder_as_checkpoint, folder_as_log, lambda path: Path("/proc/lcnn")]
)
def test_a_folder_that_cannot_be_written_fails_before_training(
    place: Callable[[Path], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.optim.SGD, "step", lambda self: pytest.fail("a step was taken"))
    out = place(tmp_path)
    assert lcnn("train", *TINY, "--epochs", 1, "-o", out, "-q") == 5
    err = capsys.readouterr().err
    assert str(out) in err
    assert err.count("\n") == 1


def test_an_interrupt_leaves_a_whole_last_checkpoint(tmp_path: Path) -> None:
    """SIGINT in the second epoch or later, sent to a process of its own."""
    program = "from lcnn_analyze.cli.app import main; main()"
    arguments = ["train", *TINY, "--epochs", "1000", "-o", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a job in the background ignores it
    ) as process:
        assert process.stderr is not None
        deadline = time.monotonic() + 120
        while "epoch    2/1000" not in process.stderr.readline():
            assert time.monotonic() < deadline
        process.send_signal(signal.SIGINT)
        try:
            _, rest = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130
    assert f"interrupted; {tmp_path / 'last.pt'} holds the network after epoch " in rest
    assert "Traceback" not in rest
    saved = checkpoint.load(tmp_path / "last.pt")
    assert f"after epoch {saved.provenance['epoch']}; go on with --resume {tmp_path}\n" in rest
    assert saved.provenance["epoch"] >= 2
    assert lines(tmp_path / "log.jsonl")[-1]["epoch"] == saved.provenance["epoch"]
    saved.build()


@pytest.mark.parametrize("again", [False, True])
def test_an_interrupt_before_training_says_that_nothing_changed(
    again: bool, dense: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    options = ("--epochs", 1, "--layer-budgets", "measured")
    arguments: tuple[object, ...] = ("train", "--from", dense, "--speedup", 3, *options)
    if again:
        assert lcnn(*arguments, "-o", folder, "-q") == 0  # type: ignore[arg-type]
    before = {path.name: path.read_bytes() for path in folder.glob("*")}

    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(*(from_dense, "kept_sizes") if again else (measured, "options_of"), stopped)
    capsys.readouterr()
    assert (lcnn("train", "--resume", folder) if again else lcnn(*arguments, "-o", folder)) == 130  # type: ignore[arg-type]
    told = f"and the run is as it was; go on with --resume {folder}" if again else "and nothing written; start it again"
    assert capsys.readouterr().err == f"interrupted; nothing was trained yet, {told}\n"
    assert {path.name: path.read_bytes() for path in folder.glob("*")} == before


def shown(epochs: bool, terminal: bool, quiet: bool = False) -> str:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=terminal, width=160, color_system=None, highlight=False)
    accuracy = Accuracy(0.5, 0.9, 10, 1.0)
    layers = {"a": 0.1, "b": 0.3}, {"a": 7.25, "b": 20.0}
    finished = EpochFinished(1, 1, 2.0, 0.25, accuracy, 10.04, layers[0], 0.01, 0.0, 1.5, True, layers[1])
    with progress("demo", quiet, epochs, console) as listen:
        listen(TrainingStarted(torch.nn.Identity(), 1, 2, 20, 1.0))
        listen(BatchFinished(1, 1, 2, 2.5, 0.2, 0.01, 20, 0.125, 0.05))
        listen(BatchFinished(1, 2, 2, 2.5, 0.2, 0.01, 20, 0.375, 0.05))
        listen(finished)
        listen(LayerDied(1, "b"))
        listen(TrainingFinished(1.5, 1))
    return stream.getvalue()


def test_progress_is_a_bar_on_a_terminal_and_plain_lines_elsewhere() -> None:
    line = (
        "epoch 1/1  loss 2.0000  train 25.00%  validation top-1 50.00% top-5 90.00%  counted 10.04x"
        "  best  1.5 s  80 images/s, 100 without 20% waiting\n"
        "    layer  P, %  counted    layer  P, %  counted\n"
        "    a      10.0    7.25x    b      30.0   20.00x\n"
    )
    warning = (
        "warning: after epoch 1 no entry of P is left in layer 'b', which answers the same for every image; lower its "
        "l1_scale or its threshold_scale\n"
    )
    total = "demo: 1 epochs in 2 s, validation top-1 50.0%, counted speedup 10.04x\n"
    assert shown(epochs=True, terminal=False) == line + warning
    assert shown(epochs=False, terminal=False) == warning + total
    assert shown(epochs=True, terminal=False, quiet=True) == ""
    assert shown(epochs=True, terminal=True, quiet=True) == ""
    on_terminal = shown(epochs=True, terminal=True)
    assert line in on_terminal.replace("\r", "").replace("\x1b[2K", "")
    assert "demo ━" in on_terminal
    assert "loss 2.500 train 20%" in on_terminal


@pytest.mark.parametrize("terminal", [True, False])
def test_what_is_measured_before_training_is_shown_and_said_where_it_takes_long(terminal: bool, monkeypatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=terminal, width=160, color_system=None, highlight=False)
    with progress("demo", False, True, console) as listen:
        for done in range(4):
            now[0] += 4
            listen(Preparing("fitting", done, 21))
    if terminal:
        assert "demo ━" in stream.getvalue()
        assert "fitting" in stream.getvalue()
    else:
        assert stream.getvalue() == "demo: fitting, 2 of 21\n"


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_of_an_epoch_holds_every_layer_within_the_terminal(width: int) -> None:
    names = [f"layer{stage}.{block}.conv{n}" for stage in (1, 2, 3) for block in range(23) for n in (1, 2, 3)]
    densities = {name: 1.0 if number % 7 == 0 else number / 1000 for number, name in enumerate(names)}
    speedups = {name: 1.5 * number for number, name in enumerate(names)}
    accuracy = Accuracy(0.843, 0.99, 10, 1.0)
    event = EpochFinished(7, 30, 1.25, 0.876, accuracy, 13.4, densities, 0.1, 0.0, 99.5, True, speedups, 3)
    lines = epoch_table(event, "1,234 images/s, 1,500 without 20% waiting", width)
    assert max(map(len, lines)) <= width
    text = " ".join(" ".join(lines).split())
    for figure in ("epoch 7/30", "loss 1.2500", "top-1 84.30%", "top-5 99.00%", "counted 13.40x", "3 unreadable"):
        assert figure in text
    places = []
    for number, name in enumerate(names):
        share = "100" if number % 7 == 0 else f"{number / 10:.1f}"
        cell = f"{name:<15}  {share:>4}  {1.5 * number:6.2f}x"
        places += [(line.index(cell), row) for row, line in enumerate(lines) if cell in line]
    assert len(places) == len(names)
    assert places == sorted(places), "read downwards, column by column"
    assert len({column for column, _ in places}) == width // 35
