"""``export_onnx``: a model with lookup layers as an ONNX file of standard operators."""

from __future__ import annotations

import os
import warnings
from importlib.util import find_spec

import torch
from torch import Tensor, nn

from lcnn_core.errors import ConfigError, ShapeError, UnsupportedLayerError
from lcnn_core.files import atomic_write
from lcnn_core.plain import PlainLayer, cheaper_forms, plain_layers

__all__ = ["export_onnx"]

OPSET = 18
"""The oldest that torch's exporter writes without converting; lookup layers need Conv and Gemm, far older ones."""


def export_onnx(model: nn.Module, example: Tensor, path: str | os.PathLike[str]) -> tuple[PlainLayer, ...]:
    """Write ``model`` to ``path`` as one ONNX file that gives the same outputs; any batch size runs.

    ONNX has no sparse convolution, so every lookup layer becomes dense nodes: either Conv 1x1 with D and Conv with P,
    zeros multiplied, or one Conv with W = P D, whichever is fewer MACs at this input size. The file therefore carries
    the model's outputs, not its counted saving; that needs the engine.

    model: in any mode, exported in eval mode and left as it was. example: one input (b, c, h, w), any b.
    Input and output are named "input" and "output". Returns each lookup layer with the MACs of both forms and the one
    written. Needs the packages onnx and onnxscript (ConfigError says so). Raises ShapeError where the example does
    not fit, UnsupportedLayerError for a model that torch.export cannot capture, OSError where writing fails.
    """
    missing = [name for name in ("onnx", "onnxscript") if find_spec(name) is None]
    if missing:
        raise ConfigError(f"exporting to ONNX needs {' and '.join(missing)}; install them: pip install 'lcnn[bench]'")
    if example.ndim < 2 or not len(example):
        raise ShapeError(f"example input has shape {tuple(example.shape)}; expected (batch, channels, height, width)")
    forms = cheaper_forms(model, tuple(example.shape[1:]))
    plain = plain_layers(model, lambda layer: forms[layer].form if layer in forms else "dense").eval()
    content = _program(_with_global_means(plain), example)
    with atomic_write(path) as file:
        file.write(content)
    return tuple(forms.values())


def _program(model: nn.Module, example: Tensor) -> bytes:
    # Two images, because torch.export takes a batch of one for a constant.
    batch = example[:1].detach().repeat(2, *(1,) * (example.ndim - 1))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch's exporter warns of torch's own pytree
            program = torch.onnx.export(
                model,
                (batch,),
                input_names=["input"],
                output_names=["output"],
                opset_version=OPSET,
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                verbose=False,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        lines = str(error.__cause__ or error).strip().splitlines() or [type(error).__name__]
        raise UnsupportedLayerError(f"{type(model).__name__} cannot be exported to ONNX: {lines[0]}") from error
    assert program is not None
    return program.model_proto.SerializeToString()


class _GlobalMean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((-2, -1), keepdim=True)


def _with_global_means(model: nn.Module) -> nn.Module:
    """Pooling to one pixel as a mean: torch decomposes the module into a dozen nodes of index arithmetic."""
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.AdaptiveAvgPool2d) and child.output_size in (1, (1, 1)):
                setattr(parent, name, _GlobalMean())
    return model
