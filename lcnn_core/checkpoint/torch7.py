"""Torch7 ``.t7`` files: a bounded reader that yields plain data. No class of the file's choice is made, no code runs.

The format, as published: a value is a 32-bit tag and its content. 0 nil; 1 number, a double; 2 string, a 32-bit
length and bytes; 5 boolean, 32 bits; 3 table and 4 object, each a 32-bit index under which it is found again when it
is referred to later, then for a table the number of entries and key, value, ...; for an object a version string
("V 1"), a class name and the content: of a tensor ndim, sizes, strides (64 bits), the offset counted from 1 and the
storage; of a storage its length and entries; of any other class a table of fields. 6, 7 and 8 are functions: byte
code, kept as a length, and a table of upvalues.

Only the binary form is read, of 64-bit machines, little or big endian: the first tag tells which.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import torch
from torch import Tensor

from lcnn_core.checkpoint.bounds import MAX_VIEWS, view_fits
from lcnn_core.errors import CheckpointError

MAX_DEPTH = 200
"""Values inside each other; a module inside a container takes three."""
MAX_VALUES = 1_000_000
"""Numbers, strings, tables and so on in one file; a tensor is one value."""
MAX_STRING = 1 << 20
MAX_DIMENSIONS = 64

_TYPES = {
    **{
        "Byte": "u1",
        "Char": "i1",
        "Short": "i2",
        "Int": "i4",
        "Long": "i8",
        "Half": "f2",
        "Float": "f4",
        "Double": "f8",
    },
    **{"Cuda": "f4", "CudaByte": "u1", "CudaChar": "i1", "CudaShort": "i2", "CudaInt": "i4", "CudaLong": "i8"},
    **{"CudaHalf": "f2", "CudaDouble": "f8"},
}


@dataclass(eq=False)
class Table:
    """A Lua table: keys are numbers (as float), strings (as str), booleans or other values."""

    items: dict[Any, Any] = field(default_factory=dict)

    def array(self) -> list[Any]:
        """The values at 1, 2, 3, ... up to the first that is absent."""
        values: list[Any] = []
        while (key := len(values) + 1) in self.items:
            values.append(self.items[key])
        return values


@dataclass(eq=False)
class Object:
    """An object of any class but tensors and storages, which become ``torch.Tensor``: its fields as data."""

    class_name: str
    fields: dict[Any, Any] = field(default_factory=dict)


@dataclass(eq=False)
class Function:
    """A Lua function: only how long its byte code is, and its upvalues."""

    size: int
    upvalues: Any = None


def read(path: Path) -> Any:
    """The value that Torch7 wrote to ``path``: None, float, str, bool, Tensor, Table, Object or Function.

    Tables and objects may refer to each other in cycles. Raises CheckpointError for anything that is damaged, deeper
    or larger than the limits of this module, or holds tensors that reach beyond their storage.
    """
    try:
        with path.open("rb") as file:
            return _Reader(path, file).read()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}; check the path") from error


class _Reader:
    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path, self.file = path, file
        self.left = file.seek(0, 2)
        file.seek(0)
        self.order: Literal["<", ">"] = "<"
        self.seen: dict[int, Any] = {}
        self.values = 0
        self.depth = 0
        self.viewed = 0
        self.size = self.left

    def read(self) -> Any:
        head = self.file.read(4)
        self.file.seek(0)
        tags = {order: struct.unpack(order + "i", head)[0] for order in "<>"} if len(head) == 4 else {}
        if tags.get(">") in range(1, 9):
            self.order = ">"
        elif tags.get("<") not in range(9):
            ascii_form = head[:1].isdigit() and head[1:2] in (b"\n", b" ")
            what = "is in the ASCII form of Torch7" if ascii_form else f"starts with {head!r}, which is no Torch7 value"
            raise self.refuse(f"{what}; expected the binary form, torch.save(path, object, 'binary')")
        return self.value()

    def refuse(self, reason: str) -> CheckpointError:
        return CheckpointError(f"{self.path} {reason}")

    def take(self, size: int) -> bytearray:
        """``size`` bytes of the file, asked for only once it is known that they are there."""
        if not 0 <= size <= self.left:
            raise self.refuse(f"claims {size} more bytes where it has {self.left}; it is damaged or cut short")
        self.left -= size
        data = bytearray(size)
        if self.file.readinto(data) != size:  # type: ignore[attr-defined]
            raise self.refuse("became shorter while it was read")
        return data

    def numbers(self, code: str, count: int = 1) -> tuple[Any, ...]:
        form = f"{self.order}{count}{code}"
        return struct.unpack(form, self.take(struct.calcsize(form)))

    def integer(self) -> int:
        return self.numbers("i")[0]

    def text(self) -> str:
        size = self.integer()
        if size > MAX_STRING:
            raise self.refuse(f"has a string of {size} bytes; expected {MAX_STRING} or fewer")
        return self.take(size).decode("utf-8", "replace")

    def value(self) -> Any:
        self.values += 1
        self.depth += 1
        if self.values > MAX_VALUES:
            raise self.refuse(f"has over {MAX_VALUES} values; expected a model")
        if self.depth > MAX_DEPTH:
            raise self.refuse(f"nests values over {MAX_DEPTH} deep; expected a model")
        tag = self.integer()
        if tag not in _READERS:
            raise self.refuse(f"has a value of type {tag}; expected 0 to 8; it is damaged or no Torch7 file")
        result = _READERS[tag](self)
        self.depth -= 1
        return result

    def number(self) -> float:
        return self.numbers("d")[0]

    def boolean(self) -> bool:
        return self.integer() != 0

    def table(self) -> Any:
        index = self.integer()
        if index in self.seen:
            return self.known(index, Table)
        table = self.seen[index] = Table()
        count = self.integer()
        if not 0 <= count <= self.left // 8:
            raise self.refuse(f"has a table of {count} entries with {self.left} bytes left; it is damaged or cut short")
        for _ in range(count):
            key = self.value()
            if key is None or key != key or isinstance(key, Tensor):
                raise self.refuse("has a table with a key that is nil, not a number or a tensor")
            table.items[key] = self.value()
        return table

    def function(self) -> Function:
        size = self.integer()
        self.take(size)
        return Function(size, self.value())

    def indexed_function(self) -> Any:
        index = self.integer()
        if index in self.seen:
            return self.known(index, Function)
        self.seen[index] = Function(0)
        self.seen[index] = self.function()
        return self.seen[index]

    def known(self, index: int, *kinds: type) -> Any:
        found = self.seen[index]
        if not isinstance(found, kinds):
            raise self.refuse(f"refers to value {index} as a {kinds[0].__name__.lower()}, which it is not")
        return found

    def object(self) -> Any:
        index = self.integer()
        if index in self.seen:
            return self.known(index, Object, Tensor)
        name = self.text()
        if name.startswith("V "):
            name = self.text()
        kind = name.removeprefix("torch.") if name.startswith("torch.") else ""
        if kind.endswith("Storage") and kind.removesuffix("Storage") in _TYPES:
            self.seen[index] = self.storage(kind.removesuffix("Storage"))
        elif kind.endswith("Tensor") and kind.removesuffix("Tensor") in _TYPES:
            self.seen[index] = self.tensor(kind.removesuffix("Tensor"))
        else:
            self.seen[index] = Object(name)
            content = self.value()
            if not isinstance(content, Table):
                raise self.refuse(
                    f"has an object of class {name[:100]!r} without a table of fields; it is not known how to skip it"
                )
            self.seen[index].fields = content.items
        return self.seen[index]

    def storage(self, kind: str) -> Tensor:
        (count,) = self.numbers("q")
        dtype = np.dtype(_TYPES[kind])
        data = np.frombuffer(self.take(count * dtype.itemsize), dtype.newbyteorder(self.order))
        return torch.from_numpy(data.astype(dtype, copy=False))

    def tensor(self, kind: str) -> Tensor:
        dimensions = self.integer()
        if not 0 <= dimensions <= MAX_DIMENSIONS:
            raise self.refuse(f"has a tensor of {dimensions} dimensions; expected 0 to {MAX_DIMENSIONS}")
        sizes, strides = self.numbers("q", dimensions), self.numbers("q", dimensions)
        (offset,) = self.numbers("q")
        storage = self.value()
        empty = torch.empty(0, dtype=getattr(torch, np.dtype(_TYPES[kind]).name))
        if storage is None:
            storage = empty
        if not isinstance(storage, Tensor) or storage.ndim != 1 or storage.dtype != empty.dtype:
            raise self.refuse(f"has a {kind}Tensor whose storage is of another type")
        if not dimensions or 0 in sizes:
            return empty
        self.check_bounds(sizes, strides, offset, len(storage))
        return storage.as_strided(sizes, strides, offset - 1)

    def check_bounds(self, sizes: tuple[int, ...], strides: tuple[int, ...], offset: int, room: int) -> None:
        if not view_fits(sizes, strides, offset - 1, room):
            raise self.refuse(
                f"has a tensor of sizes {sizes}, strides {strides} at {offset} on a storage of {room} entries; "
                "expected it inside, each entry once"
            )
        self.viewed += math.prod(sizes)
        if self.viewed > MAX_VIEWS * self.size:
            raise self.refuse("has tensors that show the same storages over and over; expected weights")


_READERS = {
    0: lambda reader: None,
    1: _Reader.number,
    2: _Reader.text,
    3: _Reader.table,
    4: _Reader.object,
    5: _Reader.boolean,
    6: _Reader.function,
    7: _Reader.indexed_function,
    8: _Reader.indexed_function,
}
