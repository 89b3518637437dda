"""``lcnn spectrum`` on scanned digits: kills, workers, what is kept, what `analyze` says, searches, mistakes."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shlex
import signal
import sqlite3
import subprocess
import sys
import time
import traceback
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch
import typer
from train_runs import in_child

from lcnn_analyze.cli.app import app
from lcnn_analyze.cli.errors import run
from lcnn_analyze.cli.spectrum import _words
from lcnn_analyze.cli.sweep_report import command
from lcnn_analyze.search import Search
from lcnn_analyze.study import Journal, Trial
from lcnn_core import METHODS, TrainConfig, build, checkpoint, load_dataset
from lcnn_core import train as train_model


def lcnn(*arguments: object) -> int:
    return run("lcnn", typer.main.get_command(app), list(map(str, arguments)))


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    data, model = load_dataset("digits"), build("digits-resnet")
    train_model(model, data, TrainConfig(epochs=3, batch_size=64))
    path = tmp_path_factory.mktemp("study") / "dense.pt"
    taken = checkpoint.Checkpoint.from_model(
        model, architecture="digits-resnet", normalization=data.normalization, class_names=data.class_names
    )
    checkpoint.save(path, taken)
    return path


QUICK = ("--epochs", 1, "--batch-size", 256, "-q")
GRID = ("--methods", "pruning", "--speedups", "4,8", "--seeds", "0,1", *QUICK)


def report_of(folder: Path) -> dict[str, str]:
    """The report without times."""
    document = json.loads((folder / "spectrum.json").read_text())
    for trial in document["trials"]:
        trial.pop("seconds")
    pages = {name: (folder / f"spectrum.{name}").read_text() for name in ("md", "html")}
    texts = {name: re.sub(r"[\d.]+ (s|min) in all", "", page) for name, page in pages.items()}
    return {**texts, "json": json.dumps(document), "png": (folder / "spectrum.png").read_bytes().hex()}


def journal_of(folder: Path) -> list[dict]:
    path = folder / "journal.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def start(errors: Path, *arguments: object) -> BaseProcess:
    """The command in a forked process, its stderr in ``errors``. A lease is a second, so that a killed worker's trial
    is free at once."""

    def work() -> int:
        Journal.__init__.__defaults__ = (1.0, time.time)
        Search.__init__.__defaults__ = (1.0,)
        with errors.open("w") as sys.stderr, open(os.devnull, "w") as sys.stdout:
            try:
                return lcnn(*arguments)
            except BaseException:
                traceback.print_exc()
                raise

    return in_child(work)


def ended(process: BaseProcess, errors: Path) -> tuple[str, int | None]:
    """What the process said on stderr, and its exit code, once it has ended."""
    process.join()
    return errors.read_text(), process.exitcode


def test_killed_in_mid_trial_it_goes_on_and_the_report_is_that_of_one_process(dense: Path, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    first = start(tmp_path / "first", "spectrum", dense, *GRID, "-o", killed)
    while "done" not in [entry["event"] for entry in journal_of(killed)]:
        assert first.is_alive(), (tmp_path / "first").read_text()
        time.sleep(0.02)
    first.kill()
    first.join()
    again = {path: start(path, "spectrum", dense, *GRID, "-o", killed) for path in (tmp_path / "a", tmp_path / "b")}
    assert lcnn("spectrum", dense, *GRID, "-o", whole) == 0
    for errors, process in again.items():
        assert ended(process, errors) == ("", 0)
    assert report_of(killed) == report_of(whole)
    done = [entry["trial"] for entry in journal_of(killed) if entry["event"] == "done"]
    assert sorted(done) == sorted({trial["trial"] for trial in json.loads(report_of(whole)["json"])["trials"]})


def test_a_trial_gone_on_with_took_as_long_as_all_its_parts(dense: Path, tmp_path: Path) -> None:
    grid = ("spectrum", dense, "--methods", "pruning", "--speedups", 4, "--epochs", 4, *QUICK[2:], "-o", tmp_path)
    errors, clock = tmp_path / "errors", tmp_path / "trials" / "0-4-pruning" / "seconds.json"
    process = start(errors, *grid)
    while not clock.exists():
        assert process.is_alive(), errors.read_text()
        time.sleep(0.02)
    process.kill()
    process.join()
    assert 0 < json.loads(clock.read_text()) < 600
    clock.write_text("1000.0")
    assert ended(start(errors, *grid), errors) == ("", 0)
    (trial,) = json.loads((tmp_path / "spectrum.json").read_text())["trials"]
    assert 1000 < trial["seconds"] < 1600
    assert not clock.exists()


def alive(pid: int) -> bool:
    """Running, and no zombie that nobody has asked after."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_the_workers_of_a_killed_command_end_too(dense: Path, tmp_path: Path) -> None:
    command = ["spectrum", dense, *GRID, "--epochs", 99, "--workers", 2, "-o", tmp_path]
    process = subprocess.Popen(
        [sys.executable, "-m", "lcnn_analyze", *map(str, command)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stderr=subprocess.PIPE,
        text=True,
    )
    while len(workers := {line["worker"] for line in journal_of(tmp_path) if line["event"] == "claimed"}) < 2:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    pids = {int(worker.split(":")[1]) for worker in workers}
    assert process.pid in pids
    process.send_signal(signal.SIGKILL)
    (other,) = pids - {process.pid}
    process.wait()
    end = time.monotonic() + 30
    while alive(other) and time.monotonic() < end:
        time.sleep(0.05)
    assert not alive(other)


@pytest.fixture(scope="module")
def studied(dense: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study with every kind of network on its page, all kept: lookups, sparse, converted and narrow."""
    folder = tmp_path_factory.mktemp("studied")
    methods = ("--methods", "lookup-only,pruning,narrow,post-training", "--ablate", "floor=1", "--speedups", "4")
    assert lcnn("spectrum", dense, *methods, *QUICK, "--measure", "--workers", 2, "--keep", "all", "-o", folder) == 0
    return folder


def analyzed(network: Path, dense: Path, capsys: pytest.CaptureFixture[str]) -> float:
    """The counted speedup over the dense network that `analyze` prints."""
    capsys.readouterr()
    assert lcnn("analyze", network, "--baseline", dense, "--format", "json") == 0
    baselines = json.loads(capsys.readouterr().out)["models"][0]["baselines"]
    assert baselines[-1]["name"] == "dense"
    return baselines[-1]["speedup"]


def test_the_counted_speedup_of_every_point_is_what_analyze_prints_for_its_network(
    dense: Path, studied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = json.loads((studied / "spectrum.json").read_text())["trials"]
    methods = ["lookup-only", "pruning", "narrow", "post-training", "lookup-only:floor=1"]
    assert [row["method"] for row in rows] == methods
    for row in rows:
        assert analyzed(studied / row["checkpoint"], dense, capsys) == row["speedup"]
        assert 4 <= row["speedup"] < 4.6


@pytest.mark.parametrize("place", [-1, 2], ids=["recipe", "narrow"])
def test_the_command_beside_a_point_makes_the_same_network_again(place: int, studied: Path, tmp_path: Path) -> None:
    row = json.loads((studied / "spectrum.json").read_text())["trials"][place]
    assert f"`{row['command']}`" in (studied / "spectrum.md").read_text()
    threads, program, *arguments = shlex.split(row["command"])
    assert (threads, program, arguments[0], arguments[-1]) == ("OMP_NUM_THREADS=1", "lcnn", "train", row["trial"])
    assert lcnn(*arguments[:-1], tmp_path / "again", "-q") == 0
    same, again = (checkpoint.load(path) for path in (studied / row["checkpoint"], tmp_path / "again" / "last.pt"))
    assert same.lookups == again.lookups
    assert same.state_dict.keys() == again.state_dict.keys()
    assert all(torch.equal(tensor, again.state_dict[name]) for name, tensor in same.state_dict.items())


def test_what_trains_nothing_is_made_again_by_convert(
    studied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = json.loads((studied / "spectrum.json").read_text())["trials"]
    (row,) = [row for row in rows if row["method"] == "post-training"]
    threads, program, *arguments = shlex.split(row["command"])
    assert (threads, program, arguments[0]) == ("OMP_NUM_THREADS=1", "lcnn", "convert")
    assert (row["speedup"], row["target"]) == (pytest.approx(4, rel=0.02), 4)
    monkeypatch.chdir(tmp_path)
    assert lcnn(*arguments) == 0
    same, again = (checkpoint.load(path) for path in (studied / row["checkpoint"], tmp_path / f"{row['trial']}.pt"))
    assert same.lookups == again.lookups
    assert all(torch.equal(tensor, again.state_dict[name]) for name, tensor in same.state_dict.items())
    trial = Trial("t", {"method": "post-training:ratios=(0.5,)", "speedup": 3.0, "seed": 0})
    found = command(trial, {"dense": "d.pt", "data": "digits", "epochs": 2, "batch_size": None, "lr": None})
    assert "lcnn spectrum d.pt --methods 'post-training:ratios=(0.5,)' --speedups 3" in found
    assert _words("post-training:ratios=(0.5,0.2), pruning") == ["post-training:ratios=(0.5,0.2)", "pruning"]
    for forms, flag in (("lookup", "lookup"), ("('dense','lookup')", "dense,lookup")):
        trial = Trial("t", {"method": f"post-training:forms={forms}:images=32", "speedup": 3.0, "seed": 0})
        found = command(trial, {"dense": "d.pt", "data": "digits", "epochs": 2, "batch_size": None, "lr": None})
        assert found.endswith(f"lcnn convert d.pt --data digits --speedup 3 --forms {flag} --images 32 --output t.pt")
    assert lcnn("train", "--from", row["command"].split()[3], "--method", "post-training", "--speedup", 4) == 2
    assert "expected one of from-dense" in (said := capsys.readouterr().err)
    assert "lcnn convert makes a network without training" in said


def test_a_recipe_beyond_the_options_of_training_is_made_again_by_a_study_of_one() -> None:
    settings = {"dense": "d.pt", "data": "digits", "epochs": 2, "batch_size": None, "lr": 0.05}
    trial = Trial("t", {"method": "converted:images=64", "speedup": 7.5, "seed": 3})
    assert command(trial, settings) == (
        "OMP_NUM_THREADS=1 lcnn spectrum d.pt --methods converted:images=64 --speedups 7.5 --seeds 3 --data digits "
        "--epochs 2 --lr 0.05 --output t"
    )


def test_a_seed_is_enough_for_what_trains_nothing(dense: Path, tmp_path: Path) -> None:
    methods = ("--methods", "post-training:images=32:forms=lookup,narrow", "--speedups", "4")
    for seeds in ("1,2", "2"):
        assert lcnn("spectrum", dense, *methods, "--seeds", seeds, *QUICK, "-o", tmp_path) == 0
        rows = json.loads((tmp_path / "spectrum.json").read_text())["trials"]
        assert [(row["seed"], row["method"].partition(":")[0]) for row in rows] == [
            (0, "post-training"), (1, "narrow"), (2, "narrow"),
        ]  # fmt: skip


def test_a_network_that_no_option_describes_is_kept_as_a_program(
    dense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    nameless = dataclasses.replace(METHODS["narrow"], saved_as=lambda *_: ("custom", {}))
    monkeypatch.setitem(METHODS, "narrow", nameless)
    assert lcnn("spectrum", dense, "--methods", "narrow", "--speedups", 4, *QUICK, "-o", tmp_path) == 0
    (row,) = json.loads((tmp_path / "spectrum.json").read_text())["trials"]
    assert row["checkpoint"].endswith("network.pt2")
    assert analyzed(tmp_path / row["checkpoint"], dense, capsys) == row["speedup"]


def test_measured_speedups_are_against_the_dense_network_in_the_engine(studied: Path) -> None:
    document = json.loads((studied / "spectrum.json").read_text())
    for row in document["trials"]:
        assert set(row["latency"]) == {"network", "dense", "spread"}
        assert 0 < row["latency"]["network"] < 1
    for point in document["points"]:
        (row,) = [r for r in document["trials"] if r["method"] == point["method"]]
        assert point["measured"] == pytest.approx(row["latency"]["dense"] / row["latency"]["network"])
    page = (studied / "spectrum.html").read_text()
    assert page.count("accuracy against counted speedup</h2>") == page.count("accuracy against measured speedup</h2>")


def test_only_networks_on_the_front_are_kept(dense: Path, tmp_path: Path) -> None:
    grid = ("--methods", "pruning,published", "--speedups", "4", *QUICK, "-o", tmp_path)
    assert lcnn("spectrum", dense, *grid) == 0
    document = json.loads((tmp_path / "spectrum.json").read_text())
    front = {point["method"] for point in document["points"] if point["front"]}
    assert front == {max(document["trials"], key=lambda row: row["validation"])["method"]}
    kept = {row["method"] for row in document["trials"] if row["checkpoint"]}
    assert kept == front
    assert {path.parent.name for path in tmp_path.glob("trials/*/network.pt*")} == {f"0-4-{name}" for name in front}
    assert len([*tmp_path.glob("trials/*/result.json")]) == 2


def test_a_failed_trial_is_kept_with_its_reason_and_tried_again_when_asked(
    dense: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = ("--methods", "pruning", "--speedups", "4,99999", *QUICK, "-o", tmp_path)
    for more, attempts in (((), 1), ((), 1), (("--retry-failed",), 2)):
        assert lcnn("spectrum", dense, *grid, *more) == 0
        out, err = capsys.readouterr()
        assert "1 of 2 done, 1 failed" in out
        assert "0-99999-pruning failed: ConfigError: a speedup of 99999 cannot be met: at most" in err
        assert len([entry for entry in journal_of(tmp_path) if entry["event"] == "failed"]) == attempts
    page = (tmp_path / "spectrum.md").read_text()
    assert re.search(
        r"failed\n\n.*\n.*\n\| 0-99999-pruning \| ConfigError: .* cannot be met: at most .*, bounded by", page
    )


def test_an_error_that_nobody_foresaw_is_a_failed_trial(
    dense: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise KeyError("nobody knew")

    monkeypatch.setattr("lcnn_analyze.cli.trials._save", fail)
    assert lcnn("spectrum", dense, "--methods", "pruning", "--speedups", "4", *QUICK, "-o", tmp_path) == 5
    assert "0-4-pruning failed: KeyError: 'nobody knew'" in capsys.readouterr().err


def test_what_lies_in_a_trials_folder_is_taken_for_the_same_study_only(
    dense: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = ("--methods", "pruning", "--speedups", "4", "--batch-size", "256", "-q", "-o", tmp_path)
    assert lcnn("spectrum", dense, *grid, "--epochs", "1") == 0
    before = (tmp_path / "trials" / "0-4-pruning" / "result.json").read_bytes()
    (tmp_path / "journal.jsonl").unlink()
    assert lcnn("spectrum", dense, *grid, "--epochs", "2") == 5
    assert "0-4-pruning is of another study, or was made with other settings; choose another -o" in (
        capsys.readouterr().err
    )
    (tmp_path / "journal.jsonl").unlink()
    assert lcnn("spectrum", dense, *grid, "--epochs", "1") == 0
    assert (tmp_path / "trials" / "0-4-pruning" / "result.json").read_bytes() == before


def test_a_report_made_elsewhere_is_gone_on_from(
    dense: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = ("--methods", "pruning", *QUICK)
    assert lcnn("spectrum", dense, *grid, "--speedups", "4", "-o", tmp_path / "there") == 0
    report = tmp_path / "there" / "spectrum.json"
    again = tmp_path / "again.pt"  # the same weights under another name and with another history
    checkpoint.save(again, dataclasses.replace(checkpoint.load(dense), provenance={"command": "another"}))
    here = ("spectrum", again, *grid, "--from-report", report, "-o", tmp_path / "here")
    assert lcnn(*here, "--speedups", "8") == 0
    claimed = {line["trial"] for line in journal_of(tmp_path / "here") if line["event"] == "claimed"}
    assert claimed == {"0-8-pruning"}
    rows = {row["trial"]: row for row in json.loads((tmp_path / "here" / "spectrum.json").read_text())["trials"]}
    (taken,) = json.loads(report.read_text())["trials"]
    assert rows.keys() == {"0-4-pruning", "0-8-pruning"}
    differ = {key for key in taken if taken[key] != rows["0-4-pruning"][key]}
    assert differ == {"command", "checkpoint"}  # it names the file that is here; the network stayed there
    assert lcnn(*here, "--speedups", "4,8") == 0
    assert {line["trial"] for line in journal_of(tmp_path / "here") if line["event"] == "claimed"} == claimed

    capsys.readouterr()
    assert lcnn(*here[:-1], tmp_path / "new", "--epochs", 2) == 2
    assert f"the study in {report} has other settings: epochs was 1, is now 2" in capsys.readouterr().err
    assert lcnn(*here[:-1], tmp_path / "new", "--trials", 2) == 2
    assert "--from-report is for the grid" in capsys.readouterr().err
    whole = json.loads(report.read_text())
    (row,) = whole["trials"]
    damaged = [{**row, "trial": "../../victim"}, {**row, "top1": "a lot"}, {**row, "method": "magic"},
               {key: value for key, value in row.items() if key != "machine"}]  # fmt: skip
    for text in ("[]", "{}", "no JSON", *(json.dumps({**whole, "trials": [bad]}) for bad in damaged)):
        report.write_text(text)
        assert lcnn(*here[:-1], tmp_path / "new") == 3
        assert f"{report} is no report of a study; expected a spectrum.json" in capsys.readouterr().err
    report.unlink()
    assert lcnn(*here[:-1], tmp_path / "new") == 3
    assert f"{report} cannot be read: No such file or directory" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_a_name_that_stands_for_other_settings_is_refused(
    dense: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = ("--methods", "pruning", *QUICK, "-q", "-o", tmp_path)
    assert lcnn("spectrum", dense, *grid, "--speedups", "4") == 0
    capsys.readouterr()
    assert lcnn("spectrum", dense, *grid, "--speedups", "4.0000001") == 2
    assert "has other settings: speedup was 4.0, is now 4.0000001; choose another -o" in capsys.readouterr().err


def test_a_budget_that_no_trial_can_meet_fails_the_command(
    dense: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert lcnn("spectrum", dense, "--methods", "narrow", "--speedups", "1e6", *QUICK, "-o", tmp_path) == 5
    failed, last = capsys.readouterr().err.splitlines()
    assert "cannot be met: at most" in failed
    assert last == f"lcnn: no trial of 1 was done; the report in {tmp_path} has the reasons"


SEARCH = ("--methods", "pruning", "--speedups", "3,9", "--trials", 2, "--vary", "lr=0.01..0.05", *QUICK)


def test_a_search_killed_in_mid_trial_goes_on_to_its_count(
    dense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("optuna")
    killed = start(tmp_path / "errors", "spectrum", dense, *SEARCH, "-o", tmp_path)
    while not [*tmp_path.glob("trials/*")]:
        assert killed.is_alive(), (tmp_path / "errors").read_text()
        time.sleep(0.02)
    killed.kill()
    killed.join()
    monkeypatch.setattr(Search.__init__, "__defaults__", (1.0,))
    assert lcnn("spectrum", dense, *SEARCH, "-o", tmp_path) == 0
    document = json.loads((tmp_path / "spectrum.json").read_text())
    assert [row["status"] for row in document["trials"]] == ["done"] * 2
    for row in document["trials"]:
        assert 0.01 <= float(row["method"].removeprefix("pruning:lr=")) <= 0.05
        assert row["speedup"] == pytest.approx(row["target"], rel=0.02)
        assert f"--method pruning --speedup {row['target']:g}" in row["command"]
    front = {point["target"] for point in document["points"] if point["front"]}
    assert {row["target"] for row in document["trials"] if row["checkpoint"]} == front


def test_a_database_that_goes_away_in_mid_sweep_ends_it_with_one_line_and_the_work_is_kept(
    dense: Path, tmp_path: Path
) -> None:
    pytest.importorskip("optuna")
    path = tmp_path / "study.db"
    search = ("spectrum", dense, *SEARCH, "--storage", f"sqlite:///{path}?timeout=0.2", "-o", tmp_path / "study")
    process = start(tmp_path / "errors", *search)
    while not [*tmp_path.glob("study/trials/*")]:
        assert process.is_alive(), (tmp_path / "errors").read_text()
        time.sleep(0.02)
    away = sqlite3.connect(path, timeout=60)
    away.execute("BEGIN EXCLUSIVE")
    err, code = ended(process, tmp_path / "errors")
    assert (code, err.count("\n")) == (5, 1)
    assert re.search(r"storage sqlite:///.*study.db\S* is away: .*; what was trained is kept in .*/study/trials", err)
    (kept,) = tmp_path.glob("study/trials/*/result.json")
    before = kept.stat().st_mtime_ns
    away.rollback()
    away.close()
    assert lcnn(*search) == 0
    document = json.loads((tmp_path / "study" / "spectrum.json").read_text())
    assert [row["status"] for row in document["trials"]] == ["done"] * 2
    assert kept.parent.name in {row["trial"] for row in document["trials"]}
    assert kept.stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["nowhere.pt"], 3, "nowhere.pt does not exist"),
        (["DENSE", "--methods", "magic"], 2, "method is 'magic'; expected one of from-dense"),
        (["DENSE", "--methods", "pruning:flor=1"], 2, "pruning has no setting 'flor'; did you mean floor?"),
        (["DENSE", "--methods", "pruning:floor"], 2, "method is 'pruning:floor'; expected METHOD:SETTING=VALUE"),
        (["DENSE", "--methods", "pruning:floor=x"], 2, "pruning:floor=x: a value is of the wrong kind"),
        (["DENSE", "--methods", "pruning:lr=nan"], 2, "pruning:lr=nan: lr is nan; expected"),
        (["DENSE", "--ablate", "floor=7"], 2, "floor 7"),
        (["DENSE", "--speedups", "two"], 2, "--speedups is 'two'; expected numbers such as 1,2,4"),
        (["DENSE", "--speedups", "0.5"], 2, "speedup is 0.5; expected a finite number above 1"),
        (["DENSE", "--seeds", "1,1"], 2, "seeds are [1, 1]; expected one or more, each once"),
        (["DENSE", "--workers", "0"], 2, "workers is 0; expected 1 or more"),
        (["DENSE", "--keep", "some"], 2, "keep is 'some'; expected one of front, all"),
        (["DENSE", "--epochs", "0"], 2, "epochs is 0; expected a whole number of 1 or more"),
        (["DENSE", "--data", "fake:20x3"], 2, "takes images of shape (1, 8, 8)"),
        (["DENSE", "--storage", "sqlite:///x.db"], 2, "--storage is for a search; give --trials"),
        (["DENSE", "--trials", "0"], 2, "trials is 0; expected 1 or more"),
        (["DENSE", "--methods", "pruning:forms=mixed"], 2, "forms cannot be a setting of pruning, which decides that"),
        (["DENSE", "--methods", "narrow:label_smoothing=0.1"], 2, "label_smoothing cannot go with distillation"),
        (["DENSE", "--report-only"], 2, "study holds no study to report; choose the -o that it was made with"),
        (["DENSE", "--trials", "2", "--vary", "forms=a|b", "--methods", "pruning"], 2, "a setting of none of pruning"),
        (["DENSE", "--trials", "2", "--vary", "colour=a|b"], 2, "vary names 'colour', a setting of none of"),
        (["DENSE", "--trials", "2", "--vary", "speedup=3..9"], 2, "vary names 'speedup', a setting of none of"),
        (["DENSE", "--trials", "2", "--vary", "floor=0.5..7"], 2, "floor 7"),
        (["DENSE", "--trials", "2", "--vary", "cuts=2.2..2.8"], 2, "cuts=2.2..2.8; expected a whole number in between"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str], code: int, message: str, dense: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [str(dense) if argument == "DENSE" else argument for argument in arguments]
    assert lcnn("spectrum", *given, "-o", tmp_path / "study", "-q") == code
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert message in err
    assert not (tmp_path / "study").exists()


def test_a_folder_of_another_study_is_refused_with_the_difference(
    dense: Path, studied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert lcnn("spectrum", dense, "--epochs", 2, "--measure", "-o", studied) == 2
    message = "has other settings: epochs was 1, is now 2; batch_size was 256, is now None; choose another -o"
    assert message in capsys.readouterr().err
    assert lcnn("spectrum", dense, *QUICK, "--measure", "--trials", 2, "-o", studied) == 2
    assert "search was None, is now {'methods': " in capsys.readouterr().err
    assert not (studied / "optuna.log").exists()
