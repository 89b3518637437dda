"""measure: the arithmetic of interleaved rounds, on a clock that the runs themselves move."""

from __future__ import annotations

import gc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lcnn_analyze.latency import Latency, Protocol, measure, quantile
from lcnn_core import ConfigError


@pytest.fixture(scope="module", autouse=True)
def _nothing_to_collect():
    """``measure`` collects garbage each time: of all that a worker of the suite holds, that takes a second."""
    gc.freeze()


class Clock:
    """Time that passes only while a run runs; ``log`` holds who ran when."""

    def __init__(self) -> None:
        self.now = 100.0
        self.log: list[str] = []

    def __call__(self) -> float:
        return self.now

    def run(self, name: str, *seconds: float):
        """A run that takes these seconds in turn, the last ones for ever."""
        left = list(seconds)

        def call() -> None:
            self.log.append(name)
            self.now += left.pop(0) if len(left) > 1 else left[0]

        return call


def test_every_contender_is_timed_in_every_round_after_an_untimed_call():
    clock = Clock()
    runs = {"a": clock.run("a", 0.125), "b": clock.run("b", 0.0625)}
    result = measure(runs, Protocol(rounds=3, sample_seconds=0.125), clock)
    # Three calls to warm up; then a turn is one untimed call and as many as fill the sample, the order turning.
    a, b = ["a"] * 2, ["b"] * 3
    assert clock.log == ["a"] * 3 + ["b"] * 3 + a + b + b + a + a + b
    assert result == {"a": Latency(0.125, 0.125, 0.125, 3, 1), "b": Latency(0.0625, 0.0625, 0.0625, 3, 2)}


def test_the_first_calls_and_the_first_of_each_turn_do_not_count():
    clock = Clock()
    run = clock.run("a", 0.9, 0.8, 0.125, 7.0, 0.5, 7.0, 0.75)
    result = measure({"a": run}, Protocol(rounds=2, sample_seconds=0, budget_seconds=1e9), clock)
    assert result["a"] == Latency(0.625, pytest.approx(0.525), pytest.approx(0.725), 2, 1)


def test_untimed_calls_last_until_the_threads_of_others_sleep():
    clock = Clock()
    protocol = Protocol(rounds=2, sample_seconds=0.25, settle_seconds=0.5)
    assert measure({"a": clock.run("a", 0.125)}, protocol, clock)["a"].calls == 2
    assert len(clock.log) == 3 + 2 * (4 + 2)


def test_a_long_call_needs_no_untimed_one():
    clock = Clock()
    result = measure({"a": clock.run("a", 0.5)}, Protocol(rounds=4), clock)
    assert len(clock.log) == 3 + 4
    assert result["a"].rounds == 4


def test_a_slow_contender_takes_part_in_fewer_rounds_spread_evenly():
    clock = Clock()
    runs = {"slow": clock.run("slow", 0.5), "fast": clock.run("fast", 0.001)}
    protocol = Protocol(rounds=8, sample_seconds=0, settle_seconds=0, budget_seconds=2, least_rounds=3)
    result = measure(runs, protocol, clock)
    assert (result["slow"].rounds, result["fast"].rounds) == (4, 8)
    assert "".join(name[0] for name in clock.log[6:]) == "sff" + "ff" + "sff" + "ff" + "sff" + "ff" + "sff" + "ff"


def test_the_least_number_of_rounds_is_kept_whatever_it_costs():
    clock = Clock()
    result = measure({"a": clock.run("a", 50.0)}, Protocol(rounds=8, budget_seconds=1, least_rounds=3), clock)
    assert result["a"].rounds == 3
    assert len(clock.log) == 1 + 3  # one call warms up what takes longer than a second


def test_spread_is_relative_to_the_median():
    assert Latency(2.0, 1.5, 2.0, 9, 1).spread == 0.25
    assert Latency(2.0, 1.5, 2.0, 9, 1).noisy
    assert not Latency(2.0, 1.9, 2.0, 9, 1).noisy


def test_garbage_collection_waits_and_is_on_again_after_a_failure():
    seen = []

    def fail() -> None:
        seen.append(gc.isenabled())
        raise RuntimeError("out of order")

    assert gc.isenabled()
    with pytest.raises(RuntimeError, match="out of order"):
        measure({"a": fail})
    assert seen == [False]
    assert gc.isenabled()


@given(st.lists(st.floats(0, 1e3), min_size=1, max_size=30), st.floats(0, 1))
def test_quantiles_are_numpy_s(samples, share):
    assert quantile(samples, share) == pytest.approx(np.quantile(samples, share))


@given(rounds=st.integers(1, 60), seconds=st.floats(2e-3, 20), budget=st.floats(0, 30))
def test_no_contender_exceeds_the_rounds_or_its_budget(rounds, seconds, budget):
    clock = Clock()
    protocol = Protocol(rounds=rounds, sample_seconds=0.02, budget_seconds=budget)
    result = measure({"a": clock.run("a", seconds)}, protocol, clock)["a"]
    assert min(rounds, 3) <= result.rounds <= rounds
    if result.rounds > 3:
        assert result.rounds * result.calls * seconds <= budget * (1 + 1e-9)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rounds": 0}, "rounds is 0; expected 1 or more"),
        ({"least_rounds": 0}, "least_rounds is 0; expected 1 or more"),
        ({"budget_seconds": float("nan")}, "budget_seconds is nan; expected a finite number of seconds, 0 or more"),
    ],
)
def test_protocols_are_checked(values, message):
    with pytest.raises(ConfigError, match=message):
        Protocol(**values)
