"""Which native library runs here, and what share of the machine's peak each of its kernels reaches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from lcnn_analyze.bench.contenders import CONTENDERS, Work
from lcnn_analyze.bench.machine import this_machine
from lcnn_analyze.bench.native import engine_room
from lcnn_analyze.bench.report import Machine, Peaks
from lcnn_analyze.bench.roofline import layer_seconds, measure_peaks
from lcnn_analyze.bench.rows import Grid, machine_line, ms_text, peaks_text
from lcnn_analyze.bench.suites import PUBLISHED
from lcnn_analyze.bench.trial import Trial
from lcnn_analyze.render.numbers import ABSENT
from lcnn_core import ConfigError

PROFILES = 5
"""Runs of each network; the fastest time of each step counts."""


@dataclass(frozen=True)
class KernelShare:
    """All steps of one kind in one network on one thread, batch 1.

    bound_seconds: the time at the measured peaks, for steps that multiply; None for the others.
    """

    network: str
    kind: str
    steps: int
    seconds: float
    macs: int
    bound_seconds: float | None


@dataclass(frozen=True)
class KernelReport:
    """What ``lcnn bench --kernels`` prints."""

    machine: Machine
    libraries: tuple[str, ...]
    """Instruction sets that this machine can run, best first; ``peaks.library`` is in use."""
    peaks: Peaks
    kernels: tuple[KernelShare, ...]


def kernel_report() -> KernelReport:
    """Measure the peaks, then profile the published configurations. Raises ConfigError without a native library."""
    engine, peaks = engine_room(), measure_peaks()
    if engine is None or peaks is None:
        raise ConfigError("there is no native library to measure; reinstall lcnn where a C++ compiler is present")
    kernels: list[KernelShare] = []
    for configuration in PUBLISHED:
        with configuration.open() as trial:
            kernels += kernel_shares(trial, peaks)
    return KernelReport(this_machine(), tuple(engine.libraries()), peaks, tuple(kernels))


def kernel_shares(trial: Trial, peaks: Peaks) -> list[KernelShare]:
    """The engine's steps on ``trial``'s network by kind, slowest first."""
    x = torch.randn(1, *trial.input_shape, generator=torch.Generator().manual_seed(0))
    ready = CONTENDERS["engine"].prepare(Work(trial.lcnn.model, x, 1, trial.lcnn.folder))
    if ready.steps is None:
        raise ConfigError("this engine does not tell the time of its steps; there is nothing to compare with the peaks")
    profiles = [ready.steps() for _ in range(PROFILES)]
    bounds = layer_seconds(trial.lcnn.spec, peaks, 1)
    kinds: dict[str, dict[str, Any]] = {}
    for same in zip(*profiles, strict=True):
        step, seconds = same[0], min(one.seconds for one in same)
        group = kinds.setdefault(step.kind, {"steps": 0, "seconds": 0.0, "macs": 0, "bound_seconds": None})
        group["steps"] += 1
        group["seconds"] += seconds
        group["macs"] += step.macs
        if step.macs and step.name in bounds:
            group["bound_seconds"] = (group["bound_seconds"] or 0.0) + bounds[step.name]
    shares = [KernelShare(trial.name, kind, **group) for kind, group in kinds.items()]
    return sorted(shares, key=lambda share: -share.seconds)


def kernel_grid(report: KernelReport) -> Grid:
    """One row for each network and kind of step."""
    rows = [
        (
            share.network,
            share.kind,
            str(share.steps),
            ms_text(share.seconds * 1e3),
            f"{share.macs / 1e6:.1f}" if share.macs else ABSENT,
            f"{share.macs / share.seconds / 1e9:.1f}" if share.macs and share.seconds else ABSENT,
            f"{share.bound_seconds / share.seconds:.0%}" if share.bound_seconds and share.seconds else ABSENT,
        )
        for share in report.kernels
    ]
    headers = ("network", "kernel", "steps", "ms", "executed MMACs", "GMAC/s", "of peak")
    return Grid(headers, tuple(rows), frozenset({0, 1}))


def kernel_lines(report: KernelReport) -> list[str]:
    """The library in use and the peaks."""
    peaks = report.peaks
    others = ", ".join(isa for isa in report.libraries if isa != peaks.library)
    return [
        f"library in use: {peaks.library}" + (f" (this machine can also run {others})" if others else ""),
        machine_line(report.machine),
        f"peaks of one core: {peaks_text(peaks)}",
        "of peak: the time that the same work takes at these peaks / the time measured, one thread, batch 1",
    ]
