"""Dense baselines recounted by other people's tools: fvcore and ``torch.utils.flop_counter``.

Each lookup layer is replaced by its dense twin in a copy of the model, one zero image is run on the CPU, and the
result is compared with our closed forms layer by layer. ``TOOLS`` lists the tools, with what each one's unit is and
where its policy makes it count otherwise: such a difference is explained, and only if the figures bear it out.
"""

from __future__ import annotations

import copy
import inspect
import logging
import math
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from lcnn_analyze.cost.checks import CrossCheck, ToolCount, dense_macs_by_layer, disagreements
from lcnn_analyze.cost.table import CostTable
from lcnn_core import LookupLayer, PackedLookupLayer

Counts = Mapping[str, Mapping[str, int]]
"""Module path -> operator -> the tool's own count, of the module itself without its children."""


@dataclass(frozen=True)
class Policy:
    """One operator that a tool counts in its own way.

    covers: (ours, theirs, MACs of the operator there) -> whether the policy explains the layer's whole difference.
    """

    operator: str
    words: str
    covers: Callable[[int, int, int], bool]


@dataclass(frozen=True)
class Tool:
    """A tool to ask. ``unit``: how many of its units are one MAC; ``multiplies``: its operators that count MACs."""

    package: str
    unit: int
    multiplies: frozenset[str]
    policy: str
    count: Callable[[nn.Module, Tensor], Counts]
    policies: tuple[Policy, ...] = ()


def cross_check(model: nn.Module, costs: CostTable) -> CrossCheck:
    """Ask every tool in ``TOOLS`` about the dense twin of ``model`` and compare with ``costs``.

    model: any module, on the meta device too; it is copied and comes out as it was.
    Cost: one copy of the dense weights and two forward passes of one image.
    """
    twin = dense_copy(model)
    like = next((p for p in twin.parameters() if p.is_floating_point()), torch.empty(0))
    x = torch.zeros(1, *costs.input_shape, dtype=like.dtype)
    ours = dense_macs_by_layer(costs)
    tools = tuple(_ask(name, tool, twin, x, ours) for name, tool in TOOLS.items())
    return CrossCheck(sum(ours.values()), tools)


def dense_copy(model: nn.Module) -> nn.Module:
    """A copy on the CPU, in eval mode, with a dense layer of the same shape in the place of each lookup layer.

    The new layers' weights are not initialised, and what is on the meta device becomes zeros: only shapes are counted.
    """
    model = getattr(model, "_orig_mod", model)
    memo: dict[int, Any] = {
        id(layer): _dense_layer(layer)
        for layer in model.modules()
        if isinstance(layer, LookupLayer | PackedLookupLayer)
    }
    twin = copy.deepcopy(model, memo)
    # Zeros, not whatever memory holds: a constructor's table of indices must stay inside what it indexes.
    twin._apply(lambda tensor: torch.zeros_like(tensor, device="cpu") if tensor.is_meta else tensor.cpu())
    return twin.eval()


def _dense_layer(layer: LookupLayer | PackedLookupLayer) -> nn.Module:
    dense = nn.Conv2d if len(layer.dense_shape) == 4 else nn.Linear
    arguments = {name: getattr(layer, name) for name in inspect.signature(dense).parameters if hasattr(layer, name)}
    arguments |= {"bias": layer.bias is not None, "dtype": next(layer.parameters()).dtype}
    return nn.utils.skip_init(dense, **arguments)


def _ask(name: str, tool: Tool, twin: nn.Module, x: Tensor, ours: Mapping[str, int]) -> ToolCount:
    try:
        with torch.no_grad(), _plain_attention():
            counts = tool.count(twin, x)
    except Exception as error:  # whatever a foreign tracer throws at an unusual model is its answer, not our failure
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        return ToolCount(name, version(tool.package), tool.policy, None, reason=reason)
    macs: Counter[str] = Counter()
    ignored: Counter[str] = Counter()
    left_out = {policy.operator for policy in tool.policies} - tool.multiplies
    for layer, operators in counts.items():
        for operator, count in operators.items():
            if operator in tool.multiplies:
                macs[layer] += int(count) // tool.unit
            elif operator not in left_out:
                ignored[operator] += int(count)
    theirs = {layer: count for layer, count in macs.items() if count}
    explained = {
        layer: policy.words
        for layer, operators in counts.items()
        for policy in tool.policies
        if policy.covers(ours.get(layer, 0), theirs.get(layer, 0), int(operators.get(policy.operator, 0)))
    }
    return ToolCount(
        tool=name,
        version=version(tool.package),
        policy=tool.policy,
        macs=sum(theirs.values()),
        disagreements=disagreements(ours, theirs, explained),
        ignored={operator: count for operator, count in sorted(ignored.items()) if count},
    )


def _fvcore(model: nn.Module, x: Tensor) -> Counts:
    with _quiet("fvcore.nn.jit_analysis"):
        # Imported here: fvcore takes half a second and only a check needs it.
        from fvcore.nn import FlopCountAnalysis

        analysis = FlopCountAnalysis(model, x).unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        analysis.tracer_warnings("none").set_op_handle(**_FVCORE_LEAVES_OUT)
        return _without_children({name: dict(ops) for name, ops in analysis.by_module_and_operator().items()})


def _torch(model: nn.Module, x: Tensor) -> Counts:
    with FlopCounterMode(display=False) as counter:
        model(x)
    root = type(model).__name__
    counts = {
        name.removeprefix(root).removeprefix("."): {
            str(operator).split(".")[-1]: flops for operator, flops in ops.items()
        }
        for name, ops in counter.get_flop_counts().items()
        if name != "Global"
    }
    return _without_children(counts or {"": {}})


def _without_children(counts: Counts) -> Counts:
    """Both tools give a module the counts of its children too: take them off."""
    own = {name: Counter(operators) for name, operators in counts.items()}
    for name, operators in counts.items():
        parent = name
        while parent:
            parent = parent.rpartition(".")[0]
            if parent in counts:
                own[parent].subtract(operators)
                break
    return own


@contextmanager
def _plain_attention() -> Any:
    """Attention as the matrix products that it is: both tools see a fused kernel as one operation and count nothing."""
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)


def _attention_macs(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    """softmax(Q Kt) V: two products over the queries and keys."""
    query, key, value = (tensor.type().sizes() for tensor in inputs[:3])
    macs = math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])
    return Counter({"scaled_dot_product_attention": macs})


def _batched_macs(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    """A + B C, batch by batch."""
    return Counter({"baddbmm": math.prod(inputs[1].type().sizes()) * inputs[2].type().sizes()[-1]})


_FVCORE_LEAVES_OUT = {"aten::scaled_dot_product_attention": _attention_macs, "aten::baddbmm": _batched_macs}
"""What fvcore has no rule for, sized from its own trace, so that what is missing can be compared to the last MAC."""


@contextmanager
def _quiet(name: str) -> Any:
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    finally:
        logger.setLevel(level)


TOOLS: dict[str, Tool] = {
    "fvcore": Tool(
        "fvcore",
        1,
        frozenset({"conv", "linear", "addmm", "matmul", "bmm", "einsum"}),
        "its flop is one MAC; norm, pooling and upsampling, which it counts too, are left out of the comparison",
        _fvcore,
        (
            Policy(
                "scaled_dot_product_attention",
                "fvcore has no rule for aten::scaled_dot_product_attention and leaves its two products out",
                lambda ours, theirs, missing: ours - theirs == missing > 0,
            ),
            Policy(
                "baddbmm",
                "fvcore has no rule for aten::baddbmm and leaves its product out",
                lambda ours, theirs, missing: ours - theirs == missing > 0,
            ),
            Policy(
                "einsum",
                "fvcore reads the cost of an einsum off numpy's printed figure, which has four digits",
                lambda ours, theirs, einsum: abs(ours - theirs) <= 5e-4 * einsum,
            ),
        ),
    ),
    "torch flop counter": Tool(
        "torch",
        2,
        frozenset({"convolution", "_convolution", "mm", "addmm", "bmm", "baddbmm"}),
        "2 FLOPs are one MAC; it counts convolutions and matrix products only, so attention is run unfused for it",
        _torch,
    ),
}
"""The second opinions, each with its policy."""
