"""Studies: the journal under kills, races and damage; the grid."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from lcnn_analyze.study import Journal, Trial, grid
from lcnn_core import ConfigError, DataError

TRIALS = [Trial(name, {}) for name in "abc"]


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def journals(folder: Path, count: int = 2, trials: Sequence[Trial] = TRIALS) -> tuple[Clock, list[Journal]]:
    clock = Clock()
    opened = [Journal(folder / "journal.jsonl", 60, clock) for _ in range(count)]
    for journal in opened:
        journal.begin({}, trials)
    return clock, opened


# --- the journal ----------------------------------------------------------------------------------------------------


def test_workers_share_the_trials_and_each_ends_once(tmp_path: Path) -> None:
    _, (one, two) = journals(tmp_path)
    first, second, third = one.claim(), two.claim(), one.claim()
    assert [t.name for t in (first, second, third) if t] == ["a", "b", "c"]
    assert two.claim() is None
    assert first is not None
    assert second is not None
    assert one.finish(first, {"top1": 0.5})
    assert not one.finish(first, {"top1": 0.6})
    assert not one.finish(second, {"top1": 0.7})
    assert two.fail(second, "a reason")
    assert one.busy()
    states = {trial.name: state for trial, state in one.ended()}
    assert [states[name].status for name in "abc"] == ["done", "failed", "running"]
    assert states["a"].result == {"top1": 0.5}
    assert states["b"].reason == "a reason"
    two.reopen_failed()
    assert two.claim() == second


def test_a_trial_given_back_while_another_asks_is_waited_for(tmp_path: Path) -> None:
    _, (one, two) = journals(tmp_path, trials=TRIALS[:1])
    taken = one.claim()
    assert taken is not None
    assert two.claim() is None
    one.release(taken)  # as by an interrupt, between the two questions of the other worker
    assert two.busy()
    assert two.claim() == taken


def test_a_silent_worker_loses_its_trial_and_what_it_says_later_counts_for_nothing(tmp_path: Path) -> None:
    (trial,) = TRIALS[:1]
    clock, (one, two) = journals(tmp_path, trials=[trial])
    assert one.claim() == trial
    clock.now += 50
    assert one.beat(trial)
    clock.now += 50
    assert two.claim() is None
    clock.now += 11
    assert two.claim() == trial
    assert not one.beat(trial)
    assert not one.finish(trial, {"top1": 0.1})
    assert two.finish(trial, {"top1": 0.2})
    assert [(found, state.result) for found, state in one.ended()] == [(trial, {"top1": 0.2})]


def test_what_was_finished_elsewhere_is_done_unless_somebody_has_it_or_it_is(tmp_path: Path) -> None:
    clock, (one, two) = journals(tmp_path)
    assert one.claim() == TRIALS[0]
    elsewhere = [(trial, {"top1": 0.9}) for trial in (*TRIALS, Trial("d", {}), Trial("d", {}))]
    two.adopt(elsewhere)  # a is under way here
    assert one.finish(TRIALS[0], {"top1": 0.1})
    assert [(trial.name, state.result["top1"]) for trial, state in two.ended()] == [
        ("a", 0.1), ("b", 0.9), ("c", 0.9), ("d", 0.9)
    ]  # fmt: skip
    assert one.path.read_text().count('"done"') == 4
    assert two.claim() is None
    clock, (dead, next_one) = journals(tmp_path / "killed")
    assert dead.claim() == TRIALS[0]
    clock.now += 61
    next_one.adopt(elsewhere[:1])
    assert next_one.claim() == TRIALS[1]
    assert not dead.finish(TRIALS[0], {"top1": 0.1})
    with pytest.raises(ConfigError, match=r"the trial b in .* has other settings: lr was None, is now 1; choose"):
        next_one.adopt([(Trial("b", {"lr": 1}), {})])


def test_a_trial_given_back_is_the_next_ones(tmp_path: Path) -> None:
    _, (one, two) = journals(tmp_path)
    assert one.claim() == TRIALS[0]
    assert one.release(TRIALS[0])
    assert two.claim() == TRIALS[0]


def test_half_a_line_is_cut_off_and_a_damaged_one_is_named(tmp_path: Path) -> None:
    _, (one, two) = journals(tmp_path)
    one.claim()
    with one.path.open("ab") as file:
        file.write(b'{"event": "done", "tri')
    assert two.claim() == TRIALS[1]
    assert all(json.loads(line) for line in one.path.read_text().splitlines())
    with one.path.open("ab") as file:
        file.write(b"nonsense\n")
    with pytest.raises(DataError, match=r"journal.jsonl, line 7 is no journal entry; put the file back"):
        two.claim()


def test_a_study_with_other_settings_is_not_joined(tmp_path: Path) -> None:
    one, two = (Journal(tmp_path / "journal.jsonl") for _ in range(2))
    one.begin({"epochs": 3, "lr": None}, TRIALS[:2])
    two.begin({"epochs": 3, "lr": None}, TRIALS[1:])
    for journal in (one, two):  # what others asked for later is of the study too
        assert [trial for trial, _ in journal.ended()] == TRIALS
    assert (one.own, two.own) == (TRIALS[:2], TRIALS[1:])
    with pytest.raises(
        ConfigError, match=r"has other settings: epochs was 3, is now 4; lr was None, is now 0.1; choose another -o"
    ):
        two.begin({"epochs": 4, "lr": 0.1}, [])


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"cannot write '.*file/study/journal.jsonl': Not a directory; choose another -o"):
        Journal(tmp_path / "file" / "study" / "journal.jsonl").begin({}, [])


def _take_all(path: Path, names: list[str], seconds: float) -> None:
    journal = Journal(path, lease=1.0)
    journal.begin({}, [Trial(name, {}) for name in names])
    while True:
        trial = journal.claim()
        if trial is None:
            if not journal.busy():
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


# --- the grid -----------------------------------------------------------------------------------------------------


def test_the_grid_is_every_combination_in_order() -> None:
    trials = grid({"method": ["x", "y"], "speedup": [3.0, 7.5], "seed": [0, 1]})
    assert [t.name for t in trials] == ["x-3-0", "x-3-1", "x-7.5-0", "x-7.5-1", "y-3-0", "y-3-1", "y-7.5-0", "y-7.5-1"]
    assert trials[2].settings == {"method": "x", "speedup": 7.5, "seed": 0}
    assert [t.name for t in grid({"method": ["x:a=1e-3:b=../y"]})] == ["x,a=1e-3,b=..,y"]
