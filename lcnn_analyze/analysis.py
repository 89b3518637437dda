"""``analyze`` and ``compare``: models in, a Report out."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import lcnn_core
from lcnn_analyze.cost import (
    Baseline,
    cost_table,
    dense_twin,
    find_convention,
    named_reference,
    other_checkpoint,
)
from lcnn_analyze.cost.changes import changes
from lcnn_analyze.cost.checks import CrossCheck
from lcnn_analyze.cost.health import unprofitable
from lcnn_analyze.cost.memory import memory
from lcnn_analyze.cost.table import CostTable
from lcnn_analyze.inputs import (
    Subject,
    chosen_reference,
    is_file,
    is_imagenet,
    open_subject,
    plan_steps,
    reference_spec,
)
from lcnn_analyze.report import (
    SCHEMA_VERSION,
    UNITS,
    ConventionInfo,
    Measurement,
    ModelReport,
    Report,
    metric_infos,
    published_facts,
)
from lcnn_analyze.spectrum import Point, published_points
from lcnn_core import ConfigError, Finding, UnsupportedLayerError

_FAMILIES = {"alexnet": "AlexNet", "resnet": "ResNet-18"}


def analyze(
    model: Any,
    input_shape: Sequence[int] | None = None,
    *,
    convention: str = "published",
    baseline: str | None = None,
    check: bool = False,
    strict: bool = False,
    latency: bool = False,
    architecture: str | None = None,
    name: str | None = None,
    command: str = "lcnn_analyze.analyze(...)",
) -> Report:
    """Count what ``model`` costs for one image, layer by layer, against its dense twin and a named reference.

    model: an nn.Module (``input_shape`` needed), a Checkpoint, a ModelSpec, a path or an architecture's name.
    input_shape: without the batch, for example (3, 224, 224).
    convention: a name in ``CONVENTIONS``. baseline: beside the dense twin, an architecture by name or the path of
        another model; "twin" is the twin alone, None the dense architecture of the same family where there is one.
    check: recount the dense twin with fvcore and torch's flop counter. strict: UnsupportedLayerError where an
        operation has no formula. latency: time the engine against the fastest dense runtime, one image, one thread;
        takes a minute. architecture: what a bare state dict holds, by name. name: how the model is called.
    Returns a Report with one model. Raises ConfigError, ShapeError, and for files CheckpointError.
    """
    rule = find_convention(convention)
    subject = open_subject(model, input_shape, name, architecture)
    costs = cost_table(subject.spec, convention, plan_steps(subject) if rule.needs_plan else None)
    baselines = _baselines(subject, costs, baseline)
    if strict:
        _require_complete(subject, costs, baselines)
    points = _published_for(subject)
    return Report(
        schema_version=SCHEMA_VERSION,
        title=f"What {subject.name} costs",
        command=command,
        versions={"lcnn": _version("lcnn"), "python": platform.python_version(), "torch": _version("torch")},
        machine=f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs",
        units=UNITS,
        convention=ConventionInfo(rule.name, rule.definition),
        metrics=metric_infos(),
        models=(
            ModelReport(
                name=subject.name,
                architecture=subject.spec.architecture,
                source=subject.source,
                costs=costs,
                baselines=baselines,
                cross_check=_cross_check(subject, costs) if check else None,
                accuracy=subject.accuracy,
                memory=memory(subject.spec, costs),
                health=_health(subject, costs),
                latency=_latency(subject, baseline) if latency else (),
                notes=subject.notes,
            ),
        ),
        published=points,
        facts=published_facts(points),
    )


def compare(reports: Sequence[Report], title: str | None = None, diff: bool = False) -> Report:
    """One report of all the models of ``reports``, in order, which must have counted under one convention.

    Models of equal name are numbered. diff: say layer by layer what changed, of exactly two models.
    Raises ConfigError when there is nothing to compare or conventions differ.
    """
    if not reports:
        raise ConfigError("nothing to compare; give one report or more")
    conventions = {report.convention.name for report in reports}
    if len(conventions) > 1:
        raise ConfigError(f"the reports count under {' and '.join(sorted(conventions))}; compare needs one convention")
    models = _distinct([model for report in reports for model in report.models])
    points = tuple(dict.fromkeys(point for report in reports for point in report.published))
    if title is None:
        title = reports[0].title if len(models) == 1 else f"{len(models)} models compared"
    if diff and len(models) != 2:
        raise ConfigError(f"a difference is between two models, and there are {len(models)}; give two")
    changed = changes(models[0].costs, models[1].costs) if diff else ()
    return replace(
        reports[0], title=title, models=models, published=points, facts=published_facts(points), changes=changed
    )


def _baselines(subject: Subject, costs: CostTable, baseline: str | None) -> tuple[Baseline, ...]:
    twin = dense_twin(costs)
    if baseline == "twin":
        return (twin,)
    if baseline and is_file(baseline):
        other = open_subject(baseline)
        return (twin, other_checkpoint(costs, other.spec, other.name))
    chosen = chosen_reference(subject, baseline)
    if chosen is None:
        return (twin,)
    name, options = chosen
    return (twin, named_reference(costs, reference_spec(name, subject, options), options))


def _latency(subject: Subject, baseline: str | None) -> tuple[Measurement, ...]:
    if subject.make_module is None:
        raise ConfigError(f"{subject.name} is a description without a model; only a model can be timed")
    # Imported here: nothing else needs the runtimes.
    from lcnn_analyze.bench.measured import measure_model

    unnamed = baseline == "twin" or (baseline and is_file(baseline))
    reference = (None if unnamed else chosen_reference(subject, baseline)) or (None, None)
    return measure_model(subject.make_module(), subject.spec.input_shape, subject.name, *reference)


def _health(subject: Subject, costs: CostTable) -> tuple[Finding, ...]:
    """From the weights where there are some, and from the counts."""
    known = subject.make_module is not None and subject.spec.weights_known
    found = lcnn_core.check_health(subject.make_module()) if known and subject.make_module else ()
    return (*found, *unprofitable(costs))


def _require_complete(subject: Subject, costs: CostTable, baselines: Sequence[Baseline]) -> None:
    if costs.uncounted:
        first = costs.uncounted[0]
        raise UnsupportedLayerError(
            f"{subject.name} is counted in part: {first.operation} in {first.name or 'the model'} has no formula "
            f"({len(costs.uncounted)} such operations); leave out --strict to see the rest"
        )
    for baseline in baselines:
        if baseline.uncounted:
            raise UnsupportedLayerError(
                f"baseline {baseline.name} is counted in part: {baseline.remark}; leave out --strict to see the rest"
            )


def _cross_check(subject: Subject, costs: CostTable) -> CrossCheck:
    if subject.make_module is None:
        raise ConfigError(f"{subject.name} is a description without a model; a check needs the model itself")
    from lcnn_analyze.crosscheck import cross_check

    return cross_check(subject.make_module(), costs)


def _published_for(subject: Subject) -> tuple[Point, ...]:
    """The published points of the model's family; of all for an ImageNet model of another; none for other data."""
    if not is_imagenet(subject):
        return ()
    families = [label for family, label in _FAMILIES.items() if family in subject.spec.architecture]
    return tuple(
        point for point in published_points() if not families or any(point.label.startswith(f) for f in families)
    )


def _distinct(models: Sequence[ModelReport]) -> tuple[ModelReport, ...]:
    seen: dict[str, int] = {}
    renamed = []
    for model in models:
        seen[model.name] = count = seen.get(model.name, 0) + 1
        renamed.append(model if count == 1 else replace(model, name=f"{model.name} ({count})"))
    return tuple(renamed)


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "not installed"
