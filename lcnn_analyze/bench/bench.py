"""``bench(trials, ...)``: every trial at every batch size and thread count, a report at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager

from lcnn_analyze.bench.contenders import CONTENDERS
from lcnn_analyze.bench.machine import check_sizes, this_machine
from lcnn_analyze.bench.report import SCHEMA_VERSION, UNITS, BenchCase, BenchReport
from lcnn_analyze.bench.roofline import measure_peaks
from lcnn_analyze.bench.run import Say, Settings, run_cases
from lcnn_analyze.bench.trial import Trial
from lcnn_analyze.latency import Protocol
from lcnn_core import ConfigError

SECONDS_PER_ROUND = 0.2
"""What one contender may take in a round on average; slower ones take part in fewer rounds."""

OpenTrial = Callable[[], AbstractContextManager[Trial]]


def bench(
    trials: Iterable[OpenTrial],
    batches: Sequence[int] = (1,),
    threads: Sequence[int] = (1,),
    rounds: int = 15,
    contenders: Sequence[str] = tuple(CONTENDERS),
    command: str = "lcnn_analyze.bench.bench(...)",
    on_case: Callable[[BenchCase], None] = lambda case: None,
    say: Say = lambda line: None,
) -> BenchReport:
    """Time ``trials`` one after the other and return the report.

    trials: functions that open a trial (see ``open_trial``), so that only one is in memory. contenders: names in
    ``CONTENDERS``. on_case: called with each case as it finishes. say: called with what is being done.
    Raises ConfigError for unknown contenders, and for batches, threads or rounds that are not possible here.
    """
    settings = _settings(batches, threads, rounds, contenders)
    machine = this_machine()
    cases = []
    for open_one in trials:
        with open_one() as trial:
            for batch in batches:
                for case in run_cases(trial, batch, threads, settings, say):
                    cases.append(case)
                    on_case(case)
    protocol = {"rounds": settings.protocol.rounds, "budget_seconds": settings.protocol.budget_seconds}
    return BenchReport(SCHEMA_VERSION, command, UNITS, machine, protocol, tuple(cases))


def _settings(batches: Sequence[int], threads: Sequence[int], rounds: int, contenders: Sequence[str]) -> Settings:
    check_sizes(batches, threads)
    unknown = [name for name in contenders if name not in CONTENDERS]
    if unknown:
        raise ConfigError(f"unknown contender {unknown[0]!r}; expected some of {', '.join(CONTENDERS)}")
    protocol = Protocol(rounds=rounds, budget_seconds=rounds * SECONDS_PER_ROUND)
    return Settings(protocol, tuple(contenders), measure_peaks if "engine" in contenders else None)
