"""``compile``: a model as native segments with PyTorch between them, where a layer is not covered."""

from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from lcnn_core.engine.capture import capture, find_opaque, lower
from lcnn_core.engine.fuse import Fuser, prune_dead
from lcnn_core.engine.ir import Operation, Value
from lcnn_core.engine.layout import Layout
from lcnn_core.engine.library import NativePlan, choose
from lcnn_core.engine.lower import Lowering
from lcnn_core.engine.nested import join, make_native
from lcnn_core.engine.pack import pack
from lcnn_core.engine.plan import Plan, PlanStep, plan_step
from lcnn_core.engine.storage import check_storage
from lcnn_core.errors import ConfigError, ShapeError


@dataclass(frozen=True)
class Options:
    """How to compile; see :func:`compile`."""

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

    def run(self, env: dict[int, Tensor], batch: int, threads: int) -> None:
        assert self.native is not None
        sources = [_whole_batch(env[id(v)], batch, v).contiguous() for v in self.inputs]
        results = [torch.empty((batch, *v.shape)) for v in self.outputs]
        self.native.run([t.data_ptr() for t in sources], [t.data_ptr() for t in results], batch, threads)
        env.update({id(v): t for v, t in zip(self.outputs, results, strict=True)})


def _whole_batch(value: Tensor, batch: int, like: Value) -> Tensor:
    """What PyTorch computed from parameters alone may hold one image, which stands for all."""
    return value.expand(batch, *like.shape) if len(value) != batch else value


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
    outside = {id(low.values[arg]) for node in low.operations if isinstance(node, fx.Node)
               for arg in node.all_input_nodes if arg in low.values}  # fmt: skip
    order = {id(value): i for i, value in enumerate(low.made.values())}
    last = [low.values.get(node) for node in parts[-1].all_input_nodes] if isinstance(parts[-1], fx.Node) else []
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


def check_inputs(inputs: tuple[Tensor, ...], shapes: list[tuple[int, ...]]) -> int:
    """The batch size of inputs of these shapes (without the batch).

    Raises ShapeError where one has another shape or batch size, ConfigError for another type or device.
    """
    given = [tuple(x.shape[1:]) for x in inputs]
    if given != shapes:
        raise ShapeError(f"inputs of shape {given} per image; compiled for {shapes}, compile again for others")
    if len({len(x) for x in inputs}) > 1:
        raise ShapeError(f"inputs of {' and '.join(str(len(x)) for x in inputs)} images; expected as many of each")
    if any(x.dtype != torch.float32 or x.device.type != "cpu" for x in inputs):
        raise ConfigError("the engine runs float32 tensors on the CPU; convert the input with .float().cpu()")
    return len(inputs[0])


def _drop_native(module: fx.GraphModule, kept: list[fx.Node]) -> None:
    """Take out of the graph's module the layers that PyTorch does not run, and their weights with them."""
    needed = {str(node.target) for node in kept if node.op == "call_module"}
    for node in kept:
        path = str(node.target) if node.op == "get_attr" else ""
        while path := path.rpartition(".")[0]:
            needed.add(path)
    for node in module.graph.nodes:
        if node.op == "call_module" and str(node.target) not in needed:
            module.delete_submodule(str(node.target))


class CompiledModel(nn.Module):
    """A model for inference: call it with the inputs of the original. Made by :func:`compile`."""

    plan: Plan

    def __init__(self, module: fx.GraphModule, example: tuple[Tensor, ...], options: Options):
        super().__init__()
        self._threads = options.threads
        self._shapes = [tuple(x.shape[1:]) for x in example]
        low = lower(module, example[0].shape[0])
        self._values = {node: id(value) for node, value in low.values.items()}
        self._made = {node: id(value) for node, value in low.made.items()}
        self._shape_of = {node: value.shape for node, value in low.values.items()}
        self._parts = _segments(low)
        self._module = [module]  # hidden from nn.Module: its parameters are not ours to train
        steps: list[PlanStep] = []
        self._keep_alive = [*low.values.values(), *low.made.values()]  # values are named by their ids
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
                shape = self._shape_of.get(part, ())
                name = str(part.target) if part.op == "call_module" else part.name
                steps.append(PlanStep("torch", name, (), shape, 0, 0, number, native=False))
        self.plan = Plan(tuple(steps), chosen, memory, liveness)
        _drop_native(module, [part for part in self._parts if isinstance(part, fx.Node)])

    @torch.no_grad()
    def forward(self, *inputs: Tensor) -> Any:
        batch = check_inputs(inputs, self._shapes)
        threads = self._threads or torch.get_num_threads()
        env: dict[int, Tensor] = {}
        results: dict[fx.Node, Any] = {}
        given = iter(inputs)

        def fetch(node: fx.Node) -> Any:
            key = self._values.get(node)
            return env[key].reshape(len(env[key]), *self._shape_of[node]) if key in env else results[node]

        for part in self._parts:
            if isinstance(part, Segment):
                part.run(env, batch, threads)
                continue
            if part.op == "output":
                return fx.node.map_arg(part.args[0], fetch)
            value = next(given) if part.op == "placeholder" else self._torch(part, fetch, batch)
            results[part] = value
            if part in self._made and isinstance(value, Tensor):
                env[self._made[part]] = value
        raise AssertionError("a captured graph ends in an output")

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
        returned = next(node for node in nodes if node.op == "output").args[0]
        returned = list(returned) if isinstance(returned, tuple | list) else [returned]
        taken = [node for node in nodes if node.op == "placeholder"]
        for what, given, table, ports in (
            ("takes", taken, self._made, segment.inputs), ("returns", returned, self._values, segment.outputs)
        ):  # fmt: skip
            if [table.get(node) for node in given] != [id(value) for value in ports]:
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
        check_inputs((x,), self._shapes)
        x = x.contiguous()
        out = [torch.empty((len(x), *value.shape)) for value in segment.outputs]
        runs = [
            segment.native.profile([x.data_ptr()], [t.data_ptr() for t in out], len(x)) for _ in range(max(1, repeats))
        ]
        return list(
            zip(self.plan.steps, (sorted(times)[len(times) // 2] for times in zip(*runs, strict=True)), strict=True)
        )

    def _torch(self, node: fx.Node, fetch: Any, batch: int) -> Any:
        module = self._module[0]
        if node.op == "get_attr":
            value: Any = module
            for name in str(node.target).split("."):
                value = getattr(value, name)
            return value
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), fetch)
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


def compile(
    model: nn.Module, example_input: Tensor | tuple[Tensor, ...], *, threads: int | None = None, isa: str | None = None,
    storage: str = "float32",
) -> CompiledModel | PlainModel:  # fmt: skip
    """Compile ``model`` for inference on the CPU: same outputs, lookups executed as lookups.

    example_input: one input, or a tuple of them, float32, batch first; any batch size may follow, other sizes not.
    threads: None follows ``torch.get_num_threads()``. isa: an instruction set, for tests; None picks the best.
    storage: of the weights and dictionaries of fully connected layers, which are bound by memory at batch 1: "float32",
    or "bfloat16" or "int8" (a scale for each row) for a half or a quarter of the bytes; arithmetic stays float32, and
    the plan tells the error on the example.
    The weights are copied; later changes of ``model`` have no effect. Returns a module with a ``plan``.
    Modules whose Python cannot be captured (it branches on values, say) run in PyTorch, and natively what they call.
    Without a native library, or where nothing can be captured, PyTorch runs the model, after one warning.
    """
    example = example_input if isinstance(example_input, tuple) else (example_input,)
    if any(x.dtype != torch.float32 for x in example):
        raise ConfigError(f"example_input is {example[0].dtype}; the engine runs torch.float32")
    options = Options(threads, isa, check_storage(storage))
    model = copy.deepcopy(model).eval()
    if choose(isa) is None:
        advice = "install lcnn where a C++ compiler is present; PyTorch's own layers are 2 to 20 times slower"
        return _plain(model, "no native library", advice)
    with torch.no_grad():
        exact = model(*(x.clone() for x in example)) if storage != "float32" else None
    module = capture(model, example)
    compiled = _compile_inside(model, example, options) if module is None else CompiledModel(module, example, options)
    if compiled is None:
        return _plain(model, "not captured", "torch.fx cannot trace this model, PyTorch runs it as it is")
    if exact is not None:
        error = _largest_error(compiled(*(x.clone() for x in example)), exact)
        compiled.plan = replace(compiled.plan, storage_error=error)
    return compiled


def _largest_error(found: Any, exact: Any) -> float:
    """Of any tensor that a model returns: the largest difference over the largest magnitude."""
    if isinstance(exact, Tensor):
        return float((found - exact).abs().max() / exact.abs().max().clamp_min(1e-30)) if exact.numel() else 0.0
    pairs = (
        zip(found.values(), exact.values(), strict=True) if isinstance(exact, dict) else zip(found, exact, strict=True)
    )
    return max((_largest_error(*pair) for pair in pairs), default=0.0)


def _compile_inside(
    model: nn.Module, example: tuple[Tensor, ...], options: Options
) -> CompiledModel | PlainModel | None:
    """Native parts inside a model that is not captured as a whole; None where there are none."""
    opaque = find_opaque(model)

    def compiler(part: nn.Module, inputs: tuple[Tensor, ...]) -> nn.Module | None:
        module = capture(part, inputs, opaque)
        return None if module is None else CompiledModel(module, inputs, options)

    parts = make_native(model, example, opaque or {model}, compiler)
    outer = capture(model, example, opaque) if model not in opaque else None
    if outer is not None:
        compiled = CompiledModel(outer, example, options)
        compiled.plan = join(compiled.plan, parts)
        return compiled
    return PlainModel(model, join(_plain_plan(type(model).__name__), parts)) if parts else None


def _plain_plan(name: str) -> Plan:
    return Plan((PlanStep("torch", name, (), (), 0, 0, 0, native=False),), None)


def _plain(model: nn.Module, reason: str, advice: str) -> PlainModel:
    warnings.warn(f"lcnn: {reason}: {advice}", stacklevel=3)
    return PlainModel(model, _plain_plan(reason))
