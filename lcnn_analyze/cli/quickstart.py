"""``lcnn quickstart``: the whole way on real images that come with scikit-learn, in about two minutes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from torch import nn

    from lcnn_analyze.report import Report
    from lcnn_core import Dataset

SPEEDUPS = (10.0, 16.0)
ARCHITECTURE = "digits-resnet"


def quickstart(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for checkpoints, reports and plots.")] = Path(
        "lcnn-quickstart"
    ),
    seed: Annotated[int, typer.Option(help="Seed of the weights and of the order of images.", min=0)] = 0,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress on stderr.")] = False,
) -> None:
    """Train a dense and two lookup networks on 1,797 scanned digits; count and compare them. Two minutes."""
    from lcnn_analyze import RENDERERS
    from lcnn_analyze.cli.progress import progress
    from lcnn_core import FromDenseConfig, TrainConfig, build_model, compress_from_dense, load_dataset, train
    from lcnn_core.files import ensure_writable_folder, write_atomically

    ensure_writable_folder(output)
    dataset = load_dataset("digits")
    dense = build_model(ARCHITECTURE, seed=seed)
    paths = []
    with progress("dense network", quiet=quiet) as listen:
        train(dense, dataset, TrainConfig(epochs=30, shift=1, seed=seed), listen)
    paths.append(_save(dense, dataset, output / "dense.pt", seed))
    for speedup in SPEEDUPS:
        with progress(f"lookup network, {speedup:g}x", quiet=quiet) as listen:
            model, _ = compress_from_dense(dense, dataset, FromDenseConfig(speedup=speedup), listen)
        paths.append(_save(model, dataset, output / f"lookup-{speedup:g}x.pt", seed))

    report = _analyze(paths, output)
    for format, name in (("html", "report.html"), ("md", "report.md"), ("json", "report.json")):
        write_atomically(output / name, RENDERERS[format].render(report))
    for format in ("png", "svg"):
        write_atomically(output / f"spectrum.{format}", RENDERERS[format].render(report))
    sys.stdout.buffer.write(RENDERERS["table"].render(report))
    print(_farewell(output, paths))


def _save(model: nn.Module, dataset: Dataset, path: Path, seed: int) -> Path:
    """Measure on the held-out test images, for the first time, and save."""


def _analyze(paths: list[Path], output: Path) -> Report:
    from lcnn_analyze import analyze, compare

    reports = [analyze(path, check=True, command=f"analyze {path} --check") for path in paths]
    return compare(reports, title="Lookup networks against their dense network, on scanned digits")


def _farewell(output: Path, paths: list[Path]) -> str:
    return f"""
Everything is in {output}/: open {output}/report.html in a browser.
Next:
  analyze {paths[1]}                  one network, layer by layer
  lcnn evaluate {paths[1]} --data digits
  lcnn train --help                   your own data and budget"""
