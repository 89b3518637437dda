"""Recipes: a method and, behind it, settings that differ from its own: ``from-dense:weight=0:lr=0.02``."""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from lcnn_core import METHODS, ConfigError, find_schedule

OWN = ("speedup", "seed")
"""Settings that a study's axes decide."""


def config_of(recipe: str, speedup: float, seed: int, given: Mapping[str, Any]) -> Any:
    """The method's frozen configuration. ``given`` are settings of every trial; a recipe's own come before them.

    Raises ConfigError for a method or a setting that there is not, and for values that the method refuses.
    """
    name, *settings = recipe.split(":")
    if name not in METHODS:
        raise ConfigError(f"method is {name!r}; expected one of {', '.join(METHODS)}")
    changes = dict(_parsed(recipe, setting) for setting in settings)
    config = METHODS[name].config(speedup=speedup)
    for key in changes:
        if key in OWN or not any(key == known for known, _ in _settings(config)):
            known = [key for key, _ in _settings(config) if key not in OWN]
            close = get_close_matches(key, known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"expected one of {', '.join(known)}"
            raise ConfigError(f"{name} has no setting {key!r}; {hint}")
        if key in METHODS[name].fixed:
            raise ConfigError(f"{key} cannot be a setting of {name}, which decides that; leave it out")
    try:
        return _changed(config, {**given, **changes, "seed": seed})
    except TypeError as error:
        raise ConfigError(f"{recipe}: a value is of the wrong kind: {error}") from error
    except ConfigError as error:
        raise ConfigError(f"{recipe}: {error}") from error


def with_ablations(methods: Sequence[str], changes: Sequence[str]) -> list[str]:
    """The methods, and the first of them with one change at a time: ``floor=1``, or ``start=scratch:floor=1``."""
    return [*methods, *(f"{methods[0]}:{change}" for change in changes if methods)]


def whole(recipe: str, key: str) -> bool | None:
    """Whether a setting of the recipe's method takes whole numbers; None where it has none that can be chosen."""
    if key in METHODS[recipe.partition(":")[0]].fixed:
        return None
    for known, value in _settings(config_of(recipe, 2.0, 0, {})):
        if known == key:
            return type(value) is int
    return None


def _parsed(recipe: str, setting: str) -> tuple[str, Any]:
    key, equals, text = setting.partition("=")
    if not key or not equals or not text:
        raise ConfigError(f"method is {recipe!r}; expected METHOD:SETTING=VALUE, such as from-dense:weight=0")
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = float(text) if text.strip("+-").lower() in ("nan", "inf", "infinity") else text
    return key, find_schedule(text) if key == "schedule" else value


def _settings(config: Any) -> Iterator[tuple[str, Any]]:
    """Names and values of a configuration's settings, those of configurations within it behind its own."""
    values = [(field.name, getattr(config, field.name)) for field in dataclasses.fields(config)]
    yield from (pair for pair in values if not _nested(*pair))
    for pair in values:
        if _nested(*pair):
            yield from _settings(pair[1])


def _nested(name: str, value: Any) -> bool:
    return dataclasses.is_dataclass(value) and name != "schedule"


def _changed(config: Any, changes: Mapping[str, Any]) -> Any:
    """``config`` with the changes that are settings of it, or of a configuration within it that has no namesake."""
    own = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    mine = {name: changes[name] for name in own if name in changes and not _nested(name, own[name])}
    rest = {name: value for name, value in changes.items() if name not in own}
    within = {name: _changed(value, rest) for name, value in own.items() if _nested(name, value)}
    return dataclasses.replace(config, **mine, **within)
