"""Grids and buffers: where every tensor of a native segment lies, and the records that the kernels execute.

A value has up to three forms: a dense vector, planes on the wide grid (row stride kept, zeros between rows and between
planes, see native/plan.h), and phases: the wide grid of every s-th pixel, so that a strided convolution reads
neighbouring pixels. A convolution is flat, so its input and its output share one row stride.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lcnn_core.engine.buffers import Tensor, liveness, lives, place
from lcnn_core.engine.ir import Array, Operation, Value
from lcnn_core.engine.phases import Table, can_join, can_pair, can_split, kernel_table, used_phases
from lcnn_core.engine.storage import store

Form = tuple[Any, ...]
VECTOR: Form = ("vector",)
WIDE: Form = ("wide",)
LINE = 16
"""Floats of a cache line."""


@dataclass
class Record:
    """One native step: the operation it came from, its tensors, and the numbers of struct Step (native/plan.h)."""

    op: str
    name: str
    source: Tensor | None
    output: Tensor | None
    second: Tensor | None = None
    fields: dict[str, int] = field(default_factory=dict)
    data: dict[str, Array] = field(default_factory=dict)
    operation: Operation | None = None

    @property
    def tensors(self) -> list[Tensor]:
        return [t for t in (self.source, self.output, self.second) if t is not None]

    @property
    def response(self) -> int:
        """Floats of S = D x of one image, where this step looks up in it."""
        if self.source is None or self.op not in ("lookup", "lookup_linear"):
            return 0
        positions = self.fields.get("phases", 1) * self.fields.get("positions", self.source.pixels)
        return self.fields["rows"] * self.fields["groups"] * positions


class Layout:
    """Turns the operations of one segment into records and tensors."""

    def __init__(
        self, operations: list[Operation], inputs: list[Value], outputs: list[Value], storage: str = "float32"
    ):
        self.storage = storage
        self.records: list[Record] = []
        self.tensors: list[Tensor] = []
        self.forms: dict[tuple[int, Form], Tensor] = {}
        self.made: dict[int, Tensor] = {}
        self.ports = {id(value): i for i, value in enumerate(inputs)}
        self.phases: dict[tuple[int, Form], list[tuple[int, int]]] = {}
        for op in operations:
            if op.kind not in ("conv", "lookup_conv") or self._split_here(op):
                continue
            if (form := self._input_form(op)) != WIDE:
                key = (id(op.inputs[0]), form)
                self.phases[key] = sorted({*self.phases.get(key, []), *used_phases(op, self._step(op))})
        for op in operations:
            getattr(self, f"_{op.kind}")(op)
        for port, value in enumerate(outputs):
            form = VECTOR if value.vector else WIDE
            self._emit(Record("export_", "output", self._need(value, form), None, fields={"port": port}))
        self._write_over()
        self._assign_strides()
        self.first_batch_step = self._split()
        used = [record.tensors for record in self.records]
        self.arena, self.batch = place(self.tensors, used)
        self.liveness_bytes = 4 * liveness(self.tensors, used, [record.response for record in self.records])

    def _joined(self, op: Operation) -> bool:
        """Whether columns are joined: of what is imported, copied anyhow, be it to more phases."""
        return id(op.inputs[0]) in self.ports and can_join(op)

    def _split_here(self, op: Operation) -> bool:
        """Whether the image is read as the caller gave it, not imported first."""
        return id(op.inputs[0]) in self.ports and can_split(op, self._step(op)[1])

    def _step(self, op: Operation) -> tuple[int, int]:
        """Rows and columns of the input from one output to the next, or from one joined pair to the next."""
        return op.window.stride[0], op.window.stride[1] * (1 + self._joined(op))

    def _input_form(self, op: Operation) -> Form:
        return WIDE if self._step(op) == (1, 1) else ("phases", *self._step(op))

    def _emit(self, record: Record) -> None:
        self.records.append(record)

    def _new(self, grid: tuple[int, int, int], vector: bool) -> Tensor:
        tensor = Tensor(math.prod(grid) if vector else grid[0], *((1, 1) if vector else grid[1:]), vector)
        tensor.minimum_stride = tensor.width
        self.tensors.append(tensor)
        return tensor

    def _make(self, op: Operation, form: Form) -> Tensor:
        tensor = self._new(op.output.grid, form == VECTOR)
        self.forms[id(op.output), form] = self.made[id(op.output)] = tensor
        return tensor

    def _need(self, value: Value, form: Form) -> Tensor:
        """The tensor of ``value`` in this form; made by an import or a relayout where it does not exist yet."""
        key = (id(value), form)
        if key in self.forms:
            return self.forms[key]
        channels, height, width = value.grid
        phases, step = self.phases.get(key, [(0, 0)]), form[1:] or (1, 1)
        grid = (channels * len(phases), -(-height // step[0]), -(-width // step[1]))
        tensor = self.forms[key] = self._new(value.grid if form == VECTOR else grid, form == VECTOR)
        fields = {
            "width": channels, "conv_height": height, "conv_width": width,
            "sy": step[0], "sx": step[1], "phases": len(phases),
        }  # fmt: skip
        data = {"phase_list": np.asarray(phases, dtype=np.int32)}
        if id(value) in self.ports:
            fields["port"] = self.ports[id(value)]
            self._emit(Record("import_", "input", None, tensor, fields=fields, data=data))
        else:
            source = self.made[id(value)]
            if source.vector:  # a vector is an image of 1x1
                fields |= {"width": source.channels, "conv_height": 1, "conv_width": 1}
            self._emit(Record("relayout", "layout", source, tensor, fields=fields, data=data))
        return tensor

    def _image(self, op: Operation) -> Tensor:
        """The grid of the phases of an image that a lookup reads as the caller gave it."""
        (channels, height, width), step = op.inputs[0].grid, self._step(op)
        grid = (channels * len(self._phase_list(op)), -(-height // step[0]), -(-width // step[1]))
        tensor = self._new(grid, False)
        tensor.held = False
        return tensor

    def _link(self, *tensors: Tensor) -> None:
        for a in tensors:
            a.linked.extend(b for b in tensors if b is not a)

    # -- one method for each kind of operation -----------------------------------------------------------------------

    def _convolution(self, op: Operation, record: str, table: Table, channels: Array, direct: bool) -> Record:
        form = self._input_form(op)
        x = self._image(op) if self._split_here(op) else self._need(op.inputs[0], form)
        conv_h, conv_w = op.pool_input if op.pool else op.output.grid[1:]
        y = self._make(op, WIDE)
        rows, columns = table.rows, table.columns
        low, high = (int(columns.min()), int(columns.max())) if len(columns) else (0, 0)
        pairs = -(-conv_w // (1 + self._joined(op)))
        x.minimum_stride = max(x.minimum_stride, pairs + max(high, 0), x.width - min(low, 0))
        if (self._split_here(op) and can_pair(op)) or self._joined(op):
            # A row is read by itself, many lookups at the column of their own output: no load of theirs crosses a line.
            x.minimum_stride = -(-x.minimum_stride // LINE) * LINE
        if direct and len(rows):
            x.above = max(x.above, -int(rows.min()))
            x.below = max(x.below, conv_h + int(rows.max()) - x.height)
        x.aside = max(x.aside, abs(low), abs(high))
        if not op.pool:
            self._link(x, y)
        second = None
        if op.residual is not None:
            second = self._need(op.residual, WIDE)
            self._link(second, y)
        fields = {
            "groups": op.groups, "filters": op.filters, "phases": len(table.phases), **_activation_fields(op),
            "table_count": len(rows) // (1 + self._joined(op)),
        }  # fmt: skip
        if op.pool:
            fields |= {"pooled": 1, "conv_height": conv_h, "conv_width": conv_w, **_window_fields(op.pool)}
        entries = np.stack([channels, rows, columns], axis=1).astype(np.int32)
        made = Record(record, op.name, x, y, second, fields, {"table": entries}, op)
        if op.bias is not None:
            made.data["bias"] = op.bias.astype(np.float32)
        self._emit(made)
        return made

    def _phase_list(self, op: Operation) -> list[tuple[int, int]]:
        if self._split_here(op):
            return used_phases(op, self._step(op))
        return self.phases.get((id(op.inputs[0]), self._input_form(op)), [(0, 0)])

    def _conv(self, op: Operation) -> None:
        weight = op.weight
        assert weight is not None
        n, width, *_ = weight.shape
        c, ky, kx = (a.ravel() for a in np.indices(weight.shape[1:]))
        table = kernel_table(op, self._phase_list(op), ky, kx, self._step(op))
        order = np.lexsort((table.columns, table.rows, c, table.phase))
        table = Table(table.phases, table.rows[order], table.columns[order], table.phase[order])
        channels = table.phase * (width * op.groups) + c[order]
        record = self._convolution(op, "gemm", table, channels, direct=True)
        record.fields |= {"width": width, "weights_count": weight.size}
        record.data["weights"] = weight.reshape(n, -1)[:, order].astype(np.float32)

    def _lookup_conv(self, op: Operation) -> None:
        p = op.coefficients
        assert p is not None
        n, k = p.shape[:2]
        (f, r, ky, kx), values = op.lookups()
        joined = self._joined(op)
        parts = [kernel_table(op, self._phase_list(op), ky, kx, self._step(op), right) for right in range(1 + joined)]
        rows, columns, phase = (np.concatenate([getattr(t, n) for t in parts]) for n in ("rows", "columns", "phase"))
        table = Table(parts[0].phases, rows, columns, phase)
        group = f // (n // op.groups)
        channels = table.phase * (op.groups * k) + np.tile(group * k + r, len(parts))
        record = self._convolution(op, "lookup", table, channels, direct=op.dictionary is None)
        record.fields |= {"rows": 0 if op.dictionary is None else k, "joined": int(joined)}
        record.fields["width"] = k if op.dictionary is None else op.dictionary.shape[1]
        _lookup_data(record, n, f, values)
        if self._split_here(op):
            step = self._step(op)
            record.fields |= {"split_y": step[0], "split_x": step[1], "port": self.ports[id(op.inputs[0])]}
            record.data["phase_list"] = np.asarray(self._phase_list(op), dtype=np.int32)
        if op.dictionary is not None:
            record.fields["weights_count"] = op.dictionary.size
            record.data["weights"] = op.dictionary.astype(np.float32)

    def _linear(self, op: Operation) -> None:
        x, y = self._need(op.inputs[0], VECTOR), self._make(op, VECTOR)
        weights = op.weight if op.weight is not None else op.dictionary
        positions = 1 if op.dictionary is None else x.channels // op.dictionary.shape[1]
        fields = {
            "groups": 1, "filters": op.filters, "width": x.channels // positions, "positions": positions,
            **_activation_fields(op),
        }  # fmt: skip
        kind = "lookup_linear" if op.coefficients is not None else "linear"
        record = Record(kind, op.name, x, y, None, fields, {}, op)
        if op.coefficients is not None:
            (f, entry), values = op.lookups()
            r, position = np.divmod(entry, positions)
            record.data["table"] = np.stack([r, position, 0 * r], axis=1).astype(np.int32)
            fields["table_count"] = len(r)
            fields["rows"] = 0 if op.dictionary is None else len(op.dictionary)
            _lookup_data(record, op.filters, f, values)
        if weights is not None:
            fields["weights_count"] = weights.size
            # Read once for several positions, fewer bytes gain nothing.
            storage = self.storage if positions == 1 else "float32"
            fields["storage"], arrays = store(weights.reshape(len(weights), -1), storage)
            record.data |= arrays
        if op.bias is not None:
            record.data["bias"] = op.bias.astype(np.float32)
        self._emit(record)

    _lookup_linear = _linear

    def _pool(self, op: Operation) -> None:
        x = self._need(op.inputs[0], WIDE)
        y = self._make(op, VECTOR if op.output.vector else WIDE)
        fields = {
            "mode": int(op.average),
            "count_pad": int(op.count_pad),
            "divisor": op.divisor,
            **_window_fields(op.window),
        }
        self._emit(Record("pool", op.name, x, y, fields=fields, operation=op))

    def _adaptive(self, op: Operation) -> None:
        x = self._need(op.inputs[0], WIDE)
        y = self._make(op, VECTOR if op.output.vector else WIDE)
        self._emit(Record("adaptive", op.name, x, y, fields={"mode": int(op.average)}, operation=op))

    def _elementwise(self, op: Operation) -> None:
        form = VECTOR if op.output.vector else WIDE
        x = self._need(op.inputs[0], form)
        second = None
        if len(op.inputs) > 1:
            second = self._need(op.inputs[1], VECTOR if op.kind == "multiply" else form)
        y = self._make(op, form)
        self._link(*(t for t in (x, y, second) if t is not None and not t.vector))
        record = Record(op.kind, op.name, x, y, second, _activation_fields(op), {}, op)
        if op.kind == "affine":
            assert op.scale is not None
            assert op.bias is not None
            record.fields["filters"] = len(op.scale)
            record.data |= {"weights": op.scale.astype(np.float32), "bias": op.bias.astype(np.float32)}
        self._emit(record)

    _add = _multiply = _affine = _activate = _elementwise

    def _concat(self, op: Operation) -> None:
        form = VECTOR if op.output.vector else WIDE
        parts = [self._need(value, form) for value in op.inputs]
        y = self._make(op, form)
        channel = 0
        for part in parts:
            self._emit(Record("concat", op.name, part, y, fields={"channel": channel}, operation=op))
            channel += part.channels

    def _flatten(self, op: Operation) -> None:
        self.forms[id(op.output), VECTOR] = self.made[id(op.output)] = self._need(op.inputs[0], VECTOR)

    # -- strides, batch-wide steps, buffers --------------------------------------------------------------------------

    def _write_over(self) -> None:
        """A lookup that adds a residual which nobody reads later writes its output there: fewer bytes move."""
        alive = lives([record.tensors for record in self.records])
        for step, record in enumerate(self.records):
            y, residual = record.output, record.second
            if record.op != "lookup" or y is None or residual is None or residual is record.source or y.pixels == 1:
                continue
            if alive[id(residual.lowest)][1] == step:
                y.over = residual
                alive[id(y.lowest)] = (alive[id(y.lowest)][0], alive[id(y)][1])
                for name in ("above", "below", "aside"):
                    setattr(residual.lowest, name, max(getattr(t, name) for t in (y, residual.lowest)))
        for t in self.tensors:
            t.above, t.below, t.aside = t.lowest.above, t.lowest.below, t.lowest.aside

    def _assign_strides(self) -> None:
        done: set[int] = set()
        for tensor in self.tensors:
            group, stack = [], [tensor]
            while stack:
                t = stack.pop()
                if id(t) not in done:
                    done.add(id(t))
                    group.append(t)
                    stack.extend(t.linked)
            for t in group:
                t.stride = 1 if t.vector else max(g.minimum_stride for g in group)
                t.settle()

    def _split(self) -> int:
        """First of the last steps that handle vectors only: from there on, the batch is one matrix."""
        tensors = [record.tensors for record in self.records]
        split = len(self.records)
        while split and all(t.vector for t in tensors[split - 1]) and self.records[split - 1].op != "import_":
            split -= 1
        for touched in tensors[split:]:
            for t in touched:
                t.batched = True
        return split


def _lookup_data(record: Record, count: int, filters: Array, values: Array) -> None:
    """The lookups' values, filter by filter, and where each of ``count`` filters starts."""
    record.data["values"] = values
    counts = np.bincount(filters, minlength=count)
    record.data["starts"] = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)


ACTIVATIONS = ("none", "clamp", "leaky", "silu", "sigmoid", "hard_swish", "hard_sigmoid", "tanh", "elu")


def _bits(x: float) -> int:
    return int(np.float32(x).view(np.int32))


def _activation_fields(op: Operation) -> dict[str, int]:
    a = op.activation
    if a is None:
        return {}
    return {"activation": ACTIVATIONS.index(a.kind), "act_a": _bits(a.a), "act_b": _bits(a.b)}


def _window_fields(window: Any) -> dict[str, int]:
    pairs = zip(["k", "s", "p", "d"], (window.kernel, window.stride, window.padding, window.dilation), strict=True)
    names = {"k": ("kh", "kw"), "s": ("sy", "sx"), "p": ("py", "px"), "d": ("dy", "dx")}
    return {name: int(v) for letter, pair in pairs for name, v in zip(names[letter], pair, strict=True)}
