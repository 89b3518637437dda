"""``lcnn quickstart``: the whole way on real images that come with scikit-learn, in one to two minutes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from torch import nn

    from lcnn_analyze.report import Report
    from lcnn_core import Dataset

ARCHITECTURE = "digits-resnet"
SPEEDUPS = (10.0, 16.0)
EPOCHS, BATCH = 30, 64  # half the time of 40 epochs in batches of 32; accuracies differ by less than seeds do
RATES = (0.1, 0.07)  # of the dense network and of the lookup networks
TITLE = "Lookup networks and the dense network they come from, on scanned digits"


def quickstart(
    context: typer.Context,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for checkpoints, reports and plots.")] = Path(
        "lcnn-quickstart"
    ),
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Of the weights and the order of images.")] = 0,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress on stderr.")] = False,
) -> None:
    """Train a dense and two lookup networks on scanned digits and analyze them.

    The lookup networks start from the dense one and are pruned to a counted speedup of 10x and 16x over it. Accuracy
    is that on 450 test images, which are looked at once, when a network is finished.
    """
    import torch

    from lcnn_analyze.cli.progress import progress
    from lcnn_core import FromDenseConfig, TrainConfig, atomic_write, build, compress_from_dense, load_dataset, train

    output.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)  # 8x8 images are too small to share: two threads wait for each other more than they work
    dataset = load_dataset("digits")
    torch.manual_seed(seed)
    dense = build(ARCHITECTURE)
    paths = [output / "dense.pt", *(output / f"lookup-{speedup:g}x.pt" for speedup in SPEEDUPS)]
    command = context.obj["command"]
    with atomic_write(paths[0].with_name("writable")) as probe:  # before the training, not after it
        probe.write(b"")
    paths[0].with_name("writable").unlink()
    with progress("dense network", quiet) as listen:
        train(dense, dataset, TrainConfig(EPOCHS, BATCH, lr=RATES[0], shift=1, seed=seed), listen)
    _save(dense, dataset, paths[0], command, seed)
    for path, speedup in zip(paths[1:], SPEEDUPS, strict=True):
        with progress(f"lookup network, {speedup:g}x", quiet) as listen:
            config = FromDenseConfig(speedup, forms="mixed")  # measured, hardly a layer as small has a dictionary
            training = replace(config.train, epochs=EPOCHS, batch_size=BATCH, lr=RATES[1], seed=seed)
            model, _ = compress_from_dense(dense, dataset, replace(config, train=training), listen)
        _save(model, dataset, path, command, seed)
    report = _report(paths, command)
    _write(report, output)
    typer.echo(_next_steps(output, paths))


def _save(model: nn.Module, dataset: Dataset, path: Path, command: str, seed: int) -> None:
    """Save the network as ``path``, with its accuracy on the test images."""
    from lcnn_analyze.cli.train import versions
    from lcnn_core import Checkpoint, evaluate, save

    accuracy = evaluate(model, dataset.test)
    metrics = [
        {"name": name, "value": value, "dataset": f"{dataset.name} (test)", "count": accuracy.count}
        for name, value in (("top1", accuracy.top1), ("top5", accuracy.top5))
    ]
    save(
        path,
        Checkpoint.from_model(
            model,
            architecture=ARCHITECTURE,
            input_shape=dataset.input_shape,
            normalization=dataset.normalization,
            class_names=dataset.class_names,
            metrics=metrics,
            provenance={"command": command, "seed": seed, "versions": versions()},
        ),
    )


def _report(paths: list[Path], command: str) -> Report:
    """Read the checkpoints back and count them, each dense twin recounted by fvcore and torch."""
    from lcnn_analyze import analyze, compare

    return compare([analyze(path, check=True, command=command) for path in paths], TITLE)


def _write(report: Report, output: Path) -> None:
    from lcnn_analyze import RENDERERS
    from lcnn_analyze.cli.output import print_report, write_file

    for name in ("report.html", "report.md", "report.json", "spectrum.png", "spectrum.svg"):
        write_file(output / name, RENDERERS[Path(name).suffix[1:]].render(report), quiet=True)
    print_report(report, RENDERERS["table"])


def _next_steps(output: Path, paths: list[Path]) -> str:
    return f"""
Open {output / "report.html"} in a browser. The folder {output} also holds report.md, spectrum.png and the checkpoints.

Next:
  analyze {paths[1]}
  lcnn evaluate {paths[1]} --data digits
  lcnn train --from {paths[0]} --speedup 25 -o {output / "lookup-25x.pt"}
  lcnn train --help"""
