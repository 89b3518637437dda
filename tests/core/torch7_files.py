"""An independent writer of Torch7's binary form, from its published description; nothing of the reader is used."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(eq=False)
class Obj:
    """An object of a class, whose content is a table of fields."""

    class_name: str
    fields: dict[Any, Any] = field(default_factory=dict)
    version: str | None = "V 1"


@dataclass(eq=False)
class Func:
    """A Lua function: byte code and a table of upvalues, written with tag 6, 7 or 8."""

    code: bytes
    upvalues: dict[Any, Any] = field(default_factory=dict)
    tag: int = 8


NAMES = {
    "f4": "Float",
    "f8": "Double",
    "f2": "Half",
    "i8": "Long",
    "i4": "Int",
    "i2": "Short",
    "u1": "Byte",
    "i1": "Char",
}


class Writer:
    """``Writer("<").dump(value)``: bytes of a dict, a list (a table from 1), an array, Obj, Func, number, text, ..."""

    def __init__(self, order: str = "<", cuda: bool = False) -> None:
        self.order, self.cuda = order, cuda
        self.indices: dict[int, int] = {}
        self.kept: list[Any] = []
        self.out = bytearray()

    def dump(self, value: Any) -> bytes:
        self.value(value)
        return bytes(self.out)

    def ints(self, *numbers: int) -> None:
        self.out += struct.pack(f"{self.order}{len(numbers)}i", *numbers)

    def longs(self, *numbers: int) -> None:
        self.out += struct.pack(f"{self.order}{len(numbers)}q", *numbers)

    def text(self, text: str) -> None:
        data = text.encode()
        self.ints(len(data))
        self.out += data

    def is_known(self, tag: int, value: Any) -> bool:
        """Tag and index; True when the value was written before, so that the index says it all."""
        known = id(value) in self.indices
        self.kept.append(value)
        self.ints(tag, self.indices.setdefault(id(value), len(self.indices) + 1))
        return known

    def value(self, value: Any) -> None:
        if value is None:
            self.ints(0)
        elif isinstance(value, bool):
            self.ints(5, int(value))
        elif isinstance(value, int | float):
            self.ints(1)
            self.out += struct.pack(f"{self.order}d", value)
        elif isinstance(value, str):
            self.ints(2)
            self.text(value)
        elif isinstance(value, dict | list):
            self.table(value)
        elif isinstance(value, np.ndarray):
            self.tensor(value)
        elif isinstance(value, Func):
            self.function(value)
        else:
            self.object(value)

    def table(self, value: dict[Any, Any] | list[Any]) -> None:
        if self.is_known(3, value):
            return
        pairs = list(value.items()) if isinstance(value, dict) else list(enumerate(value, 1))
        self.ints(len(pairs))
        for key, item in pairs:
            self.value(key)
            self.value(item)

    def function(self, value: Func) -> None:
        if value.tag == 6:
            self.ints(6)
        elif self.is_known(value.tag, value):
            return
        self.ints(len(value.code))
        self.out += value.code
        self.value(value.upvalues)

    def object(self, value: Obj) -> None:
        if not self.is_known(4, value):
            if value.version is not None:
                self.text(value.version)
            self.text(value.class_name)
            self.table_of(value.fields)

    def table_of(self, fields: dict[Any, Any]) -> None:
        self.value(fields)

    def tensor(self, value: np.ndarray) -> None:
        kind = NAMES[value.dtype.str[1:]]
        if self.cuda:
            kind = {"Float": "Cuda", "Double": "CudaDouble"}.get(kind, f"Cuda{kind}")
        if self.is_known(4, value):
            return
        self.text("V 1")
        self.text(f"torch.{kind}Tensor")
        self.ints(value.ndim)
        self.longs(*value.shape)
        self.longs(*(stride // value.itemsize for stride in value.strides))
        self.longs(1)
        self.storage(kind, value)

    def storage(self, kind: str, value: np.ndarray) -> None:
        flat = np.lib.stride_tricks.as_strided(value, (value.size,), (value.itemsize,))
        self.is_known(4, flat)
        self.text("V 1")
        self.text(f"torch.{kind}Storage")
        self.longs(value.size)
        self.out += flat.astype(value.dtype.newbyteorder(self.order)).tobytes()


def conv(weight: np.ndarray, bias: np.ndarray | None = None, stride: int = 1, pad: int = 0, **more: Any) -> Obj:
    """``nn.SpatialConvolution`` with its weight flattened to two dimensions, as older files hold it."""
    n, m, kh, kw = weight.shape
    fields = {"nInputPlane": m, "nOutputPlane": n, "kW": kw, "kH": kh, "dW": stride, "dH": stride}
    fields |= {"padW": pad, "padH": pad, "weight": weight.reshape(n, -1), "train": True, **more}
    if bias is not None:
        fields["bias"] = bias
    return Obj("nn.SpatialConvolution", fields)


def lookup(dictionary: np.ndarray, p: np.ndarray, bias: np.ndarray | None, threshold: float, **geometry: Any) -> Obj:
    """The published layer, under a class name that no reader can know."""
    k, m = dictionary.shape
    fields = {
        "poolconv": conv(dictionary.reshape(k, m, 1, 1)),
        "alignconv": conv(p, bias, **geometry),
        "sparseTh": threshold,
        "output": np.zeros((1,), np.float32),
    }
    return Obj("somebody.SparseLayer", fields)


def sequential(*modules: Obj, name: str = "nn.Sequential") -> Obj:
    return Obj(name, {"modules": list(modules), "train": False})
