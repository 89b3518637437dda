"""The second opinions: they agree where they must, and a disagreement is found and named."""

from __future__ import annotations

import copy
import re

import pytest
import torch
from handmade import checked
from torch import nn
from torch.nn import functional as F

from lcnn_analyze import TOOLS, analyze, compare, cost_table, cross_check
from lcnn_analyze.cost.checks import CrossCheck, ToolCount, disagreements
from lcnn_analyze.render import words
from lcnn_core import ConfigError, LookupConv2d, LookupLinear, build, describe


class Block(nn.Module):
    """Lookups of every family, a shared layer, a functional convolution, plain products, norms."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = LookupConv2d(3, 8, (3, 2), stride=2, padding=(1, 0), dictionary_size=2, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.shared = LookupConv2d(8, 8, 3, padding=1, groups=2, dictionary_size=None)
        self.kernel = nn.Parameter(torch.randn(4, 8, 1, 1))
        self.mix = nn.Parameter(torch.randn(4, 6))
        self.head = nn.Sequential(LookupLinear(6, 12, dictionary_size=3), nn.LayerNorm(12), nn.Linear(12, 5))

    def forward(self, x):
        x = self.norm(self.stem(x))
        x = F.conv2d(self.shared(self.shared(x)), self.kernel)
        return self.head(x.mean((2, 3)) @ self.mix)


@pytest.mark.parametrize("tool", TOOLS)
def test_tools_agree_layer_by_layer_on_a_network_of_everything(tool):
    model = Block()
    costs = cost_table(describe(model, (3, 12, 10)))
    result = {count.tool: count for count in cross_check(model, costs).tools}[tool]
    assert (result.state, result.disagreements, result.reason) == ("agrees", (), "")
    assert result.macs == costs.totals["dense_macs"] > 0


def test_resnet18_is_exact_three_times():
    report = analyze("resnet18", check=True)
    check = report.model.cross_check
    assert check.agree
    assert [check.macs, *(tool.macs for tool in check.tools)] == [1_814_073_344] * 3
    assert check.tools[0].ignored["batch_norm"] > 0
    assert report.model.costs.totals["macs"] == 1_814_073_344


def test_lookup_networks_are_checked_against_their_dense_twin():
    model = build("digits-resnet-lcnn")
    report = analyze(model, (1, 8, 8), check=True)
    assert report.model.cross_check.macs == report.model.twin.macs == 1_058_432
    assert report.model.cross_check.agree


def test_the_model_comes_out_as_it_was():
    model = Block().train()
    model.norm.eval()
    before = copy.deepcopy(model.state_dict())
    modes = {name: module.training for name, module in model.named_modules()}
    modules = dict(model.named_modules())
    cross_check(model, cost_table(describe(model, (3, 12, 10))))
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert dict(model.named_modules()) == modules
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_wrong_count_is_found_and_its_layer_named():
    model = Block()
    costs = cost_table(describe(model, (3, 16, 16)))  # counted for another image than the check's
    wrong = CrossCheck(0, ())
    moved = cost_table(describe(model, (3, 12, 10)))
    wrong = cross_check(model, type(costs)(**{**vars(costs), "input_shape": moved.input_shape}))
    assert not wrong.agree
    assert {tool.state for tool in wrong.tools} == {"disagrees"}
    assert "stem" in {item.layer for item in wrong.tools[0].disagreements}
    text = words.check_text(wrong.tools[0])
    assert re.search(r"fvcore \S+ disagrees: [\d,]+ MACs; stem ours [\d,]+, theirs [\d,]+", text)


def test_a_tool_that_fails_says_why_and_is_no_agreement():
    class Dynamic(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 1, 1)

        def forward(self, x):
            if torch._C._get_tracing_state():
                raise RuntimeError("no tracing here")
            return self.conv(x)

    model = Dynamic()
    result = cross_check(model, cost_table(describe(model, (1, 4, 4))))
    fvcore = next(tool for tool in result.tools if tool.tool == "fvcore")
    assert (fvcore.state, fvcore.macs, fvcore.reason) == ("unavailable", None, "no tracing here")
    assert not result.agree


def test_disagreements_are_listed_in_our_order_with_their_explanations():
    found = disagreements({"a": 1, "b": 2, "c": 3}, {"c": 3, "b": 5, "z": 9}, {"z": "counted twice by policy"})
    assert [(item.layer, item.ours, item.theirs, item.explanation) for item in found] == [
        ("a", 1, 0, ""),
        ("b", 2, 5, ""),
        ("z", 0, 9, "counted twice by policy"),
    ]
    explained = ToolCount("t", "1", "p", 9, (found[2],))
    assert explained.state == "agrees"
    assert checked(100, off_by=1).agree is False


def test_a_bare_description_cannot_be_checked():
    described = describe(nn.Linear(2, 2), (2,))
    with pytest.raises(ConfigError, match="is a description without a model; a check needs the model itself"):
        analyze(described, check=True)


def test_checks_survive_a_comparison():
    both = compare([analyze("digits-resnet", check=True), analyze("digits-resnet-lcnn")])
    assert [model.cross_check is not None for model in both.models] == [True, False]
