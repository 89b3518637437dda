"""A study's report: sentences, charts, tables and how it was made, as HTML, Markdown, JSON and a picture."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lcnn_analyze.render import curves
from lcnn_analyze.render.curves import Chart
from lcnn_analyze.render.html import asset, environment, labels
from lcnn_analyze.render.markdown import escape, prose
from lcnn_analyze.render.numbers import safe

PICTURE = "curves.png"


@dataclass(frozen=True)
class Table:
    """Rows of text; the first column names the row. commands: the last column holds commands, to be copied."""

    title: str
    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    commands: bool = False


@dataclass(frozen=True)
class Study:
    """What a study found, in the order in which it is read."""

    title: str
    findings: tuple[str, ...]
    charts: tuple[Chart, ...]
    tables: tuple[Table, ...]
    method: tuple[str, ...]
    """How it was done, a sentence or more each."""
    facts: tuple[tuple[str, str], ...]
    """Name and value: command, versions, machine."""
    data: Mapping[str, Any]
    """Everything as plain data."""
    notes: tuple[str, ...] = ()
    """What a newcomer has to know to read it."""


def files(study: Study, name: str = "report") -> dict[str, bytes]:
    """The report's files by name; there is no picture of a study that has nothing to draw."""
    picture = PICTURE if name == "report" else f"{name}.png"
    pictures = {picture: curves.png(study.charts)} if study.charts else {}
    return {
        f"{name}.html": html(study),
        f"{name}.md": markdown(study, picture).encode(),
        f"{name}.json": (json.dumps(study.data, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode(),
        **pictures,
    }


def html(study: Study) -> bytes:
    """One self-contained page, light or dark as the reader's system is."""
    rules = [
        labels(f"t{place}", [(header, "") for header in table.headers]) for place, table in enumerate(study.tables)
    ]
    page = environment().get_template("study.html.j2")
    return page.render(
        study=study,
        charts=[
            (chart, curves.inline(chart, f"c{place}"), [style for style, _, _ in curves.looks_of(chart)])
            for place, chart in enumerate(study.charts)
        ],
        looks=[style for style, _, _ in curves.LOOKS],
        labels=rules,
        style=asset("report.css"),
    ).encode()


def markdown(study: Study, picture: str = PICTURE) -> str:
    """The same for a README or a pull request; the picture lies beside it."""
    parts = [f"# {escape(study.title)}", *map(escape, study.findings), *map(escape, study.notes)]
    if study.charts:
        parts.append(f"![{escape('; '.join(chart.title for chart in study.charts))}]({picture})")
    for table in study.tables:
        rule = ["---", *["---:"] * (len(table.headers) - 1)]
        rows = [map(escape, table.headers), rule, *(_cells(table, row) for row in table.rows)]
        parts += [f"## {escape(table.title)}", "\n".join(f"| {' | '.join(row)} |" for row in rows)]
    parts += ["## How it was done", "\n".join(f"- {prose(line)}" for line in study.method)]
    parts.append("\n".join(f"- {escape(name)}: {prose(value)}" for name, value in study.facts))
    return "\n\n".join(parts) + "\n"


def _cells(table: Table, row: tuple[str, ...]) -> list[str]:
    if not table.commands:
        return [*map(escape, row)]
    return [*map(escape, row[:-1]), f"`{safe(row[-1]).replace('|', chr(92) + '|')}`"]
