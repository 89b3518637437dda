"""What a compiled model does, step by step: frozen records, from which ``executed`` is counted."""

from __future__ import annotations

from dataclasses import dataclass

from lcnn_core.engine.layout import Record
from lcnn_core.engine.phases import can_pair
from lcnn_core.engine.storage import STORAGES


@dataclass(frozen=True)
class PlanStep:
    """One step of the plan, for one image."""

    kind: str
    """lookup, gemm (dense convolution), linear, lookup_linear, pool, ...; ``torch`` for what runs in PyTorch."""
    name: str
    """Layer name, or the operation for a step that the plan added."""
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    macs: int
    """Multiply-accumulates executed, padding columns included, rows outside the image and dead rows of D not."""
    bytes: int
    """Weights, input and output, each once."""
    segment: int
    native: bool = True
    dictionary_macs: int = 0
    """Of ``macs``, those with the dictionary D."""
    storage: str = "float32"
    """Of the weights of fully connected layers; the arithmetic is float32."""

    def __str__(self) -> str:
        shapes = f"{'x'.join(map(str, self.input_shape))} -> {'x'.join(map(str, self.output_shape))}"
        where = f"native {self.segment}" if self.native else "PyTorch"
        cost = f"{self.macs / 1e6:10.3f} MMAC {self.bytes / 1e6:8.3f} MB"
        storage = "" if self.storage == "float32" else f" {self.storage}"
        return f"{where:9} {self.kind:14} {self.name:32} {shapes:28} {cost}{storage}"


@dataclass(frozen=True)
class Plan:
    """All steps in execution order, and which native library runs them (None: PyTorch runs everything)."""

    steps: tuple[PlanStep, ...]
    isa: str | None
    memory_bytes: int = 0
    """What one image on one thread needs beyond the packed weights: buffers reused by liveness, scratch of kernels."""
    liveness_bytes: int = 0
    """The least that any plan with these steps needs: tensors alive at once without padding, and the response S."""
    storage_error: float | None = None
    """With weights in bfloat16 or int8: largest difference from PyTorch on the example, over the largest output."""

    @property
    def macs(self) -> int:
        """Executed multiply-accumulates of one image in native steps."""
        return sum(step.macs for step in self.steps)

    @property
    def fallbacks(self) -> tuple[PlanStep, ...]:
        """Steps that run in PyTorch."""
        return tuple(step for step in self.steps if not step.native)

    def __str__(self) -> str:
        total = f"total {self.macs / 1e6:.3f} MMAC per image in native steps ({self.isa or 'no native library'})"
        if self.fallbacks:
            total += f"; {len(self.fallbacks)} steps run in PyTorch"
        lines = [*map(str, self.steps), total]
        if self.isa:
            memory = f"memory {self.memory_bytes / 1e6:.3f} MB per image and thread beyond the weights"
            lines.append(f"{memory}, liveness bound {self.liveness_bytes / 1e6:.3f} MB")
        if self.storage_error is not None:
            lines.append(f"stored weights change the example's outputs by {self.storage_error:.1e} of the largest")
        return "\n".join(lines)


def executed_macs(record: Record) -> tuple[int, int]:
    """What a native step multiplies for one image, computed padding columns included: with D, and otherwise."""
    x, y = record.source, record.output
    op, fields = record.op, record.fields
    if x is None or y is None:
        return 0, 0
    if op in ("linear", "lookup_linear"):
        weights = fields.get("weights_count", 0) * fields["positions"]
        return (0, weights) if op == "linear" else (weights, fields.get("table_count", 0))
    if op not in ("gemm", "lookup"):
        return 0, 0
    height = fields["conv_height"] if fields.get("pooled") else y.height
    positions = height * x.stride if height * y.width > 1 else 1
    if fields.get("joined"):  # of the columns that windows hold, not of the whole stride
        positions = 2 * height * (y.width + ((fields["kw"], fields["px"]) == (3, 0)))
    elif record.operation is not None and can_pair(record.operation):  # row by row, without the columns between rows
        positions = height * fields["conv_width"]
    if op == "gemm":
        return 0, fields["weights_count"] * positions
    dictionary = fields.get("weights_count", 0) * fields["phases"] * x.height * x.stride
    return dictionary, fields["table_count"] * positions


def plan_step(record: Record, segment: int) -> PlanStep:
    def shape(tensor: object) -> tuple[int, ...]:
        if tensor is None:
            return ()
        t = tensor
        return (t.channels,) if t.vector else (t.channels, t.height, t.width)  # type: ignore[attr-defined]

    data = sum(array.nbytes for array in record.data.values())
    moved = sum(4 * t.channels * t.pixels for t in record.tensors)
    dictionary, other = executed_macs(record)
    return PlanStep(
        record.op.rstrip("_"), record.name, shape(record.source), shape(record.output), dictionary + other,
        data + moved, segment, dictionary_macs=dictionary, storage=STORAGES[record.fields.get("storage", 0)],
    )  # fmt: skip
