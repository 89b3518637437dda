"""``lcnn export MODEL FILE``: a model for other runtimes."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lcnn_analyze.cli.errors import fail
from lcnn_core import ConfigError, atomic_write

if TYPE_CHECKING:
    from torch import Tensor, nn

WORK_FAILED = 5
TOLERANCE = 1e-4
"""Of another runtime's float32 against PyTorch's float64, over the largest output: fast algorithms round more."""


def export(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A checkpoint (.pt, .safetensors) or architecture.")],
    output: Annotated[Path, typer.Argument(metavar="FILE", help="Where to write: FILE.onnx or FILE.lcnn.")],
    input_shape: Annotated[
        str | None, typer.Option(metavar="CxHxW", help="Input without the batch. [default: the model's own]")
    ] = None,
    storage: Annotated[
        str, typer.Option(metavar="TYPE", help="FILE.lcnn: weights of large fully connected layers; bfloat16 or int8.")
    ] = "float32",
    arch: Annotated[str | None, typer.Option(metavar="NAME", help="Network of a bare state dict.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No messages on stderr.")] = False,
) -> int:
    """Write a model as a file that gives the same outputs at any batch size; one that does not is not written.

    FILE.onnx is for ONNX Runtime and others. FILE.lcnn is a plan of this project's engine, which runs it as fast as it
    counts: in Python by lcnn_core.engine.load, and in C without Python or PyTorch. The C header and library lie in
    lcnn_core/engine; native/example.c there is a whole program, native/FORMAT.md describes the file. To build it:

    cc example.c $(python -c "import lcnn_core.engine as e; print(e.c_flags())") -o example
    """
    if output.suffix.lower() not in WRITERS:
        raise ConfigError(f"output file is {str(output)!r}; expected a name that ends in {' or '.join(WRITERS)}")
    if storage != "float32" and output.suffix.lower() != ".lcnn":
        raise ConfigError(f"--storage {storage} is for FILE.lcnn; {output.suffix} holds float32, leave it out")
    import torch

    from lcnn_analyze.cli.bench import parse_shape
    from lcnn_analyze.inputs import open_subject

    subject = open_subject(model, parse_shape(input_shape), architecture=arch)
    if subject.make_module is None:
        raise ConfigError(f"{model} is a description without a model; give a checkpoint")
    module = subject.make_module().eval()
    x = torch.randn(2, *subject.spec.input_shape, generator=torch.Generator().manual_seed(0))
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder, f"model{output.suffix.lower()}")
        lines, problem = WRITERS[made.suffix](module, x, made, storage)
        if problem:
            return fail("export", f"{output} was not written: {problem}", WORK_FAILED)
        with made.open("rb") as source, atomic_write(output) as target:
            shutil.copyfileobj(source, target)
        size = made.stat().st_size
    if not quiet:
        print("\n".join([f"wrote {output}, {size / 1e6:.1f} MB", *lines]), file=sys.stderr)
    return 0


def _onnx(module: nn.Module, x: Tensor, path: Path, _: str) -> tuple[list[str], str | None]:
    from lcnn_core import export_onnx

    layers = export_onnx(module, x, path)
    two = sum(layer.form == "two_layers" for layer in layers)
    lines = [
        f"{len(layers)} lookup layers: {two} as two dense nodes (D, then P with its zeros), {len(layers) - two} as one "
        "(W = P D), whichever multiplies less; ONNX has no sparse convolution, so the counted saving is not in it"
    ]
    checked, problem = _onnx_check(module, x, path)
    return [*lines, checked], problem


def _onnx_check(module: nn.Module, x: Tensor, path: Path) -> tuple[str, str | None]:
    if find_spec("onnxruntime") is None:
        return "not checked: onnxruntime is not installed (pip install 'lcnn[bench]')", None
    import onnxruntime
    import torch

    from lcnn_analyze.bench.trial import error_of, float64_outputs

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    outputs = torch.from_numpy(session.run(None, {"input": x.numpy()})[0])
    error = error_of(outputs, float64_outputs(module, x)[0])
    if error is None or error > TOLERANCE:
        found = "are not finite" if error is None else f"are off by {error:.1e}"
        return "", f"outputs in ONNX Runtime {found}; allowed is {TOLERANCE:g} of the largest"
    return f"checked in ONNX Runtime: outputs within {error:.0e} of float64 PyTorch, of the largest", None


def _lcnn(module: nn.Module, x: Tensor, path: Path, storage: str) -> tuple[list[str], str | None]:
    from lcnn_analyze.bench.trial import error_of, float64_outputs
    from lcnn_core.engine import compile, load, save

    compiled = compile(module, x, storage=storage)
    save(compiled, path)
    allowed = max(TOLERANCE, 2 * (compiled.plan.storage_error or 0.0))
    error = error_of(load(path)(x), float64_outputs(module, x)[0])
    if error is None or error > allowed:
        found = "are not finite" if error is None else f"are off by {error:.1e}"
        return [], f"outputs when loaded again {found}; allowed is {allowed:.0e} of the largest"
    return [
        f"{compiled.plan.macs / 1e6:.1f} MMAC in {len(compiled.plan.steps)} steps, for any processor",
        f"checked when loaded again: outputs within {error:.0e} of float64 PyTorch, of the largest",
    ], None


WRITERS: dict[str, Callable[[nn.Module, Tensor, Path, str], tuple[list[str], str | None]]] = {
    ".onnx": _onnx,
    ".lcnn": _lcnn,
}
"""By suffix. To add a format: a function and a line here."""
