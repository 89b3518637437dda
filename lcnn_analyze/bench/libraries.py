"""The native libraries of this machine, and those of another build, on the same plans in turns."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from lcnn_analyze.bench.machine import check_sizes, this_machine
from lcnn_analyze.bench.native import engine_room
from lcnn_analyze.bench.report import Machine
from lcnn_analyze.bench.rows import Grid, machine_line, ms_text
from lcnn_analyze.bench.suites import PUBLISHED
from lcnn_analyze.bench.trial import Trial, error_of
from lcnn_analyze.codec import encode
from lcnn_analyze.latency import Latency, Protocol, measure
from lcnn_core import CheckpointError, ConfigError, LcnnError

TOLERANCE = 1e-5
OTHER = ", other build"


@dataclass(frozen=True)
class LibraryTime:
    """Seconds of one call of ``batch`` images, on one library. ratio: its median over that of the library in use."""

    network: str
    batch: int
    threads: int
    library: str
    latency: Latency
    ratio: float


@dataclass(frozen=True)
class LibraryReport:
    """What ``lcnn bench --libraries`` prints. against: the folder of the other build."""

    command: str
    machine: Machine
    against: str | None
    times: tuple[LibraryTime, ...]

    def to_json(self) -> str:
        """As plain data."""
        return json.dumps(encode(self), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def library_report(
    batches: Sequence[int] = (1, 8),
    threads: Sequence[int] = (1,),
    rounds: int = 15,
    against: Path | None = None,
    command: str = "lcnn_analyze.bench.libraries.library_report(...)",
    say: Callable[[str], None] = lambda line: None,
) -> LibraryReport:
    """Time the published configurations, each compiled once. against: the folder of another build's libraries.

    Raises ConfigError where there is no library, here or there, LcnnError where outputs disagree.
    """
    engine = engine_room()
    if engine is None or not engine.libraries():
        raise ConfigError("there is no native library to time; reinstall lcnn where a C++ compiler is present")
    check_sizes(batches, threads)
    used = engine.library_in_use()
    names = sorted(engine.libraries(), key=lambda isa: isa != used)
    chosen: dict[str, dict[str, Any]] = {isa: {"isa": isa} for isa in names}
    if against is not None:
        chosen |= {f"{isa}{OTHER}": {"isa": isa, "folder": against} for isa in engine.libraries(against)}
    times: list[LibraryTime] = []
    for configuration in PUBLISHED:
        with configuration.open() as trial:
            path = trial.lcnn.folder / "plan.lcnn"
            engine.save(engine.compile(trial.lcnn.model, torch.zeros(1, *trial.input_shape)), path)
            for count in threads:
                loaded = {name: _load(engine, path, count, **which) for name, which in chosen.items()}
                for batch in batches:
                    say(f"timing {trial.name}, batch {batch}, {len(loaded)} libraries")
                    times += library_times(trial, loaded, batch, count, rounds)
    return LibraryReport(command, this_machine(), None if against is None else str(against), tuple(times))


def _load(engine: ModuleType, path: Path, threads: int, isa: str, folder: Path | None = None) -> Any:
    try:
        return engine.load(path, threads=threads, isa=isa, folder=folder)
    except CheckpointError as error:
        if folder is None:
            raise
        raise ConfigError(f"the {isa} library in {folder} cannot read these plans: {error.__cause__}") from error


def library_times(trial: Trial, loaded: dict[str, Any], batch: int, threads: int, rounds: int) -> list[LibraryTime]:
    """One batch in turns; the first library is the one in use. Raises LcnnError where outputs disagree."""
    x = torch.randn(batch, *trial.input_shape, generator=torch.Generator().manual_seed(0))
    outputs = {name: model(x) for name, model in loaded.items()}
    first, expected = next(iter(outputs.items()))
    for name, output in outputs.items():
        error = error_of(output, expected.double())
        if error is None or error > TOLERANCE:
            raise LcnnError(f"{trial.name}: outputs of {name} and {first} disagree; no time is shown, please report it")
    found = measure({name: partial(model, x) for name, model in loaded.items()}, Protocol(rounds))
    return [
        LibraryTime(trial.name, batch, threads, name, latency, latency.median / found[first].median)
        for name, latency in found.items()
    ]


def library_grid(report: LibraryReport) -> Grid:
    """One row for each network, batch and library."""
    rows = []
    for time in report.times:
        scale, latency = 1e3 / time.batch, time.latency
        spread = f"{ms_text(latency.p10 * scale)} to {ms_text(latency.p90 * scale)}"
        shown = (time.network, str(time.batch), str(time.threads), time.library)
        rows.append((*shown, ms_text(latency.median * scale), spread, f"{time.ratio:.2f}"))
    headers = ("configuration", "batch", "threads", "library", "ms / image", "10-90 %", "of the time in use")
    return Grid(headers, tuple(rows), frozenset({0, 3, 5}))


def library_lines(report: LibraryReport) -> list[str]:
    """Where and how it was timed."""
    other = [] if report.against is None else [f"other build: {report.against}"]
    return [
        *other,
        f"{machine_line(report.machine)}; lcnn {report.machine.versions['lcnn']}",
        "medians of interleaved rounds, the same packed plan in every library; the first of each network is in use",
    ]
