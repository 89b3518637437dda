"""What ``lcnn spectrum`` leaves behind: its report, and the checkpoints of the front."""

from __future__ import annotations

import dataclasses
import json
import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lcnn_analyze.cli.output import write_file
from lcnn_analyze.cli.trials import GIVEN, Plan
from lcnn_analyze.comparison import Mean, means, unpacked
from lcnn_analyze.study import State, Trial, check_same, grid
from lcnn_core import DataError

NETWORKS = ("network.pt", "network.pt2")
_TRIAL = ("trial", "method", "target", "seed", "status", "reason", "command", "checkpoint")
"""What a report says of a trial beside its result."""
Ended = Sequence[tuple[Trial, State]]


def write_report(plan: Plan, ended: Ended, workers: int = 1) -> None:
    """Write spectrum.html, .md, .png and .json; the report is the same whoever did the work."""
    from lcnn_analyze.render.study import files
    from lcnn_analyze.render.sweep import sweep_study

    document = make_document(plan, ended, workers)
    for name, content in files(sweep_study([document]), "spectrum").items():
        write_file(plan.folder / name, content, quiet=True)


def make_document(plan: Plan, ended: Ended, workers: int) -> dict[str, Any]:
    """The study as plain data: all that its page shows."""
    from lcnn_core import METHODS

    rows = _rows(plan, ended)
    total = max(plan.total or 0, len(rows))
    bases = dict.fromkeys(row["method"].partition(":")[0] for row in rows)
    return {
        "kind": "spectrum",
        **dense_facts(plan.folder, plan.settings),
        "settings": dict(plan.settings),
        "methods": {name: _told(name, plan.settings) for name in METHODS if name in bases},
        "total": total,
        "seconds_left": _seconds_left(rows, total, workers),
        "points": [_plain(point) for point in means(rows)],
        "trials": rows,
    }


def _told(name: str, settings: Mapping[str, Any]) -> str:
    """What a method is, and of its training what methods differ in, where a recipe says nothing else."""
    from lcnn_core import METHODS

    method = METHODS[name]
    if not method.trained:
        return method.doc
    train = method.config(speedup=2.0).train
    rate = settings.get("lr") or train.lr
    at = f"a peak rate of {rate:g}" if rate else "the optimizer's own rate"
    images = f"moved by up to {train.shift} each way" if train.shift else "as they are"
    return f"{method.doc}; unless set otherwise at {at}, images {images}"


def _plain(point: Mean) -> dict[str, Any]:
    plain = dataclasses.asdict(point)
    del plain["right"]  # the trials hold it
    return plain


def read_done(path: Path, plan: Plan) -> list[tuple[Trial, dict[str, Any]]]:
    """The trials that are done in a report of this study, and what they came to.

    Raises DataError for what is no report of a study, ConfigError where it is of another one, naming what differs.
    """
    try:
        document = json.loads(path.read_text())
        settings, rows = dict(document["settings"]), list(document["trials"])
        named = [_taken(row) for row in rows if row["status"] == "done"]
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}; expected a study's spectrum.json") from error
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is no report of a study; expected a spectrum.json") from error
    if settings.get("data") != plan.settings["data"] and _same_images(document, plan.settings):
        settings["data"] = plan.settings["data"]
    check_same(f"the study in {path}", settings, plan.identity, "choose its own report")
    return named


def _same_images(document: Mapping[str, Any], settings: Mapping[str, Any]) -> bool:
    """Whether the data set of a report lies elsewhere here: its dense network answers the same test images rightly.

    But for one in a thousand, as another machine may round otherwise.
    """
    theirs = document.get("dense", {})
    if document["settings"].get("sha256") != settings["sha256"] or "right" not in theirs:
        return False
    ours = _dense_facts(settings)["dense"]
    if ours["count"] != theirs["count"]:
        return False
    return bool((unpacked(ours) != unpacked(theirs)).sum() <= ours["count"] // 1000)


def _taken(row: Mapping[str, Any]) -> tuple[Trial, dict[str, Any]]:
    """A trial of a report and its result. Raises ValueError, KeyError or TypeError where a page could not show it."""
    from lcnn_core import METHODS

    axes = {"seed": [row["seed"]], "speedup": [row["target"]], "method": [row["method"]]}
    (trial,) = grid(axes)
    numbers = [row[key] for key in ("seed", "target", "top1", "validation", "speedup", "seconds", "count")]
    if trial.name != row["trial"] or not all(type(n) in (int, float) and 0 <= n < math.inf for n in numbers):
        raise ValueError(f"trial {row['trial']}")
    if row["method"].partition(":")[0] not in METHODS or not isinstance(row["machine"], str):
        raise ValueError(f"trial {row['trial']}")
    return trial, {key: value for key, value in row.items() if key not in _TRIAL}


def _rows(plan: Plan, ended: Ended) -> list[dict[str, Any]]:
    return [_row(plan.folder, trial, state, plan.settings) for trial, state in ended]


def _row(folder: Path, trial: Trial, state: State, settings: Mapping[str, Any]) -> dict[str, Any]:
    files = [f"trials/{trial.name}/{name}" for name in NETWORKS]
    kept = next((file for file in files if (folder / file).exists()), None)
    return {
        "trial": trial.name,
        "method": trial.settings["method"],
        "target": trial.settings["speedup"],
        "seed": trial.settings["seed"],
        "status": state.status,
        "reason": state.reason,
        **state.result,
        "command": command(trial, settings),
        "checkpoint": kept,
    }


def _seconds_left(rows: Sequence[Mapping[str, Any]], total: int, workers: int) -> float | None:
    """What the trials that are left will take so many workers, going by those that are done; None where none are."""
    took = [row["seconds"] for row in rows if row["status"] == "done"]
    left = total - len(took) - sum(row["status"] == "failed" for row in rows)
    return left * sum(took) / len(took) / workers if took else None


def dense_facts(folder: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The dense network: what it is and was trained by, its accuracies and MACs; measured once for a study."""
    kept = folder / "dense.json"
    if kept.exists():
        return json.loads(kept.read_text())
    found = _dense_facts(settings)
    write_file(kept, json.dumps(found).encode(), quiet=True)
    return found


def _dense_facts(settings: Mapping[str, Any]) -> dict[str, Any]:
    from lcnn_analyze.cli.trials import accuracies, load_subject
    from lcnn_core import checkpoint, describe, total_macs

    loaded = checkpoint.load(settings["dense"])
    model, dataset = load_subject(settings)
    dense = {
        **accuracies(model, dataset),
        "macs": total_macs(describe(model, dataset.input_shape).layers),
        "command": loaded.provenance.get("command"),
    }
    return {"network": loaded.architecture, "dataset": dataset.name, "dense": dense}


def command(trial: Trial, settings: Mapping[str, Any]) -> str:
    """What makes this trial's network again, to the same bits: ``last.pt`` in a folder of its own.

    A plain ``lcnn train``; for what trains nothing ``lcnn convert``, which makes a file; a study of one trial where the
    recipe has settings that are no option of these. On the CPU, as the trials of a study.
    """
    from lcnn_analyze.cli.recipes import config_of
    from lcnn_core import METHODS

    recipe, speedup, seed = (trial.settings[key] for key in ("method", "speedup", "seed"))
    method, *own = recipe.split(":")
    changes = dict(change.split("=", 1) for change in own)
    target = f"{speedup:.12g}"
    if not METHODS[method].trained and set(changes) <= {"images", "forms"}:
        if "forms" in changes:
            changes["forms"] = ",".join(config_of(recipe, speedup, seed, {}).forms)
        options = {"data": settings["data"], "speedup": target, **changes, "output": f"{trial.name}.pt"}
        return _line("lcnn", "convert", settings["dense"], **options)
    given = {key: f"{settings[key]:.12g}" for key in GIVEN if settings[key] is not None}
    common = {"data": settings["data"], **given}
    if not METHODS[method].trained or not _options_of_train(method, changes):
        options = {"methods": recipe, "speedups": target, "seeds": str(seed), **common}
        return _line("lcnn", "spectrum", settings["dense"], **options, output=trial.name)
    options = {"from": settings["dense"], "method": method, "speedup": target, "seed": str(seed), **common, **changes}
    return _line("lcnn", "train", **options, device="cpu", output=trial.name)


def _options_of_train(method: str, changes: Mapping[str, str]) -> bool:
    """Whether ``lcnn train`` takes these settings of a recipe beside the method."""
    from lcnn_analyze.cli.train_job import BUDGETED
    from lcnn_analyze.cli.train_options import OPTIONS
    from lcnn_core import METHODS

    own = {field.name for field in dataclasses.fields(METHODS[method].config(speedup=2.0))}
    known = [key for key in changes if key in OPTIONS and (key not in BUDGETED or key in own)]
    return len(known) == len(changes) and "None" not in changes.values()


def _line(*start: str, **options: str) -> str:
    flags: list[str] = []
    for key, value in options.items():
        name = key.replace("_", "-")
        flags += {"True": [f"--{name}"], "False": [f"--no-{name}"]}.get(value, [f"--{name}", value])
    return f"OMP_NUM_THREADS=1 {shlex.join([*start, *flags])}"


def keep_front(plan: Plan, ended: Ended) -> None:
    """Delete the networks of the trials that are done and on no front."""
    rows = _rows(plan, ended)
    front = {(point.method, point.target) for point in means(rows) if point.front or point.measured_front}
    for row in rows:
        if row["status"] == "done" and row["checkpoint"] and (row["method"], row["target"]) not in front:
            (plan.folder / row["checkpoint"]).unlink(missing_ok=True)
