"""What the tests of whole training runs share: the command in this process or a forked one, and runs compared."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import typer

from lcnn_analyze.cli.app import app
from lcnn_analyze.cli.errors import run
from lcnn_core import checkpoint, load_state


def lcnn(*arguments: object) -> int:
    """``lcnn train ...`` in this process."""
    return run("lcnn", typer.main.get_command(app), ["train", *map(str, arguments)])


def in_child(work: Callable[[], int]) -> multiprocessing.process.BaseProcess:
    """Run ``work`` in a forked process, whose exit code is what it returns."""
    process = multiprocessing.get_context("fork").Process(target=lambda: exit(work()))
    process.start()
    return process


def without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: without_times(v) for k, v in value.items() if k not in ("seconds", "waited", "command")}
    return [without_times(item) for item in value] if isinstance(value, list) else value


def log_of(folder: Path) -> list[Any]:
    """The log's lines, wall times and the typed command left out."""
    return [without_times(json.loads(line)) for line in (folder / "log.jsonl").read_text().splitlines()]


def epochs_of(folder: Path) -> list[Any]:
    return [line for line in log_of(folder) if line["event"] == "EpochFinished"]


def losses_of(folder: Path) -> list[float]:
    """The loss of every batch, of a run with ``--log-every 1``."""
    return [line["loss"] for line in log_of(folder) if line["event"] == "BatchFinished"]


def same(a: Any, b: Any) -> bool:
    """To the bit, whatever the nesting."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def assert_same_run(ours: Path, theirs: Path) -> None:
    """Log, state and checkpoints are the same to the bit, wall times and the typed command aside."""
    assert log_of(ours) == log_of(theirs)
    first, second = (without_times(load_state(folder / "state.pt")) for folder in (ours, theirs))
    first.pop("log"), second.pop("log")  # bytes of the log, in which times are text
    assert same(first, second)
    for name in ("best.pt", "last.pt"):
        a, b = (checkpoint.load(folder / name) for folder in (ours, theirs))
        assert same(dict(a.state_dict), dict(b.state_dict))
        assert a.metrics == b.metrics
        assert without_times(a.provenance) == without_times(b.provenance)
