"""Where reports go: a terminal, a pipe, or a file that is whole or untouched."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from pathlib import Path

from lcnn_analyze.render import Renderer
from lcnn_analyze.report import Report
from lcnn_core import ConfigError, atomic_write

PIPE_WIDTH = 140
"""Columns of a table that goes to a pipe, where COLUMNS does not say otherwise."""


def print_report(report: Report, renderer: Renderer) -> None:
    """Write a text format to stdout: tables as wide as the terminal, coloured unless NO_COLOR or a pipe forbid it."""
    options = {}
    if renderer.name == "table":
        color = sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        options = {"width": shutil.get_terminal_size((PIPE_WIDTH, 40)).columns, "color": color}
    text = renderer.render(report, **options).decode()
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(text.encode(encoding, "replace").decode(encoding))


def check_output(path: Path | None, source: Path | None = None) -> None:
    """Before long work: raise ConfigError where its result would replace its source, OSError where it cannot be kept.

    Nothing is left behind by this.
    """
    if path is None:
        return
    if source is not None and path.resolve() == source.resolve():
        raise ConfigError(f"output {str(path)!r} is the network that it is made from; choose another -o")
    if path.is_dir():
        raise ConfigError(f"output {str(path)!r} is a folder; expected a file to write")
    if path.exists() and not path.is_file():
        return  # a pipe or device: opened for a trial, its reader would see its end
    with contextlib.suppress(_NotYet), atomic_write(path):
        raise _NotYet


class _NotYet(Exception):
    """Ends a trial of writing before anything is written."""


def write_file(path: Path, content: bytes, quiet: bool = False) -> None:
    """Write ``content`` to ``path`` atomically, and say so on stderr. Raises OSError that names the path."""
    with atomic_write(path) as file:
        file.write(content)
    if not quiet:
        print(f"wrote {path}", file=sys.stderr)
