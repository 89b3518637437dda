"""The ``lcnn`` command and ``analyze``, the same analysis as a command of its own.

``COMMANDS`` lists every command with the function behind it. A command's module is imported when the command runs,
so that ``lcnn --help`` needs none of them, and neither torch nor pandas.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from lcnn_analyze.cli.errors import run

COMMANDS: dict[str, tuple[str, str]] = {
    "quickstart": (
        "lcnn_analyze.cli.quickstart:quickstart",
        "Train a dense and two lookup networks on scanned digits and analyze them, in one to two minutes.",
    ),
    "train": ("lcnn_analyze.cli.train:train", "Train a network and save checkpoints."),
    "convert": ("lcnn_analyze.cli.convert:convert", "Make a trained dense network cheaper, without training."),
    "spectrum": ("lcnn_analyze.cli.spectrum:spectrum", "Train a grid of networks and draw accuracy against speedup."),
    "evaluate": ("lcnn_analyze.cli.evaluate:evaluate", "Measure a checkpoint's accuracy on a data set."),
    "fewshot": ("lcnn_analyze.cli.fewshot:fewshot", "New classes from a few images, dictionaries frozen."),
    "few-iteration": (
        "lcnn_analyze.cli.few_iteration:few_iteration",
        "A shallow network's dictionaries in a deeper one, trained briefly.",
    ),
    "analyze": ("lcnn_analyze.cli.analyze:analyze", "Count what models cost, layer by layer."),
    "bench": ("lcnn_analyze.cli.bench:bench", "Measure the engine against dense runtimes."),
    "export": ("lcnn_analyze.cli.export:export", "Write a checkpoint as a packed plan (.lcnn) or an ONNX file."),
}
"""name -> (``module:function``, the line in ``lcnn --help``). To add a command: its file and one line here."""


class LazyGroup(TyperGroup):
    """Lists commands from ``COMMANDS`` and imports the one that is run."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        for name, (target, line) in COMMANDS.items():
            if find_spec(target.split(":")[0]):
                self.add_command(TyperCommand(name, help=line, short_help=line))

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, listed, rest = super().resolve_command(ctx, args)
        return name, listed and load_command(str(name)), rest


def load_command(name: str) -> Any:
    """Import the command ``name`` and make it ready to run."""
    module, function = COMMANDS[name][0].split(":")
    return single_command(name, getattr(import_module(module), function))


def single_command(name: str, function: Callable[..., Any], completion: bool = False) -> Any:
    """A typer command with no sub-commands."""
    alone = typer.Typer(add_completion=completion, pretty_exceptions_enable=False, rich_markup_mode="markdown")
    alone.command(name)(function)
    return typer.main.get_command(alone)


def _print_version(wanted: bool) -> None:
    if wanted:
        for distribution in ("lcnn", "torch"):
            try:
                print(distribution, version(distribution))
            except PackageNotFoundError:
                print(distribution, "not installed")
        raise typer.Exit


app = typer.Typer(cls=LazyGroup, pretty_exceptions_enable=False, rich_markup_mode="markdown")


@app.callback()
def root(
    show_version: Annotated[
        bool, typer.Option("--version", help="Print versions and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Lookup-based CNNs for PyTorch: train them, count honestly what they cost, run them."""


def _leave_garbage() -> None:
    """For a command that prints and ends: the collector would walk all that ``import torch`` makes, again and again."""
    gc.disable()


def main() -> None:
    """The ``lcnn`` console script."""
    if sys.argv[1:2] == ["analyze"]:
        _leave_garbage()
    sys.exit(run("lcnn", typer.main.get_command(app), sys.argv[1:] or ["--help"]))


def analyze_main() -> None:
    """The ``analyze`` console script."""
    _leave_garbage()
    module, function = COMMANDS["analyze"][0].split(":")
    command = single_command("analyze", getattr(import_module(module), function), completion=True)
    sys.exit(run("analyze", command, sys.argv[1:]))
