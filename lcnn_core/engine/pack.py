"""Writes a layout as the packed plan that the native library reads; native/FORMAT.md documents it byte by byte."""

from __future__ import annotations

import zlib

import numpy as np

from lcnn_core.engine.buffers import Tensor
from lcnn_core.engine.ir import Value
from lcnn_core.engine.layout import Layout

MAGIC = int.from_bytes(b"LCNNPLAN", "little")
VERSION = 5
OPERATIONS = (
    "import_", "export_", "relayout", "gemm", "lookup", "pool", "adaptive", "linear", "lookup_linear", "add",
    "multiply", "affine", "activate", "concat",
)  # fmt: skip
FIELDS = (
    "op", "input", "second", "output", "groups", "rows", "width", "filters", "activation", "act_a", "act_b",
    "bias", "weights", "weights_count", "table", "table_count", "values", "starts",
    "kh", "kw", "sy", "sx", "py", "px", "dy", "dx", "mode", "count_pad", "divisor", "phases", "phase_list",
    "pooled", "conv_height", "conv_width", "port", "channel", "storage", "scales", "positions",
    "joined", "split_y", "split_x",
)  # fmt: skip
STEP_WORDS, HEADER_WORDS, CHECKSUM_WORD = 42, 16, 15
DATA = ("bias", "weights", "table", "values", "starts", "phase_list", "scales")


def pack(layout: Layout, inputs: list[Value], outputs: list[Value]) -> bytes:
    """The plan as bytes: header, ports, tensors, steps (int64), then data (in units of 4 bytes)."""
    index = {id(t): i for i, t in enumerate(layout.tensors)}
    data: list[bytes | memoryview] = []
    units = 0
    steps = np.zeros((len(layout.records), STEP_WORDS), dtype="<i8")
    column = {name: i for i, name in enumerate(FIELDS)}

    def where(tensor: Tensor | None) -> int:
        return -1 if tensor is None else index[id(tensor)]

    for row, record in zip(steps, layout.records, strict=True):
        values = {"op": OPERATIONS.index(record.op), "input": where(record.source), "second": where(record.second),
                  "output": where(record.output), **record.fields, **dict.fromkeys(DATA, -1)}  # fmt: skip
        for name, array in record.data.items():
            values[name] = units
            block = np.ascontiguousarray(array, array.dtype.newbyteorder("<")).reshape(-1).view(np.uint8).data
            data += [block, bytes(-len(block) % 4)]
            units += (len(block) + 3) // 4
        for name, value in values.items():
            row[column[name]] = value
    ports = np.array([[len(v.shape), *(*v.shape, 1, 1)[:3]] for v in (*inputs, *outputs)], "<i8")
    tensors = np.array(
        [
            [int(t.batched) if t.held else 2, t.channels, t.height, t.width, t.stride, t.plane, t.offset, t.lead]
            for t in layout.tensors
        ],
        "<i8",
    )
    header = np.zeros(HEADER_WORDS, dtype="<i8")
    words = HEADER_WORDS + ports.size + tensors.size + steps.size
    header[:11] = [MAGIC, VERSION, words, units, len(tensors), len(steps), len(inputs), len(outputs),
                   layout.arena, layout.batch, layout.first_batch_step]  # fmt: skip
    return seal(header.tobytes(), ports.tobytes(), tensors.tobytes(), steps.tobytes(), *data)


def seal(head: bytes, *rest: bytes | memoryview) -> bytes:
    """The plan, whose header is within the first part, with the CRC-32 of all but the checksum word in that word."""
    start, end = 8 * CHECKSUM_WORD, 8 * CHECKSUM_WORD + 8
    checksum = zlib.crc32(head[:start])
    for part in (head[end:], *rest):
        checksum = zlib.crc32(part, checksum)
    return b"".join([head[:start], checksum.to_bytes(8, "little"), head[end:], *rest])
