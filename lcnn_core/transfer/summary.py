"""What the results of a transfer study say: choices on validation images, means, 95 % intervals. No torch."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from lcnn_core.errors import ConfigError

if TYPE_CHECKING:
    from lcnn_core.transfer.iterations import FewIterationResult
    from lcnn_core.transfer.shots import FewShotResult


@dataclass(frozen=True)
class Estimate:
    """A mean, and the ends of its 95 % interval: None with a single group."""

    mean: float
    low: float | None
    high: float | None


def estimate(groups: Sequence[Sequence[float]]) -> Estimate:
    """Mean and interval of a nested sample, such as resamplings within class splits.

    Values within a group share what the group is made of, so the groups are what is independent: the mean of the
    groups' means, and Student's t interval over them with one degree of freedom less than there are groups. Their
    scatter holds the scatter within groups too, averaged as often as there are values in one.
    """
    if not groups or not all(groups):
        raise ConfigError(f"{len(groups)} groups, some without values; expected at least one value in each")
    means = [fmean(group) for group in groups]
    mean = fmean(means)
    if len(means) < 2:
        return Estimate(mean, None, None)
    from scipy.stats import t  # a second to import

    half = float(t.ppf(0.975, len(means) - 1)) * stdev(means) / math.sqrt(len(means))
    return Estimate(mean, mean - half, mean + half)


@dataclass(frozen=True)
class FewShotSummary:
    """One number of images a class: test accuracies of both networks, and their paired difference."""

    shots: int
    accuracy: Mapping[str, Estimate]
    """lcnn, cnn."""
    gain: Estimate
    """lcnn - cnn, resampling by resampling: the same splits and images."""
    share: Mapping[str, float]
    """The rate of the pre-trained layers, over eta, of highest mean validation accuracy; the lower of equals."""
    by_share: Mapping[str, Mapping[float, tuple[float, float]]]
    """Mean accuracies on validation and test images at every share, for each network."""
    by_split: Mapping[str, tuple[float, ...]]
    """Mean test accuracy within each split, at the chosen share."""


def summarize_few_shot(results: Iterable[FewShotResult]) -> tuple[FewShotSummary, ...]:
    """One summary for each number of images, fewest first. The results are those of a whole study."""
    by_case: dict[int, dict[str, dict[float, dict[int, dict[int, Any]]]]] = _nested()
    for result in results:
        by_case[result.shots][result.kind][result.share][result.split][result.resampling] = result
    return tuple(_few_shot_summary(shots, by_case[shots]) for shots in sorted(by_case))


def _few_shot_summary(
    shots: int, kinds: Mapping[str, Mapping[float, Mapping[int, Mapping[int, Any]]]]
) -> FewShotSummary:
    means: dict[str, dict[float, tuple[float, float]]] = {}
    chosen: dict[str, float] = {}
    groups: dict[str, list[list[float]]] = {}
    for kind, shares in kinds.items():
        means[kind] = {}
        for share in sorted(shares):
            found = [result for split in shares[share].values() for result in split.values()]
            means[kind][share] = (fmean(r.validation for r in found), fmean(r.test for r in found))
        chosen[kind] = max(means[kind], key=lambda share: means[kind][share][0])
        splits = shares[chosen[kind]]
        groups[kind] = [[splits[s][r].test for r in sorted(splits[s])] for s in sorted(splits)]
    gains = [[a - b for a, b in zip(*pair, strict=True)] for pair in zip(groups["lcnn"], groups["cnn"], strict=True)]
    return FewShotSummary(
        shots,
        {kind: estimate(values) for kind, values in groups.items()},
        estimate(gains),
        chosen,
        means,
        {kind: tuple(fmean(split) for split in values) for kind, values in groups.items()},
    )


@dataclass(frozen=True)
class FewIterationSummary:
    """One way to train the deeper network: its accuracy on test images over the iterations, at its best rate."""

    way: str
    rate: float
    """Of highest mean accuracy on validation images after the last iteration; the lower of equals."""
    iterations: tuple[int, ...]
    accuracy: tuple[Estimate, ...]
    """Over the seeds."""
    by_rate: Mapping[float, tuple[float, float]]
    """Mean accuracies on validation and test images after the last iteration, at every rate."""


def summarize_few_iteration(results: Iterable[FewIterationResult]) -> tuple[FewIterationSummary, ...]:
    """One summary for each way, in the order of the results, which are those of a whole study."""
    by_way: dict[str, dict[float, list[FewIterationResult]]] = _nested(2, list)
    for result in results:
        by_way[result.way][result.rate].append(result)
    summaries = []
    for way, rates in by_way.items():
        last = {
            rate: (fmean(r.validation[-1] for r in found), fmean(r.test[-1] for r in found))
            for rate, found in sorted(rates.items())
        }
        rate = max(last, key=lambda rate: last[rate][0])
        points = zip(*(result.test for result in rates[rate]), strict=True)
        accuracy = tuple(estimate([[value] for value in values]) for values in points)
        summaries.append(FewIterationSummary(way, rate, rates[rate][0].iterations, accuracy, last))
    return tuple(summaries)


def _nested(depth: int = 4, leaf: Any = dict) -> Any:
    return leaf() if depth == 0 else defaultdict(lambda: _nested(depth - 1, leaf))
