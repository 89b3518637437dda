"""``Report``: everything that the renderers show, frozen, saved as JSON and read back without loss. No torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from html import escape
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from lcnn_analyze.codec import decode, encode
from lcnn_analyze.cost import METRICS, TWIN, Baseline, CostTable
from lcnn_analyze.cost.changes import LayerChange
from lcnn_analyze.cost.checks import CrossCheck
from lcnn_analyze.cost.memory import Memory
from lcnn_analyze.latency import Latency
from lcnn_analyze.render import RENDERERS
from lcnn_analyze.spectrum import PUBLISHED_FACTS, Panel, Point, panels
from lcnn_core import ConfigError, DataError, Finding

if TYPE_CHECKING:
    from pandas import DataFrame

SCHEMA_VERSION = "1.2"
"""Raised in the second place when something is added, in the first when a reader of the old form would break."""

UNITS = "1 MAC = one multiplication and one addition = 2 FLOPs; every figure is for one image"


@dataclass(frozen=True)
class MetricInfo:
    """A column as the report carries it, so that a report can be rendered by a version that lacks the metric."""

    name: str
    title: str
    unit: str
    doc: str
    rank: int


@dataclass(frozen=True)
class ConventionInfo:
    """The counting rule behind every figure of the report, with its one-line definition."""

    name: str
    definition: str


@dataclass(frozen=True)
class Source:
    """The file that a model was read from."""

    file: str
    sha256: str
    size_bytes: int


@dataclass(frozen=True)
class Accuracy:
    """An accuracy that a checkpoint carries, in percent, with the data that it was measured on."""

    metric: str
    percent: float
    dataset: str
    details: Mapping[str, str]


@dataclass(frozen=True)
class Measurement:
    """The engine against the fastest float32 way to run a baseline, seconds of one call, from interleaved rounds."""

    baseline: str
    fastest: str
    """What ran the baseline fastest."""
    engine: Latency
    dense: Latency
    counted: float
    """The counted speedup over the same baseline, under ``published``."""
    batch: int
    threads: int
    processor: str

    @property
    def over_twin(self) -> bool:
        return self.baseline == TWIN

    @property
    def speedup(self) -> float:
        return self.dense.median / self.engine.median

    @property
    def efficiency(self) -> float:
        return self.speedup / self.counted


@dataclass(frozen=True)
class ModelReport:
    """One model: where it comes from, what it costs, against what, and how accurate it is."""

    name: str
    architecture: str
    source: Source | None
    costs: CostTable
    baselines: tuple[Baseline, ...]
    cross_check: CrossCheck | None
    """None where no second count was asked for."""
    accuracy: tuple[Accuracy, ...]
    memory: Memory | None = None
    health: tuple[Finding, ...] = ()
    """What is wasted; of a description without weights, what its counts alone can tell."""
    latency: tuple[Measurement, ...] = ()
    """Empty where nothing was measured."""
    notes: tuple[str, ...] = ()
    """What the reader of the file wants said."""

    @property
    def twin(self) -> Baseline:
        return next(baseline for baseline in self.baselines if baseline.kind == "twin")

    @property
    def reference(self) -> Baseline | None:
        """The named reference or the other checkpoint, where there is one."""
        return next((baseline for baseline in self.baselines if baseline.kind != "twin"), None)

    @property
    def headline(self) -> tuple[Accuracy, ...]:
        """One accuracy for each data set: the first listed, top-1 where there is one."""
        first: dict[str, Accuracy] = {}
        for accuracy in self.accuracy:
            first.setdefault(accuracy.dataset, accuracy)
        return tuple(first.values())

    @property
    def has_lookups(self) -> bool:
        return any(layer.dictionary_size is not None or layer.identity for layer in self.costs.layers)


@dataclass(frozen=True)
class Report:
    """One or more models counted under one convention. Made by ``analyze`` and ``compare``."""

    schema_version: str
    title: str
    command: str
    versions: Mapping[str, str]
    machine: str
    units: str
    convention: ConventionInfo
    metrics: tuple[MetricInfo, ...]
    models: tuple[ModelReport, ...]
    published: tuple[Point, ...]
    """Published points that the spectrum shows beside the models'."""
    facts: tuple[str, ...]
    """Stated wherever published points are shown."""
    changes: tuple[LayerChange, ...] = ()
    """From the first model to the second, where that was asked for."""

    @property
    def model(self) -> ModelReport:
        """The only model. Raises ConfigError when there are several: use ``models``."""
        if len(self.models) != 1:
            raise ConfigError(f"the report holds {len(self.models)} models; use report.models")
        return self.models[0]

    @property
    def spectrum(self) -> tuple[Panel, ...]:
        """Accuracy against counted speedup: a panel for each data set and accuracy metric that models carry."""
        own = spectrum_points(self.models)
        shown = {(point.dataset.lower(), point.metric): point.dataset for point in own}
        published = [
            replace(point, dataset=shown.get((point.dataset.lower(), point.metric), point.dataset))
            for point in self.published
            if not own or (point.dataset.lower(), point.metric) in shown
        ]
        drawn = panels([*own, *published])
        if own:
            return drawn
        lines = [(model.name, (model.reference or model.twin).speedup) for model in self.models]
        known = tuple((label, speedup) for label, speedup in lines if speedup is not None)
        return tuple(replace(panel, lines=known) for panel in drawn)

    def to_json(self, indent: int | None = 2) -> str:
        """The report as JSON (schema: ``Report.schema()``); the same report gives the same bytes."""
        separators = (",", ":") if indent is None else None
        return json.dumps(encode(self), indent=indent, separators=separators, ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Report:
        """Read ``to_json`` back. Raises DataError for anything else, naming what does not fit."""
        try:
            data = json.loads(text)
        except (json.JSONDecodeError, RecursionError) as error:
            raise DataError(f"not a report: not JSON ({error})") from None
        version = data.get("schema_version") if isinstance(data, dict) else None
        if not isinstance(version, str):
            raise DataError("not a report: schema_version is missing; expected the output of `analyze --format json`")
        if version.split(".")[0] != SCHEMA_VERSION.split(".")[0]:
            raise DataError(f"report schema_version is {version!r}; this version reads {SCHEMA_VERSION}")
        report = decode(cls, data)
        _require_whole(report)
        return report

    @staticmethod
    def schema() -> dict[str, Any]:
        """The JSON schema (draft 2020-12) of ``to_json``, as shipped in data/report.schema.json."""
        return json.loads(files("lcnn_analyze").joinpath("data/report.schema.json").read_text(encoding="utf-8"))

    def to_frame(self) -> DataFrame:
        """A pandas frame with one row per layer call; ``frame.attrs["units"]`` has each column's unit.

        Counts are exact (Int64); what does not apply to a layer, or is not known, is missing.
        """
        import pandas

        frame = pandas.DataFrame(layer_rows(self))
        for metric in self.metrics:
            exact = metric.unit not in ("fraction", "ratio")
            frame[metric.name] = frame[metric.name].astype("Int64" if exact else "float64")
        frame.attrs["units"] = {metric.name: metric.unit for metric in self.metrics}
        frame.attrs["convention"] = self.convention.name
        return frame

    def _repr_html_(self) -> str:
        """The HTML page in a frame, so that its style and its script stay inside."""
        page = escape(RENDERERS["html"].render(self).decode())
        return (
            f'<iframe srcdoc="{page}" style="width:100%;height:40rem;border:0" title="{escape(self.title)}"></iframe>'
        )


def _require_whole(report: Report) -> None:
    """What every renderer relies on, beyond the types of the fields."""
    if not report.models:
        raise DataError("not a whole report: it holds no model; analyze one again")
    names = {metric.name for metric in report.metrics} | {"macs"}
    for model in report.models:
        if not any(baseline.kind == "twin" for baseline in model.baselines):
            raise DataError(f"not a whole report: {model.name} has no dense twin; analyze it again")
        if missing := sorted(names - (model.costs.totals.keys() & model.costs.status.keys())):
            raise DataError(
                f"not a whole report: {model.name} has no total or status of {missing[0]}; analyze it again"
            )


def layer_rows(report: Report) -> list[dict[str, Any]]:
    """One flat dict per layer call: model, what the layer is, and every metric under its name."""
    return [
        {
            "model": model.name,
            "layer": layer.name,
            "kind": layer.kind,
            "call": layer.call,
            "input_shape": shape_text(layer.input_shape),
            "output_shape": shape_text(layer.output_shape),
            "kernel_size": shape_text(layer.kernel_size),
            "stride": shape_text(layer.stride),
            "groups": layer.groups,
            "dictionary_size": "identity" if layer.identity else layer.dictionary_size,
            **{metric.name: layer.values.get(metric.name) for metric in report.metrics},
        }
        for model in report.models
        for layer in model.costs.layers
    ]


def shape_text(shape: tuple[int, ...]) -> str:
    """(3, 224, 224) -> 3x224x224."""
    return "x".join(map(str, shape))


def metric_infos() -> tuple[MetricInfo, ...]:
    """The columns of this version, from ``METRICS``."""
    return tuple(MetricInfo(m.name, m.title, m.unit, m.doc, m.rank) for m in METRICS.values())


def spectrum_points(models: tuple[ModelReport, ...]) -> list[Point]:
    """A point for each model and data set, of its first accuracy metric, which is top-1 where there is one.

    Speedups are against the named reference where all models share one, of one size, else against each model's dense
    twin.
    """
    measured = [model for model in models if model.accuracy]
    first = measured[0].reference if measured else None
    shared = first is not None and all(
        model.reference and model.reference.name == first.name and model.reference.same_network(first)
        for model in measured
    )
    points = []
    for model in measured:
        baseline = model.reference if shared and model.reference else model.twin
        if baseline.speedup is None:
            continue
        for a in model.headline:
            about = (a.percent, a.metric, a.dataset, baseline.name, "this report")
            points.append(Point(model.name, baseline.speedup, *about))
            points += [
                Point(model.name, measured.speedup, *about, kind="measured")
                for measured in model.latency
                if measured.baseline == baseline.name or (baseline.same_network(model.twin) and measured.over_twin)
            ]
    return points


def published_facts(points: tuple[Point, ...]) -> tuple[str, ...]:
    """What has to be said beside these published points."""
    return PUBLISHED_FACTS if points else ()
