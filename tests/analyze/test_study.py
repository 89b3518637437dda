"""Studies: the journal under kills, races and damage; the grid; means and front; the whole command on digits."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import typer

from lcnn_analyze.cli.app import app
from lcnn_analyze.cli.errors import run
from lcnn_analyze.study import Journal, State, Trial, grid, means
from lcnn_core import ConfigError, DataError, TrainConfig, build, checkpoint, load_dataset
from lcnn_core import train as train_model

TRIALS = [Trial(name, {}) for name in "abc"]


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def journals(folder: Path, count: int = 2) -> tuple[Clock, list[Journal]]:
    clock = Clock()
    return clock, [Journal(folder / "journal.jsonl", 60, clock) for _ in range(count)]


# --- the journal ----------------------------------------------------------------------------------------------------


def test_workers_share_the_trials_and_each_ends_once(tmp_path: Path) -> None:
    _, (one, two) = journals(tmp_path)
    first, second, third = one.claim(TRIALS), two.claim(TRIALS), one.claim(TRIALS)
    assert [t.name for t in (first, second, third) if t] == ["a", "b", "c"]
    assert two.claim(TRIALS) is None
    assert first is not None
    assert second is not None
    assert one.finish(first, {"top1": 0.5})
    assert not one.finish(first, {"top1": 0.6})
    assert not one.finish(second, {"top1": 0.7})
    assert two.fail(second, "a reason")
    states = one.states(TRIALS)
    assert [states[name].status for name in "abc"] == ["done", "failed", "running"]
    assert states["a"].result == {"top1": 0.5}
    assert states["b"].reason == "a reason"
    two.reopen_failed(TRIALS)
    assert two.claim(TRIALS) == second


def test_a_silent_worker_loses_its_trial_and_what_it_says_later_counts_for_nothing(tmp_path: Path) -> None:
    clock, (one, two) = journals(tmp_path)
    (trial,) = TRIALS[:1]
    assert one.claim([trial]) == trial
    clock.now += 50
    assert one.beat(trial)
    clock.now += 50
    assert two.claim([trial]) is None
    clock.now += 11
    assert two.claim([trial]) == trial
    assert not one.beat(trial)
    assert not one.finish(trial, {"top1": 0.1})
    assert two.finish(trial, {"top1": 0.2})
    assert one.states([trial])["a"].result == {"top1": 0.2}


def test_a_trial_given_back_is_the_next_ones(tmp_path: Path) -> None:
    _, (one, two) = journals(tmp_path)
    assert one.claim(TRIALS) == TRIALS[0]
    assert one.release(TRIALS[0])
    assert two.claim(TRIALS) == TRIALS[0]


def test_half_a_line_is_cut_off_and_a_damaged_one_is_named(tmp_path: Path) -> None:
    _, (one, two) = journals(tmp_path)
    one.claim(TRIALS)
    with one.path.open("ab") as file:
        file.write(b'{"event": "done", "tri')
    assert two.claim(TRIALS) == TRIALS[1]
    assert all(json.loads(line) for line in one.path.read_text().splitlines())
    with one.path.open("ab") as file:
        file.write(b"nonsense\n")
    with pytest.raises(DataError, match=r"journal.jsonl, line 3 is no journal entry; put the file back"):
        two.claim(TRIALS)


def test_a_study_with_other_settings_is_not_joined(tmp_path: Path) -> None:
    _, (one, two) = journals(tmp_path)
    assert one.begin({"epochs": 3, "lr": None}, TRIALS[:2]) == TRIALS[:2]
    assert two.begin({"epochs": 3, "lr": None}, TRIALS[1:]) == TRIALS
    with pytest.raises(
        ConfigError, match=r"has other settings: epochs was 3, is now 4; lr was None, is now 0.1; choose another -o"
    ):
        two.begin({"epochs": 4, "lr": 0.1}, [])


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"cannot write '.*file/study/journal.jsonl': Not a directory; choose another -o"):
        Journal(tmp_path / "file" / "study" / "journal.jsonl").begin({}, [])


def _take_all(path: Path, names: list[str], seconds: float) -> None:
    journal, trials = Journal(path, lease=1.0), [Trial(name, {}) for name in names]
    while True:
        trial = journal.claim(trials)
        if trial is None:
            if not any(s.status == "running" for s in journal.states(trials).values()):
                return
            time.sleep(0.05)
            continue
        with journal.alive(trial):
            time.sleep(seconds)
        journal.finish(trial, {"worker": journal.worker})


def test_processes_racing_and_one_killed_complete_every_trial_once(tmp_path: Path) -> None:
    path, names = tmp_path / "journal.jsonl", [f"t{n}" for n in range(30)]
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_take_all, args=(path, names, 0.05)) for _ in range(3)]
    stuck = context.Process(target=_take_all, args=(path, names, 1000.0))
    for process in (stuck, *workers):
        process.start()
    while '"claimed"' not in (path.read_text() if path.exists() else "") or f":{stuck.pid}:" not in path.read_text():
        time.sleep(0.01)
    os.kill(stuck.pid or 0, signal.SIGKILL)
    for process in workers:
        process.join(60)
        assert process.exitcode == 0
    stuck.join()
    ended = [json.loads(line) for line in path.read_text().splitlines()]
    assert sorted(line["trial"] for line in ended if line["event"] == "done") == sorted(names)
    assert f":{stuck.pid}:" not in {line["worker"] for line in ended if line["event"] == "done"}


# --- grid and means -------------------------------------------------------------------------------------------------


def test_the_grid_is_every_combination_in_order() -> None:
    trials = grid({"method": ["x", "y"], "speedup": [3.0, 7.5], "seed": [0, 1]})
    assert [t.name for t in trials] == ["x-3-0", "x-3-1", "x-7.5-0", "x-7.5-1", "y-3-0", "y-3-1", "y-7.5-0", "y-7.5-1"]
    assert trials[2].settings == {"method": "x", "speedup": 7.5, "seed": 0}


def test_means_errors_and_front() -> None:
    values = {("x", 3): [0.90, 0.92, 0.97], ("x", 10): [0.80], ("y", 3): [0.70, 0.72], ("y", 10): [0.85]}
    results = [
        (Trial(f"{m}{s}{i}", {"method": m, "speedup": s, "seed": i}), State("done", result={"top1": v, "speedup": s}))
        for (m, s), accuracies in values.items()
        for i, v in enumerate(accuracies)
    ]
    results.append((Trial("z", {"method": "z", "speedup": 3, "seed": 0}), State("failed", reason="no")))
    points = {(p.method, p.target): p for p in means(results)}
    assert points.keys() == values.keys()
    for key, accuracies in values.items():
        assert points[key].accuracy == pytest.approx(100 * statistics.mean(accuracies))
        expected = 100 * statistics.stdev(accuracies) / len(accuracies) ** 0.5 if len(accuracies) > 1 else None
        assert points[key].error == pytest.approx(expected)
    assert {key for key, point in points.items() if point.front} == {("x", 3), ("y", 10)}


# --- the command ----------------------------------------------------------------------------------------------------


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


GRID = ("--methods", "narrow", "--speedups", "4,8", "--seeds", "0,1", "--epochs", 1, "--batch-size", 128, "-q")


def report_of(folder: Path) -> dict:
    """The report without what two runs may differ in: wall times."""
    document = json.loads((folder / "spectrum.json").read_text())
    for trial in document["trials"]:
        trial.pop("seconds", None)
    return document


def test_killed_in_mid_trial_it_goes_on_and_the_report_is_that_of_one_process(dense: Path, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert lcnn("spectrum", dense, *GRID, "-o", whole) == 0
    # The lease is a second, so that the killed worker's trial is free at once.
    program = """
import time
from lcnn_analyze import study
study.Journal.__init__.__defaults__ = (1.0, time.time)
from lcnn_analyze.cli.app import main
if __name__ == "__main__":
    main()
"""
    arguments = list(map(str, ("spectrum", dense, *GRID, "-o", killed)))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen([sys.executable, "-c", program, *arguments], env=environment, stderr=subprocess.DEVNULL)
    journal = killed / "journal.jsonl"
    while "done" not in (journal.read_text() if journal.exists() else ""):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    subprocess.run([sys.executable, "-c", program, *arguments, "--workers", "2"], env=environment, check=True)
    assert report_of(killed) == report_of(whole)
    done = [json.loads(line) for line in journal.read_text().splitlines()]
    assert len([line for line in done if line["event"] == "done"]) == 4
    page = (whole / "spectrum.md").read_text()
    assert "| narrow | 4x | 4." in page
    assert f"lcnn spectrum {dense} --data digits --methods narrow --speedups 4 --seeds 1 --epochs 1" in page
    assert {p.name for p in whole.iterdir()} >= {"spectrum.png", "spectrum.svg", "journal.jsonl", "trials"}


def test_a_failed_trial_is_kept_with_its_reason_and_tried_again_when_asked(
    dense: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = (
        "spectrum",
        dense,
        "--methods",
        "pruning",
        "--speedups",
        "4,99999",
        "--epochs",
        1,
        "-q",
        "-o",
        tmp_path,
    )
    for more, attempts in (((), 1), ((), 1), (("--retry-failed",), 2)):
        assert lcnn(*arguments, *more) == 0
        assert "1 of 2 done, 1 failed" in capsys.readouterr().out
        lines = [json.loads(line) for line in (tmp_path / "journal.jsonl").read_text().splitlines()]
        assert len([line for line in lines if line["event"] == "failed"]) == attempts
    assert (
        "## Failed\n\n- 0-99999-pruning: ConfigError: a speedup of 99999 cannot be met: at most"
        in (tmp_path / "spectrum.md").read_text()
    )


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["nowhere.pt"], 3, "nowhere.pt does not exist"),
        (["DENSE", "--methods", "magic"], 2, "method is 'magic'; expected one of from-dense"),
        (["DENSE", "--speedups", "two"], 2, "speedups are 'two'; expected numbers with commas between them"),
        (["DENSE", "--speedups", "0.5"], 2, "speedup is 0.5; expected a finite number above 1"),
        (["DENSE", "--seeds", "1,1"], 2, "seeds are [1, 1]; expected one or more, each once"),
        (["DENSE", "--workers", "0"], 2, "workers is 0; expected 1 or more"),
        (["DENSE", "--epochs", "0"], 2, "epochs is 0; expected a whole number of 1 or more"),
        (["DENSE", "--data", "fake:20x3"], 2, "takes images of shape (1, 8, 8)"),
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
