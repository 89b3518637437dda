"""``lcnn spectrum``: a grid of compressed networks, shared by workers, gone on with after any kill, and one report."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from lcnn_analyze.study import Journal, State, Trial, means
from lcnn_core import ConfigError

_GRID, _RUN = "Grid", "Run"


def spectrum(
    ctx: typer.Context,
    dense: Annotated[Path, typer.Argument(help="The dense checkpoint that all start from.", metavar="DENSE")],
    data: Annotated[str, typer.Option(help="digits, idx:FOLDER, imagefolder:FOLDER, ...")] = "digits",
    methods: Annotated[
        str, typer.Option(help="Ways to compress, such as from-dense,pruning.", rich_help_panel=_GRID)
    ] = "from-dense,lookup-only,converted,pruning,published,narrow",
    speedups: Annotated[str, typer.Option(help="Counted speedups.", rich_help_panel=_GRID)] = "3,10,30",
    seeds: Annotated[str, typer.Option(help="Seeds: 0,1,2.", rich_help_panel=_GRID)] = "0",
    epochs: Annotated[int | None, typer.Option(help="Of each trial. [the method's own]", rich_help_panel=_GRID)] = None,
    batch_size: Annotated[int | None, typer.Option(help="[the method's own]", rich_help_panel=_GRID)] = None,
    lr: Annotated[float | None, typer.Option(help="Peak rate. [the method's own]", rich_help_panel=_GRID)] = None,
    measure: Annotated[bool, typer.Option("--measure", help="Time each network in the engine.")] = False,
    workers: Annotated[int, typer.Option(help="Processes; more may join by the same command.")] = 1,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Try failed trials again.")] = False,
    report_only: Annotated[bool, typer.Option("--report-only", help="Train nothing, write the report.")] = False,
    output: Annotated[Path, typer.Option("--output", "-o", help="The study's folder.")] = Path("lcnn-spectrum"),
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> None:
    """Compress a dense network by every method to every speedup with every seed; draw accuracy against speedup.

    Run again, the same command goes on where it was stopped; run elsewhere on the same folder, it joins in; with other
    methods, speedups or seeds it adds to the study. Accuracies are those on test images, each network's looked at once,
    when it is finished.
    """
    from lcnn_analyze.cli.trials import trials_of, work

    if workers < 1:
        raise ConfigError(f"workers is {workers}; expected 1 or more")
    settings = {
        **{"dense": str(dense), "data": data, "epochs": epochs, "batch_size": batch_size, "lr": lr},
        **{"measure": measure},
    }
    trials = trials_of(
        [part.strip() for part in methods.split(",")],
        _numbers("speedups", speedups, float),
        _numbers("seeds", seeds, int),
    )
    _check(settings, trials)
    journal = Journal(output / "journal.jsonl")
    asked = journal.begin(settings, trials)
    if retry_failed:
        journal.reopen_failed(trials)
    if not report_only:
        others = [_spawn(output, settings, trials) for _ in range(workers - 1)]
        try:
            work(output, settings, trials, quiet)
        finally:
            for process in others:
                process.join() if sys.exc_info()[0] is None else process.terminate()
    states = journal.states(asked)
    write_report(output, settings, [(trial, states[trial.name]) for trial in asked])
    ended = [state.status for state in states.values()]
    typer.echo(f"{output / 'spectrum.md'}: {ended.count('done')} of {len(asked)} done, {ended.count('failed')} failed")


def _numbers(name: str, text: str, kind: type) -> list[Any]:
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"{name} are {text!r}; expected numbers with commas between them, such as 1,2") from None


def _check(settings: Mapping[str, Any], trials: Sequence[Trial]) -> None:
    """What would fail every trial fails now."""
    from lcnn_analyze.cli.train_job import check_fit
    from lcnn_analyze.cli.trials import config_of
    from lcnn_core import checkpoint, load_dataset

    for trial in trials:
        config_of(trial, settings)
    loaded = checkpoint.load(settings["dense"])
    check_fit(loaded, load_dataset(settings["data"], loaded.normalization), Path(settings["dense"]))


def _spawn(output: Path, settings: Mapping[str, Any], trials: Sequence[Trial]) -> Any:
    import multiprocessing

    from lcnn_analyze.cli.trials import work

    process = multiprocessing.get_context("spawn").Process(target=work, args=(output, settings, trials))
    process.start()
    return process


def write_report(folder: Path, settings: Mapping[str, Any], states: Sequence[tuple[Trial, State]]) -> None:
    """Write spectrum.md, .png, .svg and .json; a grid's report is the same whoever did the work."""
    from lcnn_analyze.cli.output import write_file
    from lcnn_analyze.render.sweep import page, picture

    points = means(states)
    dense = dense_accuracy(folder, settings)
    title = f"{Path(settings['dense']).stem} on {settings['data']}: accuracy against counted speedup"
    commands = {trial.name: command(trial, settings) for trial, _ in states}
    write_file(folder / "spectrum.md", page(title, points, states, dense, commands).encode(), quiet=True)
    if points:
        for format in ("png", "svg"):
            write_file(folder / f"spectrum.{format}", picture(title, points, dense, format), quiet=True)
    trials = [{"trial": t.name, **t.settings, "status": s.status, **s.result, "reason": s.reason} for t, s in states]
    document = {"settings": settings, "dense": dense, "points": [vars(point) for point in points], "trials": trials}
    write_file(folder / "spectrum.json", json.dumps(document, indent=1).encode(), quiet=True)


def dense_accuracy(folder: Path, settings: Mapping[str, Any]) -> float:
    """Top-1 of the dense network on test images in percent; measured once for a study."""
    from lcnn_analyze.cli.output import write_file
    from lcnn_core import checkpoint, evaluate, load_dataset

    kept = folder / "dense.json"
    if kept.exists():
        return json.loads(kept.read_text())["top1"]
    loaded = checkpoint.load(settings["dense"])
    dataset = load_dataset(settings["data"], loaded.normalization)
    top1 = 100 * evaluate(loaded.build(), dataset.test).top1
    write_file(kept, json.dumps({"top1": top1}).encode(), quiet=True)
    return top1


def command(trial: Trial, settings: Mapping[str, Any]) -> str:
    """What makes this trial's network again, in a folder of its own."""
    parts = ["lcnn", "spectrum", settings["dense"], "--data", settings["data"], "--methods", trial.settings["method"]]
    parts += ["--speedups", f"{trial.settings['speedup']:g}", "--seeds", str(trial.settings["seed"])]
    for name in ("epochs", "batch_size", "lr"):
        if settings[name] is not None:
            parts += [f"--{name.replace('_', '-')}", f"{settings[name]:g}"]
    return shlex.join([*parts, "-o", trial.name])
