"""Trials that Optuna chooses, shared by workers through any storage it supports. Optuna is imported when it is asked.

A point of the search is one Optuna trial: settings, trained with every seed; its values are the means. Optuna's journal
file knows no heartbeat, so the lease is our own: each worker writes signs of life into its trial, and one that stays
silent is failed and put back under its name for the next worker that asks. A storage lets a trial end only once, so
that of two workers that think it theirs, one result counts.
"""

from __future__ import annotations

import json
import math
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lcnn_analyze.study import LEASE, State, Trial, check_same, signs_of_life, worker_name
from lcnn_core import ConfigError, TrainingError

OBJECTIVES = {"speedup": "maximize", "validation": "maximize"}
"""What is traded: counted speedup against accuracy on validation images, by their names in a trial's result."""
SURPLUS = "surplus"
"""Marks an Optuna trial that two workers asked for at once, beyond the search's count: it is none of the search's."""


@dataclass(frozen=True)
class Axis:
    """A setting that is searched: one of ``choices``, or a number from ``low`` to ``high``, on a log scale above 0."""

    name: str
    choices: tuple[str, ...] = ()
    low: float = 0.0
    high: float = 0.0

    def suggest(self, trial: Any, whole: bool) -> str | int | float:
        if self.choices:
            return trial.suggest_categorical(self.name, self.choices)
        if whole:
            return trial.suggest_int(self.name, math.ceil(self.low), math.floor(self.high), log=self.low > 0)
        return float(f"{trial.suggest_float(self.name, self.low, self.high, log=self.low > 0):.4g}")


def axes(text: str) -> list[Axis]:
    """``lr=0.01..0.1,forms=mixed|lookup`` as axes. Raises ConfigError for anything else."""
    found = []
    for part in filter(None, map(str.strip, text.split(","))):
        name, _, values = part.partition("=")
        low, dots, high = values.partition("..")
        try:
            axis = Axis(name, (), float(low), float(high)) if dots else Axis(name, tuple(values.split("|")))
        except ValueError:
            axis = Axis("")
        if not axis.name or not (len(axis.choices) > 1 or -math.inf < axis.low < axis.high < math.inf):
            raise ConfigError(f"vary is {part!r}; expected NAME=LOW..HIGH or NAME=A|B, such as lr=0.01..0.1")
        found.append(axis)
    return found


@dataclass(frozen=True)
class Space:
    """What Optuna may choose from.

    whole: (method, name of an axis) -> whether its numbers are whole ones, None where the method has no such setting.
    """

    methods: Sequence[str]
    speedups: tuple[float, float]
    axes: Sequence[Axis]
    whole: Callable[[str, str], bool | None]

    def settings(self, trial: Any) -> dict[str, Any]:
        """Ask Optuna for the settings of one trial."""
        method = trial.suggest_categorical("method", list(self.methods)) if len(self.methods) > 1 else self.methods[0]
        low, high = self.speedups
        speedup = Axis("speedup", (), low, high).suggest(trial, False) if low < high else low
        known = [(axis, self.whole(method, axis.name)) for axis in self.axes]
        chosen = [f"{a.name}={a.suggest(trial, whole)}" for a, whole in known if whole is not None]
        return {"speedup": speedup, "method": ":".join([method, *chosen])}


@dataclass
class _Point:
    """The Optuna trial that this worker has, and the seeds that are still to be trained."""

    trial: Any
    name: str
    settings: dict[str, Any]
    seeds: list[int]
    results: list[Mapping[str, Any]] = field(default_factory=list)


class Search:
    """An Optuna study, opened by one worker: a ``Source`` of up to ``count`` points, each with every seed.

    storage: a database URL; None for ``optuna.log`` in ``folder``. kept: the result of a trial that was made in this
    folder already, by its name; what a database that was away could not be told is told when the study is opened.
    Raises ConfigError without Optuna, for a URL that it cannot use, and where the study has other settings;
    TrainingError whenever the storage is away.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        storage: str | None,
        settings: Mapping[str, Any],
        space: Space,
        seeds: Sequence[int],
        count: int,
        kept: Callable[[str], Mapping[str, Any] | None],
        lease: float = LEASE,
    ) -> None:
        self.optuna = import_optuna()
        self.folder, self.space, self.seeds, self.count, self.lease = folder, space, list(seeds), count, lease
        self.storage, self.worker = storage, worker_name()
        self.point: _Point | None = None
        with self._reachable():
            self.study = self._open(name)
            plain = json.loads(json.dumps(settings))
            old = self.study.user_attrs.get("settings")
            if old is None:
                self.study.set_user_attr("settings", plain)
            check_same(f"the study {name!r}", old or plain, plain, "choose another --study")
            self._deliver(kept)

    def _open(self, name: str) -> Any:
        from sqlalchemy.exc import ArgumentError

        storages = self.optuna.storages
        try:
            if self.storage is None:
                self.folder.mkdir(parents=True, exist_ok=True)
                path = str(self.folder / "optuna.log")
                storage: Any = storages.JournalStorage(storages.journal.JournalFileBackend(path, _Lock(path)))
            else:
                storage = storages.RDBStorage(self.storage)
        except (ImportError, ValueError, ArgumentError) as error:  # which knows no such database, too
            raise ConfigError(f"storage is {self._shown()!r}, which Optuna cannot use: {_line(error)}") from error
        directions = list(OBJECTIVES.values())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", self.optuna.exceptions.ExperimentalWarning)  # which it is up to 4.5
            sampler = self.optuna.samplers.TPESampler(constant_liar=True)  # workers keep off what others are at
        return self.optuna.create_study(
            storage=storage, study_name=name, directions=directions, load_if_exists=True, sampler=sampler
        )

    def claim(self) -> Trial | None:
        with self._reachable():
            while self.point is None:
                self._free_silent()
                trials = self._trials()
                waiting = any(trial.state.name == "WAITING" for trial in trials)
                if len({_name(trial) for trial in trials}) >= self.count and not waiting:
                    return None
                self.point = self._asked()
        return Trial(f"{self.point.seeds[0]}-{self.point.name}", {"seed": self.point.seeds[0], **self.point.settings})

    def busy(self) -> bool:
        with self._reachable():
            return any(trial.state.name in ("RUNNING", "WAITING") for trial in self._trials())

    def alive(self, trial: Trial) -> AbstractContextManager[threading.Event]:
        assert self.point is not None
        return signs_of_life(lambda point=self.point: self._beat(point), self.lease)  # type: ignore[misc]

    def finish(self, trial: Trial, result: Mapping[str, Any]) -> bool:
        point = self.point
        assert point is not None
        point.results.append(result)
        point.seeds.pop(0)
        if point.seeds:
            return self._beat(point)
        self.point = None
        with self._reachable():
            return self._finished(point.trial, point.results)

    def fail(self, trial: Trial, reason: str) -> bool:
        point, self.point = self.point, None
        assert point is not None
        with self._reachable():
            return self._set(point.trial, "reason", reason) and self._tell(point.trial.number, None)

    def release(self, trial: Trial) -> bool:
        point, self.point = self.point, None
        assert point is not None
        with self._reachable():
            return self._free(point.trial)

    def ended(self) -> list[tuple[Trial, State]]:
        with self._reachable():
            trials = {_name(trial): trial for trial in self._trials()}
        found = []
        for name, trial in sorted(trials.items()):
            for place, seed in enumerate(self.seeds):
                settings = {"seed": seed, **trial.user_attrs.get("chosen", {})}
                if "method" in settings:
                    found.append((Trial(f"{seed}-{name}", settings), _state(trial, place)))
        return found

    def reopen_failed(self) -> None:
        """Let points that failed be claimed again."""
        with self._reachable():
            for trial in self._trials():
                if trial.state.name == "FAIL":
                    self._put_back(trial)

    def _trials(self) -> list[Any]:
        """Optuna's trials, one a point: that which is under way or done, else the last that failed."""
        found: dict[str, Any] = {}
        for trial in self.study.get_trials(deepcopy=False):
            before = found.get(_name(trial))
            if SURPLUS not in trial.user_attrs and (before is None or before.state.name == "FAIL"):
                found[_name(trial)] = trial
        return [*found.values()]

    def _asked(self) -> _Point | None:
        """A new point or one that was put back; None where other workers were quicker, or took this one for silent."""
        trial = self.study.ask()
        with suppress(self.optuna.exceptions.UpdateFinishedTrialError):
            return self._point(trial)
        return None

    def _point(self, trial: Any) -> _Point | None:
        before = {_name(other) for other in self._trials() if other.number < trial.number}
        name = trial.user_attrs.get("name")
        if name in before or (name is None and len(before) >= self.count):
            trial.set_user_attr(SURPLUS, True)
            self._tell(trial.number, None)
            return None
        trial.set_user_attr("seen", time.time())
        settings = trial.user_attrs.get("chosen") or self.space.settings(trial)
        name = name or _name(trial)
        for key, value in (("name", name), ("chosen", settings), ("worker", self.worker)):
            trial.set_user_attr(key, value)
        return _Point(trial, name, settings, [*self.seeds])

    def _free_silent(self) -> None:
        """Put back the points of workers that fell silent, and of any that was killed while it did this."""
        for trial in self._trials():
            if trial.state.name == "RUNNING" and time.time() - _seen(trial) > self.lease:
                self._free(trial)
            elif trial.state.name == "FAIL" and "reason" not in trial.user_attrs:
                self._put_back(trial)

    def _free(self, trial: Any) -> bool:
        """Fail a running trial and put its point back; False, and nothing is put back, where it has ended."""
        if not self._tell(trial.number, None):
            return False
        self._put_back(trial)
        return True

    def _put_back(self, trial: Any) -> None:
        kept = {key: value for key, value in trial.user_attrs.items() if key == "chosen"}
        self.study.enqueue_trial(trial.params, user_attrs={"name": _name(trial), **kept})

    def _deliver(self, kept: Callable[[str], Mapping[str, Any] | None]) -> None:
        """Tell the study what was finished in this folder while it could not be told."""
        for trial in self._trials():
            if trial.state.name == "RUNNING":
                results = [kept(f"{seed}-{_name(trial)}") for seed in self.seeds]
                if None not in results:
                    self._finished(self.optuna.trial.Trial(self.study, trial._trial_id), results)

    def _finished(self, trial: Any, results: Sequence[Any]) -> bool:
        values = [sum(result[name] for result in results) / len(results) for name in OBJECTIVES]
        return self._set(trial, "results", [dict(result) for result in results]) and self._tell(trial.number, values)

    def _tell(self, number: int, values: Sequence[float] | None) -> bool:
        """End a trial, failed without values; False where it had ended already."""
        state = self.optuna.trial.TrialState
        with suppress(self.optuna.exceptions.UpdateFinishedTrialError, ValueError):
            self.study.tell(number, values, state=state.FAIL if values is None else state.COMPLETE)
            return True
        return False

    def _set(self, trial: Any, name: str, value: Any) -> bool:
        """Write down something about a running trial; False where it has ended."""
        with suppress(self.optuna.exceptions.UpdateFinishedTrialError):
            trial.set_user_attr(name, value)
            return True
        return False

    def _beat(self, point: _Point) -> bool:
        with self._reachable():
            return self._set(point.trial, "seen", time.time())

    @contextmanager
    def _reachable(self) -> Iterator[None]:
        """Errors of the storage as one line."""
        from sqlalchemy.exc import SQLAlchemyError

        try:
            yield
        except (self.optuna.exceptions.StorageInternalError, SQLAlchemyError, OSError) as error:
            raise TrainingError(
                f"the study's storage {self._shown()} is away: {_line(error.__cause__ or error)}; what was trained is "
                f"kept in {self.folder / 'trials'}; run the same command again when the storage is back"
            ) from error

    def _shown(self) -> str:
        """The storage without a password."""
        if self.storage is None:
            return str(self.folder / "optuna.log")
        from sqlalchemy.engine import make_url
        from sqlalchemy.exc import ArgumentError

        try:
            return make_url(self.storage).render_as_string(hide_password=True)
        except ArgumentError:
            return self.storage.partition(":")[0] + ":..."


class _Lock:
    """Of Optuna's journal file, in the place of its own, which a killed process leaves locked for half a minute."""

    def __init__(self, path: str) -> None:
        self.path, self.held = f"{path}.lock", threading.local()

    def acquire(self) -> bool:
        import fcntl

        self.held.file = open(self.path, "ab")  # noqa: SIM115
        fcntl.flock(self.held.file, fcntl.LOCK_EX)
        return True

    def release(self) -> None:
        self.held.file.close()


def import_optuna() -> Any:
    """The package, quiet. Raises ConfigError where it is not installed."""
    try:
        import optuna
    except ImportError:
        raise ConfigError(
            "--trials needs Optuna, which is not installed: pip install 'lcnn[sweep]'; or leave it out for the grid"
        ) from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _name(trial: Any) -> str:
    return trial.user_attrs.get("name", f"{trial.number:03d}")


def _seen(trial: Any) -> float:
    return trial.user_attrs.get("seen") or trial.datetime_start.timestamp()


def _state(trial: Any, place: int) -> State:
    """How one seed of an Optuna trial stands."""
    attributes, seen = trial.user_attrs, trial.user_attrs.get("seen", 0.0)
    match trial.state.name:
        case "COMPLETE":
            return State("done", attributes["worker"], seen, attributes["results"][place])
        case "FAIL":
            return State("failed", attributes.get("worker", ""), seen, reason=attributes.get("reason", "unknown"))
        case "RUNNING":
            return State("running", attributes.get("worker", ""), seen)
    return State()


def _line(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
