"""``lcnn bench MODEL``: the engine's measured speedup beside the counted one, against the fastest dense runtimes."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lcnn_analyze.cli.errors import fail
from lcnn_analyze.cli.output import PIPE_WIDTH, check_output, write_file
from lcnn_core import ConfigError

if TYPE_CHECKING:
    from lcnn_analyze.bench.bench import OpenTrial
    from lcnn_analyze.bench.report import BenchCase, BenchReport
    from lcnn_analyze.bench.rows import Grid

WORK_FAILED = 5
SUFFIXES = {".json": "json", ".md": "md", ".txt": "table"}


def bench(
    ctx: typer.Context,
    models: Annotated[
        list[str] | None,
        typer.Argument(metavar="[MODEL]...", help="Checkpoints (.pt, .safetensors) or names of architectures."),
    ] = None,
    suite: Annotated[
        str | None, typer.Option(metavar="NAMES", help="Time configurations by name: published, robust, trained.")
    ] = None,
    kernels: Annotated[
        bool, typer.Option("--kernels", help="Print the native library in use and its kernels' shares of peak.")
    ] = False,
    libraries: Annotated[
        bool, typer.Option("--libraries", help="Time every native library of this machine on the published networks.")
    ] = False,
    against: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="As --libraries, and those of another build.")
    ] = None,
    training: Annotated[
        bool,
        typer.Option("--training", help="Time a training step against the dense twin's. [default: the published four]"),
    ] = False,
    batch: Annotated[
        str | None,
        typer.Option(metavar="SIZES", help="Batch sizes, as 1,8. [default: 1; suites, libraries: 1,8; training: 32]"),
    ] = None,
    threads: Annotated[str, typer.Option(metavar="COUNTS", help="Threads of every runtime, as 1,2.")] = "1",
    rounds: Annotated[int, typer.Option(help="Interleaved rounds at most.", min=1)] = 15,
    only: Annotated[
        str | None, typer.Option(metavar="NAMES", help="Only these contenders, as engine,onnxruntime,openvino.")
    ] = None,
    format: Annotated[
        str | None, typer.Option("--format", "-f", help="table, json or md. [default: by -o, else table]")
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write to FILE.")] = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw to FILE, .png or .svg.")] = None,
    reference: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="A dense architecture to compare with. [default: the one of the family]"),
    ] = None,
    input_shape: Annotated[
        str | None, typer.Option(metavar="CxHxW", help="Input without the batch. [default: the model's own]")
    ] = None,
    arch: Annotated[str | None, typer.Option(metavar="NAME", help="Network of a bare state dict.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No messages on stderr.")] = False,
) -> int:
    """Time a model in the engine, dense runtimes and PyTorch, in turns; no speedup where outputs disagree."""
    form = _format(format, output)
    picture = _picture(plot)
    check_output(output)
    check_output(plot)
    libraries = libraries or against is not None
    modes = {"--kernels": kernels, "--training": training, "--libraries": libraries}
    _check_mode(modes, {"MODEL": models and not training, "--suite": suite, "--only": only, "--plot": plot})
    if kernels:
        return _kernels(form, output, quiet)
    default = "32" if training else "1,8" if suite or libraries else "1"
    sizes, counts = _numbers("--batch", batch or default), _numbers("--threads", threads)
    if training:
        return _training(models or [], sizes, counts, rounds, ctx.obj["command"], form, output, quiet)
    if libraries:
        return _libraries(sizes, counts, rounds, against, ctx.obj["command"], form, output, quiet)
    from lcnn_analyze.bench.bench import bench as run_bench
    from lcnn_analyze.bench.contenders import CONTENDERS

    trials = _trials(suite, models or [], reference, parse_shape(input_shape), arch)
    streams = form == "table" and output is None
    with _progress(quiet) as say:
        report = run_bench(
            trials,
            sizes,
            counts,
            rounds,
            tuple(CONTENDERS) if only is None else tuple(only.split(",")),
            ctx.obj["command"],
            partial(_show_case, streams, quiet),
            say,
        )
    _write(report, form, output, streams, quiet)
    if plot is not None and picture is not None:
        _draw(report, plot, picture, quiet)
    return fail("bench", "; ".join(report.disagreements), WORK_FAILED) if report.disagreements else 0


def _check_mode(modes: dict[str, bool], given: dict[str, object]) -> None:
    chosen = [name for name, asked in modes.items() if asked]
    unused = [name for name, value in given.items() if value]
    if len(chosen) > 1:
        raise ConfigError(f"{chosen[0]} and {chosen[1]} are two reports; ask for one at a time")
    if chosen and unused:
        raise ConfigError(f"{unused[0]} does not go with {chosen[0]}; leave it out")


def _show_case(streams: bool, quiet: bool, case: BenchCase) -> None:
    from lcnn_analyze.bench.render import terminal_case
    from lcnn_analyze.bench.rows import verdict_line

    if streams:
        print(terminal_case(case, **_look()), flush=True)
    elif not quiet:
        print(verdict_line(case), file=sys.stderr, flush=True)


def _write(report: BenchReport, form: str, output: Path | None, streams: bool, quiet: bool) -> None:
    from lcnn_analyze.bench.render import FORMATS, terminal_summary

    if streams:
        sys.stdout.write(terminal_summary(report, **_look()))
    elif output is None:
        sys.stdout.write(FORMATS[form](report))
    else:
        write_file(output, FORMATS[form](report).encode(), quiet)


def _draw(report: BenchReport, plot: Path, picture: str, quiet: bool) -> None:
    from lcnn_analyze.bench.chart import draw

    write_file(plot, draw(report, picture), quiet)


def _kernels(form: str, output: Path | None, quiet: bool) -> int:
    from lcnn_analyze.bench.kernels import kernel_grid, kernel_lines, kernel_report
    from lcnn_analyze.codec import encode

    report = kernel_report()
    text = json.dumps(encode(report), indent=2, allow_nan=False) + "\n"
    return _write_grid(text, kernel_grid(report), kernel_lines(report), form, output, quiet)


def _training(
    names: list[str],
    batches: list[int],
    threads: list[int],
    rounds: int,
    command: str,
    form: str,
    output: Path | None,
    quiet: bool,
) -> int:
    from lcnn_analyze.bench.step import PUBLISHED, StepCase, step_grid, step_lines, step_report

    cases = [StepCase(name, name) for name in names] or PUBLISHED
    with _progress(quiet) as say:
        report = step_report(cases, batches, threads, rounds, command, say)
    return _write_grid(report.to_json(), step_grid(report), step_lines(report), form, output, quiet)


def _libraries(
    batches: list[int],
    threads: list[int],
    rounds: int,
    against: Path | None,
    command: str,
    form: str,
    output: Path | None,
    quiet: bool,
) -> int:
    from lcnn_analyze.bench.libraries import library_grid, library_lines, library_report

    with _progress(quiet) as say:
        report = library_report(batches, threads, rounds, against, command, say)
    return _write_grid(report.to_json(), library_grid(report), library_lines(report), form, output, quiet)


def _write_grid(text: str, grid: Grid, lines: list[str], form: str, output: Path | None, quiet: bool) -> int:
    """``text`` is the JSON form."""
    from lcnn_analyze.bench.render import grid_text

    if form != "json":
        text = grid_text(grid, lines, markdown=form == "md", **_look())
    if output is None:
        sys.stdout.write(text)
    else:
        write_file(output, text.encode(), quiet)
    return 0


def _trials(
    suite: str | None, models: list[str], reference: str | None, shape: tuple[int, ...] | None, arch: str | None
) -> list[OpenTrial]:
    from lcnn_analyze.bench.trial import open_file

    opened = (partial(open_file, model, reference, shape, architecture=arch) for model in models)
    trials: list[OpenTrial] = [*_suites(suite), *opened]
    if not trials:
        raise ConfigError("nothing to time; give a checkpoint, --suite published, or --kernels")
    return trials


def _suites(names: str | None) -> list[OpenTrial]:
    from lcnn_analyze.bench.suites import SUITES

    chosen = [] if names is None else names.split(",")
    for name in chosen:
        if name not in SUITES:
            raise ConfigError(f"--suite is {name!r}; expected {', '.join(SUITES)}, or several of them")
    return [configuration.open for name in chosen for configuration in SUITES[name]]


def _format(format: str | None, output: Path | None) -> str:
    known = ("table", "json", "md")
    if format is None:
        suffix = ".txt" if output is None else output.suffix.lower()
        if suffix not in SUFFIXES:
            raise ConfigError(f"output file {str(output)!r}; expected {', '.join(SUFFIXES)}, or give --format")
        return SUFFIXES[suffix]
    if format not in known:
        raise ConfigError(f"--format is {format!r}; expected one of {', '.join(known)}")
    return format


def _picture(plot: Path | None) -> str | None:
    if plot is not None and plot.suffix.lower() not in (".png", ".svg"):
        raise ConfigError(f"--plot is {str(plot)!r}; expected a file that ends in .png or .svg")
    return None if plot is None else plot.suffix.lower()[1:]


def parse_shape(text: str | None) -> tuple[int, ...] | None:
    """3x224x224 as (3, 224, 224). Raises ConfigError for anything else."""
    return None if text is None else tuple(_numbers("--input-shape", text, "x", "sizes such as 3x224x224"))


def _numbers(option: str, text: str, separator: str = ",", expected: str = "whole numbers such as 1,8") -> list[int]:
    if not re.fullmatch(rf"[1-9]\d*({separator}[1-9]\d*)*", text):
        raise ConfigError(f"{option} is {text!r}; expected {expected}")
    return [int(number) for number in text.split(separator)]


def _look() -> dict:
    """Tables as wide as the terminal, coloured unless NO_COLOR or a pipe forbid it."""
    color = sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return {"width": shutil.get_terminal_size((PIPE_WIDTH, 40)).columns, "color": color}


@contextmanager
def _progress(quiet: bool) -> Iterator[Callable[[str], None]]:
    """What is being done, as one moving line on a terminal's stderr; nothing elsewhere."""
    if quiet or not sys.stderr.isatty():
        yield lambda line: None
        return
    from rich.console import Console

    with Console(stderr=True).status("") as status:
        yield lambda line: status.update(line.replace("[", "\\["))
