"""Bench reports as text. ``FORMATS`` lists the formats; cases can be drawn one by one as they finish."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Callable

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lcnn_analyze.bench.report import BenchCase, BenchReport
from lcnn_analyze.bench.rows import Grid, case_grids, facts, heading, peaks_lines, summary, verdict_line
from lcnn_analyze.render.markdown import escape

HEADER_WIDTH = 10
NAME_WIDTH = 31


def terminal_case(case: BenchCase, width: int = 140, color: bool = False) -> str:
    """One case as tables of at most ``width`` columns."""
    peaks = [Text(line, style="dim") for line in peaks_lines(case)]
    return _printed([Text(heading(case), style="bold"), *map(_table, case_grids(case)), *peaks], width, color)


def terminal_summary(report: BenchReport, width: int = 140, color: bool = False) -> str:
    """What stands below the cases: all of them in one table, the machine, and a sentence each."""
    parts: list[Table | Text] = [_table(summary(report))] if len(report.cases) > 1 else []
    parts += [Text(line, style="dim") for line in facts(report)]
    parts += [Text(""), *(Text(verdict_line(case), style="bold") for case in report.cases)]
    return _printed(parts, width, color)


def terminal(report: BenchReport, width: int = 140, color: bool = False) -> str:
    """The whole report for a terminal."""
    cases = [terminal_case(case, width, color) for case in report.cases]
    return "\n".join([*cases, terminal_summary(report, width, color)])


def markdown(report: BenchReport) -> str:
    """The report for a README or a pull request."""
    parts = []
    if len(report.cases) > 1:
        parts += ["### Summary", _markdown_table(summary(report))]
    for case in report.cases:
        parts += [f"### {escape(heading(case))}", *map(_markdown_table, case_grids(case))]
        parts += map(escape, [*peaks_lines(case), verdict_line(case)])
    parts.append("\n".join(f"- {escape(line)}" for line in facts(report)))
    return "\n\n".join(parts) + "\n"


def grid_text(grid: Grid, lines: list[str], width: int = 140, color: bool = False, markdown: bool = False) -> str:
    """One table with lines of text around it, for a terminal or as Markdown."""
    if markdown:
        return "\n\n".join([_markdown_table(grid), "\n".join(f"- {escape(line)}" for line in lines)]) + "\n"
    return _printed([*map(Text, lines), Text(""), _table(grid)], width, color)


FORMATS: dict[str, Callable[[BenchReport], str]] = {
    "table": terminal,
    "json": lambda report: report.to_json() + "\n",
    "md": markdown,
}
"""Text formats by name."""


def _table(grid: Grid) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False, collapse_padding=True)
    for place, header in enumerate(grid.headers):
        is_text = place in grid.text_columns
        longest = max((len(row[place]) for row in grid.rows), default=0)
        table.add_column(
            textwrap.fill(header, HEADER_WIDTH, break_long_words=False),
            justify="left" if is_text else "right",
            overflow="fold",
            no_wrap=not is_text,
            # The name of a row is the last to be folded.
            min_width=min(longest, NAME_WIDTH) if place == 0 else None,
        )
    for place, row in enumerate(grid.rows):
        table.add_row(*map(Text, row), style="bold" if place in grid.bold else "")
    return table


def _printed(parts: list, width: int, color: bool) -> str:
    stream = io.StringIO()
    console = Console(
        file=stream, width=width, force_terminal=color, no_color=not color, color_system="standard" if color else None,
        markup=False, highlight=False, emoji=False, legacy_windows=False,
    )  # fmt: skip
    for part in parts:
        console.print(part)
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines()).strip("\n") + "\n"


def _markdown_table(grid: Grid) -> str:
    rule = ["---" if place in grid.text_columns else "---:" for place in range(len(grid.headers))]
    rows = [[f"**{cell}**" if place in grid.bold and cell else cell for cell in map(escape, row)]
            for place, row in enumerate(grid.rows)]  # fmt: skip
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (grid.headers, rule, *rows))
