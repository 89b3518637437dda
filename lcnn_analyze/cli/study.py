"""What the commands that run many small trainings share: a journal to go on from, and networks trained only once."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from lcnn_analyze.cli.output import write_file
from lcnn_analyze.codec import decode, encode
from lcnn_core import ConfigError, DataError

if TYPE_CHECKING:
    from torch import nn

    from lcnn_analyze.render.study import Study
    from lcnn_core import Dataset, Family, TrainConfig

Data = Annotated[str, typer.Option(help="digits, idx:FOLDER or another data source.")]
Preset = Annotated[str | None, typer.Option(help="Dictionary sizes by name: fast or accurate.")]
Batches = Annotated[int | None, typer.Option(help="Of such an epoch. [default: one pass]")]
Output = Annotated[Path, typer.Option("--output", "-o", metavar="FOLDER", help="Results.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress on stderr.")]

JOURNAL = "results.jsonl"
Result = TypeVar("Result")


@contextmanager
def open_journal(
    folder: Path, settings: Mapping[str, Any], kind: type[Result]
) -> Iterator[tuple[list[Result], Callable[[Result], None]]]:
    """Yield the results of ``kind`` that are in the folder's journal, and a function that adds one.

    The journal is JSON lines, the settings first; each result is on its way to the disk when the function returns, and
    what a killed process left of a line is cut off. Raises ConfigError for a journal of other settings, or that
    another process is writing, DataError for a file that is no such journal.
    """
    from lcnn_core import open_log

    path = folder / JOURNAL
    with open_log(path) as log:
        data = path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        log.cut(len(whole))
        found, wanted = _lines(path, whole), json.loads(json.dumps(dict(settings)))
        if not found:
            log.write("Configured", wanted)
        else:
            _check_same(path, {k: v for k, v in found[0].items() if k != "event"}, wanted)
        done = [decode(kind, line, f"{path}: line {number}") for number, line in enumerate(found[1:], 2)]
        yield done, lambda result: log.write(kind.__name__, encode(result))


def _lines(path: Path, data: bytes) -> list[dict[str, Any]]:
    try:
        found = [json.loads(line) for line in data.splitlines()]
    except ValueError:
        found = [None]
    if not all(isinstance(line, dict) for line in found) or (found and found[0].get("event") != "Configured"):
        raise DataError(f"{path} is no journal of results; move it away, or choose another -o")
    return found


def _check_same(path: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    changed = [f"{n} was {old.get(n)}, is now {new.get(n)}" for n in {**old, **new} if old.get(n) != new.get(n)]
    if changed:
        raise ConfigError(f"{path} is of a study with other options: {'; '.join(changed)}; choose another -o")


@dataclass(frozen=True)
class Shelf:
    """Trained networks in a folder: each is trained when it is first asked for, and read from there after that."""

    folder: Path
    family: Family
    command: str
    quiet: bool

    def network(
        self, name: str, kind: Any, dataset: Dataset, config: TrainConfig, options: Mapping[str, Any] | None = None
    ) -> nn.Module:
        """The network ``name``, trained on ``dataset``; drawn and trained from ``config.seed``. In eval mode."""
        from lcnn_analyze.cli.progress import progress
        from lcnn_analyze.cli.train_job import versions
        from lcnn_core import Checkpoint, checkpoint, train

        path = self.folder / "networks" / f"{name}.pt"
        if not path.exists():
            classes = len(dataset.class_names)
            model = self.family.build(kind, classes, config.seed, **(options or {}))
            with progress(name, self.quiet) as listener:
                train(model, dataset, config, listener)
            path.parent.mkdir(exist_ok=True)
            made = Checkpoint.from_model(
                model,
                architecture=self.family.architecture,
                arguments={**self.family.arguments, **(options or {}), "num_classes": classes},
                input_shape=dataset.input_shape,
                normalization=dataset.normalization,
                class_names=dataset.class_names,
                provenance={"command": self.command, "seed": config.seed, "versions": versions()},
            )
            checkpoint.save(path, made)
        return checkpoint.load(path).build()


def make_family(
    dataset: Dataset, model: str, preset: str | None, classifier: int | None, stem: str | None = None
) -> Family:
    """The architecture with the options given, for the channels of ``dataset``. Raises ConfigError where they differ
    in image size."""
    from lcnn_core import Family, input_shape_of

    given = {name: value for name, value in (("preset", preset), ("stem", stem)) if value is not None}
    arguments = {"in_channels": dataset.input_shape[0], **given}
    family = Family(model, arguments, classifier)
    wanted = input_shape_of(model, **arguments)
    if wanted != dataset.input_shape:
        raise ConfigError(f"{model} takes images of shape {wanted}, {dataset.name} has {dataset.input_shape}; "
                          "choose another --model")  # fmt: skip
    return family


def numbers(option: str, text: str, kind: Callable[[str], Any]) -> tuple[Any, ...]:
    """``1,2,4`` as numbers. Raises ConfigError for anything else."""
    try:
        return tuple(kind(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"{option} is {text!r}; expected numbers such as 1,2,4") from None


@contextmanager
def counting(title: str, total: int, quiet: bool) -> Iterator[Callable[[int], None]]:
    """Yield a function that shows how many of ``total`` are done, on a terminal's stderr; silent elsewhere."""
    if quiet or not sys.stderr.isatty():
        yield lambda done: None
        return
    from rich.console import Console

    with Console(stderr=True).status(title) as status:
        yield lambda done: status.update(f"{title}: {done:,} of {total:,}")


def facts(command: str) -> tuple[tuple[str, str], ...]:
    """The command, and what ran it."""
    from lcnn_analyze.bench.machine import this_machine
    from lcnn_analyze.cli.train_job import versions

    machine = this_machine()
    made_with = ", ".join(f"{name} {version}" for name, version in versions().items())
    where = f"{machine.processor}, {machine.cores} cores, {machine.system}"
    return ("command", command), ("versions", made_with), ("machine", where)


def write_study(folder: Path, study: Study, quiet: bool) -> None:
    """Write the report's files into ``folder`` and print its findings."""
    from lcnn_analyze.render.study import files

    for name, content in files(study).items():
        write_file(folder / name, content, quiet)
    print(*study.findings, sep="\n")
