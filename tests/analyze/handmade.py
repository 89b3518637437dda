"""Reports made by hand, so that renderers are tested without a model, and figures against a calculator."""

from __future__ import annotations

from dataclasses import replace

from lcnn_analyze.analysis import compare
from lcnn_analyze.cost import cost_table, dense_twin, named_reference
from lcnn_analyze.cost.changes import changes
from lcnn_analyze.cost.checks import CrossCheck, Disagreement, ToolCount
from lcnn_analyze.cost.memory import memory
from lcnn_analyze.latency import Latency
from lcnn_analyze.report import (
    UNITS,
    Accuracy,
    ConventionInfo,
    Measurement,
    ModelReport,
    Report,
    Source,
    metric_infos,
    published_facts,
)
from lcnn_analyze.spectrum import published_points
from lcnn_core import Finding, LayerSpec, LookupSpec, ModelSpec, Uncounted


def dense_conv(name: str, m: int, n: int, size: int, kernel: int, **values: object) -> LayerSpec:
    """A dense 'same' convolution without bias."""
    weights = n * m * kernel * kernel
    return LayerSpec(
        **{
            "name": name,
            "kind": "conv",
            "input_shape": (m, size, size),
            "output_shape": (n, size, size),
            "kernel_size": (kernel, kernel),
            "stride": (1, 1),
            "padding": (kernel - 1, kernel - 1),
            "dilation": (1, 1),
            "weight_size": weights,
            "weight_nnz": weights,
            "parameters": weights,
            **values,
        }
    )


def lookup_conv(name: str, m: int, n: int, size: int, kernel: int, k: int | None, nnz: int) -> LayerSpec:
    """A lookup 'same' convolution without bias; k None is the identity dictionary."""
    rows = m if k is None else k
    stored = 0 if k is None else k * m
    coefficients = n * rows * kernel * kernel
    lookup = LookupSpec(rows, stored, coefficients, nnz, 0.01, 0.001, identity=k is None)
    dense = dense_conv(name, m, n, size, kernel)
    return replace(dense, kind="lookup_conv", weight_nnz=None, parameters=coefficients + stored, lookup=lookup)


def norm(name: str, channels: int, size: int) -> LayerSpec:
    shape = (channels, size, size)
    return LayerSpec(name, "norm", shape, shape, parameters=2 * channels, weight_size=channels, bias_size=channels)


def linear(name: str, m: int, n: int) -> LayerSpec:
    size = n * m
    return LayerSpec(
        name, "linear", (m,), (n,), weight_size=size, weight_nnz=size - 5, bias_size=n, parameters=size + n
    )


def spec(architecture: str = "hand-lcnn", **values: object) -> ModelSpec:
    layers = (
        dense_conv("stem", 1, 8, 8, 3),
        norm("norm", 8, 8),
        lookup_conv("body.0", 8, 16, 8, 3, 2, 60),
        lookup_conv("body.1", 16, 16, 8, 1, None, 40),
        linear("head", 16, 10),
    )
    total = sum(layer.parameters for layer in layers)
    return ModelSpec(
        **{"architecture": architecture, "input_shape": (1, 8, 8), "layers": layers, "parameters": total, **values}
    )


def dense_spec(architecture: str = "hand") -> ModelSpec:
    lookup = spec(architecture)
    layers = tuple(
        replace(layer, kind="conv", lookup=None, weight_nnz=layer.weight_size, parameters=layer.weight_size)
        if layer.lookup
        else layer
        for layer in lookup.layers
    )
    return replace(lookup, layers=layers, parameters=sum(layer.parameters for layer in layers))


def checked(macs: int, off_by: int = 0) -> CrossCheck:
    wrong = (Disagreement("head", 160, 160 + off_by),) if off_by else ()
    return CrossCheck(
        macs,
        (
            ToolCount("fvcore", "0.1.5", "its flop is one MAC", macs + off_by, wrong, {"batch_norm": 1024}),
            ToolCount("torch flop counter", "2.13.0", "2 FLOPs are one MAC", macs, (), {}),
        ),
    )


def model_report(
    described: ModelSpec,
    name: str,
    accuracy: float | None = None,
    dataset: str = "digits",
    check: CrossCheck | None = None,
) -> ModelReport:
    costs = cost_table(described)
    return ModelReport(
        name=name,
        architecture=described.architecture,
        source=Source(f"{name}.pt", "ab" * 32, 12345),
        costs=costs,
        baselines=(dense_twin(costs), named_reference(costs, dense_spec())),
        cross_check=check,
        accuracy=() if accuracy is None else (Accuracy("top-1", accuracy, dataset, {"count": "450"}),),
        memory=memory(described, costs),
    )


def report(*models: ModelReport, imagenet: bool = False, title: str = "What it costs") -> Report:
    points = published_points() if imagenet else ()
    return Report(
        schema_version="1.1",
        title=title,
        command="analyze a.pt b.pt",
        versions={"lcnn": "0.1.0", "python": "3.11.7", "torch": "2.13.0"},
        machine="Linux x86_64, 2 CPUs",
        units=UNITS,
        convention=ConventionInfo("published", "as the paper counts"),
        metrics=metric_infos(),
        models=models or (model_report(spec(), "hand-lcnn", 97.1),),
        published=points,
        facts=published_facts(points),
    )


def everything() -> Report:
    """Two models, a spectrum with published points, a cross-check, an uncounted operation, times, health, changes."""
    dense = model_report(dense_spec(), "dense", 56.6, "ImageNet")
    partial = spec(uncounted=(Uncounted("body.1", "aten.fft", 2, "no formula for this operation"),))
    macs = int(dense.costs.totals["macs"] or 0)
    lookup = model_report(partial, "lookup", 55.1, "ImageNet", checked(macs))
    found = (
        Finding("body.0", "dead rows of D", 1, 2, "drop them"),
        Finding("body.1", "filters without lookups", 3, 16, "remove them"),
        Finding("body.2", "filters without lookups", 4, 16, "remove them"),
    )
    times = Latency(0.004, 0.0038, 0.0045, 10, 5), Latency(0.01, 0.0099, 0.0102, 10, 2)
    lookup = replace(
        lookup,
        memory=replace(memory(partial, lookup.costs), activations=3840),
        health=found,
        latency=(Measurement(lookup.baselines[1].name, "ONNX Runtime", *times, 10.0, 1, 1, "a processor"),),
        notes=("the weights were under the key 'model'",),
    )
    made = report(dense, lookup, imagenet=True, title="Dense and lookup")
    return replace(made, changes=changes(dense.costs, lookup.costs))


HOSTILE = "</script><img src=x onerror=alert(1)>|`*[bold red]\x1b[31m=1+1"


def hostile() -> Report:
    """Names from a file that try to be markup in every format."""
    layers = tuple(replace(layer, name=HOSTILE) for layer in spec().layers)
    model = model_report(
        spec(HOSTILE, layers=layers, uncounted=(Uncounted(HOSTILE, HOSTILE, 1, HOSTILE),)), HOSTILE, 50.0, HOSTILE
    )
    return report(replace(model, source=Source(HOSTILE, "ab" * 32, 1)), title=HOSTILE)


def many_layers(count: int) -> Report:
    """A lookup network of ``count`` layers with names and sizes such as ResNet-152 has."""
    layers = tuple(lookup_conv(f"layer3.{i}.conv2", 256, 256, 14, 3, 128, 7000 + i) for i in range(count))
    total = sum(layer.parameters for layer in layers)
    return report(model_report(ModelSpec("deep-lcnn", (256, 14, 14), layers, (), total), "deep"))


def both() -> Report:
    return compare([report(model_report(dense_spec(), "dense", 97.8)), report(model_report(spec(), "lookup", 97.1))])
