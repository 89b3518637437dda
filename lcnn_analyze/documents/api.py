"""``reports/api.md``: every public name of both packages, its signature and docstring, in the order of their rooms."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any

import lcnn_analyze
import lcnn_core

LINE = 110

_INTRODUCTION = """# The Python API

Made from the docstrings by `python -m lcnn_analyze.documents api`. A [tutorial](tutorial.md) shows how the parts go
together. Both packages fetch a name when it is first used: importing them loads nothing else.
"""


def files() -> Mapping[str, bytes]:
    """The page."""
    parts = [_INTRODUCTION]
    for package in (lcnn_analyze, lcnn_core):
        parts.append(f"## `{package.__name__}`\n\n{_text(package)}\n")
        parts += [_entry(package, name) for name in _in_order(package)]
    return {"api.md": "\n".join(parts).encode()}


def _in_order(package: ModuleType) -> list[str]:
    """Public names by the room that they are from; whole rooms last."""
    homes: Mapping[str, str] = package._HOME
    return sorted(package.__all__, key=lambda name: (homes.get(name, "~"), name))


def _entry(package: ModuleType, name: str) -> str:
    value = getattr(package, name)
    home = package._HOME.get(name)
    where = f"{package.__name__}.{home}" if home else package.__name__
    if inspect.ismodule(value):
        body = f"A room that is public as a whole. {_text(value)}"
    elif isinstance(value, dict):
        rows = "\n".join(f"- `{_key(key)}`: {_first_line(entry)}" for key, entry in value.items())
        body = f"A registry.\n\n{rows}"
    elif inspect.isclass(value) or inspect.isroutine(value):
        body = f"```python\n{_signature(name, value)}\n```\n\n{_text(value)}"
        members = [f"- `{member}{_call(method)}`: {_first_line(method)}" for member, method in _methods(value)]
        body += "\n\n" + "\n".join(members) if members else ""
    else:
        body = f"A type: `{value}`"
    return f"### `{name}`\n\nFrom `{where}`.\n\n{body}\n"


def _methods(value: Any) -> Iterator[tuple[str, Any]]:
    """A class's own public methods that say what they do."""
    if inspect.isclass(value):
        for name, member in vars(value).items():
            function = getattr(member, "__func__", member)
            if not name.startswith("_") and inspect.isfunction(function) and inspect.getdoc(function):
                yield name, function


class _Words(str):
    """An annotation or default as it is written: ``inspect`` would put it in quotes."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def _signature(name: str, value: Any) -> str:
    """The call, on one line where it fits, else a parameter a line."""
    try:
        signature = inspect.signature(value)
    except (ValueError, TypeError):
        return f"{name}(...)"
    parameters = [_written(parameter) for parameter in signature.parameters.values()]
    returns = signature.return_annotation
    signature = signature.replace(parameters=parameters, return_annotation=_words(returns))
    text = f"{name}{signature}"
    if len(text) <= LINE:
        return text
    lines = [str(parameter) for parameter in parameters]
    star = next((at for at, parameter in enumerate(parameters) if parameter.kind is parameter.KEYWORD_ONLY), None)
    if star is not None:
        lines.insert(star, "*")
    _, _, result = text.rpartition(")")
    return "\n".join([f"{name}(", *(f"    {line}," for line in lines), f"){result}"])


def _written(parameter: inspect.Parameter) -> inspect.Parameter:
    default = parameter.default
    shown = _Words(default.__name__) if inspect.isroutine(default) else default
    return parameter.replace(annotation=_words(parameter.annotation), default=shown)


def _words(annotation: Any) -> Any:
    return _Words(annotation) if isinstance(annotation, str) else annotation


def _call(method: Any) -> str:
    """The parameters' names of a method, without self."""
    return f"({', '.join(list(inspect.signature(method).parameters)[1:])})"


def _key(key: Any) -> str:
    return key if isinstance(key, str) else f"{key.__module__.removeprefix('torch.')}.{key.__name__}"


def _text(value: Any) -> str:
    return inspect.getdoc(value) or ""


def _first_line(value: Any) -> str:
    own = [getattr(value, name, None) for name in ("doc", "definition", "policy")]
    return next(filter(None, own), (_text(value).splitlines() or [""])[0])
