"""torchvision beside a CPU-only torch: its package index build asks for operators that it cannot bring there.

``import torchvision`` then ends with ``RuntimeError: operator torchvision::nms does not exist``. Naming the two
operators first makes everything work but non-maximum suppression and torchvision's own JPEG decoder.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

import torch

from lcnn_core.errors import ConfigError

_OPERATORS = ("nms", "qnms")
_NEXT = "install it with: pip install 'lcnn[vision]'"
_libraries: list[torch.library.Library] = []


def import_torchvision() -> ModuleType:
    """The package ``torchvision``. Raises ConfigError, with the reason, where it is absent or does not load."""
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise ConfigError(f"torchvision does not load: {error}; {_NEXT}") from error
    except ImportError as error:
        raise ConfigError(f"torchvision is not there: {error}; {_NEXT}") from error
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
    library = torch.library.Library("torchvision", "DEF")
    for operator in _OPERATORS:
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _libraries.append(library)  # operators live as long as their library
    try:
        return importlib.import_module("torchvision")
    except (RuntimeError, ImportError) as error:
        raise ConfigError(f"torchvision does not load: {error}; {_NEXT}") from error
