"""``measure_model``: the measured speedups of one model, for its report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from torch import nn

from lcnn_analyze.bench.bench import bench
from lcnn_analyze.bench.contenders import CONTENDERS
from lcnn_analyze.bench.run import fastest_dense
from lcnn_analyze.bench.trial import open_trial
from lcnn_analyze.report import Measurement
from lcnn_core import LcnnError

QUICK = tuple(name for name, one in CONTENDERS.items() if one.role != "stock" and one.precision == "float32")
"""What decides a speedup: the engine and every dense baseline."""


def measure_model(
    model: nn.Module,
    input_shape: Sequence[int],
    name: str,
    reference: str | None = None,
    options: Mapping[str, Any] | None = None,
    rounds: int = 10,
) -> tuple[Measurement, ...]:
    """Time ``model`` in the engine against its dense twin, and against ``reference`` by name, one image, one thread.

    input_shape: without the batch. options: those of the reference (``reference_options``).
    Raises LcnnError where the engine's outputs disagree with PyTorch's: there is no speedup then.
    """
    trial = partial(open_trial, model, input_shape, name, reference, options)
    report = bench([trial], contenders=QUICK, rounds=rounds)
    case = report.cases[0]
    engine = case.engine
    if report.disagreements:
        raise LcnnError(f"{report.disagreements[0]}; no speedup is shown, please report the model")
    if engine is None or engine.latency is None:
        return ()
    found = []
    for speedup in case.speedups:
        dense = fastest_dense(case, speedup.baseline)
        if dense is not None and dense.latency is not None:
            baseline, processor = case.network(speedup.baseline).name, report.machine.processor
            timed = (engine.latency, dense.latency)
            found.append(Measurement(baseline, speedup.fastest, *timed, speedup.counted, 1, 1, processor))
    return tuple(found)
