"""``lcnn train``: train an architecture, go on from a checkpoint, or compress a dense one to a counted budget."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from lcnn_analyze.cli.train_job import Job, check_fit, make_job, say, versions
from lcnn_analyze.cli.train_options import OPTIONS, differences, given_options, read_config, takes_options

if TYPE_CHECKING:
    from torch import nn

    from lcnn_core import Event, Listener, Processes, Recorder, RunFiles, RunLog

__all__ = ["check_fit", "train", "versions"]

DEFAULTS = {"data": "digits"}
DEFAULT_OUTPUT = "lcnn-run"


@takes_options
def train(ctx: typer.Context, **options: Any) -> None:
    """Train a network; keep its best and last epoch, its state, a log as JSON lines and a report in a folder.

    With --speedup and --from, a trained dense network is compressed until the counted speedup over it is reached, by
    default by D and P that start from its filters and are pruned together; --method names other ways. Choices are made
    on validation images; `lcnn evaluate` measures on test images. A run that was stopped goes on with --resume FOLDER,
    to the same bits. `torchrun --no-python --nproc-per-node N lcnn train ...` shares every batch among N processes.
    """
    from lcnn_core import ConfigError, RunFiles, join_processes

    given = given_options(options)
    command = ctx.obj["command"]
    if "config" in given:
        given = {**read_config(given["config"]), **given}
    _check_flags(given)
    files = RunFiles.at(given.get("resume") or given.get("output") or DEFAULT_OUTPUT)
    asked = {name: value for name, value in given.items() if OPTIONS[name].saved}
    state = _state(files) if "resume" in given else None
    settings = {**DEFAULTS, **(state["settings"] if state else {}), **asked}
    _check_sources(files, settings)
    with join_processes(settings.get("device", "auto")) as (processes, device):
        job = make_job(settings)
        job.model.to(device)
        settings = job.settings(settings)
        if state:
            _check_unchanged(state, settings, processes, "allow_change" in given)
        if "dry_run" in given:
            from lcnn_analyze.cli.dry_run import print_plan

            print_plan(job, processes, "rates" in given, "quiet" in given)
            return
        if state is None and files.made() and "overwrite" not in given:
            raise ConfigError(
                f"{files.made()[0]} is of a run already; go on with --resume {files.best.parent}, replace it with "
                "--overwrite, or choose another -o"
            )
        if processes.rank:
            job.train(job.dataset, job.training, lambda event: None, state)
        else:
            _write_run(job, files, settings, state, "quiet" in given, command)


def _check_flags(given: Mapping[str, Any]) -> None:
    """Options that say where and whether to run, and contradict each other."""
    from lcnn_core import ConfigError

    if "resume" in given and "overwrite" in given:
        raise ConfigError("--overwrite cannot go with --resume, which goes on with the run; leave one out")
    if "resume" in given and "output" in given:
        raise ConfigError(
            "-o (output in a settings file) cannot go with --resume, which names the folder already; leave it out"
        )
    if "rates" in given and "dry_run" not in given:
        raise ConfigError("--rates measures before a run; give --dry-run too, or leave it out")


def _check_sources(files: RunFiles, settings: Mapping[str, Any]) -> None:
    """Raise ConfigError where the weights that the run starts from lie in a file that it deletes or replaces."""
    from lcnn_core import ConfigError

    written = {path.resolve() for path in vars(files).values()}
    for name in ("from", "load"):
        if settings.get(name) and Path(settings[name]).resolve() in written:
            raise ConfigError(f"--{name} {settings[name]} is a file that this run would replace; choose another -o")


def _state(files: RunFiles) -> dict[str, Any]:
    from lcnn_core import load_state

    return load_state(files.state)


def _check_unchanged(
    state: Mapping[str, Any], settings: Mapping[str, Any], processes: Processes, allowed: bool
) -> None:
    from lcnn_core import ConfigError

    found, count = differences(state["settings"], settings), state["pieces"] // state["settings"]["batch_pieces"]
    if count != processes.count:
        found.append(f"processes was {count}, is now {processes.count}")
    if found and allowed and not processes.rank:
        say(f"changed: {'; '.join(found)}")
    elif found and not allowed:
        raise ConfigError(f"the run was started otherwise: {'; '.join(found)}; leave it, or give --allow-change")


def _write_run(
    job: Job,
    files: RunFiles,
    settings: Mapping[str, Any],
    state: Mapping[str, Any] | None,
    quiet: bool,
    command: str,
) -> None:
    """Run the job; what it wrote stands whole however it ends."""
    from lcnn_analyze.cli.progress import progress
    from lcnn_analyze.cli.run_report import RunReport, tensorboard
    from lcnn_core import open_log

    for note in job.notes if state is None else ():
        say(note)
    with ExitStack() as stack:
        log = stack.enter_context(open_log(files.log))
        recorder = _recorder(job, files, log, settings, state, command)
        report = RunReport(files, job.title, state["history"] if state else (), recorder.header["command"])
        listeners: list[Listener] = [recorder, _beginning(files, settings, log, state), report]
        if settings.get("tensorboard"):
            listeners.append(stack.enter_context(tensorboard(files.log.parent / "tensorboard")))
        listeners.append(stack.enter_context(progress(job.title, quiet, epochs=True)))

        def listen(event: Event) -> None:
            for listener in listeners:
                listener(event)

        try:
            with _terminable():
                result = job.train(job.dataset, job.training, listen, state)
        except KeyboardInterrupt as stop:
            say(f"{str(stop) or 'interrupted'}; {_left(recorder, state)}")
            raise typer.Exit(143 if str(stop) else 130) from None
    best = result.history[result.best_epoch - 1]
    typer.echo(
        f"{files.best}: epoch {best.epoch} of {best.epochs}, validation top-1 {best.validation.top1:.2%}, "
        f"top-5 {best.validation.top5:.2%}, counted speedup {best.counted_speedup:.2f}x"
    )


def _left(recorder: Recorder, state: Mapping[str, Any] | None) -> str:
    """What an interrupt leaves, in words."""
    if recorder.begun:
        held = f"{recorder.files.last} holds the network after epoch {recorder.epoch}"
        return f"{held}; go on with --resume {_run(recorder.files)}"
    if state is None:
        return "nothing was trained yet, and nothing written; start it again"
    return f"nothing was trained yet, and the run is as it was; go on with --resume {_run(recorder.files)}"


def _beginning(files: RunFiles, settings: Mapping[str, Any], log: RunLog, state: Mapping[str, Any] | None) -> Listener:
    """At the start: saves the configuration and, where that could be written, takes the log back to ``state``."""
    from lcnn_analyze.cli.run_report import save_config
    from lcnn_core import TrainingStarted

    def listen(event: Event) -> None:
        if isinstance(event, TrainingStarted):
            save_config(files, settings)
            if state and event.steps_done:  # a run that has done no step begins its log anew
                log.cut(state["log"])

    return listen


def _recorder(
    job: Job,
    files: RunFiles,
    log: RunLog,
    settings: Mapping[str, Any],
    state: Mapping[str, Any] | None,
    command: str,
) -> Recorder:
    """Writes the run down; a resumed one goes by the command that started it, unless its settings changed."""
    from lcnn_core import Recorder

    provenance = job.provenance(command)
    if state and not differences(state["settings"], settings):
        provenance |= {"command": state["header"]["command"]}

    def snapshot(model: nn.Module, metrics: Sequence[Mapping[str, Any]], epoch: int) -> Any:
        return job.checkpoint(model, metrics, {**provenance, "epoch": epoch})

    return Recorder(files, log, snapshot, job.dataset.name, provenance, settings, settings.get("log_every"))


def _run(files: RunFiles) -> Path:
    """What ``--resume`` takes."""
    return files.best.parent if files.best.name == "best.pt" else files.best


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM, which schedulers and torchrun send, ends a run as an interrupt does."""
    if threading.current_thread() is not threading.main_thread() or os.name == "nt":
        yield
        return

    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt("terminated")

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
