"""The page of ``lcnn spectrum``: which method to use when, accuracy against speedup, and the command of each point.

Made of the study's plain data alone, of one study or of several side by side.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from lcnn_analyze.comparison import (
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
)
from lcnn_analyze.render.curves import MOST, Chart, Curve, Mark, alike
from lcnn_analyze.render.numbers import ABSENT, count_text, joined, ratio_text
from lcnn_analyze.render.study import Study, Table
from lcnn_analyze.render.verdict import (
    Document,
    at_target,
    dense_text,
    findings,
    points_text,
    settings_text,
    spread_text,
    targets_of,
    time_text,
)

NOTES = (
    "Counted speedup: multiplications of the dense network over those of the smaller one, on one image; what a run "
    "takes in seconds is another matter, and stands apart where it was measured.",
    "± is one standard error over seeds, 0 where nothing is trained; with a star, where there is one seed, the "
    "standard deviation over the seeds of the other methods at the same target, or at all targets where few seeds "
    "tell of it there, or, as of the dense network, the error over the test images. That of a difference is over seeds "
    "and over the test images, image by image, which all networks answer alike mostly. Two methods tie where their "
    "difference is within its standard error; ablations are compared seed by seed, over the seeds that both have.",
    "What starts from the dense network has that training behind it; what starts from fresh weights has its own epochs "
    "alone.",
    "A filled mark is on the Pareto front: no other has both more speedup and a better accuracy on the validation "
    "images, by which fronts are chosen. Marks that would cover each other stand side by side.",
)
METHOD = (
    "Every trial is of the same dense network, from whose weights it starts unless its method says otherwise, sees the "
    "training images without the validation split, and looks at the test images once, when it is finished.",
    "Counts are those of the published convention (`lcnn analyze NETWORK --baseline DENSE` prints the same speedup): "
    "D at every position of the padded input, one multiplication for each entry of P that is not zero.",
    "The command beside a trial is for the folder in which `lcnn spectrum` was run; on a machine of the same kind it "
    "gives the same weights, bit by bit, in `last.pt` of its output.",
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
        tuple(t + line for t, (d, points) in zip(lead, pairs, strict=True) for line in findings(d, points)),
        alike([chart for pair in pairs for chart in _charts(*pair)]),
        # What was found stands before how to make it again, whichever the network.
        (*(table for pair in pairs for table in _tables(*pair)), *(t for d in documents for t in _trials(d))),
        METHOD,
        tuple(fact for title, document in zip(lead, documents, strict=True) for fact in _facts(title, document)),
        documents[0] if not several else {"kind": "spectra", "studies": list(documents)},
        (
            *_methods_told(documents, lead),
            *NOTES,
            _single(documents),
            *(t + line for t, pair in zip(lead, pairs, strict=True) for line in _remarks(*pair)),
        ),
    )


def _methods_told(documents: Sequence[Document], lead: Sequence[str]) -> list[str]:
    """What each method is that was tried, once where all studies say the same of it."""
    told: dict[str, dict[str, str]] = {}
    for document, network in zip(documents, lead, strict=True):
        tried = {row["method"].partition(":")[0] for row in document["trials"]}
        for name, doc in document["methods"].items():
            if name not in tried:
                continue
            told.setdefault(name, {}).setdefault(doc, network)
    return [f"{net if len(docs) > 1 else ''}{name}: {doc}." for name, docs in told.items() for doc, net in docs.items()]


def _single(documents: Sequence[Document]) -> str:
    """What stands without ±."""
    found = ((document["dense"]["top1"], document["dense"]["count"]) for document in documents)
    parts = dict.fromkeys(
        f"{sampling_error(100 * top1, count):.2f} points of {count:,} test images" for top1, count in found
    )
    return (
        "What has no ±, validation accuracies and single trials, varies with its seed and its images too: one standard "
        f"error at the dense network's accuracy is {joined([*parts])}."
    )


def _title(document: Document) -> str:
    return f"{document['network']} on {document['dataset'].rstrip('/').rpartition('/')[2]}"


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
        level=(f"dense network, {dense_text(dense)}", 100 * dense["top1"]),
        named=tuple(targets_of(points)) if kind == "counted" and not searched else (),
    )


def _drawn(document: Document, points: Sequence[Mean]) -> list[str]:
    """The methods that a chart has looks for: of too many, those of fewest options, and of most points, stay."""
    methods = _methods(document, points)
    counts = Counter(point.method for point in points)
    stay = sorted(methods, key=lambda method: (method.count(":"), -counts[method]))[:MOST]
    return [method for method in methods if method in stay]


def _remarks(document: Document, points: Sequence[Mean]) -> list[str]:
    """What the sentences and the chart leave out."""
    main, pairs = split(points)
    drawn = _drawn(document, main)
    left = [method for method in _methods(document, main) if method not in drawn]
    lines = [f"Not drawn, for want of room, but in the table: {joined(left)}."] if left else []
    if pairs:
        lines.append(
            "The chart, fronts and what is said of all methods are of the first table; what other settings of a method "
            "change stands in the ablation."
        )
    return lines


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
    return tables


def _trials(document: Document) -> list[Table]:
    return [table for table in (_commands(document), _failed(document)) if table.rows]


def _results(document: Document, points: Sequence[Mean]) -> Table:
    rows: list[tuple[str, ...]] = []
    order = _methods(document, points)
    searched = "search" in document["settings"]
    for target in targets_of(points):
        here = at_target(points, target)
        here.sort(key=lambda point: order.index(point.base if searched else point.method))
        top = best(here)
        for point in here:
            rows.append(_result(document, point, top, searched, len(here) == 1))
            if point.method == DEFAULT and not searched and all(other.method != PLAIN for other in here):
                rows.append((PLAIN, f"{target:g}x", *["not trained", *[ABSENT] * 6]))
    headers = ("method", "target", "counted speedup", "top-1, %", "of dense", "of the best", "validation, %", "seeds")
    return Table(f"{_title(document)}: every point", (*headers, "front"), tuple(rows))


def _result(document: Document, point: Mean, top: Sequence[Mean], searched: bool, alone: bool) -> tuple[str, ...]:
    place = "alone" if alone else "best" if point is top[0] else "tie" if point in top else points_text(point, top[0])
    return (
        point.method,
        ABSENT if searched else f"{point.target:g}x",
        ratio_text(point.speedup),
        spread_text(point),
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
                ratio_text(point.measured), f"{100 * max(t['spread'] for t in own):.0f}", spread_text(point),
                "yes" if point.measured_front else "",
            ))  # fmt: skip
    headers = ("method", "target", "one image, ms", "dense, ms", "measured speedup", "spread, %", "top-1, %", "front")
    return Table(f"{_title(document)}: measured in the engine, one thread", headers, tuple(rows))


def _ablations(title: str, pairs: Sequence[tuple[Mean, Mean]]) -> Table:
    rows = []
    bases = list(dict.fromkeys(base for base, _ in pairs))
    methods = list(dict.fromkeys(base.method for base in bases))
    for base in sorted(bases, key=lambda base: (methods.index(base.method), base.target)):
        target = f"{base.target:g}x"
        rows.append((base.method, target, ratio_text(base.speedup), spread_text(base), "", "", _seeds(base)))
        for other, changed in pairs:
            if other is base:
                points, error = paired(changed, base)
                word = "a tie" if abs(points) <= error else "better" if points > 0 else "worse"
                rows.append((
                    f"with {settings_text(changed.settings - base.settings)}", target, ratio_text(changed.speedup),
                    spread_text(changed), f"{points:+.2f} ± {error:.2f}", word, _seeds(changed),
                ))  # fmt: skip
    headers = ("what is changed", "target", "counted speedup", "top-1, %", "difference", "", "seeds")
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
    network = f"{dense_text(dense)} top-1, {count_text(dense['macs'], 'MACs')}, {document['settings']['dense']}"
    if dense["command"]:
        network += f", made by `{dense['command']}`"
    facts = [("dense network", network)]
    facts += [("ran on", text) for text in ran]
    facts.append(("training", f"{time_text(took)} in all, one thread a trial"))
    return [(lead + name, text) for name, text in facts]
