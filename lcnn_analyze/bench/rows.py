"""A report as rows of text, the same for a terminal and for Markdown: counted and measured in columns of their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lcnn_analyze.bench.report import BenchCase, BenchReport, Entry, Machine, Peaks, Speedup, case_title
from lcnn_analyze.render.numbers import ABSENT, count_text, ratio_text, safe
from lcnn_analyze.report import shape_text

MOST_STEPS = 12
"""Steps of the plan that a table lists, slowest first; JSON has them all."""


@dataclass(frozen=True)
class Grid:
    """A table: headers, rows, which columns are text (the others are numbers), and rows to set apart."""

    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    text_columns: frozenset[int]
    bold: frozenset[int] = frozenset()


def heading(case: BenchCase) -> str:
    """The case, its input and what the model counts."""
    own = case.network("lcnn")
    accuracy = f", {case.accuracy}" if case.accuracy else ""
    return f"{safe(case_title(case))}: {shape_text(case.input_shape)} input, {count_text(own.macs)}MACs{accuracy}"


def latencies(case: BenchCase) -> Grid:
    """Every contender, the engine first, then by network and time."""
    order = ["lcnn", "reference", "twin"] if case.headline == "reference" else ["lcnn", "twin", "reference"]
    entries = sorted(
        case.entries,
        key=lambda e: (
            e.role != "engine",
            order.index(e.network),
            e.precision,
            e.latency is None,
            e.latency.median if e.latency else 0.0,
        ),
    )
    headers = ("runtime", "network", "precision", "ms / image", "10-90 %", "error", "note")
    bold = frozenset(place for place, entry in enumerate(entries) if entry.role == "engine")
    return Grid(headers, tuple(_latency_row(case, e) for e in entries), frozenset({0, 1, 2, 4, 6}), bold)


def _latency_row(case: BenchCase, entry: Entry) -> tuple[str, ...]:
    if entry.latency is None:
        median, spread = ABSENT, ABSENT
    else:
        per_image = 1e3 / case.batch
        median = ms_text(entry.latency.median * per_image)
        spread = f"{ms_text(entry.latency.p10 * per_image)} to {ms_text(entry.latency.p90 * per_image)}"
    error = ABSENT if entry.error is None else f"{entry.error:.0e}"
    noisy = "noisy" if entry.latency and entry.latency.noisy else ""
    state = "" if entry.state == "ok" else f"{entry.state}: {entry.reason}"
    note = "; ".join(filter(None, (state, entry.detail, noisy)))
    return entry.title, case.network(entry.network).name, entry.precision, median, spread, error, safe(note)


def speedups(case: BenchCase) -> Grid:
    """The engine over the fastest float32 way to run each baseline."""
    headers = ("baseline", "MACs", "fastest dense", "counted speedup", "measured speedup", "efficiency")
    rows = []
    for speedup in case.speedups:
        network = case.network(speedup.baseline)
        counted, measured = ratio_text(speedup.counted), ratio_text(speedup.measured)
        efficiency = f"{speedup.efficiency:.2f}"
        rows.append((network.name, count_text(network.macs), speedup.fastest, counted, measured, efficiency))
    return Grid(headers, tuple(rows), frozenset({0, 2}))


def summary(report: BenchReport) -> Grid:
    """One row a case: the headline speedup, the other one beside it, and the verdict where a target is set."""
    headers = (
        *("configuration", "batch", "threads", "accuracy", "baseline", "ms / image", "engine ms / image"),
        *("counted speedup", "measured speedup", "efficiency", "roofline", "at least", "aim", "verdict"),
    )
    rows = []
    for case in report.cases:
        for speedup in sorted(case.speedups, key=lambda one: one.baseline != case.headline):
            rows.append(_summary_row(report, case, speedup))
        if not case.speedups:
            reason = case.disagreement or "the engine was not timed"
            blank = (ABSENT,) * 9
            rows.append((safe(case.name), str(case.batch), str(case.threads), case.accuracy or ABSENT, *blank, reason))
    grid = Grid(headers, tuple(rows), frozenset({0, 3, 4, 13}))
    return _without_empty_columns(grid)


def _summary_row(report: BenchReport, case: BenchCase, speedup: Speedup) -> tuple[str, ...]:
    engine, is_main = case.engine, speedup.baseline == case.headline
    own = engine.latency.median if engine and engine.latency else 0.0
    least, verdict = (report.least(case), report.verdict(case)) if is_main else (None, None)
    per_image = 1e3 / case.batch
    return (
        *(safe(case.name), str(case.batch), str(case.threads), case.accuracy or ABSENT),
        f"{case.network(speedup.baseline).name}, {speedup.fastest}",
        *(ms_text(own * speedup.measured * per_image), ms_text(own * per_image)),
        *(ratio_text(speedup.counted), ratio_text(speedup.measured), f"{speedup.efficiency:.2f}"),
        f"{case.roofline.efficiency:.2f}" if case.roofline and is_main else ABSENT,
        ABSENT if least is None else f"{least:.2f}",
        f"{case.target.aim:.2f}" if case.target and is_main else ABSENT,
        verdict or ABSENT,
    )


def _without_empty_columns(grid: Grid) -> Grid:
    kept = [i for i in range(len(grid.headers)) if any(row[i] != ABSENT for row in grid.rows)]
    return Grid(
        tuple(grid.headers[i] for i in kept),
        tuple(tuple(row[i] for i in kept) for row in grid.rows),
        frozenset(place for place, i in enumerate(kept) if i in grid.text_columns),
    )


def steps(case: BenchCase) -> Grid:
    """The slowest steps of the engine's plan on one thread, with what they reach."""
    total = sum(step.seconds for step in case.steps)
    rows = [
        (
            safe(step.name),
            step.kind,
            ms_text(step.seconds * 1e3 / case.batch),
            f"{step.seconds / total:.0%}" if total else ABSENT,
            f"{step.macs / 1e6:.2f}" if step.macs else ABSENT,
            f"{step.macs * case.batch / step.seconds / 1e9:.1f}" if step.seconds and step.macs else ABSENT,
            f"{step.bound_seconds / step.seconds:.0%}" if step.bound_seconds and step.seconds else ABSENT,
        )
        for step in sorted(case.steps, key=lambda step: -step.seconds)[:MOST_STEPS]
    ]
    headers = ("engine step", "kind", "ms / image", "share", "executed MMACs", "GMAC/s", "of peak")
    return _without_empty_columns(Grid(headers, tuple(rows), frozenset({0, 1})))


def verdict_line(case: BenchCase) -> str:
    """The case in one sentence."""
    if case.disagreement:
        return f"{safe(case_title(case))}: no speedup, since the engine's {case.disagreement}"
    if case.main is None:
        engine = case.engine
        reason = engine.reason if engine and engine.reason else "there is nothing to compare"
        return f"{safe(case_title(case))}: no speedup, since {reason}"
    main = case.main
    return (
        f"{safe(case_title(case))}: {ratio_text(main.measured)} measured over {case.network(main.baseline).name} "
        f"in {main.fastest}, the fastest dense float32 here; {ratio_text(main.counted)} counted; "
        f"efficiency {main.efficiency:.2f}"
    )


def facts(report: BenchReport) -> list[str]:
    """Where, how and with what the figures were taken."""
    machine = report.machine
    versions = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
    lines = [
        machine_line(machine),
        f"versions: {versions}",
        f"timing: up to {report.protocol['rounds']:g} interleaved rounds, medians; {report.units}",
    ]
    if any(case.target for case in report.cases):
        lines.append(
            "at least: the target efficiency, with more threads 0.9 of the efficiency on one, or 0.85 of the "
            "roofline's, at the peaks of each case, whichever is lower"
        )
    return lines


def machine_line(machine: Machine) -> str:
    """Where figures were taken: "machine: AMD EPYC (family 25 model 1), 2 cores, Linux x86_64, load 0.1 in ..."."""
    load = "" if machine.load is None else f", load {machine.load:g} in the minute before"
    return f"machine: {machine.processor}, {machine.cores} cores, {machine.system}{load}"


def peaks_lines(case: BenchCase) -> list[str]:
    """The peaks of a case, if they were measured."""
    p = case.peaks
    if p is None:
        return []
    cores = "one core" if p.cores == 1 else f"{p.cores} cores at once"
    return [f"peaks of {cores} in these rounds ({p.library}): {peaks_text(p)}"]


def peaks_text(peaks: Peaks) -> str:
    """Rates of kernels and of reading: "matrix 57.0 GMAC/s, ..., reading the same 24 MB 20.1 GB/s, 96 MB 17.8 GB/s"."""
    chosen = [read for read in peaks.reading if len(peaks.reading) == 1 or read.size >> 20 in (1, 8, 24, 96)]
    reading = ", ".join(f"{read.size / (1 << 20):.3g} MB {read.gbytes:.1f} GB/s" for read in chosen)
    lookups = f"lookups at any offset in the first cache {peaks.lookup_gmacs:.1f} GMAC/s"
    kernels = f"matrix {peaks.matrix_gmacs:.1f} GMAC/s, {lookups}"
    return f"{kernels}, reading the same {reading}" if reading else kernels


def ms_text(value: float) -> str:
    """Milliseconds to three figures: 0.123, 4.56, 78.9, 1,234."""
    decimals = 3 if value < 1 else 2 if value < 10 else 1 if value < 100 else 0
    return f"{value:,.{decimals}f}"


def case_grids(case: BenchCase) -> Sequence[Grid]:
    """The tables of one case that have rows."""
    return [grid for grid in (latencies(case), speedups(case), steps(case)) if grid.rows]
