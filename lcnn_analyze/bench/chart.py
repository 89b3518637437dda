"""The bench as a picture: for one case, how long every contender takes; for several, counted against measured."""

from __future__ import annotations

from lcnn_analyze.bench.report import BenchCase, BenchReport, Entry, case_title
from lcnn_analyze.bench.rows import ms_text
from lcnn_analyze.render.bars import Duration, Ratio, draw_durations, draw_ratios
from lcnn_analyze.render.numbers import ratio_text, safe
from lcnn_core import ConfigError

COLORS = {"engine": "own", "dense": "other", "stock": "stock"}


def draw(report: BenchReport, format: str = "png") -> bytes:
    """PNG or SVG. Raises ConfigError where nothing was timed."""
    cases = [case for case in report.cases if any(entry.latency for entry in case.entries)]
    if not cases:
        raise ConfigError("there is nothing to draw, since no contender was timed; leave out --plot")
    machine = report.machine
    versions = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
    foot = f"{machine.processor}, {machine.cores} cores; {versions}"
    compared = [case for case in cases if case.main is not None]
    if len(compared) < 2:
        return _durations(cases[0], foot, format)
    return _ratios(report, compared, foot, format)


def _durations(case: BenchCase, foot: str, format: str) -> bytes:
    rows = sorted((_duration(case, entry) for entry in case.entries if entry.latency), key=lambda row: row.value)
    title, main = safe(case_title(case)), case.main
    if main is not None:
        over = f"{case.network(main.baseline).name} in {main.fastest}"
        title += f"\n{ratio_text(main.counted)} counted, {ratio_text(main.measured)} measured over {over}"
    label = "ms per image, median; the line spans the 10th to the 90th percentile"
    return draw_durations(rows, title, label, foot, format)


def _duration(case: BenchCase, entry: Entry) -> Duration:
    assert entry.latency is not None
    precision = "" if entry.precision == "float32" else f" {entry.precision}"
    network = "" if entry.network == "lcnn" else f", {case.network(entry.network).name}"
    scale = 1e3 / case.batch
    median, low, high = (seconds * scale for seconds in (entry.latency.median, entry.latency.p10, entry.latency.p90))
    return Duration(entry.title + precision + network, median, low, high, ms_text(median), COLORS[entry.role])


def _ratios(report: BenchReport, cases: list[BenchCase], foot: str, format: str) -> bytes:
    rows = []
    for case in cases:
        main, least = case.main, report.least(case)
        assert main is not None
        stroke = None if least is None else least * main.counted
        text = f"{main.efficiency:.2f}"
        rows.append(Ratio(safe(case_title(case)), main.measured, main.counted, stroke, text))
    title = "Bar: measured. Diamond: counted. Stroke: at least. Number: efficiency"
    label = "speedup over the fastest dense float32 of the baseline (log scale)"
    return draw_ratios(rows, title, label, foot, format)
