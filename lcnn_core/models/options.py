"""Options of the architectures: checks with clear messages, and dictionary sizes by role with published presets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from lcnn_core.errors import ConfigError
from lcnn_core.spec import LookupConfig

Size = int | str
"""k of one role: a whole number, "dense" for no lookup, or "identity" for a plain sparse layer (no dictionary)."""

LOOKUP_OPTIONS: Mapping[str, Any] = MappingProxyType(
    {
        "preset": "fast",
        "first": None,
        "stages": None,
        "fc": None,
        "classifier": None,
        "threshold_scale": None,
        "l1_scale": None,
    }
)
"""Options of every ``-lcnn`` architecture; None takes the preset's value."""


@dataclass(frozen=True)
class Preset:
    """Named dictionary sizes by role. ``l1_scale`` is lambda', ``threshold_scale`` is c (paper, section 3.2)."""

    first: Size
    stages: tuple[Size, ...]
    fc: Size = "dense"
    classifier: Size = "dense"
    threshold_scale: float = 0.01
    l1_scale: float = 0.1


@dataclass(frozen=True)
class LookupPlan:
    """The lookup configuration of each role of a network; None is a dense layer."""

    first: LookupConfig | None
    stages: tuple[LookupConfig | None, ...]
    fc: LookupConfig | None
    classifier: LookupConfig | None


def lookup_plan(presets: Mapping[str, Preset], stage_count: int, options: Mapping[str, Any]) -> LookupPlan:
    """Turn the lookup options of an architecture into a plan; without options every role is dense.

    Raises ConfigError for an unknown preset, a size that is no size, or a number of stages that does not fit.
    """
    dense = Preset("dense", ("dense",) * stage_count)
    choices = {**presets, "dense": dense}
    chosen = choices[check_choice("preset", options.get("preset", "dense"), tuple(choices))]

    def value(name: str) -> Any:
        given = options.get(name)
        return getattr(chosen, name) if given is None else given

    def config(name: str, size: Any) -> LookupConfig | None:
        if size == "dense":
            return None
        if isinstance(size, str) and size != "identity":
            raise ConfigError(f"{name} is {size!r}; expected a whole number of 1 or more, 'dense' or 'identity'")
        k = None if size == "identity" else check_count(name, size)
        return LookupConfig(k, threshold_scale=value("threshold_scale"), l1_scale=value("l1_scale"))

    stages = value("stages")
    if isinstance(stages, int | str):
        stages = (stages,) * stage_count
    if not isinstance(stages, Sequence) or len(stages) != stage_count:
        raise ConfigError(f"stages is {stages!r}; expected one dictionary size, or {stage_count}, one a stage")
    return LookupPlan(
        first=config("first", value("first")),
        stages=tuple(config("stages", size) for size in stages),
        fc=config("fc", value("fc")),
        classifier=config("classifier", value("classifier")),
    )


def check_choice(name: str, value: Any, choices: Sequence[Any]) -> Any:
    """``value`` if it is one of ``choices``, else ConfigError."""
    if not any(value == choice and type(value) is type(choice) for choice in choices):
        raise ConfigError(f"{name} is {value!r}; expected one of {', '.join(map(repr, choices))}")
    return value


def check_count(name: str, value: Any) -> int:
    """``value`` if it is a whole number of 1 or more, else ConfigError."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"{name} is {value!r}; expected a whole number of 1 or more")
    return value


def check_counts(name: str, value: Any) -> tuple[int, ...]:
    """``value`` as a tuple if it is a non-empty sequence of whole numbers of 1 or more, else ConfigError."""
    if isinstance(value, str) or not isinstance(value, Sequence) or not value:
        raise ConfigError(f"{name} is {value!r}; expected whole numbers of 1 or more, one a stage")
    return tuple(check_count(name, item) for item in value)


def check_probability(name: str, value: Any) -> float:
    """``value`` if it lies in [0, 1), else ConfigError."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
        raise ConfigError(f"{name} is {value!r}; expected a number from 0 to below 1")
    return float(value)
