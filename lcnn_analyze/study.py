"""A study: many trials shared by worker processes through one append-only journal. Standard library only.

The journal holds one JSON object a line: what the study is, which worker claimed which trial when, signs of life, and
how trials ended. Its state is what its lines say, read in order; lines are added under an exclusive lock. A worker that
falls silent for longer than the lease loses its trial to the next one that asks; what it still says about it is not
written. So every trial ends once, and none is lost.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from lcnn_core import ConfigError, DataError

LEASE = 60.0
"""Seconds of silence after which a worker's trial is given to another."""


@dataclass(frozen=True)
class Trial:
    """One network to make: its name in the study and what it is made with, as plain data."""

    name: str
    settings: Mapping[str, Any]


@dataclass
class State:
    """What the journal says of one trial."""

    status: str = "waiting"
    """waiting, running, done or failed."""
    worker: str = ""
    seen: float = 0.0
    """Unix time of the last sign of life."""
    result: Mapping[str, Any] = field(default_factory=dict)
    reason: str = ""


def grid(axes: Mapping[str, Sequence[Any]]) -> list[Trial]:
    """Every combination of the axes' values, the last axis fastest; named by them, such as ``pruning-10-0``."""
    combinations: list[dict[str, Any]] = [{}]
    for name, values in axes.items():
        combinations = [{**settings, name: value} for settings in combinations for value in values]
    named = ["-".join(f"{v:g}" if isinstance(v, float) else str(v) for v in c.values()) for c in combinations]
    return [Trial(name, settings) for name, settings in zip(named, combinations, strict=True)]


class Journal:
    """The journal file of a study, opened by one worker."""

    def __init__(self, path: Path, lease: float = LEASE, clock: Callable[[], float] = time.time) -> None:
        self.path, self.lease, self.clock = path, lease, clock
        self.worker = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(3)}"

    def begin(self, settings: Mapping[str, Any], trials: Sequence[Trial]) -> list[Trial]:
        """Start the study, or join it, and ask for these trials; returns all that were ever asked for, in that order.

        Raises ConfigError, naming what differs, where the study has other settings.
        """
        plain = json.loads(json.dumps(settings))
        with self._locked() as (file, lines):
            if not lines:
                self._append(file, {"event": "study", "settings": plain})
            old = lines[0].get("settings", {}) if lines else plain
            differ = [key for key in {**old, **plain} if old.get(key) != plain.get(key)]
            if differ:
                changed = "; ".join(f"{key} was {old.get(key)}, is now {plain.get(key)}" for key in differ)
                raise ConfigError(f"the study in {self.path.parent} has other settings: {changed}; choose another -o")
            known = {line["trial"]: line["settings"] for line in lines if line["event"] == "asked"}
            for trial in trials:
                if trial.name not in known:
                    known[trial.name] = dict(trial.settings)
                    self._append(file, {"event": "asked", "trial": trial.name, "settings": known[trial.name]})
        return [Trial(name, found) for name, found in known.items()]

    def states(self, trials: Sequence[Trial]) -> dict[str, State]:
        """How each trial stands."""
        with self._locked() as (_, lines):
            return _replayed(lines, trials)

    def claim(self, trials: Sequence[Trial]) -> Trial | None:
        """The next trial that nobody works on, now this worker's; None where there is none."""
        with self._locked() as (file, lines):
            states = _replayed(lines, trials)
            for trial in trials:
                state = states[trial.name]
                silent = state.status == "running" and self.clock() - state.seen > self.lease
                if state.status == "waiting" or silent:
                    self._append(file, {"event": "claimed", **self._mark(trial)})
                    return trial
        return None

    def reopen_failed(self, trials: Sequence[Trial]) -> None:
        """Let trials that failed be claimed again."""
        with self._locked() as (file, lines):
            for trial in trials:
                if _replayed(lines, [trial])[trial.name].status == "failed":
                    self._append(file, {"event": "released", **self._mark(trial)})

    def beat(self, trial: Trial) -> bool:
        """Say that this worker is alive; False where the trial is no longer its own."""
        return self._say(trial, "alive", {})

    def finish(self, trial: Trial, result: Mapping[str, Any]) -> bool:
        """Write down how the trial ended; False, and nothing is written, where it is no longer this worker's."""
        return self._say(trial, "done", {"result": dict(result)})

    def fail(self, trial: Trial, reason: str) -> bool:
        """Write down why the trial failed, as ``finish`` does."""
        return self._say(trial, "failed", {"reason": reason})

    def release(self, trial: Trial) -> bool:
        """Give the trial back unfinished, for the next worker that asks."""
        return self._say(trial, "released", {})

    @contextmanager
    def alive(self, trial: Trial) -> Iterator[threading.Event]:
        """Signs of life, four to a lease, while the block runs; the event is set when the trial was lost to another."""
        ended, lost = threading.Event(), threading.Event()

        def run() -> None:
            while not ended.wait(self.lease / 4):
                try:
                    if not self.beat(trial):
                        lost.set()
                        return
                except OSError:  # a disk away for a while: the lease may run out, and finish() will know
                    continue

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        try:
            yield lost
        finally:
            ended.set()
            thread.join()

    def _say(self, trial: Trial, event: str, fields: Mapping[str, Any]) -> bool:
        with self._locked() as (file, lines):
            state = _replayed(lines, [trial])[trial.name]
            if state.status != "running" or state.worker != self.worker:
                return False
            self._append(file, {"event": event, **self._mark(trial), **fields})
        return True

    def _mark(self, trial: Trial) -> dict[str, Any]:
        return {"trial": trial.name, "worker": self.worker, "time": self.clock()}

    @contextmanager
    def _locked(self) -> Iterator[tuple[BinaryIO, list[dict[str, Any]]]]:
        """The file, held by this process alone, and its whole lines; half a line at its end, of a kill, is cut off."""
        import fcntl

        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            file = self.path.open("a+b")
        except OSError as error:
            raise OSError(
                error.errno, f"cannot write {str(self.path)!r}: {error.strerror}; choose another -o"
            ) from error
        with file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            content = file.read()
            whole = content.rfind(b"\n") + 1
            if whole < len(content):
                file.truncate(whole)
            yield file, [self._parsed(n, line) for n, line in enumerate(content[:whole].splitlines(), 1)]

    def _parsed(self, number: int, line: bytes) -> dict[str, Any]:
        try:
            found = json.loads(line)
        except ValueError:
            found = None
        if not isinstance(found, dict) or "event" not in found:
            raise DataError(f"{self.path}, line {number} is no journal entry; put the file back, or choose another -o")
        return found

    def _append(self, file: BinaryIO, entry: Mapping[str, Any]) -> None:
        file.write(json.dumps(entry).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def _replayed(lines: Sequence[Mapping[str, Any]], trials: Sequence[Trial]) -> dict[str, State]:
    states = {trial.name: State() for trial in trials}
    for line in lines:
        state = states.get(line.get("trial", ""))
        if state is None:
            continue
        match line["event"]:
            case "claimed":
                state.status, state.worker, state.seen = "running", line["worker"], line["time"]
            case "alive":
                state.seen = line["time"]
            case "released":
                state.status, state.reason = "waiting", ""
            case "done":
                state.status, state.result = "done", line["result"]
            case "failed":
                state.status, state.reason = "failed", line["reason"]
    return states


@dataclass(frozen=True)
class Mean:
    """One method at one target, over its seeds."""

    method: str
    target: float
    speedup: float
    """Counted, mean."""
    accuracy: float
    """Top-1 on test images in percent, mean."""
    error: float | None
    """Its standard error in percent; None with one seed."""
    seeds: tuple[int, ...]
    front: bool = False
    latency: float | None = None
    """Seconds an image takes in the engine, mean, where it was measured."""


def means(results: Sequence[tuple[Trial, State]]) -> list[Mean]:
    """What finished trials say, seeds together, by method and target; those on the Pareto front are marked."""
    groups: dict[tuple[str, float], list[tuple[int, Mapping[str, Any]]]] = {}
    for trial, state in results:
        if state.status == "done":
            key = (trial.settings["method"], trial.settings["speedup"])
            groups.setdefault(key, []).append((trial.settings["seed"], state.result))
    found = [_mean(*key, members) for key, members in groups.items()]
    return [Mean(**{**vars(point), "front": not any(_beats(other, point) for other in found)}) for point in found]


def _mean(method: str, target: float, members: Sequence[tuple[int, Mapping[str, Any]]]) -> Mean:
    accuracies = [100 * result["top1"] for _, result in members]
    count, mean = len(members), sum(accuracies) / len(members)
    spread = sum((value - mean) ** 2 for value in accuracies)
    error = (spread / (count - 1) / count) ** 0.5 if count > 1 else None
    speedup = sum(result["speedup"] for _, result in members) / count
    timed = [result["latency"] for _, result in members if result.get("latency") is not None]
    latency = sum(timed) / len(timed) if timed else None
    return Mean(method, target, speedup, mean, error, tuple(seed for seed, _ in members), latency=latency)


def _beats(other: Mean, point: Mean) -> bool:
    at_least = other.speedup >= point.speedup and other.accuracy >= point.accuracy
    return at_least and (other.speedup, other.accuracy) != (point.speedup, point.accuracy)
