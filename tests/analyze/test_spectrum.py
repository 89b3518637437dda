"""The Pareto front against brute force; what shares a panel; the published points."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from handmade import both, dense_spec, model_report, report, spec
from hypothesis import given
from hypothesis import strategies as st

from lcnn_analyze import Point, pareto_front, published_points
from lcnn_analyze.render.ticks import bounds, linear_ticks, log_ticks
from lcnn_analyze.spectrum import PUBLISHED_FACTS, panels


def point(speedup: float, accuracy: float, **values) -> Point:
    chosen = {"label": "m", "metric": "top-1", "dataset": "d", "baseline": "twin", "source": "test", **values}
    return Point(speedup=speedup, accuracy=accuracy, **chosen)


@given(st.lists(st.tuples(st.integers(1, 8), st.integers(0, 8)), max_size=20))
def test_the_front_is_what_nothing_beats(pairs):
    points = [point(float(s), float(a), label=str(place)) for place, (s, a) in enumerate(pairs)]
    beaten = {
        p.label
        for p in points
        for q in points
        if q.speedup >= p.speedup and q.accuracy >= p.accuracy and (q.speedup, q.accuracy) != (p.speedup, p.accuracy)
    }
    front = pareto_front(points)
    assert {p.label for p in front} == {p.label for p in points} - beaten
    assert [p.speedup for p in front] == sorted(p.speedup for p in front)


def test_points_meet_only_on_the_same_data_metric_and_kind():
    mixed = [
        point(1, 90),
        point(2, 80, dataset="other"),
        point(2, 99, metric="top-5"),
        point(3, 80, kind="measured"),
        point(4, 70),
    ]
    drawn = panels(mixed)
    assert [(p.dataset, p.metric, p.kind, len(p.points)) for p in drawn] == [
        ("d", "top-1", "counted", 2),
        ("other", "top-1", "counted", 1),
        ("d", "top-5", "counted", 1),
        ("d", "top-1", "measured", 1),
    ]


def test_published_points_are_no_part_of_our_front():
    (panel,) = panels([point(1, 50), point(5, 99, published=True)])
    assert [p.speedup for p in panel.front] == [1]
    assert (len(panel.own), len(panel.published)) == (1, 1)


def test_published_points_are_the_counted_rows_of_the_packaged_table():
    import lcnn_analyze

    table = Path(lcnn_analyze.__file__).parent / "data" / "published.csv"
    rows = [row for row in csv.DictReader(table.open()) if row["speedup_kind"] in ("counted", "none")]
    points = published_points()
    assert len(rows) == len(points) == 12
    shown = {(p.label, p.speedup, p.accuracy) for p in points}
    assert ("AlexNet LCNN-fast", 37.6, 44.3) in shown
    assert ("ResNet-18 LCNN-accurate", 5.0, 62.2) in shown
    assert not any("XNOR" in p.label or "Wen" in p.label for p in points)
    assert {p.kind for p in points} == {"counted"}
    assert all(p.published and p.dataset == "ImageNet" for p in points)


def test_a_report_without_imagenet_shows_no_published_point():
    drawn = both().spectrum
    assert len(drawn) == 1
    assert drawn[0].published == ()
    assert both().facts == ()


def test_published_points_join_models_of_their_data_and_bring_the_facts():
    model = model_report(spec(), "ours", 50.0, "imagenet")
    with_points = report(model, imagenet=True)
    (panel,) = with_points.spectrum
    assert panel.dataset == "imagenet"
    assert len(panel.published) == 12
    assert with_points.facts == PUBLISHED_FACTS


def test_a_model_without_accuracy_is_a_line_among_published_points():
    (panel,) = report(model_report(spec(), "ours"), imagenet=True).spectrum
    assert [label for label, _ in panel.lines] == ["ours"]
    assert panel.front == ()
    assert report(model_report(spec(), "ours")).spectrum == ()


def test_speedups_share_a_reference_or_fall_back_to_the_twins():
    named = report(model_report(spec(), "a", 90.0), model_report(dense_spec(), "b", 91.0)).spectrum[0]
    assert named.baselines == ("hand",)
    mixed = model_report(spec(), "a", 90.0)
    alone = type(mixed)(**{**vars(mixed), "baselines": mixed.baselines[:1]})
    fallen = report(alone, model_report(dense_spec(), "b", 91.0)).spectrum[0]
    assert fallen.baselines == ("dense twin",)


@given(st.lists(st.floats(0.01, 1e4), min_size=1, max_size=8))
def test_axes_hold_their_points_and_have_ticks(speedups):
    low, high = bounds(speedups)
    assert low < min(speedups)
    assert max(speedups) < high
    ticks = log_ticks(low, high)
    assert ticks
    assert all(low <= tick <= high for tick in ticks)


@pytest.mark.parametrize(
    ("low", "high", "expected"), [(0, 10, [0, 2, 4, 6, 8, 10]), (44.3, 56.6, [45, 50, 55]), (5, 5, [5])]
)
def test_linear_ticks_are_round(low, high, expected):
    assert linear_ticks(low, high) == expected
