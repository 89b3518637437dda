"""A compiled model: native segments, with PyTorch between them where a layer is not covered."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx, nn

from lcnn_core.engine.capture import lower
from lcnn_core.engine.fuse import Fuser, prune_dead
from lcnn_core.engine.ir import Operation, Value
from lcnn_core.engine.layout import Layout
from lcnn_core.engine.library import NativePlan, addresses
from lcnn_core.engine.lowering import Lowering
from lcnn_core.engine.pack import pack
from lcnn_core.engine.plan import Plan, PlanStep, plan_step
from lcnn_core.engine.results import Results, run_native
from lcnn_core.errors import ConfigError, ShapeError

THREAD_WORK = 1_000_000
"""MACs that pay for another thread, or eight times as many bytes moved: waking it takes as long as half of this."""


@dataclass(frozen=True)
class Options:
    """How to compile; see :func:`lcnn_core.compile`."""

    threads: int | None = None
    isa: str | None = None
    storage: str = "float32"


@dataclass
class Segment:
    """Consecutive operations that one native call runs."""

    operations: list[Operation]
    inputs: list[Value] = field(default_factory=list)
    outputs: list[Value] = field(default_factory=list)
    native: NativePlan | None = None
    packed: bytes = b""

    @cached_property
    def results(self) -> Results:
        """Where it writes what it makes."""
        return Results([tuple(value.shape) for value in self.outputs])

    def run(self, sources: Iterable[Tensor], batch: int, threads: int) -> list[Tensor]:
        """The outputs for these inputs."""
        assert self.native is not None
        return run_native(self.native, sources, self.results, batch, threads)


def _segments(low: Lowering) -> list[Segment | fx.Node]:
    """Groups operations into maximal native runs and finds what crosses their borders, in the order of the graph."""
    parts: list[Segment | fx.Node] = []
    for item in low.operations:
        if isinstance(item, fx.Node):
            parts.append(item)
        elif parts and isinstance(parts[-1], Segment):
            parts[-1].operations.append(item)
        else:
            parts.append(Segment([item]))
    outside = {id(value) for found in low.reads.values() for value in found.values()}
    order: dict[int, int] = {}
    for value in low.made.values():
        order.setdefault(id(value), len(order))  # a node that changes nothing has its input's value
    last = low.reads[parts[-1]].values() if isinstance(parts[-1], fx.Node) else []
    returned = {id(value): i for i, value in enumerate(last)}
    segments = [p for p in parts if isinstance(p, Segment)]
    for segment in segments:
        made = {id(op.output): op.output for op in segment.operations}
        read_elsewhere = {id(v) for s in segments if s is not segment for op in s.operations for v in op.reads}
        segment.outputs = [v for key, v in made.items() if key in outside or key in read_elsewhere]
        segment.outputs.sort(key=lambda v: returned.get(id(v), -1))
    for segment in segments:
        keep = {id(v) for v in segment.outputs}
        segment.operations = prune_dead(Fuser(prune_dead(segment.operations, keep), keep).run(), keep)
        made = {id(op.output): op.output for op in segment.operations}
        reads = {id(v): v for op in segment.operations for v in op.reads}
        segment.inputs = sorted((v for key, v in reads.items() if key not in made), key=lambda v: order[id(v)])
    return [part for part in parts if not isinstance(part, Segment) or part.operations]


def check_inputs(inputs: tuple[Tensor, ...], shapes: list[tuple[int, ...]], only: int | None = None) -> int:
    """The batch size of inputs of these shapes (without the batch); ``only`` where the model takes no other.

    Raises ShapeError where one has another shape or batch size, ConfigError for another type or device.
    """
    if len(inputs) == len(shapes) == 1:  # a network of microseconds feels every question that is asked here
        x, found = inputs[0], inputs[0].shape
        fits = found and found == (found[0], *shapes[0]) and only in (None, found[0])
        if fits and x.dtype is torch.float32 and x.is_cpu:
            return found[0]
    given = [tuple(x.shape[1:]) for x in inputs]
    if given != shapes:
        raise ShapeError(f"inputs of shape {given} per image; compiled for {shapes}, compile again for others")
    if len({len(x) for x in inputs}) > 1:
        raise ShapeError(f"inputs of {' and '.join(str(len(x)) for x in inputs)} images; expected as many of each")
    if any(x.dtype != torch.float32 or x.device.type != "cpu" for x in inputs):
        raise ConfigError("the engine runs float32 tensors on the CPU; convert the input with .float().cpu()")
    if only not in (None, len(inputs[0])):
        raise ShapeError(f"{len(inputs[0])} images; the model itself runs no other number than the example's, {only}")
    return len(inputs[0])


def _drop_native(module: fx.GraphModule, kept: list[fx.Node]) -> None:
    """Take out of the graph's module the layers that PyTorch does not run, and their weights with them."""
    needed = [str(node.target) + "." for node in kept if node.op in ("call_module", "get_attr")]
    for node in module.graph.nodes:
        path = str(node.target) + "."
        if node.op == "call_module" and not any(path.startswith(other) or other.startswith(path) for other in needed):
            module.delete_submodule(str(node.target))


def _returned(value: Any, found: dict[fx.Node, Any]) -> Any:
    """What the graph returns, its nodes as found; the graph's unchangeable lists and dictionaries as plain ones."""
    if isinstance(value, fx.Node):
        return found[value]
    if isinstance(value, dict):
        return {key: _returned(held, found) for key, held in value.items()}
    if isinstance(value, list):
        return [_returned(held, found) for held in value]
    if type(value) is tuple:
        return tuple(_returned(held, found) for held in value)
    return fx.node.map_arg(value, found.__getitem__)


class CompiledModel(nn.Module):
    """A model for inference: call it with the inputs of the original. Made by :func:`lcnn_core.compile`.

    A copy shares everything with the original: neither changes.
    """

    plan: Plan
    batch: int | None
    """The only number of images that the model itself runs; None for any."""

    def __init__(self, module: fx.GraphModule, example: tuple[Tensor, ...], options: Options):
        super().__init__()
        self._threads = options.threads
        self._shapes = [tuple(x.shape[1:]) for x in example]
        self.batch = module.meta["batch"]
        low = lower(module, example[0].shape[0])
        self._made, self._reads = low.made, low.reads
        self._parts = _segments(low)
        self._module = [module]  # hidden from nn.Module: its parameters are not ours to train
        steps: list[PlanStep] = []
        memory, liveness, chosen = 0, 0, None
        for number, part in enumerate(self._parts):
            if isinstance(part, Segment):
                layout = Layout(part.operations, part.inputs, part.outputs, options.storage)
                part.operations = []  # their weights are in the packed plan now
                part.packed = pack(layout, part.inputs, part.outputs)
                part.native = NativePlan(part.packed, options.isa)
                steps += [plan_step(record, number) for record in layout.records]
                held = part.native.memory()
                memory += held["activations"] + held["scratch"]
                liveness, chosen = max(liveness, layout.liveness_bytes), part.native.isa
            elif part.op not in ("placeholder", "output", "get_attr"):
                shape = low.made[part].shape if part in low.made else ()
                name = str(part.target) if part.op == "call_module" else part.name
                steps.append(PlanStep("torch", name, (), shape, 0, 0, number, native=False))
        self.plan = Plan(tuple(steps), chosen, memory, liveness)
        self._work = sum(step.macs + step.bytes // 8 for step in steps)
        self._whole = self._one_segment()
        _drop_native(module, [part for part in self._parts if isinstance(part, fx.Node)])

    def forward(self, *inputs: Tensor) -> Any:
        batch = check_inputs(inputs, self._shapes, self.batch)
        threads = self._threads or min(torch.get_num_threads(), 1 + self._work * batch // THREAD_WORK)
        if self._whole is not None:
            segment, kind = self._whole
            results = segment.run(inputs, batch, threads)
            return results[0] if kind is None else kind(results)
        return self._walk(inputs, batch, threads)

    @torch.no_grad()
    def _walk(self, inputs: tuple[Tensor, ...], batch: int, threads: int) -> Any:
        """Part by part, in the order of the graph."""
        env: dict[Value, Tensor] = {}
        results: dict[fx.Node, Any] = {}
        given = iter(inputs)
        for part in self._parts:
            if isinstance(part, Segment):
                made = part.run([env[value] for value in part.inputs], batch, threads)
                env.update(zip(part.outputs, made, strict=True))
                continue
            values = self._reads[part]
            found = {node: env[values[node]] if node in values else results[node] for node in part.all_input_nodes}
            if part.op == "output":
                return _returned(part.args[0], found)
            value = next(given) if part.op == "placeholder" else self._torch(part, found)
            if part in self._made:
                env[self._made[part]] = value
            else:
                results[part] = value
        raise AssertionError("a captured graph ends in an output")

    def __deepcopy__(self, memo: dict[int, Any]) -> CompiledModel:
        return copy.copy(self)

    def _one_segment(self) -> tuple[Segment, type | None] | None:
        """Where the model is one segment from its inputs to its outputs: that, and list or tuple if it returns one."""
        try:
            self.packed()
        except ConfigError:
            return None
        output = next(node for node in self._module[0].graph.nodes if node.op == "output")
        return self._only_segment(), next((kind for kind in (list, tuple) if isinstance(output.args[0], kind)), None)

    def _only_segment(self) -> Segment:
        segments = [part for part in self._parts if isinstance(part, Segment)]
        if len(segments) != 1 or self.plan.fallbacks:
            names = ", ".join(step.name for step in self.plan.fallbacks) or "nothing"
            raise ConfigError(f"this needs a model that runs in one native segment; in PyTorch run: {names}")
        return segments[0]

    def packed(self) -> bytes:
        """The packed plan (native/FORMAT.md), which the C library runs without Python or torch.

        Raises ConfigError where a step runs in PyTorch, or where the model takes or returns anything but tensors that
        this one plan reads or makes.
        """
        segment = self._only_segment()
        nodes = self._module[0].graph.nodes
        output = next(node for node in nodes if node.op == "output")
        returned = output.args[0]
        returned = list(returned) if isinstance(returned, tuple | list) else [returned]
        taken = [node for node in nodes if node.op == "placeholder"]
        for what, given, table, ports in (
            ("takes", taken, self._made, segment.inputs), ("returns", returned, self._reads[output], segment.outputs)
        ):  # fmt: skip
            if [table.get(node) if isinstance(node, fx.Node) else None for node in given] != ports:
                raise ConfigError(
                    f"the model {what} {given}; a plan needs tensors, each once: inputs that it reads, outputs it makes"
                )
        return segment.packed

    def profile(self, x: Tensor, repeats: int = 10) -> list[tuple[PlanStep, float]]:
        """Median processor time of every step in seconds for the whole batch ``x``, on one thread.

        Raises ConfigError where a step runs in PyTorch.
        """
        segment = self._only_segment()
        assert segment.native is not None
        check_inputs((x,), self._shapes, self.batch)
        x = x.contiguous()
        _held, places = segment.results.take(len(x))
        runs = [segment.native.profile(addresses([x.data_ptr()]), places, len(x)) for _ in range(max(1, repeats))]
        return list(
            zip(self.plan.steps, (sorted(times)[len(times) // 2] for times in zip(*runs, strict=True)), strict=True)
        )

    def _torch(self, node: fx.Node, found: dict[fx.Node, Any]) -> Any:
        module = self._module[0]
        if node.op == "get_attr":
            value: Any = module
            for name in str(node.target).split("."):
                value = getattr(value, name)
            return value
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), found.__getitem__)
        if node.op == "call_module":
            return module.get_submodule(str(node.target))(*args, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        return node.target(*args, **kwargs)  # type: ignore[operator]


class PlainModel(nn.Module):
    """The model itself, run by PyTorch: where there is no native library, or its own Python cannot be captured."""

    def __init__(self, model: nn.Module, plan: Plan):
        super().__init__()
        self.model = model
        self.plan = plan

    @torch.no_grad()
    def forward(self, *inputs: Tensor) -> Any:
        return self.model(*inputs)
