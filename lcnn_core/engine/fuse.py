"""Passes over the operations: batch norm, activations, residual additions and max-pooling into their producers."""

from __future__ import annotations

from collections import Counter

import numpy as np

from lcnn_core.engine.ir import Operation, Value

POOL_LOOKUPS = 64
"""With more lookups per filter, blocking S for L1 (all filters, block by block) gains more than fusing the pooling."""

WEIGHTED = ("conv", "lookup_conv", "linear", "lookup_linear")


class Fuser:
    """Rewrites a list of operations; ``keep`` are values that something outside the list reads."""

    def __init__(self, operations: list[Operation], keep: set[int]):
        self.operations = operations
        self.keep = keep

    def run(self) -> list[Operation]:
        for step in (self._affine, self._add, self._activation, self._pool):
            changed = True
            while changed:
                changed = any(step(operation) for operation in list(self.operations))
        return self.operations

    def _producer(self, value: Value) -> Operation | None:
        """Who writes ``value``, where one other operation and nothing else reads it."""
        if id(value) in self.keep:
            return None
        uses = sum(Counter(map(id, op.reads))[id(value)] for op in self.operations)
        return next((op for op in self.operations if op.output is value), None) if uses == 1 else None

    def _absorb(self, producer: Operation, consumer: Operation) -> bool:
        producer.output = consumer.output
        self.operations.remove(consumer)
        return True

    def _affine(self, op: Operation) -> bool:
        producer = self._producer(op.inputs[0]) if op.kind == "affine" else None
        if producer is None or producer.activation or producer.kind not in (*WEIGHTED, "affine"):
            return False
        assert op.scale is not None
        assert op.bias is not None
        if producer.kind == "affine":
            assert producer.scale is not None
            producer.bias = producer.bias * op.scale + op.bias
            producer.scale = producer.scale * op.scale
        else:
            producer.scaled(op.scale, op.bias)
        return self._absorb(producer, op)

    def _activation(self, op: Operation) -> bool:
        producer = self._producer(op.inputs[0]) if op.kind == "activate" else None
        if producer is None or producer.activation or producer.kind not in (*WEIGHTED, "add", "affine"):
            return False
        assert op.activation is not None
        if producer.kind in ("linear", "lookup_linear") and op.activation.kind != "clamp":
            return False
        producer.activation = op.activation
        return self._absorb(producer, op)

    def _add(self, op: Operation) -> bool:
        if op.kind != "add" or op.inputs[0] is op.inputs[1]:
            return False
        position = {id(other.output): i for i, other in enumerate(self.operations)}
        for value in sorted(op.inputs, key=lambda v: position.get(id(v), -1), reverse=True):
            producer = self._producer(value)
            other = op.inputs[1] if value is op.inputs[0] else op.inputs[0]
            if producer is None or producer.kind not in ("conv", "lookup_conv") or producer.activation:
                continue
            if producer.residual is not None or op.output.vector:
                continue
            producer.residual = other
            self.operations.remove(producer)  # to the place of the addition, where both operands exist
            self.operations[self.operations.index(op)] = producer
            producer.output = op.output
            return True
        return False

    def _pool(self, op: Operation) -> bool:
        producer = self._producer(op.inputs[0]) if op.kind == "pool" and not op.average else None
        if producer is None or producer.kind != "lookup_conv" or producer.residual is not None or producer.pool:
            return False
        if producer.output.vector or op.output.vector:
            return False
        if np.count_nonzero(producer.coefficients) > POOL_LOOKUPS * producer.filters:  # type: ignore[arg-type]
            return False
        if producer.activation is not None and producer.activation.kind != "clamp":
            return False
        producer.pool = op.window
        producer.pool_input = producer.output.shape[1:]  # type: ignore[assignment]
        return self._absorb(producer, op)


def prune_dead(operations: list[Operation], keep: set[int]) -> list[Operation]:
    """Drops operations whose output nobody reads."""
    needed, kept = set(keep), []
    for op in reversed(operations):
        if id(op.output) in needed:
            kept.append(op)
            needed.update(map(id, op.reads))
    return kept[::-1]
