"""What a worker of ``lcnn spectrum`` does: take a trial, make the network, measure it once, write the result down."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lcnn_analyze.cli.recipes import config_of, whole
from lcnn_analyze.comparison import packed
from lcnn_analyze.search import Axis, Search, Space, axes, import_optuna
from lcnn_analyze.study import PLACES, Journal, Source, Trial, grid
from lcnn_core import METHODS, ConfigError, Event, StateReached, atomic_write

if TYPE_CHECKING:
    from torch import nn

    from lcnn_core import Dataset

POLL = 2.0
"""Seconds between two looks at a study in which all trials are taken."""
GIVEN = ("epochs", "batch_size", "lr")
"""Settings of the study that are handed to every method."""


@dataclass(frozen=True)
class Plan:
    """What a study is, and which of its trials this command asks for.

    settings: what makes the study the same study. points: None for the grid of recipes, speedups and seeds; else how
    many settings Optuna chooses among the recipes, the range of the speedups and what ``vary`` says, each trained with
    every seed.
    """

    folder: Path
    settings: Mapping[str, Any]
    recipes: Sequence[str]
    speedups: Sequence[float]
    seeds: Sequence[int]
    points: int | None = None
    vary: str = ""
    storage: str | None = None
    study: str = "lcnn-spectrum"

    def check(self) -> None:
        """Raise ConfigError for axes without values, and for settings that a method refuses."""
        named = {"methods": self.recipes, "speedups": self.speedups, "seeds": self.seeds}
        for name, values in named.items():
            if not values or len(set(values)) < len(values):
                raise ConfigError(f"{name} are {list(values)}; expected one or more, each once")
        for recipe in self.recipes:
            for speedup in self.speedups:
                config_of(recipe, speedup, self.seeds[0], self.given)
        for axis in axes(self.vary):
            kinds = {whole(recipe, axis.name) for recipe in self.recipes} - {None}
            if not kinds or axis.name in ("speedup", "seed"):
                raise ConfigError(f"vary names {axis.name!r}, a setting of none of {', '.join(self.recipes)}")
            if True in kinds and not axis.choices and math.ceil(axis.low) > math.floor(axis.high):
                raise ConfigError(
                    f"vary is {axis.name}={axis.low:g}..{axis.high:g}; expected a whole number in between"
                )
            self._try(axis)
        if self.points:
            import_optuna()
        names = [trial.name for trial in self.trials]
        if len(set(names)) < len(names):
            raise ConfigError(f"methods are {list(self.recipes)}; two of them have the same folder name, choose others")

    def _try(self, axis: Axis) -> None:
        """Raise ConfigError where a method refuses an end of the axis, or one of its choices."""
        for recipe in self.recipes:
            kind = whole(recipe, axis.name)
            ends = (math.ceil(axis.low), math.floor(axis.high)) if kind else (axis.low, axis.high)
            for value in () if kind is None else axis.choices or ends:
                config_of(f"{recipe}:{axis.name}={value}", self.speedups[0], self.seeds[0], self.given)

    @property
    def given(self) -> dict[str, Any]:
        """Settings of every trial's method."""
        return {key: self.settings[key] for key in GIVEN if self.settings.get(key) is not None}

    @property
    def identity(self) -> dict[str, Any]:
        """What makes results this study's, as JSON holds it."""
        search = {"search": self.study} if self.points else {}
        return json.loads(json.dumps(_without_places({**self.settings, **search})))

    @property
    def trials(self) -> list[Trial]:
        """The grid, seeds outermost; what trains nothing is seed 0's, whichever are asked for. Empty where Optuna
        chooses."""
        axes = {"seed": self.seeds, "speedup": self.speedups, "method": self.recipes}
        asked = [] if self.points else grid(axes)
        asked = [trial if _method(trial).trained else _of_seed_0(trial) for trial in asked]
        return list({trial.name: trial for trial in asked}.values())

    @property
    def total(self) -> int | None:
        """Trials that a search comes to; those of a grid are counted as they are asked for."""
        return self.points and self.points * len(self.seeds)

    @property
    def journal(self) -> Journal:
        """The file in which the study's settings stand, and those of its trials that are of a grid."""
        return Journal(self.folder / "journal.jsonl")

    def open(self, done: Sequence[tuple[Trial, Mapping[str, Any]]] = (), ask: bool = True) -> Source:
        """Start the study, or join it. Raises ConfigError, naming what differs, where it has other settings.

        done: trials of the grid that were finished elsewhere, and what they came to. ask: False for one who only looks
        at what others have asked for.
        """
        journal = self.journal
        if not ask and not done and not journal.path.exists():
            raise ConfigError(f"{self.folder} holds no study to report; choose the -o that it was made with")
        if self.points is None:
            journal.begin(self.settings, self.trials if ask else [])
            journal.adopt(done)
            return journal
        journal.begin(self.settings, [])
        space = Space(self.recipes, (min(self.speedups), max(self.speedups)), axes(self.vary), whole)
        kept = partial(kept_result, self.folder, self.identity)
        return Search(self.folder, self.study, self.storage, self.settings, space, self.seeds, self.points, kept)


def work(plan: Plan, source: Source, quiet: bool = True, on_end: Callable[[], object] = lambda: None) -> None:
    """Take trials until all have ended, waiting for those of other workers, whose leases may run out.

    on_end: called after each trial of this worker's.
    """
    import torch

    torch.set_num_threads(1)  # workers are the parallelism, and one thread gives the same bits on every machine
    subject: tuple[nn.Module, Dataset] | None = None
    while True:
        trial = source.claim()
        if trial is None:
            if not source.busy():
                return
            time.sleep(POLL)
            continue
        subject = subject or load_subject(plan.settings)
        try:
            with source.alive(trial) as lost:
                result = _result(plan, trial, *subject, lost.is_set, quiet)
        except _Lost:
            source.release(trial)
            continue
        except Exception as error:
            if isinstance(error, OSError):  # of this machine, not of the trial: another worker may fare better
                source.release(trial)
                raise
            source.fail(trial, f"{type(error).__name__}: {error}".splitlines()[0])
        except BaseException:
            source.release(trial)
            raise
        else:
            source.finish(trial, result)
        on_end()


class _Lost(Exception):
    """The trial went to another worker; what this one has of it is dropped."""


def _method(trial: Trial) -> Any:
    """The trial's entry in ``METHODS``."""
    return METHODS[trial.settings["method"].partition(":")[0]]


def _of_seed_0(trial: Trial) -> Trial:
    (alike,) = grid({name: [value] for name, value in {**trial.settings, "seed": 0}.items()})
    return alike


def load_subject(settings: Mapping[str, Any]) -> tuple[nn.Module, Dataset]:
    """The dense network and its data. Raises ConfigError where the one does not fit the other."""
    from lcnn_analyze.cli.train_job import check_fit, data_options
    from lcnn_core import checkpoint, load_dataset

    loaded = checkpoint.load(settings["dense"])
    options = data_options({}, settings["data"], loaded.input_shape[-1])
    dataset = load_dataset(settings["data"], loaded.normalization, options)
    check_fit(loaded, dataset, Path(settings["dense"]))
    return loaded.build(), dataset


def _without_places(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key not in PLACES}


def kept_result(folder: Path, identity: Mapping[str, Any], name: str) -> dict[str, Any] | None:
    """What a trial of this name came to in this folder, if it was finished here in the study of this identity."""
    path = folder / "trials" / name / "result.json"
    if not path.exists() or _without_places(_origin(path.parent).get("study", identity)) != identity:
        return None
    return json.loads(path.read_text())


def _origin(folder: Path) -> dict[str, Any]:
    """Which study and settings what lies in a trial's folder is of; nothing where it is new."""
    path = folder / "trial.json"
    return json.loads(path.read_text()) if path.exists() else {}


def _own_folder(plan: Plan, trial: Trial) -> Path:
    """The trial's folder, marked as this trial's. Raises ConfigError where it holds something else's."""
    folder = plan.folder / "trials" / trial.name
    own = json.loads(json.dumps({"trial": dict(trial.settings), "study": plan.identity}))
    found = _origin(folder)
    if found and {**found, "study": _without_places(found.get("study", {}))} != own:
        raise ConfigError(f"{folder} is of another study, or was made with other settings; choose another -o")
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(folder / "trial.json") as file:
        file.write(json.dumps(own).encode())
    return folder


def _result(
    plan: Plan, trial: Trial, dense: nn.Module, dataset: Dataset, lost: Callable[[], bool], quiet: bool
) -> dict[str, Any]:
    """Make the trial's network, going on from a state that another worker left; measure and save it.

    The result is in the trial's folder before the study hears of it: a kill or a lost database costs nothing.
    """
    from lcnn_analyze.cli.progress import progress
    from lcnn_core import counted_speedup, describe, save_state, total_macs

    folder = _own_folder(plan, trial)
    saved, clock = folder / "state.pt", folder / "seconds.json"
    state = _state_left(saved)
    kept = kept_result(plan.folder, plan.identity, trial.name)
    if kept is not None:
        return kept
    before = json.loads(clock.read_text()) if state is not None and clock.exists() else 0.0
    started = time.perf_counter()
    with progress(trial.name, quiet) as show:

        def listen(event: Event) -> None:
            show(event)
            if lost():
                raise _Lost
            if isinstance(event, StateReached):
                save_state(saved, event.state)
                with atomic_write(clock) as file:
                    file.write(json.dumps(before + time.perf_counter() - started).encode())

        recipe, speedup, seed = (trial.settings[key] for key in ("method", "speedup", "seed"))
        config = config_of(recipe, float(speedup), seed, plan.given)
        model, _ = _method(trial).compress(dense, dataset, config, listen, state)
    seconds = before + time.perf_counter() - started
    timed = _latency(model, dense, dataset) if plan.settings["measure"] else None
    dense_macs = total_macs(describe(dense, dataset.input_shape).layers)
    speedup = counted_speedup(describe(model, dataset.input_shape).layers, dense_macs)
    measured = {**accuracies(model, dataset), "speedup": speedup, "latency": timed}
    result = {**measured, "seconds": seconds, "machine": machine()}
    _save(folder, model, dense, trial, plan.settings, dataset, result)
    with atomic_write(folder / "result.json") as file:
        file.write(json.dumps(result).encode())
    for done in (saved, clock):
        done.unlink(missing_ok=True)
    return result


def _state_left(path: Path) -> dict[str, Any] | None:
    """What another worker left of the trial; None where there is nothing, or where it has just been finished."""
    from lcnn_core import CheckpointError, load_state

    try:
        return load_state(path) if path.exists() else None
    except CheckpointError:
        if path.exists():
            raise
        return None


def accuracies(model: nn.Module, dataset: Dataset) -> dict[str, Any]:
    """On the test and validation images, and which test images are answered rightly."""
    from lcnn_core import evaluate, evaluate_classes

    found = evaluate_classes(model, dataset.test)
    accuracy = found.accuracy
    return {
        "top1": accuracy.top1,
        "top5": accuracy.top5,
        "count": accuracy.count,
        "right": packed(found.right.tolist()),
        "validation": evaluate(model, dataset.validation).top1,
    }


def _latency(model: nn.Module, dense: nn.Module, dataset: Dataset) -> dict[str, float]:
    """Median seconds of one image in the engine, of this network and of the dense one, which took turns.

    spread: (p90 - p10) / median, the larger of the two.
    """
    import torch

    from lcnn_analyze.latency import Protocol, measure
    from lcnn_core import compile

    x = torch.randn(1, *dataset.input_shape, generator=torch.Generator().manual_seed(0))
    runs = {name: partial(compile(each.eval(), x), x) for name, each in (("network", model), ("dense", dense))}
    found = measure(runs, Protocol(budget_seconds=2.0))
    medians = {name: latency.median for name, latency in found.items()}
    return {**medians, "spread": max(latency.spread for latency in found.values())}


def machine() -> str:
    """What a trial ran on."""
    from lcnn_analyze.bench.machine import this_machine
    from lcnn_analyze.cli.train_job import versions

    here = this_machine()
    return f"{here.processor}, {here.system}, " + ", ".join(f"{name} {version}" for name, version in versions().items())


def _save(
    folder: Path,
    model: nn.Module,
    dense: nn.Module,
    trial: Trial,
    settings: Mapping[str, Any],
    dataset: Dataset,
    result: Mapping[str, Any],
) -> None:
    """As a checkpoint, or as an exported program where no option of the architecture describes the network, as its
    width. ``analyze`` reads both."""
    import torch

    from lcnn_analyze.cli.train_job import versions
    from lcnn_core import Checkpoint, checkpoint, save

    origin = checkpoint.load(settings["dense"])
    architecture, arguments = _method(trial).saved_as(origin.architecture, origin.arguments, dense, model)
    if architecture == "custom":
        program = torch.export.export(model.eval(), (torch.zeros(2, *dataset.input_shape),))
        with atomic_write(folder / "network.pt2") as file:
            torch.export.save(program, file)  # type: ignore[arg-type]
        return
    metric = {"name": "top1", "value": result["top1"], "dataset": f"{dataset.name} (test)", "count": result["count"]}
    taken = Checkpoint.from_model(
        model,
        architecture=architecture,
        arguments=arguments,
        input_shape=dataset.input_shape,
        normalization=dataset.normalization,
        class_names=dataset.class_names,
        metrics=[metric],
        provenance={"trial": dict(trial.settings), "study": dict(settings), "versions": versions()},
    )
    save(folder / "network.pt", taken)
