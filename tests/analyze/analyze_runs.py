"""What the tests of the command ``analyze`` share: the command, and checkpoints to run it on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from lcnn_analyze.cli import analyze as analyze_module
from lcnn_analyze.cli.app import single_command
from lcnn_core import Checkpoint, LookupLayer, build, save

COMMAND = single_command("analyze", analyze_module.analyze)


def save_sparse(path: Path, architecture: str, density: float, **more: Any) -> None:
    """An untrained network of which so large a share of P is left; ``more`` goes into the checkpoint."""
    model = build(architecture)
    for layer in model.modules():
        if isinstance(layer, LookupLayer):
            with torch.no_grad():
                layer.coefficients.mul_(torch.rand_like(layer.coefficients) < density)
    save(path, Checkpoint.from_model(model, architecture=architecture, **more))
