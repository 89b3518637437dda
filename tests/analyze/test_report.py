"""Reports: lossless JSON with a schema, frames, analyze and compare in Python."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re

import jsonschema
import pytest
import torch
from handmade import both, dense_spec, everything, hostile, many_layers, model_report, report, spec
from torch import nn

from lcnn_analyze import CONVENTIONS, METRICS, Report, analyze, compare
from lcnn_core import (
    Checkpoint,
    CheckpointError,
    ConfigError,
    DataError,
    ShapeError,
    UnsupportedLayerError,
    build,
    describe,
    save,
)

HANDMADE = {"one": report, "everything": everything, "both": both, "hostile": hostile, "deep": lambda: many_layers(30)}


@pytest.fixture(params=HANDMADE)
def made(request) -> Report:
    return HANDMADE[request.param]()


def test_json_is_lossless_and_stable(made):
    text = made.to_json()
    again = Report.from_json(text)
    assert again == made
    assert again.to_json() == text
    assert Report.from_json(made.to_json(indent=None)) == made


def test_json_validates_against_the_shipped_schema(made):
    jsonschema.Draft202012Validator.check_schema(Report.schema())
    jsonschema.validate(json.loads(made.to_json()), Report.schema())


def described_keys(schema: dict) -> set[str]:
    """Every property that the schema describes, at any depth."""
    found = set(schema.get("properties", {}))
    for value in schema.values():
        for inner in value.values() if isinstance(value, dict) else []:
            found |= described_keys(inner) if isinstance(inner, dict) else set()
        if isinstance(value, dict):
            found |= described_keys(value)
        for inner in value if isinstance(value, list) else []:
            found |= described_keys(inner) if isinstance(inner, dict) else set()
    return found


def test_the_schema_describes_every_field_and_requires_them():
    described = described_keys(Report.schema())
    fields = {field.name for field in dataclasses.fields(Report)}
    model = everything().models[1]
    for part in (
        model,
        model.costs,
        model.costs.layers[0],
        model.source,
        model.cross_check,
        model.cross_check.tools[0],
        model.memory,
        model.health[0],
        model.latency[0],
        model.latency[0].engine,
        everything().changes[0],
    ):
        fields |= {field.name for field in dataclasses.fields(part)}
    assert fields <= described
    broken = json.loads(report().to_json())
    del broken["models"][0]["costs"]["totals"]
    with pytest.raises(jsonschema.ValidationError, match="'totals' is a required property"):
        jsonschema.validate(broken, Report.schema())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("title"), "report.title is missing"),
        (lambda d: d.update(title=3), "report.title is 3; expected str"),
        (lambda d: d.update(schema_version="2.0"), "schema_version is '2.0'; this version reads 1.2"),
        (lambda d: d.pop("schema_version"), "schema_version is missing"),
        (lambda d: d["models"][0]["costs"].update(layers=[7]), r"costs.layers\[0\] is 7; expected an object"),
        (lambda d: d["models"][0]["costs"]["totals"].update(macs="many"), "totals.macs is 'many'"),
        (lambda d: d["models"][0]["costs"]["status"]["macs"].update(state="so-so"), "state is 'so-so'"),
        (lambda d: d["models"][0]["costs"]["layers"][0].update(call=True), "call is True; expected int"),
        (lambda d: d.update(models=[]), "it holds no model"),
        (lambda d: d["models"][0].update(baselines=[]), "has no dense twin"),
        (lambda d: d["models"][0]["costs"].update(totals={}), "has no total or status of coefficients; analyze it"),
        (lambda d: d["models"][0]["costs"]["status"].pop("macs"), "has no total or status of macs; analyze it"),
    ],
)
def test_a_damaged_report_is_refused_with_the_place(change, message):
    data = json.loads(report().to_json())
    change(data)
    with pytest.raises(DataError, match=message):
        Report.from_json(json.dumps(data))


@pytest.mark.parametrize("text", ["", "[1]", "{", "3", "[" * 100_000, '{"schema_version": NaN}'])
def test_what_is_no_report_is_refused(text):
    with pytest.raises(DataError, match="not a report"):
        Report.from_json(text)


def test_keys_of_a_newer_minor_version_are_passed_over():
    data = json.loads(report().to_json())
    data |= {"schema_version": "1.7", "novelty": 1}
    data["models"][0]["weather"] = "fine"
    assert Report.from_json(json.dumps(data)).models == report().models


def test_a_frame_has_every_metric_with_its_unit():
    frame = everything().to_frame()
    assert len(frame) == sum(len(model.costs.layers) for model in everything().models)
    assert set(METRICS) < set(frame.columns)
    assert frame.attrs["units"] == {name: metric.unit for name, metric in METRICS.items()}
    assert frame.groupby("model")["macs"].sum()["lookup"] == everything().models[1].costs.totals["macs"]
    assert str(frame["macs"].dtype) == "Int64"
    assert frame["dictionary_size"].tolist()[-2:] == ["identity", None]


def test_a_notebook_shows_the_page_in_a_frame_of_its_own():
    shown = report()._repr_html_()
    assert shown.startswith("<iframe ")
    assert "<script" not in shown
    assert "&lt;!doctype html&gt;" in shown


def test_one_model_or_models():
    assert report().model is report().models[0] or report().model == report().models[0]
    with pytest.raises(ConfigError, match=r"the report holds 2 models; use report\.models"):
        _ = both().model


def test_compare_keeps_order_numbers_equal_names_and_refuses_mixed_conventions():
    one = report(model_report(spec(), "net"))
    other = report(model_report(dense_spec(), "net"))
    assert [model.name for model in compare([one, other]).models] == ["net", "net (2)"]
    assert compare([one]) == one
    mixed = dataclasses.replace(one, convention=dataclasses.replace(one.convention, name="output-resolution"))
    with pytest.raises(ConfigError, match="count under output-resolution and published; compare needs one convention"):
        compare([one, mixed])
    with pytest.raises(ConfigError, match="nothing to compare"):
        compare([])


# analyze


def test_analyze_takes_modules_descriptions_names_checkpoints_and_files(tmp_path):
    model = build("digits-resnet-lcnn").eval()
    described = describe(model, (1, 8, 8), "digits-resnet-lcnn")
    kept = Checkpoint.from_model(model, architecture="digits-resnet-lcnn")
    for suffix in (".pt", ".safetensors"):
        save(tmp_path / f"net{suffix}", kept)
    reports = [
        analyze(model, (1, 8, 8)),
        analyze(described),
        analyze(kept),
        analyze(tmp_path / "net.pt"),
        analyze(str(tmp_path / "net.safetensors")),
    ]
    totals = [each.model.costs.totals for each in reports]
    assert all(each == totals[0] for each in totals)
    source = reports[3].model.source
    assert (source.file, source.size_bytes) == ("net.pt", (tmp_path / "net.pt").stat().st_size)
    assert source.sha256 == hashlib.sha256((tmp_path / "net.pt").read_bytes()).hexdigest()
    fresh = analyze("digits-resnet-lcnn")
    assert fresh.model.costs.totals["dense_macs"] == totals[0]["dense_macs"]
    assert fresh.model.costs.state == "partial"


def test_accuracy_comes_from_the_checkpoint_in_percent(tmp_path):
    metrics = [
        {"name": "top5", "value": 1.0, "dataset": "digits", "count": 450},
        {"name": "top1", "value": 0.978, "dataset": "digits", "count": 450},
        {"name": "loss", "value": 0.1, "dataset": "digits"},
    ]
    kept = Checkpoint.from_model(build("digits-resnet"), architecture="digits-resnet", metrics=metrics)
    made = analyze(kept)
    assert [(a.metric, a.percent, a.details["count"]) for a in made.model.accuracy] == [
        ("top-1", 97.8, "450"),
        ("top-5", 100.0, "450"),
    ]
    assert [(p.metric, len(p.points)) for p in made.spectrum] == [("top-1", 1)]


def test_references_by_default_by_name_and_when_they_do_not_fit():
    assert analyze("alexnet-lcnn").model.reference.macs == 1_135_256_096
    assert analyze("resnet18-lcnn").model.reference.name == "resnet18"
    named = analyze("alexnet-lcnn", baseline="resnet18").model.reference
    assert (named.name, named.macs) == ("resnet18", 1_814_073_344)
    assert analyze(nn.Conv2d(1, 1, 1), (1, 4, 4)).model.reference is None
    with pytest.raises(ConfigError, match="reference 'alexnet' does not fit digits-resnet, choose another"):
        analyze("digits-resnet", baseline="alexnet")


def test_a_reference_has_the_classes_and_channels_of_the_model():
    kept = Checkpoint.from_model(
        build("resnet-lcnn", depth=10, num_classes=7, in_channels=1, stem="small"),
        architecture="resnet-lcnn",
        arguments={"depth": 10, "num_classes": 7, "in_channels": 1, "stem": "small"},
        input_shape=(1, 16, 16),
    )
    model = analyze(kept).model
    assert model.reference.name == "resnet10"
    assert (model.reference.macs, model.reference.parameters) == (model.twin.macs, model.twin.parameters)


def test_a_reference_by_name_is_of_its_own_widths_and_the_familys_is_of_the_models(tmp_path):
    kept = {}
    for name, widths in (("whole", None), ("narrow", (8, 16, 32))):
        arguments = {} if widths is None else {"widths": widths}
        metrics = [{"name": "top1", "value": 0.9, "dataset": "digits"}]
        model = build("digits-resnet", **arguments)
        kept[name] = Checkpoint.from_model(model, architecture="digits-resnet", arguments=arguments, metrics=metrics)
    family, named = analyze(kept["narrow"]), analyze(kept["narrow"], baseline="digits-resnet")
    assert family.model.reference.macs == family.model.twin.macs
    assert "widths [8, 16, 32], blocks [1, 1, 2], with a 1 x 8 x 8 input" in family.model.reference.definition
    assert named.model.reference.macs == 1_058_432
    assert named.model.reference.speedup == pytest.approx(1_058_432 / named.model.twin.macs)
    mixed = compare([analyze(kept["whole"], name="whole"), analyze(kept["narrow"], name="narrow")])
    assert {panel.baselines for panel in mixed.spectrum} == {("dense twin",)}  # no network that both stand against
    alike = compare([analyze(one, name=name, baseline="digits-resnet") for name, one in kept.items()])
    assert {panel.baselines for panel in alike.spectrum} == {("digits-resnet",)}


def test_a_bare_state_dict_has_the_reference_of_its_classes(tmp_path):
    model = build("resnet18-lcnn", num_classes=10)
    torch.save(model.state_dict(), tmp_path / "bare.pt")
    arguments = {"depth": 18, "num_classes": 10}
    ours = analyze(Checkpoint.from_model(model, architecture="resnet-lcnn", arguments=arguments)).model.reference
    bare = analyze(tmp_path / "bare.pt", architecture="resnet18-lcnn").model.reference
    assert (bare.macs, bare.parameters) == (ours.macs, ours.parameters)


def test_a_baseline_that_is_no_exact_count_says_so_and_strict_refuses_a_part(tmp_path):
    model, known = build("digits-resnet"), {"input_shape": (1, 8, 8), "strict": True}
    reference = analyze(model, baseline="digits-resnet-lcnn", **known).model.reference
    assert "an upper bound" in reference.remark
    assert analyze(model, baseline="digits-resnet", **known).model.reference.remark == ""

    class Spectral(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 2, 3)

        def forward(self, x):
            return self.conv(torch.fft.fft2(x).abs())

    torch.export.save(torch.export.export(Spectral(), (torch.zeros(1, 1, 8, 8),)), tmp_path / "part.pt2")
    part = analyze(model, (1, 8, 8), baseline=str(tmp_path / "part.pt2")).model.reference
    assert part.uncounted == 1
    with pytest.raises(UnsupportedLayerError, match="baseline part is counted in part: 1 calls of operations"):
        analyze(model, baseline=str(tmp_path / "part.pt2"), **known)


def test_imagenet_points_are_shown_for_imagenet_models_only():
    labels = {point.label.split()[0] for point in analyze("alexnet-lcnn").published}
    assert labels == {"AlexNet"}
    assert {point.label.split()[0] for point in analyze("resnet18").published} == {"ResNet-18"}
    assert analyze("digits-resnet-lcnn").published == ()
    named = analyze(describe(build("alexnet-lcnn", num_classes=7), (3, 224, 224), "alexnet-lcnn"))
    assert (named.published, named.facts) == ((), ())


class Odd(nn.Module):
    def forward(self, x):
        return torch.fft.fft(x).real


def test_what_has_no_formula_is_partial_and_strict_refuses_it():
    made = analyze(Odd(), (4,))
    assert made.model.costs.state == "partial"
    assert made.model.costs.uncounted
    with pytest.raises(UnsupportedLayerError, match=r"is counted in part: .*fft.* has no formula"):
        analyze(Odd(), (4,), strict=True)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: analyze(nn.Linear(2, 2)), ConfigError, "give input_shape, for example"),
        (lambda: analyze(nn.Linear(2, 2), (3,)), ShapeError, r"\(3,\) does not run through the model"),
        (lambda: analyze(3), ConfigError, "cannot analyze a int; expected an nn.Module"),
        (lambda: analyze("resnet19"), ConfigError, "unknown architecture 'resnet19'; did you mean"),
        (lambda: analyze("no/such.pt"), CheckpointError, re.escape("no/such.pt does not exist")),
        (lambda: analyze("digits-resnet", convention="x"), ConfigError, "convention is 'x'"),
        (lambda: analyze("digits-resnet", baseline="x"), ConfigError, "unknown architecture 'x'"),
    ],
)
def test_errors_name_the_value_and_the_next_step(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_the_convention_is_stated_with_its_definition(convention):
    made = analyze("digits-resnet", convention=convention)
    assert made.convention.name == made.model.costs.convention == convention
    assert made.convention.definition == CONVENTIONS[convention].definition
