"""Honest timing: contenders take turns, each warmed in its turn, and every figure has its spread. No torch."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from lcnn_core import ConfigError

Run = Callable[[], object]

LONG_CALL = 0.25
"""Seconds from which a call is timed without an untimed one before it: bringing its weights back is a small part."""

NOISY_SPREAD = 0.2
"""Above this share of the median between the 10th and the 90th percentile, a figure is called noisy."""


@dataclass(frozen=True)
class Protocol:
    """How contenders are timed.

    rounds: how often every contender takes its turn.
    sample_seconds: a turn's timed calls fill at least this, so that short calls are averaged over the clock's grain.
    settle_seconds: its untimed calls before them, at least one, fill this, so that threads of the contender before,
        which spin for a while, are asleep.
    budget_seconds: what one contender may take over all rounds; a slow one takes part in fewer, evenly spread, at
        least ``least_rounds``.
    """

    rounds: int = 30
    sample_seconds: float = 0.02
    settle_seconds: float = 0.02
    budget_seconds: float = 10.0
    least_rounds: int = 3

    def __post_init__(self) -> None:
        for name in ("rounds", "least_rounds"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected 1 or more")
        for name in ("sample_seconds", "settle_seconds", "budget_seconds"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected a finite number of seconds, 0 or more")


@dataclass(frozen=True)
class Latency:
    """Seconds of one call: median, 10th and 90th percentile over ``rounds`` samples of ``calls`` calls each."""

    median: float
    p10: float
    p90: float
    rounds: int
    calls: int

    @property
    def spread(self) -> float:
        """(p90 - p10) / median: how far single samples lie apart."""
        return (self.p90 - self.p10) / self.median if self.median else 0.0

    @property
    def noisy(self) -> bool:
        return self.spread > NOISY_SPREAD


def measure(
    runs: Mapping[str, Run],
    protocol: Protocol | None = None,
    clock: Callable[[], float] = time.perf_counter,
    before: Callable[[str], object] = lambda name: None,
) -> dict[str, Latency]:
    """Time every run in interleaved rounds; seconds per call.

    In each round every contender has one turn: untimed calls, which bring its code, weights and threads back after the
    others' (none where one call takes ``LONG_CALL``), then timed calls without a pause. The order is turned by one
    place from round to round, so that nobody always follows the same neighbour, and what drifts (clock speed, other
    processes) drifts for all. Garbage collection is held off meanwhile. before: called ahead of each turn, untimed.
    """
    protocol = protocol or Protocol()
    with _no_garbage_collection():
        once = {}
        for name, run in runs.items():
            before(name)
            once[name] = _warm(run, clock)
        turns = {name: _Turns.plan(seconds, protocol) for name, seconds in once.items()}
        samples: dict[str, list[float]] = {name: [] for name in runs}
        for number in range(protocol.rounds):
            for name in _turned(list(runs), number):
                if turns[name].takes_part(number, protocol.rounds):
                    before(name)
                    samples[name].append(turns[name].sample(runs[name], clock))
    return {name: _summary(samples[name], turns[name].calls) for name in runs}


@dataclass(frozen=True)
class _Turns:
    untimed: int
    calls: int
    rounds: int

    @classmethod
    def plan(cls, seconds: float, protocol: Protocol) -> _Turns:
        """Calls a turn and the number of turns for a contender whose call takes ``seconds``."""
        calls = _calls_to_fill(protocol.sample_seconds, seconds)
        untimed = _calls_to_fill(protocol.settle_seconds, seconds) if seconds < LONG_CALL else 0
        turn = seconds * (untimed + calls)
        affordable = int(protocol.budget_seconds / turn) if turn > 0 else protocol.rounds
        return cls(untimed, calls, min(protocol.rounds, max(protocol.least_rounds, affordable)))

    def takes_part(self, number: int, rounds: int) -> bool:
        """Whether round ``number`` is one of this contender's, spread evenly over all ``rounds``."""
        return number * self.rounds // rounds != (number - 1) * self.rounds // rounds

    def sample(self, run: Run, clock: Callable[[], float]) -> float:
        """One turn: seconds per call over the timed calls."""
        for _ in range(self.untimed):
            run()
        return _seconds_per_call(run, self.calls, clock)


def _calls_to_fill(time: float, seconds: float) -> int:
    return max(1, math.ceil(time / seconds)) if seconds > 0 else 1


def _warm(run: Run, clock: Callable[[], float]) -> float:
    """Call until warm, and return the seconds of the last call: three calls, or one that takes a second."""
    for _ in range(3):
        seconds = _seconds_per_call(run, 1, clock)
        if seconds > 1:
            break
    return seconds


def _seconds_per_call(run: Run, calls: int, clock: Callable[[], float]) -> float:
    start = clock()
    for _ in range(calls):
        run()
    return (clock() - start) / calls


def _turned(names: list[str], by: int) -> list[str]:
    by %= max(1, len(names))
    return names[by:] + names[:by]


def _summary(samples: list[float], calls: int) -> Latency:
    return Latency(
        quantile(samples, 0.5), quantile(samples, 0.1), quantile(samples, 0.9), rounds=len(samples), calls=calls
    )


def quantile(samples: list[float], share: float) -> float:
    """The value below which ``share`` of the samples lie, interpolated between neighbours (as numpy does)."""
    ordered = sorted(samples)
    place = share * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
