"""The inference engine: ``compile`` makes the counted speedup real. See README, "How the engine works"."""

from lcnn_core.engine.compiled import CompiledModel
from lcnn_core.engine.compiler import compile
from lcnn_core.engine.file import LoadedModel, c_flags, load, save
from lcnn_core.engine.library import libraries, library_in_use, peaks, read_rate
from lcnn_core.engine.plan import Plan, PlanStep

__all__ = [
    "CompiledModel", "LoadedModel", "Plan", "PlanStep", "c_flags", "compile", "libraries", "library_in_use", "load",
    "peaks", "read_rate", "save",
]  # fmt: skip
