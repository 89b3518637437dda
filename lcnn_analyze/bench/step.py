"""What a training step costs: forward and backward of lookup networks against their dense twins, in turns."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from lcnn_analyze.bench.machine import check_sizes, this_machine
from lcnn_analyze.bench.report import Machine
from lcnn_analyze.bench.rows import Grid, machine_line, ms_text
from lcnn_analyze.codec import encode
from lcnn_analyze.latency import Latency, Protocol, measure
from lcnn_analyze.render.numbers import ABSENT
from lcnn_core import ConfigError, build, dense_twin, input_shape_of, l1_penalty, models

FAST_AT_MOST, ACCURATE_AT_MOST = 0.6, 1.25
BATCH = 32
SECONDS_PER_ROUND = 2.0
"""What one network may take in a round on average; slower ones take part in fewer rounds."""


@dataclass(frozen=True)
class StepCase:
    """A lookup architecture, as training starts it, and the share of the twin's time that its step may take."""

    name: str
    architecture: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    at_most: float | None = None


PUBLISHED = (
    StepCase("AlexNet fast", "alexnet-lcnn", {"preset": "fast"}, FAST_AT_MOST),
    StepCase("AlexNet accurate", "alexnet-lcnn", {"preset": "accurate"}, ACCURATE_AT_MOST),
    StepCase("ResNet-18 fast", "resnet18-lcnn", {"preset": "fast"}, FAST_AT_MOST),
    StepCase("ResNet-18 accurate", "resnet18-lcnn", {"preset": "accurate"}, ACCURATE_AT_MOST),
)
"""The published dictionary sizes."""


@dataclass(frozen=True)
class StepTime:
    """Seconds of one step of both networks, from the same rounds."""

    name: str
    batch: int
    threads: int
    lcnn: Latency
    twin: Latency
    at_most: float | None

    @property
    def ratio(self) -> float:
        """The lookup network's median over the twin's."""
        return self.lcnn.median / self.twin.median

    @property
    def verdict(self) -> str | None:
        """pass or miss, where something is asked."""
        return None if self.at_most is None else "pass" if self.ratio <= self.at_most else "miss"


@dataclass(frozen=True)
class StepReport:
    """What ``lcnn bench --training`` prints."""

    command: str
    machine: Machine
    steps: tuple[StepTime, ...]

    def to_json(self) -> str:
        """As plain data; ratios and verdicts follow from it and are written too."""
        data = encode(self)
        for step, plain in zip(self.steps, data["steps"], strict=True):
            plain["ratio"], plain["verdict"] = step.ratio, step.verdict
        return json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def step_report(
    cases: Sequence[StepCase],
    batches: Sequence[int] = (BATCH,),
    threads: Sequence[int] = (1,),
    rounds: int = 15,
    command: str = "lcnn_analyze.bench.step.step_report(...)",
    say: Callable[[str], None] = lambda line: None,
) -> StepReport:
    """Time the cases one after the other, so that one pair of networks is in memory.

    Raises ConfigError for architectures without lookup layers and for threads that are not there.
    """
    check_sizes(batches, threads)
    found = []
    for case in cases:
        for batch in batches:
            for count in threads:
                say(f"timing {case.name}, batch {batch}")
                found.append(time_step(case, batch, count, rounds))
    return StepReport(command, this_machine(), tuple(found))


def time_step(case: StepCase, batch: int, threads: int = 1, rounds: int = 15) -> StepTime:
    """Both networks from one seed in training mode, on the same random images and labels."""
    builder, options = models.resolve(case.architecture, **case.arguments)
    if not builder.has_lookups:
        raise ConfigError(f"{case.architecture} has no lookup layers; expected an architecture such as alexnet-lcnn")
    before = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        networks = {
            "lcnn": build(case.architecture, **case.arguments),
            "twin": dense_twin(case.architecture, **case.arguments),
        }
        images = torch.randn(batch, *input_shape_of(case.architecture, **case.arguments))
        labels = torch.randint(options["num_classes"], (batch,))
        try:
            torch.set_num_threads(threads)
            protocol = Protocol(rounds=rounds, budget_seconds=rounds * SECONDS_PER_ROUND)
            times = measure({name: _step(model, images, labels) for name, model in networks.items()}, protocol)
        finally:
            torch.set_num_threads(before)
    return StepTime(case.name, batch, threads, times["lcnn"], times["twin"], case.at_most)


def _step(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> Callable[[], None]:
    """Forward and backward as training does them, the l1 terms of lookup layers included."""
    model.train()

    def run() -> None:
        model.zero_grad()
        (F.cross_entropy(model(images), labels) + l1_penalty(model)).backward()

    return run


def step_grid(report: StepReport) -> Grid:
    """One row for each configuration."""
    rows = tuple(
        (
            step.name,
            str(step.batch),
            str(step.threads),
            _time_text(step.lcnn),
            _time_text(step.twin),
            f"{step.ratio:.2f}",
            ABSENT if step.at_most is None else f"{step.at_most:.2f}",
            f"{step.verdict or ABSENT}{', noisy' if step.lcnn.noisy or step.twin.noisy else ''}",
        )
        for step in report.steps
    )
    headers = ("configuration", "batch", "threads", "lookup, ms", "dense twin, ms", "ratio", "at most", "verdict")
    return Grid(headers, rows, frozenset({0, 7}))


def _time_text(latency: Latency) -> str:
    return f"{ms_text(latency.median * 1e3)} ({ms_text(latency.p10 * 1e3)} to {ms_text(latency.p90 * 1e3)})"


def step_lines(report: StepReport) -> list[str]:
    """Where and how it was timed."""
    return [
        machine_line(report.machine),
        "one step: forward and backward, l1 terms included, without the optimizer; medians of interleaved rounds, "
        "10th to 90th percentile; ratio: lookup / dense twin",
    ]
