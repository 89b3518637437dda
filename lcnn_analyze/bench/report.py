"""``BenchReport``: what was timed, against what, on which machine; frozen, saved as JSON and read back. No torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from lcnn_analyze.codec import decode, encode
from lcnn_analyze.latency import Latency
from lcnn_core import DataError

SCHEMA_VERSION = "2.0"
"""Raised in the second place when something is added, in the first when a reader of the old form would break."""

UNITS = (
    "seconds are for one call on the whole batch; MACs are for one image, 1 MAC = 2 FLOPs; "
    "efficiency is measured speedup / counted speedup"
)

TWO_THREADS_LEAST = 0.9
"""Share of the one-thread efficiency that more threads must keep."""

ROOFLINE_SHARE = 0.85
"""Share of the roofline's efficiency that suffices where it lies below the target."""

Kind = Literal["lcnn", "twin", "reference"]


@dataclass(frozen=True)
class Machine:
    """Where the figures come from. ``load``: processes that wanted to run in the minute before."""

    processor: str
    cores: int
    system: str
    load: float | None
    versions: Mapping[str, str]


@dataclass(frozen=True)
class NetworkInfo:
    """One of the networks of a case: MACs and parameters counted as published, dense for twin and reference."""

    kind: Kind
    name: str
    macs: int
    parameters: int


@dataclass(frozen=True)
class Entry:
    """One contender on one network.

    error: largest difference from PyTorch in float64, over that output's largest magnitude; None where it is not
    finite, or nothing ran. ``disagrees``: the error is above ``tolerance``, and no time is shown.
    """

    contender: str
    title: str
    role: Literal["engine", "dense", "stock"]
    network: Kind
    precision: Literal["float32", "bfloat16", "int8"]
    state: Literal["ok", "unavailable", "disagrees"]
    reason: str = ""
    detail: str = ""
    error: float | None = None
    tolerance: float | None = None
    """None for another precision, whose error is shown and not judged."""
    latency: Latency | None = None


@dataclass(frozen=True)
class Speedup:
    """The engine against the fastest float32 way to run one baseline, in the same rounds."""

    baseline: Kind
    fastest: str
    counted: float
    """The baseline's MACs / the model's."""
    measured: float
    """The baseline's median latency / the engine's."""

    @property
    def efficiency(self) -> float:
        return self.measured / self.counted


@dataclass(frozen=True)
class Step:
    """One step of the engine's plan, on one thread: seconds for the batch, MACs executed for one image.

    bound_seconds: what the step would take at the peaks of its case; None where nothing is multiplied, or known.
    """

    name: str
    kind: str
    seconds: float
    macs: int
    bound_seconds: float | None = None


@dataclass(frozen=True)
class Target:
    """Efficiencies to reach: ``least``, and ``aim``."""

    least: float
    aim: float


@dataclass(frozen=True)
class Roofline:
    """The time below which no engine gets at the peaks measured in the same rounds, as an efficiency."""

    seconds: float
    efficiency: float


@dataclass(frozen=True)
class Reading:
    """How fast each core reads the same so many bytes again and again, as a network reads its weights."""

    size: int
    gbytes: float
    """GB/s, of all cores together."""


@dataclass(frozen=True)
class Peaks:
    """Measured peaks of ``cores`` at once, with the engine's kernels: ``lcnn_core.engine.peaks``, ``read_rate``."""

    library: str
    matrix_gmacs: float
    lookup_gmacs: float
    reading: tuple[Reading, ...]
    """By rising size."""
    cores: int = 1


@dataclass(frozen=True)
class BenchCase:
    """One model at one batch size and thread count."""

    name: str
    batch: int
    threads: int
    input_shape: tuple[int, ...]
    networks: tuple[NetworkInfo, ...]
    headline: Kind
    """The baseline that the target is about, and that int8 runs."""
    entries: tuple[Entry, ...]
    speedups: tuple[Speedup, ...]
    """Empty where the engine did not run, or its outputs disagree."""
    steps: tuple[Step, ...] = ()
    accuracy: str = ""
    """What the checkpoint says, with the data it was measured on."""
    target: Target | None = None
    roofline: Roofline | None = None
    peaks: Peaks | None = None
    """Medians over the rounds in which everything else was timed."""

    @property
    def engine(self) -> Entry | None:
        own = (entry for entry in self.entries if entry.role == "engine" and entry.precision == "float32")
        return next(own, None)

    @property
    def disagreement(self) -> str | None:
        """The engine's outputs against float64 PyTorch, where they differ too much; else None."""
        engine = self.engine
        return None if engine is None or engine.state != "disagrees" else engine.reason

    @property
    def main(self) -> Speedup | None:
        """The speedup over the headline baseline."""
        return next((speedup for speedup in self.speedups if speedup.baseline == self.headline), None)

    def network(self, kind: Kind) -> NetworkInfo:
        return next(network for network in self.networks if network.kind == kind)


@dataclass(frozen=True)
class BenchReport:
    """Everything that the bench printed."""

    schema_version: str
    command: str
    units: str
    machine: Machine
    protocol: Mapping[str, float]
    cases: tuple[BenchCase, ...]

    def least(self, case: BenchCase) -> float | None:
        """The efficiency that ``case`` must reach: its target, or most of its roofline where that is lower.

        With several threads the target is a share of what the same configuration reached on one, in the same report.
        """
        if case.target is None:
            return None
        least = case.target.least
        if case.threads > 1:
            single = next((c for c in self.cases if (c.name, c.batch, c.threads) == (case.name, case.batch, 1)), None)
            if single is None or single.main is None:
                return None
            least = TWO_THREADS_LEAST * single.main.efficiency
        return min(least, ROOFLINE_SHARE * case.roofline.efficiency) if case.roofline else least

    def verdict(self, case: BenchCase) -> Literal["pass", "miss"] | None:
        """Whether ``case`` reaches what it must; None where nothing is asked or nothing was measured."""
        least = self.least(case)
        if least is None or case.main is None:
            return None
        return "pass" if case.main.efficiency >= least else "miss"

    @property
    def disagreements(self) -> tuple[str, ...]:
        """One line for each case whose engine outputs differ from float64 PyTorch."""
        return tuple(f"{case_title(case)}: {case.disagreement}" for case in self.cases if case.disagreement)

    def to_json(self) -> str:
        """The report as JSON; efficiencies and verdicts follow from it and are written too, for other readers."""
        data = encode(self)
        for case, plain in zip(self.cases, data["cases"], strict=True):
            for speedup, written in zip(case.speedups, plain["speedups"], strict=True):
                written["efficiency"] = speedup.efficiency
            plain["least_efficiency"], plain["verdict"] = self.least(case), self.verdict(case)
        return json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> BenchReport:
        """Read ``to_json`` back. Raises DataError for anything else, naming what does not fit."""
        try:
            data = json.loads(text)
        except (json.JSONDecodeError, RecursionError) as error:
            raise DataError(f"not a bench report: not JSON ({error})") from None
        version = data.get("schema_version") if isinstance(data, dict) else None
        if not isinstance(version, str) or version.split(".")[0] != SCHEMA_VERSION.split(".")[0]:
            raise DataError(f"bench report schema_version is {version!r}; this version reads {SCHEMA_VERSION}")
        return decode(cls, data)


def case_title(case: BenchCase) -> str:
    """ResNet-18 fast, batch 8, 1 thread."""
    return f"{case.name}, batch {case.batch}, {case.threads} thread{'s' if case.threads > 1 else ''}"
