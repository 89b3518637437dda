"""The second opinions: they agree where they must, and a disagreement is found and named."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import pytest
import torch
from handmade import checked
from torch import nn
from torch.nn import functional as F

from lcnn_analyze import TOOLS, analyze, compare, cost_table, cross_check
from lcnn_analyze.cost.checks import CrossCheck, ToolCount, disagreements
from lcnn_analyze.documents import zoo
from lcnn_analyze.render import words
from lcnn_core import ConfigError, LookupConv2d, LookupLinear, build, build_named, describe


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


class Attention(nn.Module):
    """Multi-head attention (fused where PyTorch can), a batched sum of products, an einsum."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(64, 4, batch_first=True)
        self.sums = Sums()
        self.einsum = Einsum()

    def forward(self, x):
        return self.einsum(self.sums(self.attention(x, x, x, need_weights=False)[0]))


class Sums(nn.Module):
    def forward(self, x):
        return torch.baddbmm(x @ x.mT, x, x.mT)


class Einsum(nn.Module):
    def forward(self, x):
        return torch.einsum("bij,bkj->bik", x, x).sum()


def test_what_a_tool_leaves_out_is_explained_to_the_last_mac():
    """Sizes by hand: 33 tokens of 64 features; fvcore lacks both attention products and the batched sum."""
    tokens, features = 33, 64
    model = Attention()
    result = {tool.tool: tool for tool in cross_check(model, cost_table(describe(model, (tokens, features)))).tools}
    product = tokens * tokens * features
    everything = 4 * tokens * features * features + 2 * product + 2 * product + tokens**3
    assert (result["torch flop counter"].state, result["torch flop counter"].macs) == ("agrees", everything)
    fvcore = result["fvcore"]
    assert fvcore.state == "agrees"
    *lacking, rounded = fvcore.disagreements
    assert [(item.layer, item.ours - item.theirs) for item in lacking] == [
        ("attention", 2 * product),
        ("sums", product),
    ]
    assert all(item.explanation.startswith("fvcore has no rule for aten::") for item in lacking)
    assert (rounded.layer, rounded.ours) == ("einsum", tokens**3)
    assert rounded.theirs == pytest.approx(tokens**3, rel=5e-4)
    assert "four digits" in rounded.explanation
    assert fvcore.macs == everything - 3 * product + rounded.theirs - rounded.ours
    assert "scaled_dot_product_attention" not in fvcore.ignored
    assert torch.backends.mha.get_fastpath_enabled()


def test_a_policy_explains_no_more_than_its_own_figures():
    policies = {policy.operator: policy for policy in TOOLS["fvcore"].policies}
    attention, einsum = policies["scaled_dot_product_attention"], policies["einsum"]
    assert attention.covers(1000, 900, 100)
    assert not attention.covers(1000, 901, 100)
    assert not attention.covers(1000, 900, 0)
    assert einsum.covers(19_668_992, 19_670_000, 19_670_000)
    assert not einsum.covers(19_668_992, 19_690_000, 19_690_000)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "shufflenet_v2_x1_0", "squeezenet1_1", "swin_t"])
def test_torchvision_networks_agree_three_times_at_a_small_size(name):
    """The whole zoo at full size is in the slow test below and in reports/zoo.md."""
    model = build_named(f"torchvision:{name}").model
    check = cross_check(model, cost_table(describe(model, (3, 64, 64))))
    assert [check.macs] * 2 == [tool.macs for tool in check.tools]
    assert check.agree


@pytest.mark.slow
@pytest.mark.parametrize("name", zoo.ARCHITECTURES)
def test_the_zoo_at_full_size_and_its_row_in_the_docs(name):
    shape, check = zoo.checked(name)
    fvcore, torch_counter = check.tools
    assert check.macs == torch_counter.macs
    assert check.agree
    row = f"| `{name}` | {' x '.join(map(str, shape))} | {check.macs:,} | {fvcore.macs:,} | {torch_counter.macs:,} |"
    assert row in (Path(__file__).parents[2] / "reports/zoo.md").read_text()
