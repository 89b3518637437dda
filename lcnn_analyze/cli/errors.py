"""From exceptions to one line on stderr and an exit code; the only place that knows the codes.

0 ok, 1 a check that was asked for failed, 2 usage, 3 unreadable input, 4 incomplete count under --strict, 5 the work
failed, 130 interrupted. Tracebacks are for bugs: every error that a user can mend is one line.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
from collections.abc import Sequence
from typing import Any

import typer

from lcnn_core import CheckpointError, ConfigError, DataError, LcnnError, ShapeError, UnsupportedLayerError

CHECK_FAILED = 1
EXIT_CODES: dict[type[BaseException], int] = {
    ConfigError: 2,
    ShapeError: 2,
    CheckpointError: 3,
    DataError: 3,
    UnsupportedLayerError: 4,
    LcnnError: 5,
    OSError: 5,
    MemoryError: 5,
}
"""The first entry that an exception is an instance of decides; anything else is a bug and shows its traceback."""


def run(program: str, command: Any, arguments: Sequence[str]) -> int:
    """Run a typer command as ``program`` with ``arguments`` and return the exit code.

    What was typed is in ``ctx.obj["command"]``, for reports and checkpoints.
    """
    try:
        typed = shlex.join([program, *arguments])
        result = command.main(list(arguments), prog_name=program, standalone_mode=False, obj={"command": typed})
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except BrokenPipeError:
        _close_stdout()
        return 0
    except typer.Abort:
        return fail(program, "interrupted", 130)
    except typer.TyperException as error:
        return fail(program, usage_text(error, program), error.exit_code)
    except tuple(EXIT_CODES) as error:
        code = next(code for kind, code in EXIT_CODES.items() if isinstance(error, kind))
        return fail(program, _text(error), code)


def fail(program: str, message: str, code: int) -> int:
    """Print ``program: message`` as one line on stderr; returns ``code``."""
    line = " ".join(message.split())
    with contextlib.suppress(BrokenPipeError):
        print(f"{program}: {''.join(c if c.isprintable() else '?' for c in line)}", file=sys.stderr)
    return code


def usage_text(error: typer.TyperException, program: str) -> str:
    """Typer's message for a wrong option, argument or value, with where to look next."""
    context = getattr(error, "ctx", None)
    path = context.command_path if context else program
    return f"{error.format_message().strip().rstrip('.')}; see `{path} --help`"


def _text(error: BaseException) -> str:
    if isinstance(error, MemoryError):
        return "out of memory; use a smaller model, batch or input"
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error)


def _close_stdout() -> None:
    # The reader went away (`| head`): let Python's own flush at exit write to nowhere.
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
