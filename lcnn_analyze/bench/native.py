"""The door to the engine, which an installation may lack."""

from __future__ import annotations

from types import ModuleType

import lcnn_core


def engine_room() -> ModuleType | None:
    """``lcnn_core.engine``: compile, libraries, peaks; None where this installation has no engine."""
    return getattr(lcnn_core, "engine", None)
