"""Optuna's trials shared by workers: kills, races, two machines, a database that goes away and comes back."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sqlite3
import sys
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import typer

from lcnn_analyze.cli.app import app
from lcnn_analyze.cli.errors import run
from lcnn_analyze.search import Search, Space, axes
from lcnn_core import Checkpoint, ConfigError, TrainingError, build, save

optuna = pytest.importorskip("optuna")

RESULT = {"speedup": 4.0, "validation": 0.9}


def kept_in(folder: Path, name: str) -> Mapping[str, Any] | None:
    path = folder / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def opened(folder: Path, count: int = 3, **values: Any) -> Search:
    space = Space(["a", "b"], (3.0, 30.0), axes("lr=0.01..0.1"), lambda method, key: False if method == "a" else None)
    chosen = {"name": "s", "storage": None, "settings": {"epochs": 3}, "space": space, "seeds": [0], "count": count}
    return Search(folder, **{**chosen, "kept": lambda name: kept_in(folder, name), "lease": 60.0, **values})


def told(search: Search) -> list[Any]:
    return [trial for trial in search.study.get_trials() if trial.state.name == "COMPLETE"]


def test_every_point_is_claimed_once_and_ends_once(tmp_path: Path) -> None:
    one, two = opened(tmp_path), opened(tmp_path)
    first, second = one.claim(), two.claim()
    assert first is not None
    assert second is not None
    assert one.finish(first, RESULT)
    third = one.claim()
    assert third is not None
    assert [first.name, second.name, third.name] == ["0-000", "0-001", "0-002"]
    assert two.fail(second, "a reason")
    assert two.claim() is None
    assert two.busy()
    assert one.finish(third, RESULT)
    assert not two.busy()
    assert one.claim() is None
    states = {trial.name: state for trial, state in two.ended()}
    assert [(s.status, s.reason) for s in states.values()] == [("done", ""), ("failed", "a reason"), ("done", "")]
    assert states["0-000"].result == RESULT
    for trial in (first, second, third):
        method, _, setting = trial.settings["method"].partition(":lr=")
        assert 3 <= trial.settings["speedup"] <= 30
        assert trial.settings["seed"] == 0
        assert (method, bool(setting)) in (("a", True), ("b", False))
        assert not setting or 0.01 <= float(setting) <= 0.1
    two.reopen_failed()
    again = two.claim()
    assert again == second
    assert two.finish(again, RESULT)
    assert [state.status for _, state in one.ended()] == ["done"] * 3


def test_a_point_is_trained_with_every_seed_and_told_the_means(tmp_path: Path) -> None:
    search = opened(tmp_path, 1, seeds=[3, 5])
    for seed, speedup, validation in ((3, 4.0, 0.8), (5, 6.0, 0.9)):
        trial = search.claim()
        assert trial is not None
        assert (trial.name, trial.settings["seed"]) == (f"{seed}-000", seed)
        assert search.finish(trial, {"speedup": speedup, "validation": validation})
    assert search.claim() is None
    assert [trial.values for trial in told(search)] == [[5.0, pytest.approx(0.85)]]
    assert [(t.name, s.result["speedup"]) for t, s in search.ended()] == [("3-000", 4.0), ("5-000", 6.0)]


def test_a_silent_worker_loses_its_point_which_keeps_its_name_and_settings(tmp_path: Path) -> None:
    one, two = opened(tmp_path, 1, lease=0.2), opened(tmp_path, 1, lease=0.2)
    first = one.claim()
    assert first is not None
    assert two.claim() is None
    time.sleep(0.3)
    assert two.claim() == first
    with one.alive(first) as lost:
        assert lost.wait(5)
    assert not one.finish(first, {"speedup": 1.0, "validation": 0.1})
    assert two.finish(first, RESULT)
    assert [trial.values for trial in told(one)] == [[4.0, 0.9]]
    assert [(trial.name, state.result) for trial, state in one.ended()] == [("0-000", RESULT)]


def test_a_point_given_back_is_the_next_ones(tmp_path: Path) -> None:
    one, two = opened(tmp_path, 1), opened(tmp_path, 1)
    first = one.claim()
    assert first is not None
    assert one.release(first)
    assert two.claim() == first


def test_of_two_workers_that_ask_at_once_for_the_last_point_one_gets_it(tmp_path: Path) -> None:
    one, two, again = (opened(tmp_path, 1) for _ in range(3))
    assert one._asked() is not None
    assert two._asked() is None
    assert [trial.name for trial, _ in two.ended()] == ["0-000"]
    for _ in range(2):  # two that found the same worker silent, each putting its point back
        again._put_back(again.study.get_trials()[0])
    again._tell(0, None)
    assert again._asked() is not None
    assert two._asked() is None
    assert len(two.ended()) == 1


def test_a_point_that_another_took_for_silent_while_it_was_claimed_is_claimed_again(tmp_path: Path) -> None:
    """On a slow machine more than the lease may pass between asking for a point and the first sign of life."""
    search = opened(tmp_path, 1)
    ask, asked = search.study.ask, []

    def slow() -> Any:
        asked.append(ask())
        if len(asked) == 1:
            search._free(next(t for t in search.study.get_trials() if t.number == asked[0].number))
        return asked[-1]

    search.study.ask = slow
    assert search.claim() is not None
    assert len(asked) == 2


def _take_all(folder: Path, storage: str | None, seconds: float) -> None:
    search = opened(folder, 8, storage=storage, lease=1.0)
    while True:
        trial = search.claim()
        if trial is None:
            if not search.busy():
                return
            time.sleep(0.05)
            continue
        with search.alive(trial):
            time.sleep(seconds)
        search.finish(trial, {**RESULT, "by": os.getpid()})


@pytest.mark.parametrize("database", [False, True], ids=["journal", "sqlite"])
def test_two_processes_share_one_is_killed_and_restarted_and_no_point_is_lost_or_done_twice(
    database: bool, tmp_path: Path
) -> None:
    storage = f"sqlite:///{tmp_path / 'study.db'}" if database else None
    opened(tmp_path, 8, storage=storage)
    context = multiprocessing.get_context("fork")
    stuck = context.Process(target=_take_all, args=(tmp_path, storage, 1000.0))
    stuck.start()
    watch = opened(tmp_path, 8, storage=storage)
    while not watch.ended():
        time.sleep(0.02)
    os.kill(stuck.pid or 0, signal.SIGKILL)
    stuck.join()
    workers = [context.Process(target=_take_all, args=(tmp_path, storage, 0.05)) for _ in range(2)]
    for process in workers:
        process.start()
    for process in workers:
        process.join(120)
        assert process.exitcode == 0
    ended = watch.ended()
    assert len({trial.name for trial, _ in ended}) == len(ended) == 8
    assert "0-000" in {trial.name for trial, _ in ended}
    assert {state.status for _, state in ended} == {"done"}
    assert Counter(trial.user_attrs["name"] for trial in told(watch)).most_common(1)[0][1] == 1
    assert stuck.pid not in {state.result["by"] for _, state in ended}


def test_machines_with_folders_of_their_own_share_a_database(tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path / 'study.db'}"
    one, two = (opened(tmp_path / name, 2, storage=storage) for name in ("one", "two"))
    for worker in (one, two):
        trial = worker.claim()
        assert trial is not None
        assert worker.finish(trial, RESULT)
    assert one.claim() is None
    assert one.ended() == two.ended()
    assert len(one.ended()) == 2


def test_a_database_that_goes_away_costs_no_result(tmp_path: Path) -> None:
    path = tmp_path / "study.db"
    search = opened(tmp_path, 2, storage=f"sqlite:///{path}?timeout=0.1")
    trial = search.claim()
    assert trial is not None
    away = sqlite3.connect(path)
    away.execute("BEGIN EXCLUSIVE")
    (tmp_path / f"{trial.name}.json").write_text(json.dumps(RESULT))  # as a worker does before it tells the study
    with pytest.raises(
        TrainingError,
        match=r"storage sqlite:///.*study.db.* is away: .*database is locked.*; what was trained is kept in .*trials; "
        r"run the same command again when the storage is back",
    ):
        search.finish(trial, RESULT)
    with pytest.raises(TrainingError, match="is away"):
        opened(tmp_path, 2, storage=f"sqlite:///{path}?timeout=0.1")
    away.rollback()
    again = opened(tmp_path, 2, storage=f"sqlite:///{path}")
    assert [(t.name, s.status, s.result) for t, s in again.ended()] == [("0-000", "done", RESULT)]


def test_a_search_with_other_settings_is_not_joined(tmp_path: Path) -> None:
    opened(tmp_path)
    with pytest.raises(
        ConfigError, match=r"the study 's' has other settings: epochs was 3, is now 4; lr was None, is now 0.1; choose"
    ):
        opened(tmp_path, settings={"epochs": 4, "lr": 0.1})


@pytest.mark.parametrize(
    ("storage", "message"),
    [
        ("nonsense", "storage is 'nonsense:...', which Optuna cannot use"),
        ("magic://me:secret@there/db", r"storage is 'magic://me:\*\*\*@there/db', which Optuna cannot use"),
    ],
)
def test_a_url_that_optuna_cannot_use_is_refused_without_its_password(
    storage: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        opened(tmp_path, storage=storage)
    assert "secret" not in str(caught.value)


def test_without_optuna_one_line_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ConfigError, match=r"--trials needs Optuna, .*: pip install 'lcnn\[sweep\]'; or leave it out"):
        opened(tmp_path)


def test_without_optuna_no_study_is_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The grid that the message advises is then free to use the folder."""
    save(tmp_path / "dense.pt", Checkpoint.from_model(build("digits-resnet"), architecture="digits-resnet"))
    monkeypatch.setitem(sys.modules, "optuna", None)
    arguments = ["spectrum", str(tmp_path / "dense.pt"), "--trials", "2", "-o", str(tmp_path / "s")]
    assert run("lcnn", typer.main.get_command(app), arguments) == 2
    assert not (tmp_path / "s" / "journal.jsonl").exists()


def test_axes_are_ranges_and_choices() -> None:
    lr, floor, forms = axes("lr=0.01..0.1, floor=0..1,forms=mixed|lookup")
    assert (lr.name, lr.low, lr.high, lr.choices) == ("lr", 0.01, 0.1, ())
    assert (floor.low, floor.high) == (0, 1)
    assert forms.choices == ("mixed", "lookup")
    assert axes("") == []
    for wrong in ("lr", "lr=", "lr=1", "lr=2..1", "lr=a..b", "=1..2", "lr=0..inf"):
        with pytest.raises(ConfigError, match=r"vary is .*expected NAME=LOW\.\.HIGH or NAME=A\|B"):
            axes(wrong)


def test_whole_numbers_stay_whole(tmp_path: Path) -> None:
    space = Space(["a"], (3.0, 3.0), axes("epochs=2..9"), lambda method, key: True)
    trial = opened(tmp_path, 1, space=space).claim()
    assert trial is not None
    method, _, epochs = trial.settings["method"].partition(":epochs=")
    assert (method, trial.settings["speedup"], int(epochs) in range(2, 10)) == ("a", 3.0, True)
