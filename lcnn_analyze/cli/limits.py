"""The gates of ``analyze`` for a user's CI: what a model may cost, and how much it has to save."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path

from lcnn_analyze import Report
from lcnn_analyze.cli.errors import CHECK_FAILED, fail
from lcnn_analyze.report import ModelReport
from lcnn_core import ConfigError

_UNITS = {"": 1, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}


@dataclass(frozen=True)
class Limits:
    """``speedup``: the least counted speedup over the baseline that was named; ``macs``: the most MACs."""

    speedup: float | None = None
    twin: bool = False
    """The baseline is the dense twin, not the named one."""
    macs: int | None = None

    @classmethod
    def parse(cls, speedup: float | None, baseline: str | None, macs: str | None) -> Limits:
        """From the command line. Raises ConfigError for what cannot be a limit."""
        if speedup is not None and not 0 < speedup < math.inf:
            raise ConfigError(f"--fail-under-speedup is {speedup}; expected a finite number above 0, such as 5")
        if baseline == "":
            raise ConfigError("--baseline is empty; expected twin, an architecture or a file")
        if speedup is not None and baseline is None:
            raise ConfigError(
                f"--fail-under-speedup {speedup:g} needs --baseline: name twin, an architecture or a file"
            )
        return cls(speedup, baseline == "twin", None if macs is None else _count(macs))

    def result(self, report: Report) -> int:
        """0 where every model keeps the limits; else 1, with a line on stderr for each that does not."""
        messages = [f"{model.name}: {text}" for model in report.models for text in self._misses(model)]
        for message in messages:
            fail("limit", message, CHECK_FAILED)
        return CHECK_FAILED if messages else 0

    def _misses(self, model: ModelReport) -> list[str]:
        macs, under = int(model.costs.totals["macs"] or 0), f"counted as {model.costs.convention}"
        misses = []
        if model.costs.uncounted and (self.macs is not None or self.speedup is not None):
            first = model.costs.uncounted[0]
            misses.append(
                f"{first.operation} in {first.name or 'the model'} has no formula ({len(model.costs.uncounted)} such "
                "operations); a limit cannot be checked on a part of the model"
            )
        status = model.costs.status["macs"]
        partial = f" (partial: {status.reason})" if status.state == "partial" else ""
        if self.macs is not None and macs > self.macs:
            misses.append(f"{macs:,} MACs {under}{partial}; the limit is {self.macs:,}")
        if self.speedup is None:
            return misses
        baseline = model.twin if self.twin else model.reference
        if baseline is None:
            return [*misses, "its report compares it with nothing but its dense twin; name a baseline that it has"]
        if baseline.remark:
            misses.append(f"{baseline.name} is no exact count: {baseline.remark}; a limit cannot be checked against it")
        elif baseline.speedup is not None and baseline.speedup < self.speedup:
            misses.append(
                f"{baseline.speedup:.3f}x counted speedup over {baseline.name} {under}{partial}; "
                f"the limit is {self.speedup:g}x"
            )
        return misses


def _count(text: str) -> int:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([kMGT]?)", text)
    if not found:
        raise ConfigError(f"--max-macs is {text!r}; expected a number of MACs such as 700000000, 700M or 0.7G")
    return int(float(found[1]) * _UNITS[found[2]])


def holds(model: ModelReport, baseline: str | None) -> bool:
    """Whether the report compares ``model`` with what ``--baseline`` names: a file is called by its stem."""
    reference = model.reference
    if baseline in (None, "twin"):
        return True
    return reference is not None and reference.name in (baseline, Path(str(baseline)).stem)
