"""What a study's trials say when they are laid side by side: means over seeds, fronts, ties and ablations. Pure.

Trials are rows of plain data, as a study's JSON holds them.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lcnn_analyze.spectrum import Point, pareto_front

Row = Mapping[str, Any]
DEFAULT, PLAIN = "from-dense", "lookup-only"
"""Our recipe, and the one beside which it always stands: a dictionary in every layer."""
ALTERNATIVES = ("pruning", "narrow", "low-rank")
"""Methods without dictionaries."""
UNTRAINED = ("post-training",)
"""Methods that make the same network for every seed."""
FREEDOM = 3
"""Seeds beyond the first of each method, together, from which a deviation at one target is taken."""


@dataclass(frozen=True)
class Mean:
    """One method at one target, over its seeds. Accuracies in percent."""

    method: str
    target: float
    speedup: float
    """Counted over the dense network, mean."""
    accuracy: float
    """Top-1 on test images, mean."""
    error: float | None
    """Its standard error over seeds; None with one seed, 0 where seeds make no difference."""
    pooled: float | None
    """The standard deviation over seeds of one training, of the methods compared at this target or, where few seeds
    tell of it there, at all; None where no method has several."""
    sampling: float
    """The standard error that it has because test images are finitely many."""
    validation: float
    """Top-1 on validation images, mean."""
    seeds: tuple[int, ...]
    accuracies: tuple[float, ...]
    """Of each seed."""
    measured: float | None = None
    """Measured speedup over the dense network, both in the engine, geometric mean; None where it was not timed."""
    front: bool = False
    """No other is at least as good in counted speedup and in validation accuracy, and better in one."""
    measured_front: bool = False
    """The same with measured speedup."""
    right: NDArray[np.float64] | None = field(default=None, repr=False, compare=False)
    """(count,): the share of the seeds that answer a test image rightly; None where a trial does not tell."""

    @property
    def spread(self) -> float:
        """The standard error over seeds; with one seed the deviation of other methods' seeds, else over test images."""
        if self.error is not None:
            return self.error
        return self.sampling if self.pooled is None else self.pooled

    @property
    def over_seeds(self) -> float:
        """The part of its error that is over seeds, as far as the study knows."""
        return self.error if self.error is not None else self.pooled or 0.0

    @property
    def base(self) -> str:
        """The method without the settings behind it."""
        return self.method.partition(":")[0]

    @property
    def settings(self) -> frozenset[str]:
        """The settings behind the method, as ``epochs=12``; none where it is plain."""
        return frozenset(self.method.split(":")[1:])


def means(rows: Iterable[Row]) -> list[Mean]:
    """What finished trials say, seeds together, by method and target; those on a Pareto front are marked.

    Fronts are chosen by validation accuracy, so that nothing is chosen on test images, and without ablations.
    """
    groups: dict[tuple[str, float], list[Row]] = {}
    for row in rows:
        if row["status"] == "done":
            groups.setdefault((row["method"], row["target"]), []).append(row)
    pooled = {target: _pooled(groups, target) for target in {target for _, target in groups}}
    found = [_mean(*key, members, pooled[key[1]]) for key, members in groups.items()]
    compared, _ = split(found)
    counted = _front(compared, lambda mean: mean.speedup)
    measured = _front([mean for mean in compared if mean.measured is not None], lambda mean: mean.measured or 0.0)
    return [replace(m, front=_key(m) in counted, measured_front=_key(m) in measured) for m in found]


def _squares(values: Sequence[float]) -> float:
    mean = sum(values) / len(values)
    return sum((value - mean) ** 2 for value in values)


def _pooled(groups: Mapping[tuple[str, float], Sequence[Row]], target: float) -> float | None:
    """The standard deviation over seeds at a target, pooled over its methods without their ablations.

    Where too few of them have several seeds there to tell (``FREEDOM``), that at all targets.
    """
    plain = {key for key in groups if ":" not in key[0]}
    own = {
        (method, at): [100 * row["top1"] for row in members]
        for (method, at), members in groups.items()
        if method.partition(":")[0] not in UNTRAINED
        and (":" not in method or (method.partition(":")[0], at) not in plain)
    }
    here = [values for (_, at), values in own.items() if at == target]
    for values, least in ((here, FREEDOM), ([*own.values()], 1)):
        freedom = sum(len(seeds) - 1 for seeds in values)
        if freedom >= least:
            return math.sqrt(sum(map(_squares, values)) / freedom)
    return None


def _mean(method: str, target: float, members: Sequence[Row], pooled: float | None = None) -> Mean:
    accuracies = [100 * row["top1"] for row in members]
    count, mean = len(members), sum(accuracies) / len(members)
    error = (_squares(accuracies) / (count - 1) / count) ** 0.5 if count > 1 else None
    timed = [row["latency"]["dense"] / row["latency"]["network"] for row in members if row.get("latency")]
    return Mean(
        method,
        target,
        speedup=sum(row["speedup"] for row in members) / count,
        accuracy=mean,
        error=0.0 if method.partition(":")[0] in UNTRAINED else error,
        pooled=pooled,
        sampling=sampling_error(mean, members[0]["count"]),
        validation=100 * sum(row["validation"] for row in members) / count,
        seeds=tuple(row["seed"] for row in members),
        accuracies=tuple(accuracies),
        measured=math.prod(timed) ** (1 / len(timed)) if timed else None,
        right=_right(members),
    )


def dense_mean(dense: Mapping[str, Any]) -> Mean:
    """The dense network of a study, a given one: without an error over seeds."""
    return _mean("dense", 1.0, [{**dense, "speedup": 1.0, "seed": 0}], pooled=None)


def packed(right: Sequence[bool]) -> str:
    """Which images a network answers rightly, one bit each, as base64."""
    return base64.b64encode(np.packbits(np.asarray(right, dtype=bool)).tobytes()).decode()


def unpacked(row: Row) -> NDArray[np.uint8]:
    """The bits that ``packed`` packed into ``row``, one a number."""
    return np.unpackbits(np.frombuffer(base64.b64decode(row["right"]), np.uint8), count=row["count"])


def _right(members: Sequence[Row]) -> NDArray[np.float64] | None:
    if not all("right" in row and row["count"] == members[0]["count"] for row in members):
        return None
    return np.mean([unpacked(row) for row in members], axis=0)


def sampling_error(percent: float, count: int) -> float:
    """Standard error in percent of an accuracy that was counted on ``count`` images: sqrt(p (1 - p) / count)."""
    return (percent * (100 - percent) / count) ** 0.5


def _key(mean: Mean) -> tuple[str, float]:
    return mean.method, mean.target


def _front(found: Sequence[Mean], speedup: Callable[[Mean], float]) -> set[tuple[str, float]]:
    # To three digits: what lands a hair beyond its target is no faster.
    points = {
        Point(str(place), float(f"{speedup(mean):.3g}"), mean.validation, "", "", "", ""): _key(mean)
        for place, mean in enumerate(found)
    }
    return {points[point] for point in pareto_front(points)}


def difference(one: Mean, other: Mean) -> tuple[float, float]:
    """Points of accuracy that ``one`` is ahead of ``other``, and the standard error of that, over seeds and images."""
    return one.accuracy - other.accuracy, math.hypot(one.over_seeds, other.over_seeds, _over_images(one, other))


def _over_images(one: Mean, other: Mean) -> float:
    """Standard error of the difference because test images are finitely many, in points.

    Both networks answer the same images, most of them alike: the spread of the differences image by image. Where it is
    not known which images were right, that of two independent sets of images, which is larger.
    """
    if one.right is None or other.right is None or one.right.shape != other.right.shape:
        return math.hypot(one.sampling, other.sampling)
    return float(100 * (one.right - other.right).std() / math.sqrt(len(one.right)))


def paired(one: Mean, other: Mean) -> tuple[float, float]:
    """The same over the seeds that both have, each seed's difference by itself. Where they have none in common,
    ``difference``."""
    others = dict(zip(other.seeds, other.accuracies, strict=True))
    points = [a - others[seed] for seed, a in zip(one.seeds, one.accuracies, strict=True) if seed in others]
    if not points:
        return difference(one, other)
    count = len(points)
    trained = one.error != 0 or other.error != 0  # what trains nothing has no seeds to differ by
    one_pair = math.sqrt(2) * (one.pooled or 0.0) if trained else 0.0
    seeds = (_squares(points) / (count - 1) / count) ** 0.5 if count > 1 else one_pair
    return sum(points) / count, math.hypot(seeds, _over_images(one, other))


def tie(one: Mean, other: Mean) -> bool:
    """Whether the two lie within one standard error of their difference."""
    points, error = difference(one, other)
    return abs(points) <= error


def split(found: Sequence[Mean]) -> tuple[list[Mean], list[tuple[Mean, Mean]]]:
    """The methods that are compared, and the ablations at one target.

    An ablation is a method with settings, where the plain one is there too. It stands against what has the most of its
    settings and no others, so that as little as possible differs: pairs (that, the ablation).
    """
    plain = {_key(mean) for mean in found if not mean.settings}
    changed = [mean for mean in found if mean.settings and (mean.base, mean.target) in plain]
    apart = {_key(mean) for mean in changed}
    main = [mean for mean in found if _key(mean) not in apart]
    return main, [(_nearest(mean, found), mean) for mean in changed]


def _nearest(changed: Mean, found: Sequence[Mean]) -> Mean:
    """Of several that are as near, the one with the most seeds in common, then the first by name."""
    fewer = [m for m in found if (m.base, m.target) == (changed.base, changed.target) and m.settings < changed.settings]
    fewer.sort(key=lambda mean: mean.method)
    return max(fewer, key=lambda mean: (len(mean.settings), len({*mean.seeds} & {*changed.seeds})))


def best(found: Sequence[Mean]) -> list[Mean]:
    """The most accurate, and those that tie with it, by falling accuracy."""
    ordered = sorted(found, key=lambda mean: -mean.accuracy)
    return [mean for mean in ordered if mean is ordered[0] or tie(ordered[0], mean)]
