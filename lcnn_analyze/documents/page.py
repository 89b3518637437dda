"""Headings, paragraphs and tables as markdown and as one offline page: pure, text in, text out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape


@dataclass(frozen=True)
class Heading:
    level: int
    text: str


@dataclass(frozen=True)
class Paragraph:
    text: str


@dataclass(frozen=True)
class Table:
    """``numbers``: the columns that are set flush right."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: Sequence[int] = ()


Block = Heading | Paragraph | Table

_STYLE = """
:root { color-scheme: light dark; --ink: #17202a; --quiet: #55606c; --ground: #fff; --rule: #d9dee4; --panel: #f5f7f9; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8ecf0; --quiet: #a2adb9; --ground: #12161b; --rule: #323b45; --panel: #1b2128; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 70rem; padding: 1rem 1.25rem 3rem; background: var(--ground); color: var(--ink);
  font: 16px/1.55 system-ui, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.7rem; line-height: 1.25; } h2 { font-size: 1.25rem; margin: 2.25rem 0 .5rem; }
p { max-width: 46rem; } h1 + p { font-size: 1.15rem; font-weight: 600; }
.wide { overflow-x: auto; margin: 1rem 0; border: 1px solid var(--rule); border-radius: .5rem; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; overflow-wrap: normal; }
th, td { padding: .4rem .7rem; text-align: left; vertical-align: top; border-bottom: 1px solid var(--rule); }
th { background: var(--panel); color: var(--quiet); font-weight: 600; }
td:first-child { white-space: nowrap; }
tr:last-child td { border-bottom: 0; }
.number { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
th.number { white-space: normal; }
@media print { .wide { overflow: visible; } tr { break-inside: avoid; } }
"""


def markdown(title: str, blocks: Sequence[Block]) -> str:
    """The document as GitHub's markdown."""
    return "\n\n".join([f"# {title}", *map(_markdown, blocks)]) + "\n"


def _markdown(block: Block) -> str:
    if isinstance(block, Heading):
        return f"{'#' * block.level} {block.text}"
    if isinstance(block, Paragraph):
        return block.text
    rule = ["---:" if at in block.numbers else "---" for at in range(len(block.head))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (block.head, rule, *block.rows))


def html(title: str, blocks: Sequence[Block]) -> str:
    """The document as one page that asks for nothing else, light or dark, its tables scrolling on a phone."""
    body = "\n".join([f"<h1>{escape(title)}</h1>", *map(_html, blocks)])
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n<body>\n{body}\n</body></html>\n"
    )


def _html(block: Block) -> str:
    if isinstance(block, Heading):
        return f"<h{block.level}>{escape(block.text)}</h{block.level}>"
    if isinstance(block, Paragraph):
        return f"<p>{escape(block.text)}</p>"
    kinds = [' class="number"' if at in block.numbers else "" for at in range(len(block.head))]
    head = "".join(f"<th{kind}>{escape(cell)}</th>" for kind, cell in zip(kinds, block.head, strict=True))
    rows = [
        "".join(f"<td{kind}>{escape(cell)}</td>" for kind, cell in zip(kinds, row, strict=True)) for row in block.rows
    ]
    body = "\n".join(f"<tr>{row}</tr>" for row in rows)
    # The frame that scrolls can be reached by keyboard.
    name = escape(block.head[0])
    return (
        f'<div class="wide" tabindex="0" role="region" aria-label="table by {name}"><table>\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>"
    )
