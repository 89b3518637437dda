"""The report as JSON: everything, validated by data/report.schema.json, from which every format renders again."""

from __future__ import annotations

from lcnn_analyze.report import Report


def render(report: Report) -> bytes:
    """``Report.to_json`` and a final line break."""
    return (report.to_json() + "\n").encode()
