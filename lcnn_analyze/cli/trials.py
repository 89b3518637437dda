"""What a worker of ``lcnn spectrum`` does: claim a trial, make the network, measure it once, write the result down."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lcnn_analyze.study import Journal, Trial, grid
from lcnn_core import METHODS, ConfigError, Event, LcnnError, StateReached, atomic_write

if TYPE_CHECKING:
    from torch import nn

    from lcnn_core import Dataset

POLL = 2.0
"""Seconds between two looks at a journal in which all trials are taken."""


class Lost(Exception):
    """The trial went to another worker; what this one has of it is dropped."""


def trials_of(methods: Sequence[str], speedups: Sequence[float], seeds: Sequence[int]) -> list[Trial]:
    """The grid, seeds outermost. Raises ConfigError for a method that there is not, and for axes without values."""
    for method in methods:
        if method not in METHODS:
            raise ConfigError(f"method is {method!r}; expected one of {', '.join(METHODS)}")
    axes = {"seed": seeds, "speedup": speedups, "method": methods}
    for axis, values in axes.items():
        if not values or len(set(values)) < len(values):
            raise ConfigError(f"{axis}s are {list(values)}; expected one or more, each once")
    return grid(axes)


def work(folder: Path, settings: Mapping[str, Any], trials: Sequence[Trial], quiet: bool = True) -> None:
    """Take trials until all have ended, waiting for those of other workers, whose leases may run out."""
    import torch

    torch.set_num_threads(1)  # workers are the parallelism, and one thread gives the same bits on every machine
    journal = Journal(folder / "journal.jsonl")
    subject: tuple[nn.Module, Dataset] | None = None
    while True:
        trial = journal.claim(trials)
        if trial is None:
            if not any(state.status == "running" for state in journal.states(trials).values()):
                return
            time.sleep(POLL)
            continue
        subject = subject or _subject(settings)
        try:
            with journal.alive(trial) as lost:
                result = _result(folder / "trials" / trial.name, trial, settings, *subject, lost.is_set, quiet)
        except Lost:
            continue
        except (LcnnError, RuntimeError, MemoryError) as error:
            journal.fail(trial, f"{type(error).__name__}: {error}".splitlines()[0])
            continue
        except BaseException:
            journal.release(trial)
            raise
        journal.finish(trial, result)


def _subject(settings: Mapping[str, Any]) -> tuple[nn.Module, Dataset]:
    from lcnn_core import checkpoint, load_dataset

    loaded = checkpoint.load(settings["dense"])
    return loaded.build(), load_dataset(settings["data"], loaded.normalization)


def _result(
    folder: Path,
    trial: Trial,
    settings: Mapping[str, Any],
    dense: nn.Module,
    dataset: Dataset,
    lost: Any,
    quiet: bool,
) -> dict[str, Any]:
    """Make the trial's network, going on from a state that another worker left; measure and save it."""
    from lcnn_analyze.cli.progress import progress
    from lcnn_core import evaluate, load_state, save_state

    done = folder / "result.json"
    if done.exists():  # its worker was killed between this file and the journal
        return json.loads(done.read_text())
    folder.mkdir(parents=True, exist_ok=True)
    state = load_state(folder / "state.pt") if (folder / "state.pt").exists() else None
    started = time.perf_counter()
    with progress(trial.name, quiet) as show:

        def listen(event: Event) -> None:
            show(event)
            if lost():
                raise Lost
            if isinstance(event, StateReached):
                save_state(folder / "state.pt", event.state)

        method = METHODS[trial.settings["method"]]
        model, _ = method.compress(dense, dataset, config_of(trial, settings), listen, state)
    accuracy = evaluate(model, dataset.test)
    result = {
        "top1": accuracy.top1,
        "top5": accuracy.top5,
        "count": accuracy.count,
        "validation": evaluate(model, dataset.validation).top1,
        "speedup": macs_of(dense, dataset) / macs_of(model, dataset),
        "latency": _latency(model, dataset) if settings["measure"] else None,
        "seconds": time.perf_counter() - started,
    }
    _save(folder / "network.pt", model, trial, settings, dataset, result)
    with atomic_write(done) as file:
        file.write(json.dumps(result).encode())
    (folder / "state.pt").unlink(missing_ok=True)
    return result


def config_of(trial: Trial, settings: Mapping[str, Any]) -> Any:
    """The method's configuration for this trial."""
    method = METHODS[trial.settings["method"]]
    config = method.config(speedup=float(trial.settings["speedup"]))
    given = {key: settings[key] for key in ("epochs", "batch_size", "lr") if settings.get(key) is not None}
    train = dataclasses.replace(config.train, seed=trial.settings["seed"], **given)
    return dataclasses.replace(config, train=train)


def macs_of(model: nn.Module, dataset: Dataset) -> int:
    """MACs on one image, ``published`` convention."""
    from lcnn_core import count_layer, describe

    return sum(count_layer(layer).total for layer in describe(model, dataset.input_shape).layers)


def _latency(model: nn.Module, dataset: Dataset) -> float:
    """Seconds the engine takes for one image, median."""
    import torch

    from lcnn_analyze.latency import Protocol, measure
    from lcnn_core import compile

    x = torch.zeros(1, *dataset.input_shape)
    compiled = compile(model.eval(), x)
    return measure({"engine": lambda: compiled(x)}, Protocol(budget_seconds=2.0))["engine"].median


def _save(
    path: Path, model: nn.Module, trial: Trial, settings: Mapping[str, Any], dataset: Dataset, result: Mapping[str, Any]
) -> None:
    from lcnn_analyze.cli.train_job import versions
    from lcnn_core import Checkpoint, checkpoint, save

    dense = checkpoint.load(settings["dense"])
    same = trial.settings["method"] != "narrow"  # whose channels no option of the architecture describes
    metric = {"name": "top1", "value": result["top1"], "dataset": f"{dataset.name} (test)", "count": result["count"]}
    taken = Checkpoint.from_model(
        model,
        architecture=dense.architecture if same else "custom",
        arguments=dense.arguments if same else None,
        input_shape=dataset.input_shape,
        normalization=dataset.normalization,
        class_names=dataset.class_names,
        metrics=[metric],
        provenance={"trial": dict(trial.settings), "study": dict(settings), "versions": versions()},
    )
    save(path, taken)
