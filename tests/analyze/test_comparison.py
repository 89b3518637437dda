"""Means, errors, fronts, ties and ablations of a study's trials; the sentences and tables of its page."""

from __future__ import annotations

import dataclasses
import re
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lcnn_analyze.cli.sweep_report import _plain
from lcnn_analyze.comparison import UNTRAINED, best, difference, means, packed, paired, split, tie
from lcnn_analyze.render import study as rendered
from lcnn_analyze.render.curves import LOOKS, looks_of
from lcnn_analyze.render.sweep import sweep_study
from lcnn_analyze.render.verdict import progress_text
from lcnn_core import METHODS


def row(method: str, target: float, seed: int, top1: float, **values: object) -> dict:
    row = {"trial": f"{seed}-{target:g}-{method}", "method": method, "target": target, "seed": seed, "status": "done"}
    result = {"top1": top1, "validation": top1, "speedup": target, "count": 10_000, "latency": None, "seconds": 60.0}
    return {**row, **result, "reason": "", "machine": "a machine", "command": "lcnn", "checkpoint": None, **values}


def document(rows: list[dict], **values: object) -> dict:
    bases = dict.fromkeys(r["method"].partition(":")[0] for r in rows)
    known = ["from-dense", "lookup-only", "pruning", "narrow"]
    return {
        "kind": "spectrum",
        "network": "net",
        "dataset": "idx:/data/images",
        "dense": {"top1": 0.92, "count": 10_000, "validation": 0.92, "macs": 10**7, "command": "lcnn train"},
        "settings": {"dense": "dense.pt", "data": "images"},
        "methods": {name: f"what {name} does" for name in known if name in bases},
        "seconds_left": 0.0,
        "total": len(rows),
        "trials": rows,
        **values,
    }


def many(values: dict[tuple[str, float], list[float]]) -> list[dict]:
    return [row(m, s, seed, top1) for (m, s), tops in values.items() for seed, top1 in enumerate(tops)]


def test_means_and_standard_errors_are_those_of_the_statistics_module() -> None:
    values = {("x", 3.0): [0.90, 0.92, 0.97], ("x", 10.0): [0.80], ("y", 3.0): [0.70, 0.72]}
    rows = [*many(values), row("z", 3, 0, 0.99, status="failed")]
    points = {(p.method, p.target): p for p in means(rows)}
    assert points.keys() == values.keys()
    for key, accuracies in values.items():
        assert points[key].accuracy == pytest.approx(100 * statistics.mean(accuracies))
        expected = 100 * statistics.stdev(accuracies) / len(accuracies) ** 0.5 if len(accuracies) > 1 else None
        assert points[key].error == pytest.approx(expected)
        p = statistics.mean(accuracies)
        assert points[key].sampling == pytest.approx(100 * (p * (1 - p) / 10_000) ** 0.5)
    # Of one seed: the deviation of one training at this target, from the other methods there, not their ablations; that
    # at all targets, where fewer than three seeds more than methods tell of it there.
    noisy = {
        ("x", 3.0): [0.9, 0.91, 0.92],
        ("x:lr=1", 3.0): [0.1, 0.9],
        ("y", 3.0): [0.7, 0.8],
        ("z", 3.0): [0.8],
        ("x", 9.0): [0.2, 0.8, 0.9],
        ("y", 9.0): [0.1],
    }
    points = {(p.method, p.target): p for p in means(many(noisy))}
    squares = [
        2 * statistics.variance([90, 91, 92]),
        statistics.variance([70, 80]),
        2 * statistics.variance([20, 80, 90]),
    ]
    assert points["z", 3.0].spread == pytest.approx((sum(squares[:2]) / 3) ** 0.5)
    assert points["y", 9.0].spread == pytest.approx((sum(squares) / 5) ** 0.5)
    assert [p.spread == p.sampling for p in means([row("x", 3, 0, 0.9), row("y", 3, 0, 0.8)])] == [True, True]


@given(st.lists(st.tuples(st.integers(1, 6), st.integers(0, 9), st.integers(1, 5)), min_size=1, max_size=12))
def test_the_fronts_are_what_nothing_beats_on_validation_images(triples: list[tuple[int, int, int]]) -> None:
    rows = [
        row(
            f"m{place}",
            5.0,
            0,
            0.5,
            speedup=s * (1 + place * 1e-5),
            validation=v / 10,
            latency={"dense": m, "network": 1},
        )
        for place, (s, v, m) in enumerate(triples)
    ]
    found = means(rows)
    for kind, mine in ((0, "front"), (2, "measured_front")):
        values = [(t[kind], t[1]) for t in triples]
        expected = [not any(a >= s and b >= v and (a, b) != (s, v) for a, b in values) for s, v in values]
        assert [getattr(point, mine) for point in found] == expected


def test_what_lies_within_one_standard_error_of_the_difference_is_a_tie() -> None:
    one, two, three = means(many({("a", 3.0): [0.90, 0.92], ("b", 3.0): [0.895, 0.899], ("c", 3.0): [0.85, 0.87]}))
    points, error = difference(one, two)
    images = one.sampling**2 + two.sampling**2
    assert (points, error) == (pytest.approx(1.3), pytest.approx((1.0**2 + 0.2**2 + images) ** 0.5))
    assert not tie(one, two)
    assert not tie(three, two)
    near = means(many({("a", 3.0): [0.90, 0.92], ("b", 3.0): [0.899, 0.903], ("c", 3.0): [0.85, 0.87]}))
    assert [mean.method for mean in best(near)] == ["a", "b"]


@given(st.lists(st.tuples(*[st.booleans()] * 4), min_size=2, max_size=40))
def test_networks_are_compared_on_the_same_images(answers: list[tuple[bool, bool, bool, bool]]) -> None:
    """Two seeds of one method and two of another; the differences image by image, by the statistics module."""
    columns = list(zip(*answers, strict=True))
    rows = [
        row("ab"[place // 2], 3.0, place % 2, sum(right) / len(right), count=len(right), right=packed(right))
        for place, right in enumerate(columns)
    ]
    one, two = means(rows)
    each = [100 * ((a + b) - (c + d)) / 2 for a, b, c, d in answers]
    images = statistics.pstdev(each) / len(each) ** 0.5
    spread = [statistics.stdev(mean.accuracies) / 2**0.5 for mean in (one, two)]
    points, error = difference(one, two)
    assert points == pytest.approx(statistics.mean(each))
    assert error == pytest.approx((images**2 + spread[0] ** 2 + spread[1] ** 2) ** 0.5)
    assert all("right" not in plain for plain in (_plain(one), _plain(two)))


def test_networks_of_different_images_are_not_paired() -> None:
    one, two = means([
        row("a", 3.0, 0, 0.5, count=2, right=packed([True, False])),
        row("b", 3.0, 0, 0.5, count=4, right=packed([True, False] * 2)),
    ])  # fmt: skip
    assert difference(one, two)[1] == pytest.approx((one.sampling**2 + two.sampling**2) ** 0.5)


def test_what_is_not_trained_has_no_error_over_seeds_and_lends_none() -> None:
    assert set(UNTRAINED) == {name for name, method in METHODS.items() if not method.trained}
    values = {("a", 3.0): [0.90, 0.92], ("b", 3.0): [0.91], ("post-training", 3.0): [0.8, 0.8, 0.8]}
    a, b, fixed = means(many(values))
    assert (fixed.error, fixed.over_seeds) == (0.0, 0.0)
    assert b.pooled == a.pooled == pytest.approx(2**0.5)


def test_ablations_are_compared_seed_by_seed() -> None:
    values = {("a", 3.0): [0.90, 0.92, 0.97], ("a:lr=1", 3.0): [0.89, 0.90], ("a:lr=2", 3.0): [0.93]}
    base, two, one = means(many(values))
    seeds, images = statistics.stdev([-1, -2]) / 2**0.5, (two.sampling**2 + base.sampling**2) ** 0.5
    assert paired(two, base) == (pytest.approx(-1.5), pytest.approx((seeds**2 + images**2) ** 0.5))
    # One seed in common: that of its difference is sqrt(2) times the deviation of one training, here of the method's.
    expected = (2 * statistics.variance([90, 92, 97]) + one.sampling**2 + base.sampling**2) ** 0.5
    assert paired(one, base) == (pytest.approx(3.0), pytest.approx(expected))
    fixed = means(many({("post-training", 3.0): [0.9], ("post-training:images=64", 3.0): [0.905], **values}))
    plain, few = (mean for mean in fixed if mean.base == "post-training")
    points, error = paired(few, plain)
    assert (points, error) == (pytest.approx(0.5), pytest.approx((plain.sampling**2 + few.sampling**2) ** 0.5))
    apart = dataclasses.replace(one, seeds=(7,))
    assert paired(apart, base) == difference(apart, base)


def test_ablations_are_recipes_of_a_method_that_is_there_and_on_no_front() -> None:
    rows = many({("a", 3.0): [0.90], ("a:lr=1", 3.0): [0.99], ("a:lr=1", 9.0): [0.8], ("b:lr=1", 3.0): [0.7]})
    main, pairs = split(means(rows))
    assert [(mean.method, mean.target, mean.front) for mean in main] == [
        ("a", 3, True), ("a:lr=1", 9, True), ("b:lr=1", 3, False),
    ]  # fmt: skip
    assert [(base.method, changed.method, changed.front) for base, changed in pairs] == [("a", "a:lr=1", False)]


def test_an_ablation_stands_against_what_differs_least_however_the_trials_are_ordered() -> None:
    singles = ["a", "a:lr=1", "a:lr=1:ema=0.9", "a:floor=1:ema=0.9:lr=1:epochs=2", "a:ema=0.5", "a:ema=0.5:lr=1"]
    values = {**{method: [0.9] for method in singles}, "a:floor=1": [0.9, 0.8], "a:floor=1:lr=1": [0.9, 0.8]}
    nearest = {
        "a:lr=1": "a", "a:ema=0.5": "a", "a:floor=1": "a",
        "a:lr=1:ema=0.9": "a:lr=1",
        "a:floor=1:ema=0.9:lr=1:epochs=2": "a:floor=1:lr=1",  # as near as lr and ema: the first by name
        "a:ema=0.5:lr=1": "a:ema=0.5",  # as near as lr: the first by name
        "a:floor=1:lr=1": "a:floor=1",  # as near as lr, and has two seeds in common
    }  # fmt: skip
    rows = many({(method, 3.0): accuracies for method, accuracies in values.items()})
    for order in (rows, rows[::-1]):
        _, pairs = split(means(order))
        assert {changed.method: base.method for base, changed in pairs} == nearest
    more = {("narrow:lr=1", 3.0): [0.9, 0.9], ("narrow:lr=1:floor=1:ema=0.9", 3.0): [0.9, 0.9]}
    study = sweep_study([document(many({**GRID, **more}))])
    (table,) = [table for table in study.tables if table.title.endswith("ablation")]
    assert [row[0] for row in table.rows] == [
        "from-dense", "with floor = 1", "narrow", "with lr = 1", "narrow:lr=1", "with ema = 0.9, floor = 1",
    ]  # fmt: skip


GRID = {
    ("from-dense", 3.0): [0.910, 0.912],
    ("pruning", 3.0): [0.918, 0.920],
    ("narrow", 3.0): [0.90, 0.902],
    ("from-dense", 10.0): [0.90, 0.902],
    ("pruning", 10.0): [0.9005, 0.9011],
    ("from-dense:floor=1", 10.0): [0.88, 0.882],
    ("lookup-only", 10.0): [0.89, 0.892],
}


def test_the_page_says_which_to_use_when_and_where_lcnn_loses() -> None:
    study = sweep_study([document(many(GRID))])
    assert study.findings == (
        "Which to use for accuracy on the test images: pruning at 3x; from-dense or pruning (a tie) at 10x.",
        "LCNN loses at 3x: pruning is 0.80 ± 0.42 points ahead of from-dense, the best that may have dictionaries.",
        "At 10x no method without dictionaries (pruning) beats the best that may have them.",
        "Our default, from-dense, is 0.80 ± 0.42 points behind pruning at 3x.",
        "Against the dense network, 92.00 ± 0.27* %, the most accurate is 0.10 ± 0.40 points below at 3x (pruning) "
        "and 1.90 ± 0.42 points below at 10x (from-dense).",
    )
    every, ablation, commands = study.tables
    assert [(r[0], r[1], r[3], r[5]) for r in every.rows] == [
        ("from-dense", "3x", "91.10 ± 0.10", "-0.80 ± 0.42"),
        ("lookup-only", "3x", "–", "–"),  # noqa: RUF001
        ("pruning", "3x", "91.90 ± 0.10", "best"),
        ("narrow", "3x", "90.10 ± 0.10", "-1.80 ± 0.43"),
        ("from-dense", "10x", "90.10 ± 0.10", "best"),
        ("lookup-only", "10x", "89.10 ± 0.10", "-1.00 ± 0.45"),
        ("pruning", "10x", "90.08 ± 0.03", "tie"),
    ]
    assert [r[:2] + r[4:6] for r in ablation.rows] == [
        ("from-dense", "10x", "", ""), ("with floor = 1", "10x", "-2.00 ± 0.44", "worse"),
    ]  # fmt: skip
    assert len(commands.rows) == 14
    assert [chart.title for chart in study.charts] == ["net on images: accuracy against counted speedup"]
    assert [curve.label for curve in study.charts[0].curves] == ["from-dense", "lookup-only", "pruning", "narrow"]


def test_a_baseline_counts_with_its_best_settings_and_a_tie_says_how_many_seeds_it_has() -> None:
    points = {
        ("from-dense", 9.0): [0.90, 0.902],
        ("pruning", 9.0): [0.9005],
        ("pruning:ranking=fisher", 9.0): [0.93, 0.932],
    }
    study = sweep_study([document(many(points))])
    assert study.findings[0].endswith(": from-dense (2 seeds) or pruning (1 seed) (a tie) at 9x.")
    assert study.findings[1].startswith("LCNN loses at 9x: pruning:ranking=fisher is 3.00 ± ")
    points["from-dense:forms=measured", 9.0] = [0.92, 0.922]
    study = sweep_study([document(many(points))])
    assert study.findings[1].startswith("LCNN loses at 9x: pruning:ranking=fisher is 1.00 ± ")
    assert study.findings[1].endswith(
        " points ahead of from-dense:forms=measured, the best that may have dictionaries."
    )
    assert [row[:2] for row in study.tables[1].rows][1] == ("with ranking = fisher", "9x")


def test_what_is_trained_with_the_settings_of_another_method_is_compared_with_it() -> None:
    plain = {("from-dense", 5.0): [0.911, 0.913], ("pruning", 5.0): [0.91, 0.912]}
    longer = {("pruning:epochs=12:lr=1", 5.0): [0.913, 0.915], ("narrow:epochs=12:lr=1", 5.0): [0.90, 0.902]}
    without = sweep_study([document(many({**plain, **longer}))])
    assert not [line for line in without.findings if line.startswith("With")]
    elsewhere = {("from-dense", 7.0): [0.9], ("from-dense:epochs=12:lr=1", 7.0): [0.9, 0.9]}
    ours = {("from-dense:lr=1:epochs=12", 5.0): [0.912, 0.914], ("from-dense:lr=1", 5.0): [0.914, 0.916]}
    study = sweep_study([document(many({**elsewhere, **plain, **longer, **ours}))])
    assert [line for line in study.findings if line.startswith("With")] == [
        "With epochs = 12, lr = 1 for each, from-dense is level with pruning (-0.10 ± 0.40, a tie) and 1.20 ± 0.41 "
        "points ahead of narrow at 5x."
    ]
    rows = [row[0] for row in study.tables[0].rows]
    assert "narrow:epochs=12:lr=1" in rows
    assert "from-dense:lr=1:epochs=12" not in rows  # an ablation: longer training is no other method
    assert "what other settings of a method change stands in the ablation" in study.notes[-1]
    alone = {("from-dense:epochs=12", 3.0): [0.9, 0.9], ("narrow:epochs=12", 3.0): [0.91, 0.91]}
    unpaired = sweep_study([document(many(alone))])  # neither is an ablation: the table compares them already
    assert not [line for line in unpaired.findings if line.startswith("With")]


def test_every_method_ahead_of_our_default_is_named() -> None:
    points = {("from-dense", 3.0): [0.9, 0.902], ("pruning", 3.0): [0.92, 0.922], ("narrow", 3.0): [0.93, 0.932]}
    study = sweep_study([document(many(points))])
    (line,) = [line for line in study.findings if line.startswith("Our default")]
    behind = r"3\.00 ± \S+ points behind narrow and 2\.00 ± \S+ points behind pruning at 3x"
    assert re.fullmatch(f"Our default, from-dense, is {behind}\\.", line)


def test_a_method_that_stands_alone_at_a_target_is_not_called_the_best_there() -> None:
    study = sweep_study([document(many({**GRID, ("narrow", 2.0): [0.915]}))])
    assert (
        study.findings[0]
        == "Which to use for accuracy on the test images: pruning at 3x; from-dense or pruning (a tie) at 10x."
    )
    assert [row[5] for row in study.tables[0].rows if row[1] == "2x"] == ["alone"]
    assert "2x" not in study.findings[-1]


def test_of_more_methods_than_a_chart_can_tell_apart_the_plain_ones_are_drawn_and_the_others_named() -> None:
    plain = ["from-dense", "lookup-only", "converted", "post-training", "pruning", "published:epochs=12", "low-rank"]
    plain += ["narrow"]
    recipes = ["converted:images=64", "published:epochs=12:lr=0.1"]
    points = {(method, target): [0.9, 0.902] for method in plain for target in (3.0, 10.0)}
    points |= {(method, 30.0): [0.9, 0.902] for method in recipes}
    study = sweep_study([document(many(points), methods=dict.fromkeys(METHODS, "what it does"))])
    assert {curve.label for curve in study.charts[0].curves} == {*plain}
    assert study.notes[-1] == f"Not drawn, for want of room, but in the table: {' and '.join(recipes)}."
    assert {row[0] for row in study.tables[0].rows} == {*plain, *recipes}
    assert not any("Not drawn" in note for note in sweep_study([document(many(GRID))]).notes)


def test_a_method_looks_the_same_in_every_chart_of_a_page() -> None:
    first = document(many({(method, 3.0): [0.9] for method in ("from-dense", "pruning")}))
    second = document(many({(method, 3.0): [0.9] for method in ("from-dense", "lookup-only", "pruning", "narrow")}))
    study = sweep_study([{**first, "network": "another"}, second])
    looks = [dict(zip([c.label for c in chart.curves], looks_of(chart), strict=True)) for chart in study.charts]
    assert looks[0].items() <= looks[1].items()
    assert len(set(looks[1].values())) == 4
    page = rendered.html(study).decode()
    for chart, found in zip(study.charts, looks, strict=True):
        for curve in chart.curves:
            assert f'<i class="{found[curve.label][0]}"></i>{curve.label}' in page
    many_methods = [document(many({(f"narrow:epochs={n}", 3.0): [0.9]})) for n in range(1, 10)]
    assert {looks_of(chart)[0] for chart in sweep_study(many_methods).charts} == {
        LOOKS[0]
    }  # too many for one look each


def test_counted_and_measured_share_neither_panel_nor_column() -> None:
    rows = [
        row("pruning", 3.0, seed, 0.9, latency={"network": 0.001, "dense": 0.002 + seed * 0.006, "spread": 0.1})
        for seed in (0, 1)
    ]
    study = sweep_study([document(rows)])
    counted, measured = study.charts
    assert [counted.curves[0].marks[0].x, measured.curves[0].marks[0].x] == [3.0, pytest.approx(4.0)]
    assert ("counted" in counted.x_label, "measured" in counted.x_label) == (True, False)
    assert ("counted" in measured.x_label, "in the engine" in measured.x_label) == (False, True)
    tables = {table.title.partition(": ")[2]: table for table in study.tables}
    assert not any("ms" in header for header in tables["every point"].headers)
    (times,) = tables["measured in the engine, one thread"].rows
    assert times == ("pruning", "3x", "1.000", "5.000", "4.00x", "10", "90.00 ± 0.00", "yes")
    assert not any("counted" in header for header in tables["measured in the engine, one thread"].headers)


def test_hardly_different_speedups_lie_close_together() -> None:
    rows = [row("pruning", 10.0, 0, 0.9, speedup=10.0), row("narrow", 10.0, 0, 0.9, speedup=10.4)]
    (chart,) = sweep_study([document(rows)]).charts
    assert chart.ticks == (10.0,)
    assert abs(chart.place(10.4) - chart.place(10.0)) < 0.05


def test_a_study_under_way_says_what_is_left() -> None:
    rows = [*many({("pruning", 3.0): [0.9, 0.91]}), row("pruning", 10, 0, 0, status="running")]
    under_way = document(rows, total=5, seconds_left=5400.0)
    assert progress_text(under_way) == "2 of 5 trials done, 0 failed, 3 left, about 1.5 h"
    assert sweep_study([under_way]).findings[0].startswith("Under way: 2 of 5 trials done")
    nothing = document([row("pruning", 3, 0, 0, status="waiting")], seconds_left=None)
    assert rendered.files(sweep_study([nothing]), "spectrum").keys() == {
        "spectrum.html", "spectrum.md", "spectrum.json",
    }  # fmt: skip


def test_several_studies_are_one_page_each_named() -> None:
    two = [document(many(GRID)), document(many(GRID), network="other")]
    study = sweep_study(two)
    assert [chart.title.partition(":")[0] for chart in study.charts] == ["net on images", "other on images"]
    assert study.findings[0].startswith("net: Which to use")
    assert study.findings[5].startswith("other: Which to use")
    assert [s["network"] for s in study.data["studies"]] == ["net", "other"]
    titles = [tuple(table.title.split(": ")) for table in study.tables]
    found = [(name, what) for name in ("net on images", "other on images") for what in ("every point", "ablation")]
    assert titles[:4] == found
    assert [what for _, what in titles[4:]] == 2 * ["each trial again"]
    assert [line for line in study.notes if line.startswith(("net: p", "other: p"))] == []
    two[1]["methods"] = {**two[1]["methods"], "pruning": "at another rate"}
    told = [line for line in sweep_study(two).notes if "pruning: " in line]
    assert (told[0].startswith("net: pruning: "), told[1:]) == (True, ["other: pruning: at another rate."])
    page = rendered.files(study, "spectrum")["spectrum.md"].decode()
    assert "![net on images: accuracy against counted speedup; other on images" in page


def test_a_search_draws_points_of_methods_and_no_verdict_by_target() -> None:
    values = {("pruning:lr=0.1", 3.1): [0.91], ("pruning:lr=0.2", 9.7): [0.85], ("from-dense:lr=0.3", 9.0): [0.7]}
    study = sweep_study([document(many(values), settings={"dense": "d", "search": {}})])
    assert study.findings == ("Of 3 settings that were tried, 2 are on the front: 91.00 ± 0.29* % at 3.10x to 85.00 ± "
                              "0.36* % at 9.70x.",)  # fmt: skip
    curves = study.charts[0].curves
    assert [(curve.label, len(curve.marks), curve.joined) for curve in curves] == [
        ("from-dense", 1, False), ("pruning", 2, False),
    ]  # fmt: skip
    assert [mark.hollow for curve in curves for mark in curve.marks] == [True, False, False]
