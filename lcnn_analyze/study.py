"""A study: many trials shared by worker processes through one append-only journal. Standard library only.

The journal holds one JSON object a line: what the study is, which worker claimed which trial when, signs of life, and
how trials ended. Its state is what its lines say, read in order; lines are added under an exclusive lock. A worker that
falls silent for longer than the lease loses its trial to the next one that asks; what it still says about it is not
written. So every trial ends once, and none is lost. Times are the machines' own: of those that share a study, the
clocks must agree to within the lease.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from lcnn_core import ConfigError, DataError, LcnnError

LEASE = 60.0
"""Seconds of silence after which a worker's trial is given to another; more than clocks of machines differ by."""
LEFT = ("waiting", "running")
"""How a trial stands that has not ended."""
PLACES = ("dense",)
"""Settings that only say where a thing lies which another one identifies: from elsewhere it is the same study."""


def worker_name() -> str:
    """This process among all that may share a study."""
    return f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(3)}"


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
    """Every combination of the axes' values, the last axis fastest; named by them, such as ``0-10-pruning``.

    Names are those of folders: what a shell or another system could misread becomes a comma.
    """
    combinations: list[dict[str, Any]] = [{}]
    for name, values in axes.items():
        combinations = [{**settings, name: value} for settings in combinations for value in values]
    named = ["-".join(f"{v:g}" if isinstance(v, float) else str(v) for v in c.values()) for c in combinations]
    return [Trial(re.sub(r"[^\w.=+-]", ",", name), c) for name, c in zip(named, combinations, strict=True)]


class Source(Protocol):
    """Where a worker's trials come from, and where it says how they ended."""

    def claim(self) -> Trial | None:
        """The next trial, now this worker's; None where there is none to be had."""

    def busy(self) -> bool:
        """Whether trials are left that may yet fall to this worker: another's, or one given back meanwhile."""

    def alive(self, trial: Trial) -> AbstractContextManager[threading.Event]:
        """Signs of life while the block runs; the event is set when the trial was lost to another worker."""

    def finish(self, trial: Trial, result: Mapping[str, Any]) -> bool:
        """Write down how the trial ended; False, and nothing is written, where it is no longer this worker's."""

    def fail(self, trial: Trial, reason: str) -> bool:
        """Write down why the trial failed, as ``finish`` does."""

    def release(self, trial: Trial) -> bool:
        """Give the trial back unfinished, for the next worker that asks."""

    def reopen_failed(self) -> None:
        """Let trials that failed be claimed again."""

    def ended(self) -> list[tuple[Trial, State]]:
        """How every trial of the study stands, in the order in which they were asked for."""


@contextmanager
def signs_of_life(beat: Callable[[], bool], lease: float) -> Iterator[threading.Event]:
    """Call ``beat`` four times a lease while the block runs; the event is set, and it ends, when ``beat`` is False."""
    ended, lost = threading.Event(), threading.Event()

    def run() -> None:
        while not ended.wait(lease / 4):
            try:
                if not beat():
                    lost.set()
                    return
            except (OSError, LcnnError):  # a disk or a database away for a while: finish() will know
                continue

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield lost
    finally:
        ended.set()
        thread.join()


def check_same(what: str, old: Mapping[str, Any], new: Mapping[str, Any], remedy: str) -> None:
    """Raise ConfigError, naming what differs, where a study of ``old`` settings is joined with ``new`` ones."""
    differ = [key for key in {**old, **new} if key not in PLACES and old.get(key) != new.get(key)]
    if differ:
        changed = "; ".join(f"{key} was {old.get(key)}, is now {new.get(key)}" for key in differ)
        raise ConfigError(f"{what} has other settings: {changed}; {remedy}")


class Journal:
    """The journal file of a study, opened by one worker: a ``Source`` of the trials that this worker asked for."""

    def __init__(self, path: Path, lease: float = LEASE, clock: Callable[[], float] = time.time) -> None:
        self.path, self.lease, self.clock = path, lease, clock
        self.worker = worker_name()
        self.own: list[Trial] = []

    def begin(self, settings: Mapping[str, Any], trials: Sequence[Trial]) -> None:
        """Start the study, or join it, and ask for these trials.

        Raises ConfigError, naming what differs, where the study has other settings.
        """
        plain = json.loads(json.dumps(settings))
        with self._locked() as (file, lines):
            if not lines:
                self._append(file, {"event": "study", "settings": plain})
            old = lines[0].get("settings", {}) if lines else plain
            check_same(f"the study in {self.path.parent}", old, plain, "choose another -o")
            self._ask(file, lines, trials)
        self.own = list(trials)

    def adopt(self, done: Sequence[tuple[Trial, Mapping[str, Any]]]) -> None:
        """Take over trials that were finished elsewhere; what was asked for here and is under way or done stays.

        Raises ConfigError where a trial's name stands for other settings here.
        """
        with self._locked() as (file, lines):
            trials = [trial for trial, _ in done]
            self._ask(file, lines, trials)
            states = _replayed(lines, trials)
            for trial, result in done:
                state = states[trial.name]
                if state.status in ("waiting", "failed") or self._silent(state):
                    state.status = "done"
                    self._append(file, {"event": "done", **self._mark(trial), "result": dict(result)})

    def _ask(self, file: BinaryIO, lines: Sequence[Mapping[str, Any]], trials: Sequence[Trial]) -> None:
        known = {trial.name: trial.settings for trial in _asked(lines)}
        for trial in trials:
            given = json.loads(json.dumps(dict(trial.settings)))
            check_same(f"the trial {trial.name} in {self.path.parent}", known.get(trial.name, given), given,
                       "choose another -o")  # fmt: skip
            if trial.name not in known:
                known[trial.name] = given
                self._append(file, {"event": "asked", "trial": trial.name, "settings": given})

    def keep(self, networks: str | None) -> str:
        """Which networks the study keeps: what was said last, here or by another worker; the front's if nothing was."""
        with self._locked() as (file, lines):
            said = [line["networks"] for line in lines if line["event"] == "keep"]
            if networks is not None and networks != (said or [None])[-1]:
                self._append(file, {"event": "keep", "networks": networks})
        return networks or (said or ["front"])[-1]

    def ended(self) -> list[tuple[Trial, State]]:
        with self._locked() as (_, lines):
            known = _asked(lines)  # also what others have asked for since
            states = _replayed(lines, known)
        return [(trial, states[trial.name]) for trial in known]

    def busy(self) -> bool:
        with self._locked() as (_, lines):
            return any(state.status in LEFT for state in _replayed(lines, self.own).values())

    def claim(self) -> Trial | None:
        with self._locked() as (file, lines):
            states = _replayed(lines, self.own)
            for trial in self.own:
                state = states[trial.name]
                if state.status == "waiting" or self._silent(state):
                    self._append(file, {"event": "claimed", **self._mark(trial)})
                    return trial
        return None

    def _silent(self, state: State) -> bool:
        """Whether the lease of the worker that has a trial has ended."""
        return state.status == "running" and self.clock() - state.seen > self.lease

    def reopen_failed(self) -> None:
        """Let trials of this worker's that failed be claimed again."""
        with self._locked() as (file, lines):
            for trial in self.own:
                if _replayed(lines, [trial])[trial.name].status == "failed":
                    self._append(file, {"event": "released", **self._mark(trial)})

    def beat(self, trial: Trial) -> bool:
        """Say that this worker is alive; False where the trial is no longer its own."""
        return self._say(trial, "alive", {})

    def finish(self, trial: Trial, result: Mapping[str, Any]) -> bool:
        return self._say(trial, "done", {"result": dict(result)})

    def fail(self, trial: Trial, reason: str) -> bool:
        return self._say(trial, "failed", {"reason": reason})

    def release(self, trial: Trial) -> bool:
        return self._say(trial, "released", {})

    def alive(self, trial: Trial) -> AbstractContextManager[threading.Event]:
        return signs_of_life(lambda: self.beat(trial), self.lease)

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


def _asked(lines: Sequence[Mapping[str, Any]]) -> list[Trial]:
    """All trials that were ever asked for, in that order."""
    return [Trial(line["trial"], line["settings"]) for line in lines if line["event"] == "asked"]


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
