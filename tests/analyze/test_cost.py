"""Cost tables: the published worked example, hand counts, and what is said when a count is not whole."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from handmade import dense_conv, dense_spec, linear, lookup_conv, norm, spec

from lcnn_analyze.cost import CONVENTIONS, METRICS, cost_table, dense_twin, find_convention, named_reference
from lcnn_analyze.cost.changes import changes
from lcnn_analyze.cost.health import unprofitable
from lcnn_analyze.cost.memory import memory
from lcnn_analyze.cost.table import OUTSIDE
from lcnn_core import (
    ConfigError,
    LayerSpec,
    LookupConv2d,
    LookupSpec,
    ModelSpec,
    PlanStep,
    Uncounted,
    build,
    count_layer,
    describe,
)

# method.md, worked example: k, density of P, and dictionary + lookups in millions of MACs.
WORKED = {
    "fast": {
        "conv1": (3, 0.083, 0.468, 5.831),
        "conv2": (30, 0.034, 1.845, 3.569),
        "conv3": (30, 0.008, 1.296, 0.140),
        "conv4": (30, 0.013, 2.592, 0.152),
        "conv5": (30, 0.027, 1.728, 0.315),
        "fc6": (512, 0.001, 4.719, 0.075),
        "fc7": (512, 0.002, 2.097, 0.004),
        "fc8": (None, None, 4.096, 0.0),
    },
    "accurate": {
        "conv1": (3, 0.129, 0.468, 9.062),
        "conv2": (500, 0.040, 30.752, 69.984),
        "conv3": (500, 0.029, 21.600, 8.469),
        "conv4": (500, 0.034, 43.200, 6.619),
        "conv5": (30, 0.071, 1.728, 0.829),
        "fc6": (1024, 0.006, 9.437, 0.906),
        "fc7": (1024, 0.007, 4.194, 0.029),
        "fc8": (None, None, 4.096, 0.0),
    },
}
TOTALS = {"fast": (28.93, 39.2, 24.7), "accurate": (211.4, 5.37, 3.38)}


def on_meta(name: str, shape: tuple[int, ...] = (3, 224, 224), **options) -> ModelSpec:
    with torch.device("meta"):
        return describe(build(name, **options), shape, architecture=name)


def with_densities(described: ModelSpec, rows: dict) -> ModelSpec:
    """``described`` with the dictionary sizes and densities of ``rows``, as if its weights were loaded."""

    def layer(old: LayerSpec) -> LayerSpec:
        k, density, *_ = rows.get(old.name, (None,) * 4)
        if k is None:
            return old
        size = old.output_shape[0] * k * math.prod(old.kernel_size)
        lookup = LookupSpec(k, k * old.input_shape[0], size, round(size * density), 0.0, 0.0)
        return replace(old, kind="lookup_conv", lookup=lookup)

    return replace(described, layers=tuple(layer(old) for old in described.layers), weights_known=True)


@pytest.mark.parametrize("which", WORKED)
def test_the_worked_example_layer_by_layer_and_in_total(which):
    costs = cost_table(with_densities(on_meta("alexnet-lcnn"), WORKED[which]))
    layers = {layer.name: layer.values for layer in costs.layers}
    for name, (_, _, dictionary, lookups) in WORKED[which].items():
        assert layers[name]["macs"] / 1e6 == pytest.approx(dictionary + lookups, rel=0.01), name
        if name != "fc8":
            assert layers[name]["dictionary_macs"] / 1e6 == pytest.approx(dictionary, rel=0.01, abs=6e-4), name
            assert layers[name]["lookup_macs"] / 1e6 == pytest.approx(lookups, rel=0.01, abs=6e-4), name
    total, over_alexnet, over_twin = TOTALS[which]
    twin, alexnet = dense_twin(costs), named_reference(costs, on_meta("alexnet"))
    assert (twin.macs, alexnet.macs) == (714_188_480, 1_135_256_096)
    assert costs.totals["macs"] / 1e6 == pytest.approx(total, rel=0.01)
    assert alexnet.speedup == pytest.approx(over_alexnet, rel=0.01)
    assert twin.speedup == costs.totals["speedup"] == pytest.approx(over_twin, rel=0.01)
    assert costs.status["macs"].state == "complete"


def test_the_facts_stated_beside_the_published_numbers():
    """Width alone 1.59x; ResNet-18 without a lookup 18.8x and 2.9x; at output resolution 38.9x and 4.87x."""
    assert pytest.approx(1.59, abs=0.005) == 1_135_256_096 / 714_188_480
    assert pytest.approx(23.7, abs=0.05) == 37.6 / (1_135_256_096 / 714_188_480)
    for preset, published, at_output in (("fast", 18.8, 38.9), ("accurate", 2.9, 4.87)):
        described = on_meta("resnet-lcnn", depth=18, preset=preset)
        layers = tuple(
            replace(layer, lookup=replace(layer.lookup, coefficients_nnz=0)) if layer.lookup else layer
            for layer in described.layers
        )
        bare = replace(described, layers=layers, weights_known=True)
        assert dense_twin(cost_table(bare)).macs == 1_814_073_344
        assert cost_table(bare).totals["speedup"] == pytest.approx(published, abs=0.06)
        assert cost_table(bare, "output-resolution").totals["speedup"] == pytest.approx(at_output, abs=0.06)


def test_hand_counts_of_every_metric():
    """8x8 images; body.0 pads by one, so its dictionary is counted on 10x10 positions."""
    costs = cost_table(spec())
    by_name = {layer.name: layer for layer in costs.layers}
    stem = by_name["stem"].values
    assert (stem["macs"], stem["plain_macs"], stem["dictionary_macs"]) == (64 * 8 * 9, 64 * 8 * 9, None)
    body = by_name["body.0"].values
    assert (body["dictionary_macs"], body["lookups"], body["lookup_macs"]) == (100 * 2 * 8, 64 * 60, 64 * 60)
    assert (body["macs"], body["dense_macs"]) == (1600 + 3840, 64 * 16 * 8 * 9)
    assert body["speedup"] == (64 * 16 * 8 * 9) / 5440
    assert (body["coefficients"], body["coefficients_nnz"], body["density"]) == (16 * 2 * 9, 60, 60 / 288)
    assert (body["parameters"], body["dense_parameters"], body["storage"]) == (288 + 16, 16 * 8 * 9, 16 + 60)
    assert body["plain_macs"] is None
    identity = by_name["body.1"]
    assert (identity.dictionary_size, identity.identity) == (None, True)
    assert (identity.values["dictionary_macs"], identity.values["storage"]) == (0, 40)
    head = by_name["head"].values
    assert (head["macs"], head["zero_macs"], head["storage"]) == (160, 5, 170)
    assert by_name["norm"].values["macs"] == 0
    assert by_name["norm"].values["speedup"] is None
    total = 64 * 72 + 5440 + 64 * 40 + 160
    assert costs.totals["macs"] == total
    assert body["share"] == 5440 / total
    assert costs.totals["storage"] == 72 + 16 + 76 + 40 + 170
    assert costs.totals["dense_macs"] == 64 * 72 + 64 * 1152 + 64 * 256 + 160


def plan_of(described: ModelSpec) -> list[PlanStep]:
    """A plan that runs every layer as it is, with one padding column computed in every row."""
    return [
        PlanStep(kind, layer.name, layer.input_shape, layer.output_shape, macs + 8 * extra, 0, 0, True, dictionary)
        for layer in described.layers
        if (count := count_layer(layer)).total
        for kind, macs, extra, dictionary in [
            ("lookup", count.total, layer.lookup.coefficients_nnz, count.dictionary)
            if layer.lookup
            else ("linear", count.plain, 0, 0)
        ]
    ]


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("described", [spec(), dense_spec()], ids=["lookup", "dense"])
def test_every_metric_of_every_convention(convention, described):
    """Walks both registries: totals are sums, parts make wholes, each metric has words and a known unit."""
    costs = cost_table(described, convention, plan_of(described))
    assert list(costs.totals) == list(METRICS) == list(costs.status)
    for name, metric in METRICS.items():
        assert (metric.additive is None) != (metric.ratio is None)
        assert metric.unit in {"MACs", "reads", "values", "bytes", "fraction", "ratio"}
        assert metric.title
        assert metric.doc
        known = [layer.values[name] for layer in costs.layers if layer.values[name] is not None]
        if metric.additive:
            assert costs.totals[name] == (sum(known) if known else None)
        assert (costs.totals[name] is None) == (costs.status[name].state == "unavailable")
    parts = [costs.totals[name] or 0 for name in ("dictionary_macs", "lookup_macs", "plain_macs")]
    assert costs.totals["macs"] == sum(parts)
    assert sum(layer.values["share"] for layer in costs.layers) == pytest.approx(1)


def test_output_resolution_leaves_out_what_lookup_networks_leave_dense():
    costs = cost_table(spec(), "output-resolution")
    by_name = {layer.name: layer.values for layer in costs.layers}
    assert (by_name["stem"]["macs"], by_name["head"]["macs"]) == (0, 0)
    assert by_name["body.0"]["dictionary_macs"] == 64 * 2 * 8
    dense = cost_table(dense_spec(), "output-resolution")
    assert dense.totals["macs"] == cost_table(dense_spec()).totals["macs"] > 0


def test_an_unknown_convention_is_named():
    with pytest.raises(
        ConfigError, match="convention is 'papery'; expected one of published, executed, output-resolution"
    ):
        find_convention("papery")


def test_uncounted_operations_make_counts_partial_not_wrong():
    described = spec(uncounted=(Uncounted("body", "aten.fft", 3, "no formula"),))
    costs = cost_table(described)
    assert costs.state == "partial"
    assert costs.status["macs"].state == "partial"
    assert "3 calls of operations without a formula are not counted: aten.fft" in costs.status["macs"].reason
    assert costs.status["parameters"].state == "complete"
    assert costs.totals["macs"] == cost_table(spec()).totals["macs"]


def test_a_kind_without_a_formula_is_listed_never_zero():
    strange = LayerSpec("odd", "quantum", (8,), (8,), parameters=8)
    costs = cost_table(replace(spec(), layers=(*spec().layers, strange)))
    assert [(u.name, u.operation, u.calls) for u in costs.uncounted] == [("odd", "quantum", 1)]
    assert costs.status["macs"].state == "partial"


def test_without_weights_lookups_are_an_upper_bound_and_dense_counts_are_not():
    costs = cost_table(replace(spec(), weights_known=False))
    assert "an upper bound" in costs.status["macs"].reason
    assert costs.status["dense_macs"].state == "complete"
    dense = cost_table(replace(dense_spec(), weights_known=False))
    assert dense.status["macs"].state == "complete"


def test_shared_layers_cost_by_call_and_are_stored_once():
    once = lookup_conv("shared", 8, 8, 8, 3, 2, 50)
    again = replace(once, call=1, parameters=0)
    costs = cost_table(ModelSpec("shared", (8, 8, 8), (once, again), (), once.parameters))
    first, second = (layer.values for layer in costs.layers)
    assert first["macs"] == second["macs"] > 0
    assert (first["storage"], second["storage"]) == (16 + 50, 0)
    assert (costs.totals["coefficients"], costs.totals["coefficients_nnz"]) == (8 * 2 * 9, 50)
    assert costs.totals["dense_parameters"] == 8 * 8 * 9


def test_parameters_outside_layers_are_a_row_of_their_own():
    inside = linear("head", 4, 2)
    costs = cost_table(ModelSpec("outside", (4,), (inside,), (), inside.parameters + 100))
    row = costs.layers[-1]
    assert (row.name, row.values["parameters"], row.values["storage"], row.values["macs"]) == (OUTSIDE, 100, 100, 0)
    assert costs.totals["parameters"] == inside.parameters + 100


def test_a_model_that_multiplies_nothing():
    costs = cost_table(ModelSpec("still", (8, 4, 4), (norm("norm", 8, 4),), (), 16))
    assert costs.totals["macs"] == 0
    assert costs.totals["speedup"] is None
    assert dense_twin(costs).speedup is None


def test_grouped_and_repeated_convolutions_through_describe():
    """A real module against torch's own shapes: 4 groups, 2 of 3 columns, stride 2."""
    conv = torch.nn.Conv2d(8, 12, (2, 3), stride=2, groups=4, bias=False)
    with torch.no_grad():
        conv.weight[0, 0, 0, 0] = 0
    costs = cost_table(describe(conv, (8, 9, 11)))
    positions = math.prod(conv(torch.zeros(1, 8, 9, 11)).shape[2:])
    assert costs.totals["macs"] == positions * 12 * 2 * 6
    assert costs.totals["zero_macs"] == positions


def test_storage_of_a_lookup_layer_with_a_bias():
    layer = LookupConv2d(4, 6, 3, dictionary_size=2)
    with torch.no_grad():
        layer.dictionary[0, 0] = 0
        layer.coefficients.zero_()
        layer.coefficients[:, 0, 1, 1] = 1
    totals = cost_table(describe(layer, (4, 8, 8))).totals
    assert (totals["storage"], totals["parameters"]) == (7 + 6 + 6, 8 + 6 * 2 * 9 + 6)
    assert totals["dense_parameters"] == 6 * 4 * 9 + 6


def test_named_reference_keeps_its_own_name_and_shape():
    reference = named_reference(cost_table(spec()), dense_spec("big"))
    assert (reference.name, reference.kind) == ("big", "reference")
    assert "1 x 8 x 8" in reference.definition
    assert reference.speedup == reference.macs / cost_table(spec()).totals["macs"]


def test_dense_layers_have_a_speedup_of_one():
    costs = cost_table(ModelSpec("one", (3, 8, 8), (dense_conv("c", 3, 4, 8, 3),)))
    assert costs.layers[0].values["speedup"] == 1.0


# The executed convention


def test_executed_needs_a_plan():
    with pytest.raises(ConfigError, match="convention 'executed' counts an inference plan; give the plan's steps"):
        cost_table(spec(), "executed")


def test_executed_counts_the_steps_under_the_layers_they_were_made_of():
    """A strided layer's dictionary in a product of its own, a layer run dense, a pruned layer run sparse."""
    steps = [
        PlanStep("lookup", "stem", (), (), 300, 0, 0),
        PlanStep("gemm", "body.0", (), (), 1000, 0, 0),
        PlanStep("relayout", "body.0", (), (), 0, 0, 0),
        PlanStep("lookup", "body.0", (), (), 500, 0, 0, dictionary_macs=0),
        PlanStep("gemm", "body.1", (), (), 700, 0, 0),
        PlanStep("lookup_linear", "head", (), (), 90, 0, 0, dictionary_macs=60),
    ]
    rows = {layer.name: layer.values for layer in cost_table(spec(), "executed", steps).layers}
    parts = ("dictionary_macs", "lookup_macs", "plain_macs", "macs")
    assert [rows["body.0"][part] for part in parts] == [1000, 500, None, 1500]
    assert [rows["body.1"][part] for part in parts] == [0, 0, 700, 700]
    assert [rows["stem"]["macs"], rows["head"]["macs"]] == [300, 90]
    assert cost_table(spec(), "executed", steps).totals["dense_macs"] == cost_table(spec()).totals["dense_macs"]


def test_what_the_plan_leaves_to_pytorch_is_partial_never_zero():
    steps = [step for step in plan_of(spec()) if step.name != "body.0"]
    costs = cost_table(spec(), "executed", steps)
    assert [(u.name, u.reason) for u in costs.uncounted] == [("body.0", "body.0 runs in PyTorch, not in the engine")]
    assert costs.status["macs"].state == "partial"


# Memory, health and changes


def test_packed_bytes_by_hand():
    """body.0: D 16, P 60 of 288 sparse with 16 + 1 starts; body.1: 40 of 256; the stem and the head are dense."""
    by_name = {layer.name: layer.values["packed_bytes"] for layer in cost_table(spec()).layers}
    assert by_name["body.0"] == 4 * 16 + 4 * (2 * 60 + 17)
    assert by_name["body.1"] == 4 * (2 * 40 + 17)
    assert by_name["head"] == 4 * 170
    assert by_name["norm"] == 4 * 16
    body = next(layer for layer in spec().layers if layer.name == "body.0")
    k, width = body.lookup.dictionary_size, body.input_shape[0]
    few = replace(body, lookup=replace(body.lookup, dictionary_nnz=5))
    (layer,) = cost_table(ModelSpec("few", body.input_shape, (few,), (), few.parameters)).layers
    assert layer.values["packed_bytes"] == 4 * min(2 * 5 + k + 1, k * width) + 4 * (2 * 60 + 17)
    sparse = replace(linear("head", 16, 10), weight_nnz=20)
    costs = cost_table(ModelSpec("pruned", (16,), (sparse,), (), sparse.parameters))
    assert costs.totals["packed_bytes"] == 4 * 10 + 4 * (2 * 20 + 11)
    assert (costs.totals["weights"], costs.totals["weights_nnz"], costs.totals["nonzero_macs"]) == (160, 20, 20)


def test_memory_adds_up():
    described = replace(spec(), activation_bytes=777)
    costs = cost_table(described)
    found = memory(described, costs)
    assert (found.dense_twin, found.parameters) == (
        4 * costs.totals["dense_parameters"],
        4 * costs.totals["parameters"],
    )
    assert (found.packed, found.activations) == (costs.totals["packed_bytes"], 777)


def test_a_layer_that_does_not_pay_is_named_with_what_to_change():
    wasteful = lookup_conv("wide", 4, 4, 8, 1, 4, 3)  # D costs what the dense layer costs
    full = lookup_conv("full", 4, 16, 8, 1, 2, 30)
    fine = lookup_conv("fine", 4, 16, 8, 1, 2, 8)
    found = list(unprofitable(cost_table(ModelSpec("m", (4, 8, 8), (wasteful, full, fine)))))
    assert [(f.layer, f.count, f.of) for f in found] == [("wide", 64 * 3, 64 * 19)]
    assert "its dictionary alone costs as much as the dense layer" in found[0].change
    denser = replace(full, lookup=replace(full.lookup, coefficients_nnz=60))
    found = list(unprofitable(cost_table(ModelSpec("m", (4, 8, 8), (denser,)))))
    assert "prune P further" in found[0].change


def test_changes_name_what_differs_and_what_came_and_went():
    before, after = cost_table(dense_spec()), cost_table(spec(layers=(*spec().layers[:4], linear("top", 16, 10))))
    found = {change.layer: change for change in changes(before, after)}
    assert [change.state for change in found.values()] == ["same", "same", "changed", "changed", "removed", "added"]
    assert found["body.0"].what[:2] == ("kind: conv -> lookup_conv", "k: none -> 2")
    assert found["body.0"].macs == (64 * 1152, 5440)
    assert found["head"].macs == (160, None)
    assert found["top"].storage == (None, 170)
