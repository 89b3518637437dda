"""What a study found, in sentences: which method to use when, where lookups lose, what the best costs.

Made of the study's plain data, as its JSON holds them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lcnn_analyze.comparison import (
    ALTERNATIVES,
    DEFAULT,
    Mean,
    best,
    dense_mean,
    difference,
    paired,
    sampling_error,
    split,
    tie,
)
from lcnn_analyze.render.numbers import joined, ratio_text

Document = Mapping[str, Any]


def progress_text(document: Document) -> str:
    """How far a study is: what is done, failed and left, and how long that will take."""
    count = dict.fromkeys(("done", "failed", "running", "waiting"), 0)
    for row in document["trials"]:
        count[row["status"]] += 1
    left = document["total"] - count["done"] - count["failed"]
    text = f"{count['done']} of {document['total']} trials done, {count['failed']} failed, {left} left"
    seconds = document["seconds_left"]
    return text if not left or seconds is None else f"{text}, about {time_text(seconds)}"


def time_text(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def findings(document: Document, points: Sequence[Mean]) -> list[str]:
    """The verdict, first of all which method to use when."""
    lines = []
    if sum(row["status"] in ("done", "failed") for row in document["trials"]) < document["total"]:
        lines.append(f"Under way: {progress_text(document)}. What follows is of the trials that are done.")
    main, _ = split(points)
    if "search" in document["settings"]:
        return [*lines, *_front_finding(main)]
    if len({point.method for point in main}) > 1:
        lines += [_use(main), *_losses(main, points), *_alike(main, points)]
    return [*lines, *_cost(document, main)]


def _front_finding(points: Sequence[Mean]) -> list[str]:
    front = sorted((point for point in points if point.front), key=lambda point: point.speedup)
    if not front:
        return []
    ends = " to ".join(f"{_percent(p)} at {ratio_text(p.speedup)}" for p in dict.fromkeys((front[0], front[-1])))
    return [f"Of {len(points)} settings that were tried, {len(front)} are on the front: {ends}."]


def _use(points: Sequence[Mean]) -> str:
    """Which method is best at which target, methods that tie together."""
    chosen: dict[tuple[str, ...], list[float]] = {}
    for target in _compared(points):
        found = best(at_target(points, target))
        alike = len({len(mean.seeds) for mean in found}) == 1
        names = tuple(mean.method if alike else f"{mean.method} ({_seeds(mean)})" for mean in found)
        chosen.setdefault(names, []).append(target)
    parts = [
        f"{' or '.join(names)}{' (a tie)' if len(names) > 1 else ''} at {_speedups(targets)}"
        for names, targets in chosen.items()
    ]
    return f"Which to use for accuracy on the test images: {'; '.join(parts)}."


def _seeds(mean: Mean) -> str:
    return f"{len(mean.seeds)} seed{'s' if len(mean.seeds) > 1 else ''}"


def _compared(points: Sequence[Mean]) -> list[float]:
    """Targets at which there is something to compare; all, where there are none."""
    targets = targets_of(points)
    return [target for target in targets if len(at_target(points, target)) > 1] or targets


def _losses(main: Sequence[Mean], points: Sequence[Mean]) -> list[str]:
    """Where methods without dictionaries beat all that have them, with any settings, and where our default loses."""
    lines, won = [], []
    for target in targets_of(main):
        others = [mean for mean in at_target(points, target) if mean.base in ALTERNATIVES]
        ours = [mean for mean in at_target(points, target) if mean.base not in ALTERNATIVES]
        if not others or not ours:
            continue
        first, rival = best(ours)[0], best(others)[0]
        if difference(rival, first)[0] > 0 and not tie(rival, first):
            lines.append(
                f"LCNN loses at {target:g}x: {rival.method} is {points_text(rival, first)} points ahead of "
                f"{first.method}, the best that may have dictionaries."
            )
        else:
            won.append(target)
    if won:
        names = joined(sorted({mean.method for mean in points if mean.target in won and mean.base in ALTERNATIVES}))
        lines.append(f"At {_speedups(won)} no method without dictionaries ({names}) beats the best that may have them.")
    return lines + _against_default(main)


def _against_default(points: Sequence[Mean]) -> list[str]:
    behind = []
    for target in targets_of(points):
        here = {mean.method: mean for mean in at_target(points, target)}
        ours = here.get(DEFAULT)
        better = [m for m in here.values() if ours and difference(m, ours)[0] > 0 and not tie(m, ours)]
        if ours and better:
            better.sort(key=lambda mean: -mean.accuracy)
            ahead = [f"{points_text(mean, ours)} points behind {mean.method}" for mean in better]
            behind.append(f"{joined(ahead)} at {target:g}x")
    return [f"Our default, {DEFAULT}, is {joined(behind)}."] if behind else []


def _alike(main: Sequence[Mean], points: Sequence[Mean]) -> list[str]:
    """Our default with the settings that other methods stand with, where it was tried: what is trained as long."""
    lines = []
    for target, settings in sorted({(mean.target, mean.settings) for mean in main if mean.settings}, key=_order):
        alike = [mean for mean in at_target(points, target) if mean.settings == settings]
        ours = next((mean for mean in alike if mean.base == DEFAULT), None)
        if ours and ours not in main:
            others = sorted((mean for mean in alike if mean is not ours), key=lambda mean: -mean.accuracy)
            parts = [_beside(ours, other) for other in others]
            lines.append(f"With {settings_text(settings)} for each, {DEFAULT} is {joined(parts)} at {target:g}x.")
    return lines


def _order(key: tuple[float, frozenset[str]]) -> tuple[float, str]:
    return key[0], settings_text(key[1])


def _beside(one: Mean, other: Mean) -> str:
    """How one stands to the other, over the seeds that both have, as ablations are compared."""
    points, error = paired(one, other)
    if abs(points) <= error:
        return f"level with {other.base} ({points:+.2f} ± {error:.2f}, a tie)"
    return f"{abs(points):.2f} ± {error:.2f} points {'ahead of' if points > 0 else 'behind'} {other.base}"


def _cost(document: Document, points: Sequence[Mean]) -> list[str]:
    """What the best costs against the dense network."""
    dense = document["dense"]
    costs = []
    for target in _compared(points):
        top = best(at_target(points, target))[0]
        lost, error = difference(dense_mean(dense), top)
        side = "below" if lost >= 0 else "above"
        costs.append(f"{abs(lost):.2f} ± {error:.2f} points {side} at {target:g}x ({top.method})")
    if not costs:
        return []
    return [f"Against the dense network, {dense_text(dense)}, the most accurate is {joined(costs)}."]


def settings_text(settings: Iterable[str]) -> str:
    return ", ".join(sorted(settings)).replace("=", " = ")


def dense_text(dense: Mapping[str, Any]) -> str:
    percent = 100 * dense["top1"]
    return f"{percent:.2f} ± {sampling_error(percent, dense['count']):.2f}* %"


def points_text(one: Mean, other: Mean) -> str:
    points, error = difference(one, other)
    return f"{points:.2f} ± {error:.2f}"


def _percent(point: Mean) -> str:
    return f"{spread_text(point)} %"


def spread_text(point: Mean) -> str:
    return f"{point.accuracy:.2f} ± {point.spread:.2f}{'*' if point.error is None else ''}"


def targets_of(points: Iterable[Mean]) -> list[float]:
    return sorted({point.target for point in points})


def at_target(points: Iterable[Mean], target: float) -> list[Mean]:
    return [point for point in points if point.target == target]


def _speedups(targets: Sequence[float]) -> str:
    return joined([f"{target:g}x" for target in targets])
