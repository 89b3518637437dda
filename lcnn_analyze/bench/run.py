"""``run_cases``: prepare every contender, compare its outputs with float64 PyTorch, time those that agree in turns."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from lcnn_analyze.bench.contenders import CONTENDERS, Contender, Ready, UnavailableError, Work
from lcnn_analyze.bench.report import BenchCase, Entry, Kind, Peaks, Roofline, Speedup, Step
from lcnn_analyze.bench.roofline import MeasurePeaks, PeaksInTurns, layer_seconds, roofline_seconds
from lcnn_analyze.bench.trial import Network, Trial, error_of, float64_outputs
from lcnn_analyze.latency import Protocol, measure
from lcnn_core import ModelSpec

ENGINE_TOLERANCE = 1e-5
"""Of the engine; or twice what PyTorch's own float32 is off by, where that is more."""

BASELINE_TOLERANCE = 1e-3
"""Of everything else in float32: a baseline may use Winograd's transforms, but has to compute the same network."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Settings:
    """How the cases of one run are timed. ``contenders``: names in ``CONTENDERS``."""

    protocol: Protocol
    contenders: tuple[str, ...] = tuple(CONTENDERS)
    peaks: MeasurePeaks | None = None
    """How peaks are measured; None: they are not."""
    clock: Callable[[], float] | None = None
    """For tests; None is the real one."""


def run_cases(
    trial: Trial, batch: int, counts: Sequence[int], settings: Settings, say: Say = lambda line: None
) -> list[BenchCase]:
    """Time ``trial`` at one batch size and each thread count, everything in this process and in the same rounds.

    Every runtime gets a case's threads, so that cases compare: what a machine does in a minute, it does to all of them.
    The input is drawn from a normal distribution with a fixed seed. Entries whose outputs disagree with float64 PyTorch
    are not timed; where the engine's do, there is no speedup.
    """
    with _threads(max(counts)) as set_threads:
        x = torch.randn(batch, *trial.input_shape, generator=torch.Generator().manual_seed(0))
        expected = {network.kind: float64_outputs(network.model, x) for network in trial.networks[:1]}
        for network in trial.baselines:
            # The twin computes the lookup network's function, so it is held against that network's outputs.
            same = network.kind == "twin"
            expected[network.kind] = expected["lcnn"] if same else float64_outputs(network.model, x)
        fields: dict[int, _Field] = {}
        try:
            for count in counts:
                set_threads(count)
                fields[count] = _gather(trial, x, count, expected, settings, say)
            peaks = _time(trial.lcnn.spec, fields, settings, set_threads, say)
            one_core = peaks.get(1)
            bounds = layer_seconds(trial.lcnn.spec, one_core, batch) if one_core else {}
            steps = {count: _steps(field.entries, field.ready, bounds) for count, field in fields.items()}
        finally:
            for field in fields.values():
                field.ready.clear()
            for name in settings.contenders:
                CONTENDERS[name].release()
    return [_case(trial, batch, count, fields[count].entries, steps[count], peaks.get(count)) for count in counts]


@dataclass
class _Field:
    """Those who take part with one thread count; ``ready``: by their place among the entries."""

    entries: list[Entry]
    ready: dict[int, Ready]


def _gather(
    trial: Trial, x: Tensor, threads: int, expected: Mapping[Kind, tuple[Tensor, float]], settings: Settings, say: Say
) -> _Field:
    field = _Field([], {})
    for contender, network in _pairs(trial, settings.contenders):
        say(f"preparing {contender.title} {contender.precision} on {network.name}")
        entry, prepared = _prepare(contender, network, x, threads, *expected[network.kind])
        if prepared is not None:
            field.ready[len(field.entries)] = prepared
        field.entries.append(entry)
    return field


def _time(
    spec: ModelSpec, fields: Mapping[int, _Field], settings: Settings, set_threads: Callable[[int], None], say: Say
) -> dict[int, Peaks | None]:
    """Adds latencies to the entries, all fields in the same rounds; returns the peaks in these, by number of cores.

    Those of one core, too, as the engine tells the time of its steps on one thread.
    """
    places = {f"{count} {place}": (count, place) for count, field in fields.items() for place in field.ready}
    say(f"timing {len(places)} contenders in turns")
    turns: dict[str, Callable[[], object]] = {name: partial(set_threads, count) for name, (count, _) in places.items()}
    runs: dict[str, Callable[[], object]] = {
        name: fields[count].ready[place].run for name, (count, place) in places.items()
    }
    probes: dict[int, PeaksInTurns] = {}
    if settings.peaks is not None:
        for cores in sorted({1, *fields}):
            probes[cores] = probe = PeaksInTurns(spec, settings.peaks, cores)
            turns[f"peaks {cores}"], runs[f"peaks {cores}"] = probe.turn, probe
    clock = {} if settings.clock is None else {"clock": settings.clock}
    timed = measure(runs, settings.protocol, before=lambda name: turns[name](), **clock)
    for name, (count, place) in places.items():
        entries = fields[count].entries
        entries[place] = replace(entries[place], latency=timed[name])
    return {cores: probe.median() for cores, probe in probes.items()}


def _pairs(trial: Trial, names: Sequence[str]) -> Iterator[tuple[Contender, Network]]:
    """Who runs what: dense float32 contenders every baseline, int8 ones the headline's, the others the model."""
    for name in names:
        contender = CONTENDERS[name]
        if contender.role != "dense":
            yield contender, trial.lcnn
            continue
        for network in trial.baselines:
            if contender.precision == "float32" or network.kind == trial.headline:
                yield contender, network


def _prepare(
    contender: Contender, network: Network, x: Tensor, threads: int, expected: Tensor, own_error: float
) -> tuple[Entry, Ready | None]:
    """The contender ready to be timed, or the reason why not."""
    entry = Entry(contender.name, contender.title, contender.role, network.kind, contender.precision, "unavailable")
    try:
        ready = contender.prepare(Work(network.model, x, threads, network.folder))
        output = ready.output()
    except UnavailableError as error:
        return replace(entry, reason=str(error)), None
    except Exception as error:
        # A runtime of others that fails is a line of the report; this project's engine failing is a bug.
        if contender.role == "engine":
            raise
        return replace(entry, reason=f"failed: {_first_line(error)}"), None
    tolerance = _tolerance(contender, own_error)
    difference = error_of(output, expected)
    entry = replace(entry, state="ok", detail=ready.detail, error=difference, tolerance=tolerance)
    if tolerance is None or (difference is not None and difference <= tolerance):
        return entry, ready
    found = "not finite or of another shape" if difference is None else f"off by {difference:.1e}"
    return replace(entry, state="disagrees", reason=f"outputs are {found}; allowed is {tolerance:.1e}"), None


def _tolerance(contender: Contender, own_error: float) -> float | None:
    if contender.precision != "float32":
        return None
    return max(ENGINE_TOLERANCE, 2 * own_error) if contender.role == "engine" else BASELINE_TOLERANCE


def _first_line(error: BaseException) -> str:
    text = " ".join(str(error).strip().splitlines()[:1]) or type(error).__name__
    return text if len(text) <= 160 else text[:157] + "..."


def _steps(entries: Sequence[Entry], ready: Mapping[int, Ready], bounds: Mapping[str, float]) -> tuple[Step, ...]:
    """Seconds of the engine's steps, where it tells them, beside their bounds by layer name."""
    for place, one in ready.items():
        if entries[place].contender == "engine" and one.steps is not None:
            return tuple(Step(s.name, s.kind, s.seconds, s.macs, bounds.get(s.name)) for s in one.steps())
    return ()


def _case(
    trial: Trial, batch: int, threads: int, entries: list[Entry], steps: tuple[Step, ...], peaks: Peaks | None
) -> BenchCase:
    case = BenchCase(
        name=trial.name,
        batch=batch,
        threads=threads,
        input_shape=trial.input_shape,
        networks=tuple(network.info for network in trial.networks),
        headline=trial.headline,
        entries=tuple(entries),
        speedups=(),
        steps=steps,
        accuracy=trial.accuracy,
        target=trial.targets.get(batch),
        peaks=peaks,
    )
    case = replace(case, speedups=tuple(_speedups(case, [network.kind for network in trial.baselines])))
    if peaks is None or case.main is None or case.engine is None or case.engine.latency is None:
        return case
    seconds = roofline_seconds(trial.lcnn.spec, peaks, batch)
    bound = case.main.efficiency * case.engine.latency.median / seconds if seconds else 0.0
    return replace(case, roofline=Roofline(seconds, bound))


def _speedups(case: BenchCase, kinds: Iterable[Kind]) -> Iterator[Speedup]:
    """The engine over the fastest float32 contender of each baseline."""
    engine = case.engine
    if engine is None or engine.latency is None:
        return
    macs = case.network("lcnn").macs
    for kind in kinds:
        fastest = fastest_dense(case, kind)
        if fastest is None or fastest.latency is None or not macs:
            continue
        measured = fastest.latency.median / engine.latency.median
        yield Speedup(kind, fastest.title, case.network(kind).macs / macs, measured)


def fastest_dense(case: BenchCase, kind: Kind) -> Entry | None:
    """The float32 baseline of ``kind`` with the lowest median; None where none was timed."""
    timed = [
        entry
        for entry in case.entries
        if entry.role == "dense" and entry.network == kind and entry.precision == "float32" and entry.latency
    ]
    return min(timed, key=lambda entry: entry.latency.median if entry.latency else 0.0, default=None)


@contextmanager
def _threads(count: int) -> Iterator[Callable[[int], None]]:
    """Torch's threads for as long as this lasts; gives what sets another number."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield torch.set_num_threads
    finally:
        torch.set_num_threads(before)
