"""Frozen dataclasses to plain JSON data and back, by their type hints: what was written is what is read."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from lcnn_core import DataError

T = TypeVar("T")


def encode(value: Any) -> Any:
    """Dataclasses to dicts, tuples to lists, everything else as it is."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: encode(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: encode(item) for key, item in value.items()}
    return [encode(item) for item in value] if isinstance(value, tuple) else value


def decode(cls: type[T], data: Any, where: str = "report") -> T:
    """Build ``cls`` from plain data. Unknown keys are ignored; DataError names the field that does not fit."""
    if not isinstance(data, dict):
        raise DataError(f"{where} is {_kind(data)}; expected an object")
    values, hints = {}, get_type_hints(cls)
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        if field.name in data:
            values[field.name] = _value(hints[field.name], data[field.name], f"{where}.{field.name}")
        elif field.default is dataclasses.MISSING:
            raise DataError(f"{where}.{field.name} is missing; the file is not a complete report")
    return cls(**values)


def _value(hint: Any, data: Any, where: str) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return _first_fit(arguments, data, where)
    if dataclasses.is_dataclass(hint):
        return decode(hint, data, where)  # type: ignore[arg-type]
    if origin is tuple and isinstance(data, list):
        return tuple(_value(arguments[0], item, f"{where}[{place}]") for place, item in enumerate(data))
    if origin is Mapping and isinstance(data, dict):
        return {key: _value(arguments[1], item, f"{where}.{key}") for key, item in data.items()}
    if origin is Literal and data in arguments:
        return data
    # bool is an int to isinstance, and JSON writes 2.0 where Python may give 2.
    if origin is None and (type(data) is hint or (hint is float and type(data) is int)):
        return data
    raise DataError(f"{where} is {_kind(data)}; expected {getattr(hint, '__name__', hint)}")


def _first_fit(hints: tuple[Any, ...], data: Any, where: str) -> Any:
    if data is None and type(None) in hints:
        return None
    rest = [hint for hint in hints if hint is not type(None)]
    for hint in rest[:-1]:
        if type(data) is hint:
            return data
    return _value(rest[-1], data, where)


def _kind(data: Any) -> str:
    text = repr(data)
    return text if len(text) <= 40 else f"{type(data).__name__} {text[:40]}..."
