"""``lcnn train --dry-run``: what would be trained, on what, and how, without training."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from lcnn_analyze.cli.train_job import Job, schedule_text

if TYPE_CHECKING:
    from lcnn_core import Dataset, Processes, TrainConfig


def print_plan(job: Job, processes: Processes, rates: bool, quiet: bool) -> None:
    """Counts of the network, the data, and the learning rate of every epoch, on stdout; rank 0 only.

    rates: measure too how fast images are read and trained on, which takes some steps of a single process; what is
    measured before them is shown on stderr unless ``quiet``.
    """
    from lcnn_analyze import RENDERERS, analyze
    from lcnn_analyze.cli.output import print_report
    from lcnn_core import ConfigError

    if rates and processes.count > 1:
        raise ConfigError(f"--rates measures one process, there are {processes.count}; leave torchrun out")
    if processes.rank:
        return
    device = next(job.model.parameters()).device
    print_report(analyze(job.model.cpu(), job.dataset.input_shape, name=job.title), RENDERERS["table"])
    typer.echo("\n".join([*data_lines(job.dataset), *plan_lines(job.training, len(job.dataset.train), processes)]))
    if rates:
        from lcnn_analyze.cli.progress import progress
        from lcnn_analyze.cli.rates import BEFORE, BEFORE_WITH_BUDGET, rate_lines

        job.model.to(device)
        before = BEFORE_WITH_BUDGET if job.method else BEFORE
        with progress(job.title, quiet) as listen:
            lines = rate_lines(job.train, job.dataset, job.training, before, listen)
        typer.echo("\n".join(lines))


def data_lines(dataset: Dataset) -> list[str]:
    """Sizes, classes and normalisation."""
    sizes = ", ".join(f"{len(getattr(dataset, name)):,} {name}" for name in ("train", "validation", "test"))
    names = ", ".join(dataset.class_names[:5]) + (", ..." if len(dataset.class_names) > 5 else "")
    mean, std = (", ".join(f"{v:.4g}" for v in values) for values in vars(dataset.normalization).values())
    return [
        f"data: {dataset.name}, images of {' x '.join(map(str, dataset.input_shape))}: {sizes}",
        f"classes: {len(dataset.class_names)} ({names}); normalised by mean {mean}, standard deviation {std}",
    ]


def plan_lines(config: TrainConfig, images: int, processes: Processes) -> list[str]:
    """Batches, and the rate and weight decay at the middle of each epoch, runs of equal ones on one line."""
    pieces = config.batch_pieces * processes.count
    lines = [
        f"run: {config.epochs} epochs of {config.batches_per_epoch or f'{images:,} images'}, batches of "
        f"{config.batch_size} in {pieces} pieces on {processes.count} processes, {config.optimizer}, "
        f"schedule {schedule_text(config)}"
    ]
    if config.batches_per_epoch:
        lines[0] = lines[0].replace(
            f"epochs of {config.batches_per_epoch},", f"epochs of {config.batches_per_epoch} batches,"
        )
    rows = [(config.rate(epoch + 0.5), config.decay(epoch + 0.5)) for epoch in range(config.epochs)]
    first = 0
    for epoch, row in enumerate(rows, start=1):
        if epoch == len(rows) or rows[epoch] != row:
            span = f"epoch {epoch}" if epoch == first + 1 else f"epochs {first + 1} to {epoch}"
            lines.append(f"  {span}: learning rate {row[0]:.4g}, weight decay {row[1]:.4g}")
            first = epoch
    return lines
