"""One row per layer call, exact numbers, the unit in every header. Totals are left to the reader's tool."""

from __future__ import annotations

import csv
import io
from typing import Any

from lcnn_analyze.report import Report, layer_rows


def render(report: Report) -> bytes:
    """RFC 4180 with LF line ends. A text that a spreadsheet would take for a formula gets a leading apostrophe."""
    units = {metric.name: metric.unit for metric in report.metrics}
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    rows = layer_rows(report)
    names = list(rows[0]) if rows else ["model", "layer", *units]
    writer.writerow([f"{name} [{units[name]}]" if name in units else name for name in names])
    writer.writerows([_cell(row[name]) for name in names] for row in rows)
    return stream.getvalue().encode()


def _cell(value: Any) -> Any:
    if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r"):
        return f"'{value}"
    return value
