"""``reports/zoo.md``: our closed forms beside fvcore and torch's flop counter, over torchvision's classifiers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import groupby

from lcnn_analyze.cost import cost_table
from lcnn_analyze.cost.checks import CrossCheck, ToolCount
from lcnn_analyze.crosscheck import cross_check
from lcnn_core import build_named, describe

ARCHITECTURES = tuple(
    """alexnet vgg16 resnet18 resnet50 resnext50_32x4d wide_resnet50_2 densenet121 squeezenet1_1 googlenet inception_v3
    mobilenet_v2 mobilenet_v3_small mobilenet_v3_large mnasnet1_0 shufflenet_v2_x1_0 efficientnet_b0 efficientnet_v2_s
    regnet_x_400mf regnet_y_400mf convnext_tiny vit_b_16 swin_t swin_v2_t maxvit_t""".split()  # noqa: SIM905
)

_INTRODUCTION = """# Three counts of the torchvision zoo

One image at the size that torchvision publishes for each network, in MACs: one multiplication-and-addition is 1 MAC,
1 MAC is 2 FLOPs. The closed forms are `lcnn_core.counting` over what one forward pass did; the other columns are what
the tools say of the same module. fvcore's "flop" is one MAC, and its normalisation, pooling and upsampling are left
out of the comparison. torch's flop counter counts FLOPs, halved here, of convolutions and matrix products; attention
is run unfused for it, because it counts none of a fused kernel on the CPU. Equal figures are equal to the last MAC.

| architecture | input | closed forms | {first} | {second} / 2 | differences |
|---|---|---:|---:|---:|---|
"""


def checked(architecture: str) -> tuple[tuple[int, ...], CrossCheck]:
    """The published input shape of a torchvision architecture, and its three counts. No weights are initialised."""
    named = build_named(f"torchvision:{architecture}")
    costs = cost_table(describe(named.model, named.input_shape))
    if costs.uncounted:
        raise AssertionError(f"{architecture} has operations without a formula: {costs.uncounted}")
    return named.input_shape, cross_check(named.model, costs)


def files() -> Mapping[str, bytes]:
    """The document. Needs torchvision and fvcore; takes about a minute on one core."""
    rows, notes = [], []
    for architecture in ARCHITECTURES:
        shape, check = checked(architecture)
        counts = [f"{check.macs:,}", *(_count(tool) for tool in check.tools)]
        found = [note for tool in check.tools for note in _differences(tool)]
        notes += [f"- `{architecture}`, {note}" for note in found]
        state = "none" if not found else "explained below" if check.agree else "**see below**"
        rows.append(f"| `{architecture}` | {' x '.join(map(str, shape))} | {' | '.join(counts)} | {state} |\n")
    heads = [f"{tool.tool} {tool.version}" for tool in check.tools]
    text = _INTRODUCTION.format(first=heads[0], second=heads[1]) + "".join(rows)
    text += "\n## Differences\n\n" + ("\n".join(notes) + "\n" if notes else "None.\n")
    return {"zoo.md": text.encode()}


def _count(tool: ToolCount) -> str:
    return "unavailable" if tool.macs is None else f"{tool.macs:,}"


def _differences(tool: ToolCount) -> Iterator[str]:
    """One line for each policy of a tool, with the layers and MACs that it stands for."""
    if tool.macs is None:
        yield f"{tool.tool} could not count it: {tool.reason}."
    ordered = sorted(tool.disagreements, key=lambda item: item.explanation)
    for words, group in groupby(ordered, key=lambda item: item.explanation):
        items = list(group)
        off = sum(item.theirs - item.ours for item in items)
        first = f"`{items[0].layer}` first ({items[0].ours:,} against {items[0].theirs:,})"
        yield f"{tool.tool}, {off:+,} MACs in {len(items)} layers, {first}: {words or 'NOT EXPLAINED'}."
