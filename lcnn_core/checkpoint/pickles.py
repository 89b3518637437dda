"""What ``torch.save`` wrote, read as plain data: vetted first, then ``torch.load(weights_only=True)``, nothing else.

``weights_only`` keeps code from running. The vetting keeps time and memory in bounds before torch allocates: it walks
the pickle as data (no object of the file's choice is made) and holds every storage against the bytes that the file
really has, every tensor against its storage, and every dictionary key to plain scalars, whose hash is cheap.
"""

from __future__ import annotations

import math
import pickletools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import torch

from lcnn_core.checkpoint.archive import common_prefix, open_archive
from lcnn_core.checkpoint.bounds import MAX_VIEWS, view_fits
from lcnn_core.errors import CheckpointError, first_line

MAX_PICKLE = 64 << 20
"""Bytes of the pickle of one checkpoint, without its tensors' data."""
MAX_COPIES = 1_000_000
"""Entries that calls may copy out of other containers; state dicts copy one per module."""
MAX_DIMENSIONS = 64

_MAGIC = 0x1950A86A20F9469CFC6C
_SAFE = "it is never read in an unsafe way; save a plain state_dict with torch.save(model.state_dict(), path)"

_ITEM_SIZES = {
    **dict.fromkeys(("Byte", "Char", "Bool", "Untyped", "QInt8", "QUInt8"), 1),
    **dict.fromkeys(("Short", "Half", "BFloat16"), 2),
    **dict.fromkeys(("Int", "Float", "QInt32"), 4),
    **dict.fromkeys(("Long", "Double", "ComplexFloat"), 8),
    "ComplexDouble": 16,
}


def load_plain(path: Path, mapped: bool = False) -> Any:
    """The object that ``torch.save`` wrote to ``path``: plain containers, numbers, text and tensors on the CPU.

    Reads the zip form and the older one (a row of pickles); refuses tar archives, TorchScript and whatever needs
    classes. mapped: tensors of the zip form are read from the file when they are looked at, which must stay as it is
    meanwhile. Raises CheckpointError, with the reason, for every file that it does not return.
    """
    try:
        with path.open("rb") as file:
            head = file.read(512)
            if head.startswith(b"PK\3\4"):
                _vet_archive(path)
            elif head.startswith(b"\x80"):
                _vet_legacy(path, file)
            elif head[257:262] == b"ustar":
                raise CheckpointError(f"{path} is a tar archive, the form before torch 0.4; {_SAFE}")
            else:
                raise CheckpointError(f"{path} starts with {head[:4]!r}; expected a file written by torch.save")
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}; check the path") from error
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped and head.startswith(b"PK\3\4"))
    except Exception as error:  # torch's reader raises nearly every kind of exception on damaged files
        raise CheckpointError(f"{path} cannot be loaded with weights_only=True: {first_line(error)}") from error


def _vet_archive(path: Path) -> None:
    with open_archive(path) as archive:
        prefix = common_prefix(path, archive)
        sizes = {entry.filename: entry.file_size for entry in archive.infolist()}
        if prefix + "constants.pkl" in sizes:
            raise CheckpointError(f"{path} is a TorchScript archive, which holds code; {_SAFE}")
        if prefix + "data.pkl" not in sizes:
            raise CheckpointError(f"{path} is a zip archive without data.pkl; expected a file written by torch.save")
        if sizes[prefix + "data.pkl"] > MAX_PICKLE:
            raise CheckpointError(f"{path}: its data.pkl is over {MAX_PICKLE} bytes; expected a checkpoint of tensors")
        walk = _Walk(path, lambda key: sizes.get(f"{prefix}data/{key}", -1))
        walk.run(BytesIO(archive.read(prefix + "data.pkl")))
        walk.check_views()


def _vet_legacy(path: Path, file: BinaryIO) -> None:
    """Magic number, protocol, system, object, storage keys: five pickles, then each storage's length and data."""
    size = file.seek(0, 2)
    file.seek(0)
    walk = _Walk(path, lambda key: size)
    pickles = _Bounded(file, size)
    if walk.run(pickles) != _MAGIC:
        raise CheckpointError(f"{path} is a pickle, but not one that torch.save wrote; {_SAFE}")
    for _ in range(4):
        walk.run(pickles)
    walk.check_views()
    need = sum(walk.storages.values())
    if need > size - file.tell():
        raise CheckpointError(
            f"{path}: its storages claim {need} bytes, the file holds {size - file.tell()}; fetch or save it again"
        )


class _Bounded:
    """A file that is asked for no more than it holds: Python allocates what ``read`` is told before it reads."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.file, self.size, self.tell = file, size, file.tell

    def read(self, count: int) -> bytes:
        return self.file.read(min(count, MAX_PICKLE, self.size - self.tell()))

    def readline(self) -> bytes:
        return self.file.readline(MAX_PICKLE)


@dataclass(frozen=True)
class _Global:
    name: str


@dataclass(frozen=True)
class _Storage:
    numel: int
    item_size: int


@dataclass(eq=False)
class _Dict:
    size: int = 0


class _Data:
    """A tensor or scalar whose content has no say in what is allocated."""


_DATA = _Data()


def _is_cheap_key(key: Any) -> bool:
    """Whether hashing ``key`` is quick and collides with few: nested tuples and integers past 2 ** 60 are neither."""
    return isinstance(key, str | bytes | float | bool | None) or (isinstance(key, int) and abs(key) < 1 << 60)


class _Walk:
    """A walk over the opcodes that torch's restricted unpickler knows, keeping only what bounds memory and time."""

    def __init__(self, path: Path, stored: Callable[[str], int]) -> None:
        self.path = path
        self.stored = stored
        self.storages: dict[str, int] = {}
        self.copies = 0
        self.viewed = 0

    def run(self, stream: Any) -> Any:
        """Vet one pickle and return its result as this walk sees it."""
        try:
            return self._run(stream)
        except (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError) as error:
            raise CheckpointError(f"{self.path}: its pickle is damaged: {first_line(error)}") from error

    def _run(self, stream: Any) -> Any:
        stack: list[Any] = []
        marks: list[list[Any]] = []
        memo: dict[int, Any] = {}
        for opcode, argument, position in pickletools.genops(stream):
            name = opcode.name
            if (position or 0) > MAX_PICKLE:
                raise self.refuse(f"its pickle is over {MAX_PICKLE} bytes")
            if name == "GLOBAL":
                stack.append(self._global(str(argument).replace(" ", ".")))
            elif name in _CONSTANTS:
                stack.append(_CONSTANTS[name](argument))
            elif name in ("BINGET", "LONG_BINGET"):
                stack.append(memo[int(argument or 0)])
            elif name in ("BINPUT", "LONG_BINPUT"):
                memo[int(argument or 0)] = stack[-1]
            elif name == "MARK":
                marks.append(stack)
                stack = []
            elif name in ("TUPLE", "APPENDS", "SETITEMS"):
                items, stack = stack, marks.pop()
                self._close(name, stack, items)
            elif name in _FIXED:
                count = _FIXED[name]
                items = stack[len(stack) - count :]
                del stack[len(stack) - count :]
                self._close(name, stack, items)
            elif name == "STOP":
                return stack.pop()
            elif name == "PROTO" and argument == 2:
                continue
            else:
                detail = f" {argument}" if name == "PROTO" else ""
                raise self.refuse(f"its pickle uses {name}{detail}, which plain checkpoints of torch.save do not")
        raise ValueError("no STOP")

    def _close(self, name: str, stack: list[Any], items: list[Any]) -> None:
        """Carry out an opcode that takes ``items`` off the stack."""
        if name.startswith("TUPLE"):
            stack.append(tuple(items))
        elif name in ("APPEND", "APPENDS"):
            stack[-1].extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            if not all(map(_is_cheap_key, items[::2])):
                raise self.refuse("it has a dictionary key that is no text or small number")
            stack[-1].size += len(items)
        elif name == "BINPERSID":
            stack.append(self._storage(*items))
        elif name == "REDUCE":
            stack.append(self._call(*items))
        elif name == "BUILD":
            target, state = items
            if not isinstance(target, _Dict) or not isinstance(state, _Dict):
                raise self.refuse("it sets the state of something other than a dictionary")
            self.copied(state.size)
            stack.append(target)

    def _global(self, name: str) -> _Global:
        is_dtype = isinstance(getattr(torch, name.removeprefix("torch."), None), torch.dtype)
        if name not in _CALLS and not is_dtype and not (name.startswith("torch.") and name.endswith("Storage")):
            raise self.refuse(f"it needs {name[:100]!r}, which is no plain data")
        return _Global(name)

    def _storage(self, identity: Any) -> _Storage:
        if not isinstance(identity, tuple) or len(identity) not in (5, 6) or identity[0] != "storage":
            raise self.refuse("it refers to something outside itself that is no storage")
        _, kind, key, _, numel = identity[:5]
        item_size = _ITEM_SIZES.get(kind.name.rpartition(".")[2].removesuffix("Storage"))
        if item_size is None or not isinstance(key, str) or any(view is not None for view in identity[5:]):
            raise self.refuse(f"it has a storage of an unknown kind, {kind.name[:100]!r}")
        if type(numel) is not int or numel < 0:
            raise self.refuse(f"storage {key!r} has no length")
        have = self.stored(key)
        if numel * item_size > have:
            found = f"the file has {have}" if have >= 0 else "the file does not have it"
            raise self.refuse(f"storage {key!r} claims {numel * item_size} bytes, {found}")
        self.storages[key] = max(numel * item_size, self.storages.get(key, 0))
        return _Storage(numel, item_size)

    def _call(self, function: Any, arguments: Any) -> Any:
        if function.name not in _CALLS:
            raise self.refuse(f"it calls {function.name[:100]!r}, which is no plain data")
        return _CALLS[function.name](self, *arguments)

    def tensor(self, storage: Any, offset: int, shape: Sequence[int], strides: Sequence[int], *rest: Any) -> _Data:
        """Bounds of ``torch._utils._rebuild_tensor``: the last entry lies in the storage, none is counted twice."""
        if not isinstance(storage, _Storage) or not isinstance(shape, tuple) or not isinstance(strides, tuple):
            raise self.refuse("it has a tensor without storage, shape or strides")
        dtype = rest[2] if len(rest) > 2 else None
        fits = len(shape) == len(strides) <= MAX_DIMENSIONS
        if not fits or any(type(number) is not int for number in (offset, *shape, *strides)):
            raise self.refuse("it has a tensor whose shape and strides are no sizes")
        size = storage.item_size if not isinstance(dtype, _Global) else _dtype(dtype.name).itemsize
        room = storage.numel * storage.item_size // size
        if not view_fits(shape, strides, offset, room):
            raise self.refuse(f"it has a tensor of shape {shape} at {offset} on a storage of {room} entries")
        self.viewed += math.prod(shape) * size
        return _DATA

    def counted(self, items: Any) -> _Data:
        """``set`` or ``Counter``, of a list of scalars or a dictionary."""
        self.copied(items.size if isinstance(items, _Dict) else len(items))
        if not isinstance(items, _Dict) and not (isinstance(items, list) and all(map(_is_cheap_key, items))):
            raise self.refuse("it has a set of something other than text and small numbers")
        return _DATA

    def size(self, sizes: Any) -> Any:
        """``torch.Size``, which copies its sizes."""
        self.copied(len(sizes))
        return sizes

    def copied(self, entries: int) -> None:
        """A container is copied: cheap to write and costly to read where it is done over and over."""
        self.copies += entries
        if self.copies > MAX_COPIES:
            raise self.refuse(f"its calls copy over {MAX_COPIES} entries")

    def check_views(self) -> None:
        """Tensors may share a storage, but not so often that reading them all takes forever."""
        if self.viewed > MAX_VIEWS * sum(self.storages.values()):
            raise self.refuse(f"its tensors show the same bytes over {MAX_VIEWS} times")

    def refuse(self, reason: str) -> CheckpointError:
        return CheckpointError(f"{self.path}: {reason}; {_SAFE}")


def _dtype(name: str) -> torch.dtype:
    dtype = getattr(torch, name.removeprefix("torch."), None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"{name} is no dtype")
    return dtype


_CONSTANTS: Mapping[str, Callable[[Any], Any]] = {
    **dict.fromkeys(("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE"), lambda value: value),
    "SHORT_BINSTRING": lambda value: value,
    "NONE": lambda _: None,
    "NEWTRUE": lambda _: True,
    "NEWFALSE": lambda _: False,
    "EMPTY_TUPLE": lambda _: (),
    "EMPTY_LIST": lambda _: [],
    "EMPTY_DICT": lambda _: _Dict(),
}
_FIXED = {
    **{"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3, "APPEND": 1, "SETITEM": 2},
    **{"BINPERSID": 1, "REDUCE": 2, "BUILD": 2},
}
_CALLS: Mapping[str, Callable[..., Any]] = {
    "collections.OrderedDict": lambda walk: _Dict(),
    "collections.Counter": _Walk.counted,
    "builtins.set": _Walk.counted,
    "__builtin__.set": _Walk.counted,
    "torch.Size": _Walk.size,
    "torch.device": lambda walk, *arguments: _DATA,
    "torch._utils._rebuild_tensor": _Walk.tensor,
    "torch._utils._rebuild_tensor_v2": _Walk.tensor,
    "torch._utils._rebuild_tensor_v3": _Walk.tensor,
    "torch._utils._rebuild_parameter": lambda walk, tensor, *arguments: tensor,
}
"""Everything that a plain checkpoint calls, with what it means for the bounds; all else is refused."""
