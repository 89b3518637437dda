"""The bench's arithmetic on an injected clock: speedups, refusals, verdicts, bounds, and the shape of its reports."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import jsonschema
import pytest
import torch
from torch import nn

from lcnn_analyze.bench.bench import bench
from lcnn_analyze.bench.chart import draw
from lcnn_analyze.bench.contenders import CONTENDERS, Contender, Ready, StepTime, UnavailableError
from lcnn_analyze.bench.machine import this_machine
from lcnn_analyze.bench.render import FORMATS, terminal_case, terminal_summary
from lcnn_analyze.bench.report import UNITS, BenchCase, BenchReport, Peaks, Reading, Roofline, Speedup, Target
from lcnn_analyze.bench.roofline import PeaksInTurns, layer_seconds, read_gbytes, roofline_seconds, weight_bytes
from lcnn_analyze.bench.rows import MOST_STEPS, steps, summary, verdict_line
from lcnn_analyze.bench.run import Settings, fastest_dense, run_cases
from lcnn_analyze.bench.trial import error_of, float64_outputs, open_trial
from lcnn_analyze.latency import Latency, Protocol
from lcnn_core import ConfigError, DataError, LookupConv2d, LookupLayer, LookupLinear, build, describe, usable_cores

PROTOCOL = Protocol(rounds=3, sample_seconds=0, settle_seconds=0)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def paced(
    clock: Clock, name: str, role: str, seconds: float, off: float = 0.0, precision: str = "float32"
) -> Contender:
    """A contender that runs the network in PyTorch, takes ``seconds`` on the clock and is ``off`` by that share."""

    def prepare(work):
        def output():
            with torch.no_grad():
                y = work.model(work.x)
            return y + off * y.abs().max()

        def run():
            clock.now += seconds * len(work.x)

        def steps():
            return (StepTime("0", "lookup", 0.25, 1000), StepTime("3", "lookup_linear", 0.75, 40))

        return Ready(run, output, f"{name} detail", steps if role == "engine" else None)

    return Contender(name, name.title(), role, "torch", prepare, precision)  # type: ignore[arg-type]


@pytest.fixture
def model() -> nn.Module:
    """432 + 48 dictionary MACs (48 pixels), and what P leaves; the twin has 8 * 3 * 9 * 36 and 288 * 5."""
    return nn.Sequential(
        LookupConv2d(3, 8, 3, padding=0, dictionary_size=2, threshold=0.1),
        nn.ReLU(),
        nn.Flatten(),
        LookupLinear(288, 5, dictionary_size=3, threshold=0.1),
    ).eval()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def field(monkeypatch, clock):
    """Replaces the registry by paced contenders: the engine 2 ms an image, the fastest dense runtime 6 ms."""
    for name in reversed(list(CONTENDERS)):  # they are put back in the other order
        monkeypatch.delitem(CONTENDERS, name)

    def add(*contenders: Contender) -> None:
        for contender in contenders:
            monkeypatch.setitem(CONTENDERS, contender.name, contender)

    add(
        paced(clock, "engine", "engine", 0.002),
        paced(clock, "slow", "dense", 0.010),
        paced(clock, "fast", "dense", 0.006),
        paced(clock, "tiny", "dense", 0.001, off=0.05, precision="int8"),
        paced(clock, "today", "stock", 0.5),
    )
    return add


def run(model: nn.Module, clock: Clock, batch: int = 2, peaks: Peaks | None = None, **more) -> BenchCase:
    settings = Settings(PROTOCOL, tuple(CONTENDERS), (lambda seconds, sizes, cores: peaks) if peaks else None, clock)
    with open_trial(model, (3, 8, 8), "tiny", **more) as trial:
        return run_cases(trial, batch, [1], settings)[0]


def test_the_speedup_is_over_the_fastest_float32_runtime(model, clock, field):
    case = run(model, clock)
    (speedup,) = case.speedups
    layers = [model[0], model[3]]
    nonzeros = [int((layer.coefficients.abs() > 0.1).sum()) for layer in layers]
    own = 2 * 3 * 64 + nonzeros[0] * 36 + 3 * 288 + nonzeros[1]
    twin = 8 * 3 * 9 * 36 + 288 * 5
    assert [(n.kind, n.macs) for n in case.networks] == [("lcnn", own), ("twin", twin)]
    assert speedup.counted == pytest.approx(twin / own)
    assert (speedup.baseline, speedup.fastest) == ("twin", "Fast")
    assert speedup.measured == pytest.approx(3.0)
    assert speedup.efficiency == pytest.approx(3.0 / (twin / own))
    assert case.engine is not None
    assert case.engine.latency == Latency(*[pytest.approx(0.004)] * 3, rounds=3, calls=1)
    assert {entry.contender: entry.network for entry in case.entries} == {
        **{"engine": "lcnn", "slow": "twin", "fast": "twin", "tiny": "twin", "today": "lcnn"}
    }
    assert all(entry.state == "ok" for entry in case.entries)


def test_int8_is_faster_but_another_precision(model, clock, field):
    case = run(model, clock)
    fastest = fastest_dense(case, "twin")
    assert fastest is not None
    assert fastest.contender == "fast"
    (int8,) = [entry for entry in case.entries if entry.precision == "int8"]
    assert int8.latency is not None
    assert fastest.latency is not None
    assert int8.latency.median < fastest.latency.median
    assert int8.tolerance is None
    assert int8.error == pytest.approx(0.05, rel=0.01)


@pytest.mark.parametrize("off", [2e-5, float("nan")])
def test_no_speedup_where_the_engine_disagrees(model, clock, field, off):
    field(paced(clock, "engine", "engine", 0.002, off=off))
    case = run(model, clock)
    assert case.speedups == ()
    assert case.engine is not None
    assert case.engine.latency is None
    assert case.engine.state == "disagrees"
    assert case.disagreement is not None
    assert "outputs are off by 2.0e-05; allowed is 1.0e-05" in case.disagreement or "not finite" in case.disagreement
    report = a_report(case)
    assert report.disagreements == (f"tiny, batch 2, 1 thread: {case.disagreement}",)
    assert "x measured" not in terminal_summary(report)
    assert "no speedup, since the engine's outputs are" in verdict_line(case)
    assert BenchReport.from_json(report.to_json()) == report


def test_a_baseline_that_computes_something_else_is_none(model, clock, field):
    field(paced(clock, "fast", "dense", 0.006, off=0.01))
    case = run(model, clock)
    assert case.main is not None
    assert case.main.fastest == "Slow"
    assert case.main.measured == pytest.approx(5.0)
    (entry,) = [entry for entry in case.entries if entry.contender == "fast"]
    assert (entry.state, entry.latency) == ("disagrees", None)


def failing(error: Exception, role: str = "dense") -> Contender:
    def prepare(work):
        raise error

    return Contender("broken", "Broken", role, "torch", prepare)  # type: ignore[arg-type]


def test_what_cannot_run_is_listed_with_the_reason(model, clock, field):
    field(failing(UnavailableError("broken is not installed")))
    (entry,) = [entry for entry in run(model, clock).entries if entry.contender == "broken"]
    assert (entry.state, entry.reason) == ("unavailable", "broken is not installed")
    field(failing(RuntimeError("no such kernel\nstack of 40 frames")))
    (entry,) = [entry for entry in run(model, clock).entries if entry.contender == "broken"]
    assert (entry.state, entry.reason) == ("unavailable", "failed: no such kernel")


def test_a_bug_of_the_engine_is_not_a_line_of_the_report(model, clock, field):
    field(failing(RuntimeError("bug"), "engine"))
    with pytest.raises(RuntimeError, match="bug"):
        run(model, clock)


def test_threads_are_set_for_the_case_and_put_back(model, clock, field):
    seen = []

    def prepare(work):
        seen.append((torch.get_num_threads(), work.threads))
        raise UnavailableError("only looking")

    field(Contender("looker", "Looker", "dense", "torch", prepare))
    before = torch.get_num_threads()
    with open_trial(model, (3, 8, 8), "tiny") as trial:
        run_cases(trial, 1, [2, 1], Settings(PROTOCOL, ("looker",)))
    assert seen == [(2, 2), (1, 1)]
    assert torch.get_num_threads() == before


def test_thread_counts_are_timed_in_the_same_rounds(model, field):
    """Each with its own number of torch's threads, in turns; a case for each, in order."""
    log, clock = [], Clock()

    def prepare(work):
        def call():
            log.append((work.threads, torch.get_num_threads()))
            clock.now += 0.5 / work.threads

        return Ready(call, lambda: work.model(work.x))

    field(Contender("threaded", "Threaded", "dense", "torch", prepare))
    with open_trial(model, (3, 8, 8), "tiny") as trial:
        settings = Settings(Protocol(rounds=3, sample_seconds=0, settle_seconds=0), ("threaded",), None, clock)
        one, two = run_cases(trial, 1, [1, 2], settings)
    assert [threads for threads, _ in log[6:]] == [1, 2, 2, 1, 1, 2]  # after three calls each
    assert all(threads == found for threads, found in log)
    assert [(case.threads, case.entries[0].latency.median) for case in (one, two)] == [(1, 0.5), (2, 0.25)]


def test_the_reference_is_compared_beside_the_twin(clock, field):
    """A wide reference: more MACs than the twin, its own outputs, a speedup of its own."""
    model = nn.Sequential(LookupConv2d(3, 4, 11, stride=4, padding=2, dictionary_size=2), nn.AdaptiveAvgPool2d(1))
    model.append(nn.Flatten()).append(nn.Linear(4, 7))
    with open_trial(model, (3, 224, 224), "wide", "alexnet", headline="reference") as trial:
        assert [network.kind for network in trial.networks] == ["lcnn", "twin", "reference"]
        reference = trial.baselines[1]
        assert reference.info.macs == 1_135_256_096 - 4096 * 993  # 7 classes instead of 1000
        (case,) = run_cases(trial, 1, [1], Settings(PROTOCOL, tuple(CONTENDERS), None, clock))
    assert [speedup.baseline for speedup in case.speedups] == ["twin", "reference"]
    assert case.main is not None
    assert case.main.counted == pytest.approx(reference.info.macs / case.network("lcnn").macs)
    assert [entry.network for entry in case.entries if entry.precision == "int8"] == ["reference"]


def test_a_reference_that_is_the_twin_is_not_shown_twice():
    model = nn.Sequential(nn.Conv2d(1, 1, 1))
    with open_trial(model, (1, 8, 8), "m", None) as trial:
        assert trial.headline == "twin"
    with open_trial(build("digits-resnet-lcnn"), (1, 8, 8), "m", "digits-resnet", headline="reference") as trial:
        assert [network.kind for network in trial.networks] == ["lcnn", "twin"]
        assert trial.headline == "twin"
        folder = trial.lcnn.folder
        assert folder.exists()
    assert not folder.exists()


def test_unknown_references_are_refused(model):
    with (
        pytest.raises(ConfigError, match="unknown architecture 'alexnot'"),
        open_trial(model, (3, 8, 8), "m", "alexnot"),
    ):
        pass


def test_the_float64_reference_follows_the_paper_not_the_twin(model):
    x = torch.randn(2, 3, 8, 8)
    expected, own = float64_outputs(model, x)
    assert expected.dtype == torch.float64
    with torch.no_grad():
        error = error_of(model(x), expected)
    assert error is not None
    assert error < 1e-6
    assert 0 < own < 1e-6
    assert model[0].form == "auto"
    assert model[0].coefficients.dtype == torch.float32
    assert bool((model[0].coefficients.abs() < 0.1).any())  # still there: nothing was pruned


def test_the_float64_reference_does_not_go_through_the_dense_filter(monkeypatch):
    """A layer that PyTorch runs as W = P D is still computed as D, then P."""
    layer = LookupConv2d(4, 4, 3, dictionary_size=4)
    assert layer.uses_dense_form(16)
    x = torch.randn(1, 4, 6, 6)
    known = layer.double()(x.double()).detach()
    monkeypatch.setattr(LookupLayer, "dense_weight", lambda self: torch.zeros(()))
    expected, _ = float64_outputs(layer.float(), x)
    error = error_of(expected, known)
    assert error is not None
    assert error < 1e-6


def test_errors_are_relative_to_the_largest_output():
    expected = torch.tensor([[2.0, -4.0]], dtype=torch.float64)
    assert error_of(torch.tensor([[2.0, -3.0]]), expected) == pytest.approx(0.25)
    assert error_of(torch.tensor([[2.0, float("inf")]]), expected) is None
    assert error_of(torch.tensor([2.0, -4.0]), expected) is None


PEAKS = Peaks("avx2", matrix_gmacs=50.0, lookup_gmacs=25.0, reading=(Reading(1 << 20, 20.0), Reading(1 << 22, 10.0)))


def test_the_roofline_is_the_time_at_the_peaks(model):
    spec = describe(model, (3, 8, 8))
    conv, linear = (int((layer.coefficients.abs() > 0.1).sum()) for layer in (model[0], model[3]))
    compute = {"0": 2 * 3 * 64 / 50 + conv * 36 / 25, "3": 3 * 288 / 50 + linear / 25}
    weights = {"0": 4 * 6 + 8 * conv, "3": 4 * 864 + 8 * linear}
    found = layer_seconds(spec, PEAKS, 1)
    assert {name: found[name] for name in compute} == pytest.approx({n: s / 1e9 for n, s in compute.items()})
    assert roofline_seconds(spec, PEAKS, 8) == pytest.approx(8 * sum(compute.values()) / 1e9)
    assert {layer.name: weight_bytes(layer) for layer in spec.layers if layer.lookup} == weights
    # Reading all weights once a batch, at the rate of the largest measured size below theirs, bounds a layer too.
    total = sum(weights.values())
    assert [read_gbytes(PEAKS, size) for size in (total, 1 << 20, 1 << 21, 1 << 23)] == [math.inf, 20.0, 20.0, 10.0]
    slow = replace(PEAKS, reading=(Reading(total // 2, 10.0), Reading(2 * total, 1.0)))
    expected = sum(max(compute[name], weights[name] / 10) for name in compute) / 1e9
    assert roofline_seconds(spec, slow, 1) == pytest.approx(expected)


def test_the_roofline_of_a_case_is_an_efficiency(model, clock, field):
    case = run(model, clock, batch=2, peaks=PEAKS)
    assert case.main is not None
    assert case.roofline is not None
    bound = 0.006 * 2 / case.roofline.seconds / case.main.counted
    assert case.roofline.efficiency == pytest.approx(bound)
    assert [(step.name, step.kind) for step in case.steps] == [("0", "lookup"), ("3", "lookup_linear")]
    spec = describe(model, (3, 8, 8))
    peaks = replace(PEAKS, reading=())  # weights below a megabyte are not read
    assert case.peaks == peaks
    assert case.steps[0].bound_seconds == pytest.approx(layer_seconds(spec, peaks, 2)["0"])
    assert steps(case).rows[0][:4] == ("3", "lookup_linear", "375", "75%")


def test_peaks_are_medians_of_the_last_calls_of_each_turn():
    spec = describe(nn.Sequential(nn.Flatten(), nn.Linear(192, 2000)), (3, 8, 8))
    size = 4 * 192 * 2000
    rates = iter([(9, 9, 9), (900, 900, 900), (9, 9, 9), (50, 20, 7), (40, 30, 5), (9, 9, 9), (60, 25, 6)])

    def measured(seconds, sizes, cores):
        assert (tuple(sizes), cores) == ((size,), 2)
        matrix, lookup, gbytes = next(rates)
        return Peaks("avx2", matrix, lookup, (Reading(size, gbytes),), 2)

    peaks = PeaksInTurns(spec, measured, 2)
    assert peaks.median() is None
    for calls in (2, 2, 1, 2):  # the first is the warm-up
        peaks.turn()
        for _ in range(calls):
            peaks()
    assert peaks.median() == Peaks("avx2", 50, 25, (Reading(size, 6),), 2)


def test_peaks_are_of_the_rounds_and_not_of_the_warm_up(model, clock, field):
    """Calls of the warm-up and untimed ones find 1, those that count 2, 3 and 4; weights this small are not read."""
    calls = iter([1.0, 1.0, 1.0, 1.0, 2.0, 1.0, 3.0, 1.0, 4.0])

    def measured(seconds, sizes, cores):
        assert not sizes
        return Peaks("avx2", next(calls), 25.0, ())

    with open_trial(model, (3, 8, 8), "tiny") as trial:
        (case,) = run_cases(trial, 2, [1], Settings(PROTOCOL, tuple(CONTENDERS), measured, clock))
    assert case.peaks == Peaks("avx2", 3.0, 25.0, ())
    assert next(calls, None) is None


def test_without_a_library_there_are_no_peaks(model, clock, field):
    settings = Settings(PROTOCOL, tuple(CONTENDERS), lambda seconds, sizes, cores: None, clock)
    with open_trial(model, (3, 8, 8), "tiny") as trial:
        (case,) = run_cases(trial, 2, [1], settings)
    assert (case.peaks, case.roofline) == (None, None)
    assert case.main is not None


def a_report(*cases: BenchCase) -> BenchReport:
    return BenchReport("2.0", "lcnn bench", UNITS, this_machine(), {"rounds": 3.0}, cases)


def with_efficiency(case: BenchCase, efficiency: float, **more) -> BenchCase:
    return replace(case, speedups=(Speedup("twin", "Fast", 10.0, 10.0 * efficiency),), **more)


@pytest.mark.parametrize(
    ("efficiency", "roofline", "verdict"),
    [(0.66, 2.0, "pass"), (0.64, 2.0, "miss"), (0.64, 0.7, "pass"), (0.59, 0.7, "miss"), (0.66, None, "pass")],
)
def test_a_target_is_the_efficiency_or_most_of_the_roofline(model, clock, field, efficiency, roofline, verdict):
    bound = None if roofline is None else Roofline(0.001, roofline)
    case = with_efficiency(run(model, clock), efficiency, target=Target(0.65, 0.85), roofline=bound)
    assert a_report(case).verdict(case) == verdict


def test_more_threads_must_keep_the_efficiency_of_one(model, clock, field):
    one = with_efficiency(run(model, clock), 0.5, target=Target(0.65, 0.85))
    two = replace(with_efficiency(one, 0.46), threads=2)
    worse = replace(with_efficiency(one, 0.44), threads=2)
    assert a_report(one, two).verdict(two) == "pass"
    assert a_report(one, worse).verdict(worse) == "miss"
    assert a_report(two).verdict(two) is None
    other = replace(one, batch=1)
    assert a_report(other, two).verdict(two) is None
    bounded = replace(worse, roofline=Roofline(0.001, 0.5))  # 0.85 of it is less than 0.9 of one thread's
    assert a_report(one, bounded).least(bounded) == pytest.approx(0.425)
    assert a_report(one, bounded).verdict(bounded) == "pass"


def test_each_thread_count_has_the_peaks_of_as_many_cores(model, clock, field):
    asked = []

    def measured(seconds, sizes, cores):
        asked.append(cores)
        return Peaks("avx2", 50.0 * cores, 25.0 * cores, (), cores)

    settings = Settings(PROTOCOL, tuple(CONTENDERS), measured, clock)
    with open_trial(model, (3, 8, 8), "tiny") as trial:
        one, two = run_cases(trial, 2, [1, 2], settings)
        (alone,) = run_cases(trial, 2, [2], settings)
    assert set(asked) == {1, 2}
    assert [case.peaks.cores for case in (one, two, alone)] == [1, 2, 2]
    assert two.roofline.seconds < one.roofline.seconds
    for case in (two, alone):  # steps are told on one thread
        assert case.steps[0].bound_seconds == one.steps[0].bound_seconds


def test_without_a_target_there_is_no_verdict(model, clock, field):
    case = run(model, clock)
    assert a_report(case).verdict(case) is None


@pytest.fixture
def report(model, clock, field) -> BenchReport:
    case = run(model, clock, peaks=PEAKS)
    field(failing(UnavailableError("broken is not installed")))
    second = run(model, clock, batch=1, peaks=PEAKS, targets={1: Target(0.1, 0.9)}, accuracy="97.0 % top-1 on digits")
    return a_report(case, second)


def test_json_holds_everything_and_reads_back(report):
    assert BenchReport.from_json(report.to_json()) == report
    data = json.loads(report.to_json())
    number, text = {"type": "number"}, {"type": "string"}
    latency = {"required": ["median", "p10", "p90", "rounds", "calls"], "additionalProperties": number}
    speedup = {"required": ["baseline", "fastest", "counted", "measured", "efficiency"]}
    entry = {
        "required": ["contender", "network", "precision", "state", "reason", "error", "latency"],
        "properties": {
            "state": {"enum": ["ok", "unavailable", "disagrees"]},
            "latency": {"anyOf": [latency, {"type": "null"}]},
        },
    }
    case = {
        "required": [
            "name",
            "batch",
            "threads",
            "networks",
            "entries",
            "speedups",
            "peaks",
            "verdict",
            "least_efficiency",
        ],
        "properties": {
            "entries": {"items": entry, "minItems": 5},
            "speedups": {"items": speedup, "minItems": 1},
            "verdict": {"enum": ["pass", "miss", None]},
        },
    }
    machine = {"required": ["processor", "cores", "versions"], "properties": {"processor": text, "cores": number}}
    schema = {
        "required": ["schema_version", "command", "units", "machine", "cases"],
        "properties": {"cases": {"items": case, "minItems": 2}, "machine": machine},
    }
    jsonschema.validate(data, schema)
    assert [case["verdict"] for case in data["cases"]] == [None, "pass"]
    assert data["cases"][0]["speedups"][0]["efficiency"] == report.cases[0].speedups[0].efficiency


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not a bench report: not JSON"),
        ("[]", "schema_version is None; this version reads 2.0"),
        ('{"schema_version": "1.0"}', "schema_version is '1.0'; this version reads 2.0"),
        ('{"schema_version": "2.0"}', r"report\.command is missing"),
    ],
)
def test_other_json_is_refused(text, message):
    with pytest.raises(DataError, match=message):
        BenchReport.from_json(text)


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_shows_speedups_machine_and_reasons(report, name):
    text = FORMATS[name](report)
    for expected in (
        report.machine.processor,
        "broken is not installed",
        "97.0 % top-1 on digits",
        "interleaved",
        "int8",
        "peaks of one core in these rounds (avx2): matrix 50.0 GMAC/s",
    ):
        assert expected in " ".join(text.split()) or name == "json", expected
    assert str(report.machine.versions["torch"]) in text


@pytest.mark.parametrize("width", [80, 100, 160])
def test_tables_fit_the_terminal(report, width):
    text = "".join(terminal_case(case, width) for case in report.cases) + terminal_summary(report, width)
    assert max(map(len, text.splitlines())) <= width


def test_counted_and_measured_are_columns_of_their_own(report):
    headers = summary(report).headers
    counted, measured = headers.index("counted speedup"), headers.index("measured speedup")
    row = summary(report).rows[0]
    main = report.cases[0].main
    assert main is not None
    assert row[counted] == f"{main.counted:.2f}x"
    assert row[measured] == "3.00x"
    assert row[headers.index("efficiency")] == f"{main.efficiency:.2f}"


def test_a_long_plan_shows_its_slowest_steps(report):
    case = report.cases[0]
    many = replace(case, steps=tuple(replace(case.steps[0], name=str(i), seconds=i + 1.0) for i in range(40)))
    rows = steps(many).rows
    assert [row[0] for row in rows] == [str(39 - i) for i in range(MOST_STEPS)]


@pytest.mark.parametrize(("format", "start"), [("png", b"\x89PNG"), ("svg", b"<?xml")])
def test_pictures_are_drawn_for_one_case_and_for_several(report, format, start):
    for one in (report, replace(report, cases=report.cases[:1])):
        picture = draw(one, format)
        assert picture.startswith(start)
        assert picture == draw(one, format)


def test_nothing_timed_is_nothing_to_draw(report):
    case = replace(report.cases[0], entries=())
    with pytest.raises(ConfigError, match="nothing to draw"):
        draw(replace(report, cases=(case,)))


def test_bench_runs_every_combination_and_tells_each(model, clock, field):
    seen: list[BenchCase] = []
    report = bench(
        [lambda: open_trial(model, (3, 8, 8), "a"), lambda: open_trial(model, (3, 8, 8), "b")],
        batches=(1, 2),
        rounds=1,
        contenders=("fast",),
        on_case=seen.append,
    )
    assert [(case.name, case.batch) for case in seen] == [("a", 1), ("a", 2), ("b", 1), ("b", 2)]
    assert report.cases == tuple(seen)
    assert all(case.speedups == () and case.disagreement is None for case in seen)
    assert "no speedup, since there is nothing to compare" in verdict_line(seen[0])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batches": (0,)}, "batch is 0; expected whole numbers of 1 or more"),
        ({"batches": ()}, "batch is empty"),
        ({"threads": (1, 4096)}, "threads is 1, 4096; expected 1 to "),
        ({"rounds": 0}, "rounds is 0; expected 1 or more"),
        ({"contenders": ("tensorflow",)}, "unknown contender 'tensorflow'; expected some of engine"),
    ],
)
def test_settings_are_checked_before_anything_runs(settings, message):
    with pytest.raises(ConfigError, match=message):
        bench([], **settings)


def test_the_machine_is_named():
    machine = this_machine()
    assert machine.processor
    assert 1 <= machine.cores == usable_cores()
    assert machine.versions["torch"] == torch.__version__
