"""LCNN: lookup-based convolutional neural networks for PyTorch.

``import lcnn_core`` loads nothing else: every public name is fetched from its room when it is first used (PEP 562).
``lcnn_core.functional`` holds the paper's equations as pure functions.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

_ROOMS = {
    "counting": """FORMULAS LayerCount conv_macs count_layer counted_speedup dictionary_macs linear_macs lookup_macs
        matmul_macs output_positions padded_positions""",
    "describe": "describe",
    "errors": """CheckpointError ConfigError DataError LcnnError ShapeError TrainingError UnsupportedLayerError""",
    "layers": "LAYERS LookupConv2d LookupLayer LookupLinear",
    "spec": "LayerSpec LookupConfig LookupSpec ModelSpec Uncounted",
}
"""The public names by room. To add one: a word here and a line in the imports for type checkers below."""

_HOME = {name: room for room, names in _ROOMS.items() for name in names.split()}

__all__ = sorted(["functional", *_HOME])


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name not in _HOME:
        return import_module(f"{__name__}.{name}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return list(__all__)


class _Package(ModuleType):
    """Keeps a public function that is named as its room (``describe``) from being hidden by the room itself.

    The import system binds every imported submodule as an attribute of its package; without this,
    ``from lcnn_core import describe`` would give the function or the module, depending on what was imported before.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in _HOME or not isinstance(value, ModuleType):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package

if TYPE_CHECKING:
    from lcnn_core import functional as functional
    from lcnn_core.counting import FORMULAS as FORMULAS
    from lcnn_core.counting import LayerCount as LayerCount
    from lcnn_core.counting import conv_macs as conv_macs
    from lcnn_core.counting import count_layer as count_layer
    from lcnn_core.counting import counted_speedup as counted_speedup
    from lcnn_core.counting import dictionary_macs as dictionary_macs
    from lcnn_core.counting import linear_macs as linear_macs
    from lcnn_core.counting import lookup_macs as lookup_macs
    from lcnn_core.counting import matmul_macs as matmul_macs
    from lcnn_core.counting import output_positions as output_positions
    from lcnn_core.counting import padded_positions as padded_positions
    from lcnn_core.describe import describe as describe
    from lcnn_core.errors import CheckpointError as CheckpointError
    from lcnn_core.errors import ConfigError as ConfigError
    from lcnn_core.errors import DataError as DataError
    from lcnn_core.errors import LcnnError as LcnnError
    from lcnn_core.errors import ShapeError as ShapeError
    from lcnn_core.errors import TrainingError as TrainingError
    from lcnn_core.errors import UnsupportedLayerError as UnsupportedLayerError
    from lcnn_core.layers import LAYERS as LAYERS
    from lcnn_core.layers import LookupConv2d as LookupConv2d
    from lcnn_core.layers import LookupLayer as LookupLayer
    from lcnn_core.layers import LookupLinear as LookupLinear
    from lcnn_core.spec import LayerSpec as LayerSpec
    from lcnn_core.spec import LookupConfig as LookupConfig
    from lcnn_core.spec import LookupSpec as LookupSpec
    from lcnn_core.spec import ModelSpec as ModelSpec
    from lcnn_core.spec import Uncounted as Uncounted
