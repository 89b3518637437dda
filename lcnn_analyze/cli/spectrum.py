"""``lcnn spectrum``: many compressed networks, shared by workers, gone on with after any kill, and one report."""

from __future__ import annotations

import hashlib
import os
import re
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lcnn_core import ConfigError, DataError, TrainingError

if TYPE_CHECKING:
    from lcnn_analyze.cli.trials import Plan
    from lcnn_analyze.study import Source

_GRID, _SEARCH, _RUN = "Grid", "Search instead of the grid", "Run"
DRAW_EVERY = 30.0
"""Seconds between two reports of a study that is under way."""
KEEP = ("front", "all")


def spectrum(
    dense: Annotated[Path, typer.Argument(help="The dense checkpoint that all start from.", metavar="DENSE")],
    data: Annotated[str, typer.Option(help="digits, idx:FOLDER, imagefolder:FOLDER, ...")] = "digits",
    methods: Annotated[
        str,
        typer.Option(
            help="Ways to compress; settings behind a colon: pruning,from-dense:lr=0.02.", rich_help_panel=_GRID
        ),
    ] = "from-dense,lookup-only,converted,pruning,published,narrow",
    ablate: Annotated[
        str,
        typer.Option(
            help="The first method also with one of these changed: floor=1,start=scratch.", rich_help_panel=_GRID
        ),
    ] = "",
    speedups: Annotated[str, typer.Option(help="Counted speedups.", rich_help_panel=_GRID)] = "3,10,30",
    seeds: Annotated[str, typer.Option(help="Seeds: 0,1,2.", rich_help_panel=_GRID)] = "0",
    epochs: Annotated[int | None, typer.Option(help="Of each trial. [the method's own]", rich_help_panel=_GRID)] = None,
    batch_size: Annotated[int | None, typer.Option(help="[the method's own]", rich_help_panel=_GRID)] = None,
    lr: Annotated[float | None, typer.Option(help="Peak rate. [the method's own]", rich_help_panel=_GRID)] = None,
    trials: Annotated[
        int | None,
        typer.Option(
            help="Settings that Optuna chooses, among the methods and between the speedups.", rich_help_panel=_SEARCH
        ),
    ] = None,
    vary: Annotated[
        str, typer.Option(help="What else it chooses: lr=0.01..0.1,temperature=1..4.", rich_help_panel=_SEARCH)
    ] = "",
    storage: Annotated[
        str | None,
        typer.Option(help="Database that workers share, a URL. [a file in the folder]", rich_help_panel=_SEARCH),
    ] = None,
    study: Annotated[str, typer.Option(help="The search's name in the database.", rich_help_panel=_SEARCH)] = (
        "lcnn-spectrum"
    ),
    measure: Annotated[
        bool, typer.Option("--measure", help="Also time each network in the engine.", rich_help_panel=_RUN)
    ] = False,
    workers: Annotated[
        int, typer.Option(help="Processes; more may join by the same command.", rich_help_panel=_RUN)
    ] = 1,
    keep: Annotated[
        str | None, typer.Option(help="Networks to keep: front or all. [front]", rich_help_panel=_RUN)
    ] = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Try failed trials again.", rich_help_panel=_RUN)
    ] = False,
    from_report: Annotated[
        Path | None,
        typer.Option(
            help="A spectrum.json of this study, made elsewhere: what is done there is done.", rich_help_panel=_RUN
        ),
    ] = None,
    report_only: Annotated[
        bool, typer.Option("--report-only", help="Train nothing, write the report.", rich_help_panel=_RUN)
    ] = False,
    output: Annotated[Path, typer.Option("--output", "-o", help="The study's folder.", rich_help_panel=_RUN)] = Path(
        "lcnn-spectrum"
    ),
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.", rich_help_panel=_RUN)] = False,
) -> None:
    """Compress a dense network by every method to every speedup with every seed; draw accuracy against speedup.

    Run again, the same command goes on where it was stopped; run elsewhere on the same folder, it joins in; with other
    methods, speedups or seeds it adds to the study; with the report of another folder it goes on from there. With
    --trials, Optuna chooses what to try, for counted speedup and validation accuracy at once. Accuracies shown are
    those on test images, each network's looked at once, when it is finished; the front is chosen on validation images.
    Only networks on the front are kept, unless a worker of the study says --keep all.
    """
    from lcnn_analyze.cli.recipes import with_ablations
    from lcnn_analyze.cli.study import numbers
    from lcnn_analyze.cli.sweep_report import read_done
    from lcnn_analyze.cli.trials import Plan

    if workers < 1:
        raise ConfigError(f"workers is {workers}; expected 1 or more")
    if keep not in (None, *KEEP):
        raise ConfigError(f"keep is {keep!r}; expected one of {', '.join(KEEP)}")
    _check_search(trials, vary, storage, from_report)
    settings: dict[str, Any] = {
        **{"dense": str(dense), "sha256": _digest(dense), "data": data, "epochs": epochs, "batch_size": batch_size},
        **{"lr": lr, "measure": measure},
    }
    if trials is not None:
        settings["search"] = {"methods": methods, "speedups": speedups, "seeds": seeds, "vary": vary}
    plan = Plan(
        output, settings, with_ablations(_words(methods), _words(ablate)), numbers("--speedups", speedups, float),
        numbers("--seeds", seeds, int), trials, vary, storage, study,
    )  # fmt: skip
    _check(plan)
    taken = read_done(from_report, plan) if from_report else []
    source = plan.open(taken, ask=not report_only)
    kept = plan.journal.keep(keep)
    if report_only:
        return _end(plan, source, clean=keep == "front")
    if retry_failed:
        source.reopen_failed()
    _run(plan, source, workers, quiet)
    _end(plan, source, clean=kept == "front")


def _check_search(trials: int | None, vary: str, storage: str | None, from_report: Path | None) -> None:
    if trials is not None and from_report is not None:
        raise ConfigError("--from-report is for the grid; a search goes on from its own storage, leave one out")
    if trials is not None and trials < 1:
        raise ConfigError(f"trials is {trials}; expected 1 or more")
    for name, value in (("vary", vary), ("storage", storage)):
        if value and trials is None:
            raise ConfigError(f"--{name} is for a search; give --trials, how many settings Optuna may choose")


def _words(text: str) -> list[str]:
    """What stands between commas, but for those within brackets."""
    return [word.strip() for word in re.split(r",(?![^(]*\))", text) if word.strip()]


def _digest(path: Path) -> str:
    """Of the dense network, its weights and what they are for: another one under the same name is another study."""
    import torch

    from lcnn_core import checkpoint

    if not path.is_file():
        raise DataError(f"{path} does not exist; expected the dense network's checkpoint")
    found = checkpoint.load(path)
    facts = (found.architecture, dict(found.arguments), found.input_shape, found.normalization)
    digest = hashlib.sha256(repr(facts).encode())
    for name, tensor in sorted(found.state_dict.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _check(plan: Plan) -> None:
    """What would fail every trial fails now."""
    from lcnn_analyze.cli.trials import load_subject
    from lcnn_core import check_dense

    plan.check()
    check_dense(load_subject(plan.settings)[0])


def _run(plan: Plan, source: Source, workers: int, quiet: bool) -> None:
    from lcnn_analyze.cli.trials import work

    others = [_spawn(plan) for _ in range(workers - 1)]
    try:
        work(plan, source, quiet, _reporter(plan, source, workers, quiet))
    finally:
        for process in others:
            process.join() if sys.exc_info()[0] is None else process.terminate()


def _reporter(plan: Plan, source: Source, workers: int, quiet: bool) -> Callable[[], None]:
    """What is done and left, as a line after each trial, and now and then as a report."""
    from lcnn_analyze.cli.sweep_report import make_document, write_report
    from lcnn_analyze.cli.train_job import say
    from lcnn_analyze.render.verdict import progress_text

    drawn = time.monotonic()

    def report() -> None:
        nonlocal drawn
        ended = source.ended()
        if not quiet:
            say(progress_text(make_document(plan, ended, workers)))
        if time.monotonic() - drawn > DRAW_EVERY:
            drawn = time.monotonic()
            write_report(plan, ended, workers)

    return report


def _spawn(plan: Plan) -> Any:
    import multiprocessing

    process = multiprocessing.get_context("spawn").Process(target=_join_in, args=(plan,))
    process.start()
    return process


def _join_in(plan: Plan) -> None:
    """A further worker, as long as the first one lives; of what stops it the first one speaks, which meets the same."""
    from lcnn_analyze.cli.trials import work
    from lcnn_core import LcnnError

    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        work(plan, plan.open())
    except (LcnnError, OSError, KeyboardInterrupt):
        sys.exit(1)


def _end_with_parent() -> None:
    """What this worker has reached is on the disk; its trial is free when its lease ends."""
    import multiprocessing

    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _end(plan: Plan, source: Source, clean: bool) -> None:
    """Write the report; ``clean``: and where nothing is left to do, delete the networks that are on no front."""
    from lcnn_analyze.cli.sweep_report import keep_front, write_report
    from lcnn_analyze.cli.train_job import say
    from lcnn_analyze.study import LEFT

    ended = source.ended()
    count = Counter(state.status for _, state in ended)
    if clean and not any(count[status] for status in LEFT):
        keep_front(plan, ended)
    write_report(plan, ended)
    for trial, state in ended:
        if state.status == "failed":
            say(f"{trial.name} failed: {state.reason}")
    if count["failed"] and not count["done"]:
        raise TrainingError(f"no trial of {len(ended)} was done; the report in {plan.folder} has the reasons")
    left = sum(count[status] for status in LEFT)
    text = f"{plan.folder / 'spectrum.html'}: {count['done']} of {len(ended)} done, {count['failed']} failed"
    typer.echo(f"{text}, {left} left" if left else text)
