"""Dense baselines recounted by other people's tools: fvcore and ``torch.utils.flop_counter``.

Each lookup layer is replaced by its dense twin in a copy of the model, one zero image is run on the CPU, and the
result is compared with our closed forms layer by layer. ``TOOLS`` lists the tools, with what each one's unit is.
"""

from __future__ import annotations

import copy
import inspect
import logging
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from lcnn_analyze.cost.checks import CrossCheck, ToolCount, dense_macs_by_layer, disagreements
from lcnn_analyze.cost.table import CostTable
from lcnn_core import LookupLayer, PackedLookupLayer

Counts = Mapping[str, Mapping[str, int]]
"""Module path -> operator -> the tool's own count, of the module itself without its children."""


@dataclass(frozen=True)
class Tool:
    """A tool to ask. ``unit``: how many of its units are one MAC; ``multiplies``: its operators that count MACs."""

    package: str
    unit: int
    multiplies: frozenset[str]
    policy: str
    count: Callable[[nn.Module, Tensor], Counts]


def cross_check(model: nn.Module, costs: CostTable) -> CrossCheck:
    """Ask every tool in ``TOOLS`` about the dense twin of ``model`` and compare with ``costs``.

    model: with real weights (not on the meta device); it is copied and comes out as it was.
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

    The new layers' weights are not initialised: only shapes are counted.
    """
    model = getattr(model, "_orig_mod", model)
    memo: dict[int, Any] = {
        id(layer): _dense_layer(layer)
        for layer in model.modules()
        if isinstance(layer, LookupLayer | PackedLookupLayer)
    }
    return copy.deepcopy(model, memo).cpu().eval()


def _dense_layer(layer: LookupLayer | PackedLookupLayer) -> nn.Module:
    dense = nn.Conv2d if len(layer.dense_shape) == 4 else nn.Linear
    arguments = {name: getattr(layer, name) for name in inspect.signature(dense).parameters if hasattr(layer, name)}
    arguments |= {"bias": layer.bias is not None, "dtype": next(layer.parameters()).dtype}
    return nn.utils.skip_init(dense, **arguments)


def _ask(name: str, tool: Tool, twin: nn.Module, x: Tensor, ours: Mapping[str, int]) -> ToolCount:
    try:
        with torch.no_grad():
            counts = tool.count(twin, x)
    except Exception as error:  # whatever a foreign tracer throws at an unusual model is its answer, not our failure
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        return ToolCount(name, version(tool.package), tool.policy, None, reason=reason)
    macs: Counter[str] = Counter()
    ignored: Counter[str] = Counter()
    for layer, operators in counts.items():
        for operator, count in operators.items():
            if operator in tool.multiplies:
                macs[layer] += count // tool.unit
            else:
                ignored[operator] += count
    theirs = {layer: count for layer, count in macs.items() if count}
    return ToolCount(
        tool=name,
        version=version(tool.package),
        policy=tool.policy,
        macs=sum(theirs.values()),
        disagreements=disagreements(ours, theirs),
        ignored={operator: count for operator, count in sorted(ignored.items()) if count},
    )


def _fvcore(model: nn.Module, x: Tensor) -> Counts:
    with _quiet("fvcore.nn.jit_analysis"):
        # Imported here: fvcore takes half a second and only a check needs it.
        from fvcore.nn import FlopCountAnalysis

        analysis = FlopCountAnalysis(model, x).unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        analysis.tracer_warnings("none")
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
    ),
    "torch flop counter": Tool(
        "torch",
        2,
        frozenset({
            "convolution", "_convolution", "mm", "addmm", "bmm", "baddbmm",
            "_scaled_dot_product_efficient_attention", "_scaled_dot_product_flash_attention",
            "_scaled_dot_product_cudnn_attention", "_scaled_dot_product_flash_attention_for_cpu",
        }),
        "2 FLOPs are one MAC; it counts convolutions and matrix products only",
        _torch,
    ),
}  # fmt: skip
"""The second opinions, each with its policy."""
