"""The page of ``lcnn spectrum``: which method to use when, accuracy against speedup, and the command of each point.

Made of the study's plain data alone, of one study or of several side by side.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from lcnn_analyze.comparison import (
    ALTERNATIVES,
    DEFAULT,
    PLAIN,
    Mean,
    best,
    dense_mean,
    difference,
    means,
    paired,
    sampling_error,
    split,
    tie,
)
from lcnn_analyze.render.curves import MOST, Chart, Curve, Mark
from lcnn_analyze.render.numbers import ABSENT, count_text, joined, ratio_text
from lcnn_analyze.render.study import Study, Table

Document = Mapping[str, Any]
NOTES = (
    "Counted speedup: multiplications of the dense network over those of the smaller one, on one image; what a run "
    "takes in seconds is another matter, and stands apart where it was measured.",
    "± is one standard error over seeds, 0 where nothing is trained; with a star, where there is one seed, the "
    "standard deviation over the seeds of the other methods at the same target, or, as of the dense network, the error "
    "over the test images. That of a difference is over seeds and over the test images, image by image, which all "
    "networks answer alike mostly. Two methods tie where their difference is within its standard error; ablations are "
    "compared seed by seed.",
    "A filled mark is on the Pareto front: no other has both more speedup and a better accuracy on the validation "
    "images, by which fronts are chosen. Marks that would cover each other stand side by side.",
)
METHOD = (
    "Every trial starts from the same dense network, sees the training images without the validation split, and looks "
    "at the test images once, when it is finished.",
    "Counts are those of the published convention (`lcnn analyze NETWORK --baseline DENSE` prints the same speedup): "
    "D at every position of the padded input, one multiplication for each entry of P that is not zero.",
    "The command beside a trial is for the folder in which `lcnn spectrum` was run; on a machine of the same kind it "
    "gives the same weights, bit by bit.",
)


def sweep_study(documents: Sequence[Document]) -> Study:
    """The page of one study, or of several, one after the other."""
    titles = [_title(document) for document in documents]
    several = len(documents) > 1
    found = [means(document["trials"]) for document in documents]
    pairs = list(zip(documents, found, strict=True))
    names = titles if len({d["network"] for d in documents}) < len(documents) else [d["network"] for d in documents]
    lead = [f"{name}: " if several else "" for name in names]
    return Study(
        "Accuracy against speedup: " + joined(titles),
        tuple(t + line for t, (d, points) in zip(lead, pairs, strict=True) for line in _findings(d, points)),
        tuple(chart for pair in pairs for chart in _charts(*pair)),
        tuple(table for pair in pairs for table in _tables(*pair)),
        tuple(dict.fromkeys([*METHOD, *(f"{n}: {doc}." for d in documents for n, doc in d["methods"].items())])),
        tuple(fact for title, document in zip(lead, documents, strict=True) for fact in _facts(title, document)),
        documents[0] if not several else {"kind": "spectra", "studies": list(documents)},
        (*NOTES, *(t + line for t, pair in zip(lead, pairs, strict=True) for line in _undrawn(*pair))),
    )


def progress_text(document: Document) -> str:
    """How far a study is: what is done, failed and left, and how long that will take."""
    count = dict.fromkeys(("done", "failed", "running", "waiting"), 0)
    for row in document["trials"]:
        count[row["status"]] += 1
    left = document["total"] - count["done"] - count["failed"]
    text = f"{count['done']} of {document['total']} trials done, {count['failed']} failed, {left} left"
    seconds = document["seconds_left"]
    return text if not left or seconds is None else f"{text}, about {_time(seconds)}"


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _title(document: Document) -> str:
    return f"{document['network']} on {document['dataset'].rstrip('/').rpartition('/')[2]}"


# --- sentences ------------------------------------------------------------------------------------------------------


def _findings(document: Document, points: Sequence[Mean]) -> list[str]:
    """The verdict, first of all which method to use when."""
    lines = []
    if sum(row["status"] in ("done", "failed") for row in document["trials"]) < document["total"]:
        lines.append(f"Under way: {progress_text(document)}. What follows is of the trials that are done.")
    main, _ = split(points)
    if "search" in document["settings"]:
        return [*lines, *_front_finding(main)]
    if len({point.method for point in main}) > 1:
        lines += [_use(main), *_losses(main)]
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
        names = tuple(mean.method for mean in best(_at(points, target)))
        chosen.setdefault(names, []).append(target)
    parts = [
        f"{' or '.join(names)}{' (a tie)' if len(names) > 1 else ''} at {_speedups(targets)}"
        for names, targets in chosen.items()
    ]
    return f"Which to use for accuracy: {'; '.join(parts)}."


def _compared(points: Sequence[Mean]) -> list[float]:
    """Targets at which there is something to compare; all, where there are none."""
    targets = _targets(points)
    return [target for target in targets if len(_at(points, target)) > 1] or targets


def _losses(points: Sequence[Mean]) -> list[str]:
    """Where methods without dictionaries beat all that have them, and where our default loses to any."""
    lines, won = [], []
    for target in _targets(points):
        here = _at(points, target)
        others = [mean for mean in here if mean.base in ALTERNATIVES]
        ours = [mean for mean in here if mean.base not in ALTERNATIVES]
        if not others or not ours:
            continue
        first, rival = best(ours)[0], best(others)[0]
        if difference(rival, first)[0] > 0 and not tie(rival, first):
            lines.append(
                f"LCNN loses at {target:g}x: {rival.method} is {_points(rival, first)} points ahead of {first.method}, "
                "the best with dictionaries."
            )
        else:
            won.append(target)
    if won:
        names = joined(sorted({mean.method for mean in points if mean.base in ALTERNATIVES}))
        lines.append(f"At {_speedups(won)} no method without dictionaries ({names}) beats the best with them.")
    return lines + _against_default(points)


def _against_default(points: Sequence[Mean]) -> list[str]:
    behind = []
    for target in _targets(points):
        here = {mean.method: mean for mean in _at(points, target)}
        ours = here.get(DEFAULT)
        better = [m for m in here.values() if ours and difference(m, ours)[0] > 0 and not tie(m, ours)]
        if ours and better:
            top = best(better)[0]
            behind.append(f"{_points(top, ours)} points behind {top.method} at {target:g}x")
    return [f"Our default, {DEFAULT}, is {joined(behind)}."] if behind else []


def _cost(document: Document, points: Sequence[Mean]) -> list[str]:
    """What the best costs against the dense network."""
    dense = document["dense"]
    costs = []
    for target in _compared(points):
        top = best(_at(points, target))[0]
        lost, error = difference(dense_mean(dense), top)
        side = "below" if lost >= 0 else "above"
        costs.append(f"{abs(lost):.2f} ± {error:.2f} points {side} at {target:g}x ({top.method})")
    if not costs:
        return []
    return [f"Against the dense network, {_dense(dense)}, the most accurate is {joined(costs)}."]


def _dense(dense: Mapping[str, Any]) -> str:
    percent = 100 * dense["top1"]
    return f"{percent:.2f} ± {sampling_error(percent, dense['count']):.2f}* %"


def _points(one: Mean, other: Mean) -> str:
    points, error = difference(one, other)
    return f"{points:.2f} ± {error:.2f}"


def _percent(point: Mean) -> str:
    return f"{_spread(point)} %"


def _spread(point: Mean) -> str:
    return f"{point.accuracy:.2f} ± {point.spread:.2f}{'*' if point.error is None else ''}"


def _targets(points: Iterable[Mean]) -> list[float]:
    return sorted({point.target for point in points})


def _at(points: Iterable[Mean], target: float) -> list[Mean]:
    return [point for point in points if point.target == target]


def _speedups(targets: Sequence[float]) -> str:
    return joined([f"{target:g}x" for target in targets])


# --- charts ---------------------------------------------------------------------------------------------------------


def _charts(document: Document, points: Sequence[Mean]) -> list[Chart]:
    main, _ = split(points)
    if not main:
        return []
    counted = _chart(document, main, "counted", lambda point: point.speedup, lambda point: point.front)
    timed = [point for point in main if point.measured is not None]
    if not timed:
        return [counted]
    return [
        counted,
        _chart(document, timed, "measured", lambda point: point.measured or 0.0, lambda point: point.measured_front),
    ]


def _chart(
    document: Document,
    points: Sequence[Mean],
    kind: str,
    speedup: Callable[[Mean], float],
    front: Callable[[Mean], bool],
) -> Chart:
    """One panel: counted and measured speedups never share one. Curves of a grid are joined along their targets."""
    searched = "search" in document["settings"]
    curves = []
    for method in _drawn(document, points):
        own = sorted((p for p in points if method in (p.method, p.base if searched else "")), key=speedup)
        marks = tuple(
            Mark(speedup(p), p.accuracy, p.accuracy - p.spread, p.accuracy + p.spread, not front(p)) for p in own
        )
        curves.append(Curve(method, marks, joined=not searched))
    dense = document["dense"]
    return Chart(
        f"{_title(document)}: accuracy against {kind} speedup",
        "counted speedup over the dense network (log)" if kind == "counted" else "measured speedup in the engine (log)",
        "top-1 on test images, %",
        tuple(curves),
        ends=(0, 100),
        log=True,
        unit="x",
        level=(f"dense network, {_dense(dense)}", 100 * dense["top1"]),
        named=tuple(_targets(points)) if kind == "counted" and not searched else (),
    )


def _drawn(document: Document, points: Sequence[Mean]) -> list[str]:
    """The methods that a chart has looks for: of too many, those of fewest options, and of most points, stay."""
    methods = _methods(document, points)
    counts = Counter(point.method for point in points)
    stay = sorted(methods, key=lambda method: (method.count(":"), -counts[method]))[:MOST]
    return [method for method in methods if method in stay]


def _undrawn(document: Document, points: Sequence[Mean]) -> list[str]:
    main, _ = split(points)
    drawn = _drawn(document, main)
    left = [method for method in _methods(document, main) if method not in drawn]
    return [f"Not drawn, for want of room, but in the table: {joined(left)}."] if left else []


def _methods(document: Document, points: Iterable[Mean]) -> list[str]:
    """In the order of the registry, recipes behind their method; in a search the methods alone."""
    bases = [*document["methods"]]
    searched = "search" in document["settings"]
    found = dict.fromkeys(point.base if searched else point.method for point in points)
    return sorted(found, key=lambda method: (bases.index(method.partition(":")[0]), method))


# --- tables ---------------------------------------------------------------------------------------------------------


def _tables(document: Document, points: Sequence[Mean]) -> list[Table]:
    main, pairs = split(points)
    title = _title(document)
    tables = [_results(document, main)] if main else []
    if any(point.measured is not None for point in main):
        tables.append(_measured(document, main))
    if pairs:
        tables.append(_ablations(title, pairs))
    return tables + [table for table in (_commands(document), _failed(document)) if table.rows]


def _results(document: Document, points: Sequence[Mean]) -> Table:
    rows: list[tuple[str, ...]] = []
    order = _methods(document, points)
    searched = "search" in document["settings"]
    for target in _targets(points):
        here = sorted(_at(points, target), key=lambda point: order.index(point.base if searched else point.method))
        top = best(here)
        for point in here:
            rows.append(_result(document, point, top, searched, len(here) == 1))
            if point.method == DEFAULT and not searched and all(other.method != PLAIN for other in here):
                rows.append((PLAIN, f"{target:g}x", *["not trained", *[ABSENT] * 6]))
    headers = ("method", "target", "counted speedup", "top-1, %", "of dense", "of the best", "validation, %", "seeds")
    return Table(f"{_title(document)}: every point", (*headers, "front"), tuple(rows))


def _result(document: Document, point: Mean, top: Sequence[Mean], searched: bool, alone: bool) -> tuple[str, ...]:
    place = "alone" if alone else "best" if point is top[0] else "tie" if point in top else _points(point, top[0])
    return (
        point.method,
        ABSENT if searched else f"{point.target:g}x",
        ratio_text(point.speedup),
        _spread(point),
        "{:+.2f} ± {:.2f}".format(*difference(point, dense_mean(document["dense"]))),
        ABSENT if searched else place,
        f"{point.validation:.2f}",
        str(len(point.seeds)),
        "yes" if point.front else "",
    )


def _measured(document: Document, points: Sequence[Mean]) -> Table:
    rows = []
    for point in sorted(points, key=lambda point: (point.target, -(point.measured or 0))):
        own = [row["latency"] for row in document["trials"]
               if (row["method"], row["target"]) == (point.method, point.target) and row.get("latency")]  # fmt: skip
        if point.measured is not None:
            network, dense = (sum(t[name] for t in own) / len(own) for name in ("network", "dense"))
            rows.append((
                point.method, f"{point.target:g}x", f"{1000 * network:.3f}", f"{1000 * dense:.3f}",
                ratio_text(point.measured), f"{100 * max(t['spread'] for t in own):.0f}", _spread(point),
                "yes" if point.measured_front else "",
            ))  # fmt: skip
    headers = ("method", "target", "one image, ms", "dense, ms", "measured speedup", "spread, %", "top-1, %", "front")
    return Table(f"{_title(document)}: measured in the engine, one thread", headers, tuple(rows))


def _ablations(title: str, pairs: Sequence[tuple[Mean, Mean]]) -> Table:
    rows = []
    bases = list(dict.fromkeys(base for base, _ in pairs))
    methods = list(dict.fromkeys(base.method for base in bases))
    for base in sorted(bases, key=lambda base: (methods.index(base.method), base.target)):
        rows.append((base.method, f"{base.target:g}x", ratio_text(base.speedup), _spread(base), "", "", _seeds(base)))
        for other, changed in pairs:
            if other is base:
                points, error = paired(changed, base)
                word = "a tie" if abs(points) <= error else "better" if points > 0 else "worse"
                name = changed.method.removeprefix(f"{changed.base}:").replace(":", ", ").replace("=", " = ")
                rows.append((
                    f"with {name}", f"{changed.target:g}x", ratio_text(changed.speedup), _spread(changed),
                    f"{points:+.2f} ± {error:.2f}", word, _seeds(changed),
                ))  # fmt: skip
    headers = ("one ingredient changed", "target", "counted speedup", "top-1, %", "difference", "", "seeds")
    return Table(f"{title}: ablation", headers, tuple(rows))


def _seeds(point: Mean) -> str:
    return str(len(point.seeds))


def _commands(document: Document) -> Table:
    rows = [
        (
            row["trial"],
            ratio_text(row["speedup"]),
            f"{100 * row['top1']:.2f}",
            row["checkpoint"].rpartition("/")[2] if row["checkpoint"] else "not kept",
            row["command"],
        )
        for row in document["trials"]
        if row["status"] == "done"
    ]
    headers = ("trial", "counted speedup", "top-1, %", "in trials/TRIAL", "the command that makes it again")
    return Table(f"{_title(document)}: each trial again", headers, tuple(rows), commands=True)


def _failed(document: Document) -> Table:
    rows = [(row["trial"], row["reason"]) for row in document["trials"] if row["status"] == "failed"]
    return Table(f"{_title(document)}: failed", ("trial", "reason"), tuple(rows))


def _facts(lead: str, document: Document) -> list[tuple[str, str]]:
    dense, rows = document["dense"], document["trials"]
    ran = dict.fromkeys(row["machine"] for row in rows if row["status"] == "done")
    took = sum(row["seconds"] for row in rows if row["status"] == "done")
    network = f"{_dense(dense)} top-1, {count_text(dense['macs'], 'MACs')}, {document['settings']['dense']}"
    if dense["command"]:
        network += f", made by `{dense['command']}`"
    facts = [("dense network", network)]
    facts += [("ran on", text) for text in ran]
    facts.append(("training", f"{_time(took)} in all, one thread a trial"))
    return [(lead + name, text) for name, text in facts]
