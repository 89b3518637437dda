"""``analyze MODEL [MODEL ...]``: parse, call, draw, write, exit code."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from lcnn_analyze import RENDERERS, Renderer, Report, compare
from lcnn_analyze import analyze as analyze_model
from lcnn_analyze.cli.errors import CHECK_FAILED, fail
from lcnn_analyze.cli.limits import Limits, holds
from lcnn_analyze.cli.output import check_output, print_report, write_file
from lcnn_analyze.cost.conventions import CONVENTIONS
from lcnn_analyze.render import renderer_for
from lcnn_analyze.render.words import check_text
from lcnn_core import ConfigError, DataError, UnsupportedLayerError


def analyze(
    ctx: typer.Context,
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL",
            help="Checkpoints (.pt, .safetensors, .t7), graphs (.onnx, .pt2), names of architectures (resnet18, "
            "torchvision:resnet50), or reports (.json).",
        ),
    ],
    format: Annotated[
        str | None,
        typer.Option("--format", "-f", help=f"{', '.join(RENDERERS)}. [default: by -o, else table]"),
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write to FILE.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The same as --format json.")] = False,
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw the spectrum to FILE, .png or .svg.")] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Recount the dense twin with fvcore and torch; exit 1 if they disagree.")
    ] = False,
    convention: Annotated[
        str | None,
        typer.Option(help=f"How multiplications are counted: {', '.join(CONVENTIONS)}. [default: published]"),
    ] = None,
    baseline: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE",
            help='Compare with this architecture or model, beside the dense twin; "twin" is the twin alone. '
            "[default: the dense architecture of the family]",
        ),
    ] = None,
    arch: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="What a bare state dict holds. [default: recognised by its shapes]"),
    ] = None,
    input_shape: Annotated[
        str | None, typer.Option(metavar="CxHxW", help="Input without the batch. [default: the model's own]")
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit 4 where an operation has no formula.")] = False,
    diff: Annotated[bool, typer.Option("--diff", help="Of two models, say layer by layer what changed.")] = False,
    latency: Annotated[
        bool, typer.Option("--latency", help="Time the engine against the fastest dense runtime; takes a minute.")
    ] = False,
    fail_under_speedup: Annotated[
        float | None, typer.Option(metavar="X", help="Exit 1 if the counted speedup over --baseline is below X.")
    ] = None,
    max_macs: Annotated[
        str | None, typer.Option(metavar="COUNT", help="Exit 1 if a model has more MACs: 700000000, 700M or 0.7G.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No messages on stderr.")] = False,
) -> int:
    """Count what models cost, layer by layer, against their dense twin and a named reference."""
    renderer = _renderer(format, as_json, output)
    picture = None if plot is None else renderer_for(str(plot))
    if picture is not None and picture.name not in ("png", "svg"):
        raise ConfigError(f"--plot is {str(plot)!r}; expected a file that ends in .png or .svg")
    if convention not in (None, *CONVENTIONS):
        raise ConfigError(f"--convention is {convention!r}; expected one of {', '.join(CONVENTIONS)}")
    shape = _shape(input_shape)
    limits = Limits.parse(fail_under_speedup, baseline, max_macs)
    for path in (output, plot):
        check_output(path)
    asked = [name for name, value in (("--input-shape", shape), ("--arch", arch), ("--latency", latency)) if value]
    if not all(model.endswith(".json") for model in models):
        asked = []  # they are for the others
    command = ctx.obj["command"]
    reports = [
        _read(Path(model), convention, baseline, strict, asked)
        if model.endswith(".json")
        else analyze_model(
            model,
            shape,
            convention=convention or "published",
            baseline=baseline,
            check=check,
            strict=strict,
            latency=latency,
            architecture=arch,
            name=name,
            command=command,
        )
        for model, name in zip(models, _names(models), strict=True)
    ]
    merge = len(reports) > 1 or diff
    report = replace(compare(reports, diff=diff), command=command) if merge else reports[0]
    # Everything is drawn before anything is written.
    pages = [(path, draw.render(report)) for path, draw in ((output, renderer), (plot, picture)) if path and draw]
    if output is None:
        print_report(report, renderer)
    for path, content in pages:
        write_file(path, content, quiet)
    return max(_check_result(report) if check else 0, limits.result(report))


def _renderer(format: str | None, as_json: bool, output: Path | None) -> Renderer:
    if as_json and format not in (None, "json"):
        raise ConfigError(f"--json and --format {format} contradict each other; give one of them")
    name = "json" if as_json else format
    if name is None:
        return RENDERERS["table"] if output is None else renderer_for(str(output))
    if name not in RENDERERS:
        raise ConfigError(f"--format is {name!r}; expected one of {', '.join(RENDERERS)}")
    if output is None and not RENDERERS[name].text:
        raise ConfigError(f"--format {name} is a picture; give a file to write it to: -o spectrum.{name}")
    return RENDERERS[name]


def _shape(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", text):
        raise ConfigError(f"--input-shape is {text!r}; expected sizes without the batch, such as 3x224x224")
    return tuple(int(size) for size in text.split("x"))


def _names(models: Sequence[str]) -> list[str | None]:
    """How files are called in the report: by their stem, or by their path where stems are not distinct."""
    stems = [Path(model).stem for model in models]
    return [
        None
        if not Path(model).is_file()
        else stem
        if stems.count(stem) == 1 or models.count(model) > 1
        else str(Path(model).with_suffix(""))
        for model, stem in zip(models, stems, strict=True)
    ]


def _read(path: Path, convention: str | None, baseline: str | None, strict: bool, asked: Sequence[str]) -> Report:
    """A report written before, which must be what the options ask for: nothing is counted again.

    asked: options that only a model can follow.
    """
    report = _report(path)
    if asked:
        raise ConfigError(f"{asked[0]} cannot go with {path}, a report made before; analyze its model again")
    if convention not in (None, report.convention.name):
        raise ConfigError(
            f"--convention is {convention!r}, and {path} counts as {report.convention.name}; analyze its model again"
        )
    for model in report.models:
        if not holds(model, baseline):
            raise ConfigError(
                f"--baseline is {baseline!r}, and {path} compares {model.name} with "
                f"{' and '.join(b.name for b in model.baselines)}; analyze it again"
            )
        if strict and model.costs.uncounted:
            raise UnsupportedLayerError(
                f"{path}: {model.name} is counted in part: {model.costs.status['macs'].reason}; "
                "leave out --strict to see the rest"
            )
    return report


def _report(path: Path) -> Report:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(
            f"{path} cannot be read: {error.strerror}; expected a report written by --format json"
        ) from None
    except UnicodeDecodeError:
        raise DataError(f"{path} is not text; expected a report written by --format json") from None
    try:
        return Report.from_json(text)
    except DataError as error:
        raise DataError(f"{path}: {error}; expected a report written by --format json") from None


def _check_result(report: Report) -> int:
    """0 when every second count agrees; else 1, with a line on stderr that names tool, layer and figures."""
    code = 0
    for model in report.models:
        if model.cross_check is None:
            code = fail("check", f"{model.name}: its report holds no second count; analyze it again", CHECK_FAILED)
        for tool in model.cross_check.tools if model.cross_check else ():
            if tool.state != "agrees":
                code = fail("check", f"{model.name}: {check_text(tool)}", CHECK_FAILED)
    return code
