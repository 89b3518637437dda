"""``lcnn fewshot``, ``lcnn few-iteration`` and ``lcnn bench --training``: files, going on, refusals, pages."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

import lcnn_analyze.cli.bench
import lcnn_analyze.cli.few_iteration
import lcnn_analyze.cli.fewshot
from lcnn_analyze.bench.report import Machine
from lcnn_analyze.bench.step import StepReport, StepTime, step_grid
from lcnn_analyze.cli.app import single_command
from lcnn_analyze.cli.errors import run
from lcnn_analyze.latency import Latency
from lcnn_analyze.render.curves import Chart, Curve, Mark, inline, png
from lcnn_analyze.render.transfer import few_iteration_study, few_shot_study
from lcnn_core import FewIterationResult, FewShotResult, summarize_few_iteration, summarize_few_shot

SHOTS = ("--splits", "2", "--resamplings", "1", "--shots", "1,2", "--steps", "2", "--epochs", "1")
ITERATIONS = ("--iterations", "4", "--every", "2", "--seeds", "2", "--rates", "0.05", "--images", "40", "--epochs", "1")
COMMANDS = {
    "fewshot": (lcnn_analyze.cli.fewshot.fewshot, SHOTS),
    "few-iteration": (lcnn_analyze.cli.few_iteration.few_iteration, ITERATIONS),
}


def study(name: str, folder: Path, *options: str) -> int:
    function, quick = COMMANDS[name]
    arguments = [*quick, "--batches-per-epoch", "3", "-q", "-o", str(folder), *options]
    return run("lcnn", single_command(name, function), arguments)


@pytest.fixture(scope="module", params=list(COMMANDS))
def whole(request, tmp_path_factory) -> tuple[str, Path]:
    """A study that ran through."""
    folder = tmp_path_factory.mktemp("study") / "out"
    assert study(request.param, folder) == 0
    return request.param, folder


def test_a_study_leaves_its_results_and_a_report(whole):
    name, folder = whole
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["curves.png", "networks", "report.html", "report.json", "report.md", "results.jsonl"]
    lines = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    assert len(lines) == 1 + (2 * 1 * 2 * 4 * 2 if name == "fewshot" else 2 * 3)
    data = json.loads((folder / "report.json").read_text())
    assert data["kind"] == {"fewshot": "few-shot"}.get(name, name)
    assert data["settings"]["data"] == "digits"
    if name == "fewshot":
        tests = [line["test"] for line in lines if line.get("kind") == "cnn" and line["shots"] == 2]
        by_share = data["summaries"][1]["by_share"]["cnn"]
        assert sum(test for _, test in by_share.values()) == pytest.approx(sum(tests) / 2)
    text = (folder / "report.md").read_text()
    assert "](curves.png)" in text
    assert "- command: lcnn" in text
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_the_page_stands_alone_and_its_pictures_are_well_formed(whole):
    page = (whole[1] / "report.html").read_text()
    assert not re.search(r"""(?:src|href)=|https?:(?!//www\.w3\.org)|url\(""", page)
    pictures = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert pictures
    for picture in pictures:
        root = ElementTree.fromstring(picture)
        assert root.find("title").text
        assert root.find("desc").text


@pytest.mark.parametrize("keep", [1, 3])
def test_a_killed_study_goes_on_to_the_same_results(whole, keep, tmp_path):
    """Of the journal, ``keep`` lines and half of the next are left, and the first network."""
    name, folder = whole
    journal = (folder / "results.jsonl").read_bytes()
    lines = journal.splitlines(keepends=True)
    (tmp_path / "networks").mkdir()
    first = min((folder / "networks").iterdir())
    (tmp_path / "networks" / first.name).write_bytes(first.read_bytes())
    (tmp_path / "results.jsonl").write_bytes(b"".join(lines[:keep]) + lines[keep][:20])
    assert study(name, tmp_path) == 0
    assert (tmp_path / "results.jsonl").read_bytes() == journal
    found, expected = (json.loads((f / "report.json").read_text()) for f in (tmp_path, folder))
    assert found == expected


def test_other_options_are_not_mixed_into_a_study(whole, capsys):
    name, folder = whole
    before = (folder / "results.jsonl").read_bytes()
    assert study(name, folder, "--seed", "7") == 2
    assert "is of a study with other options: seed was 0, is now 7; choose another -o" in capsys.readouterr().err
    assert (folder / "results.jsonl").read_bytes() == before


@pytest.mark.parametrize("content", ["no json\n", '{"event": "EpochFinished"}\n', "[1]\n"])
def test_a_file_that_is_no_journal_is_left_alone(content, tmp_path, capsys):
    (tmp_path / "results.jsonl").write_text(content)
    assert study("fewshot", tmp_path) == 3
    assert "results.jsonl is no journal of results; move it away" in capsys.readouterr().err
    assert (tmp_path / "results.jsonl").read_text() == content


@pytest.mark.parametrize(
    ("name", "options", "code", "message"),
    [
        ("fewshot", ("--shots", "one"), 2, "--shots is 'one'; expected numbers such as 1,2,4"),
        ("fewshot", ("--novel", "9"), 2, "novel is 9 of 10 classes; expected 2 to 8"),
        ("fewshot", ("--model", "small-alexnet-lcnn"), 2, "takes images of shape (1, 28, 28), digits has (1, 8, 8)"),
        ("fewshot", ("--model", "digits-resnet"), 2, "digits-resnet has no lookup layers"),
        ("fewshot", ("--shots", "500"), 3, "images, 500 are wanted; ask for fewer"),
        ("few-iteration", ("--model", "alexnet-lcnn"), 2, "expected one of resnet-lcnn, small-resnet-lcnn"),
        ("few-iteration", ("--model", "resnet-lcnn"), 2, "takes images of shape (1, 224, 224), digits has (1, 8, 8)"),
        (
            "few-iteration",
            ("--model", "resnet-lcnn", "--stem", "small"),
            2,
            "takes images of shape (1, 28, 28), digits has (1, 8, 8)",
        ),
        ("few-iteration", ("--model", "resnet-lcnn", "--stem", "tiny"), 2, "stem is 'tiny'; expected"),
        ("few-iteration", ("--every", "3"), 2, "every is 3; expected a divisor of the 4 iterations"),
    ],
)
def test_what_does_not_fit_is_said_in_one_line(name, options, code, message, tmp_path, capsys):
    assert study(name, tmp_path, *options) == code
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


# Words and pictures


def words(gains: tuple[float, ...]) -> str:
    results = [
        FewShotResult(split, 0, 1, kind, 0.0, 0.5, 0.5 + (kind == "lcnn") * gain)
        for split, gain in enumerate(gains)
        for kind in ("lcnn", "cnn")
    ]
    settings = {"novel": 2, "resamplings": 1, "splits": len(gains), "rate": 0.1, "steps": 1, "model": "m", "data": "d"}
    settings |= {"validation_images": 1, "test_images": 1}
    return few_shot_study(settings, summarize_few_shot(results), ()).findings[0]


def test_a_gain_is_claimed_only_where_its_interval_leaves_out_zero():
    sure, unsure = words((0.1, 0.11, 0.12)), words((0.1, -0.11, 0.12))
    assert "+11.0 points (+8.5 to +13.5)" in sure
    assert "no difference" not in sure
    assert unsure.endswith("no difference that these splits can tell")
    assert words((0.1,)).endswith("; +10.0 points")


def test_few_iteration_words_have_the_last_interval_and_the_widths():
    """0.4, 0.5 and 0.6: mean 0.5, deviation 0.1, and t(0.975, 2) = 4.3027 from the tables: 0.5 -+ 0.248."""
    results = [
        FewIterationResult(seed, way, 0.1, (5, 10), (0.0, 0.0), (0.1, 0.4 + 0.1 * seed))
        for seed in range(3)
        for way in ("carried", "scratch", "cnn")
    ]
    settings = {"model": "small-resnet-lcnn", "data": "d", "depths": ("a", "b"), "batch_size": 1, "images": 1}
    study = few_iteration_study({**settings, "seeds": 3}, summarize_few_iteration(results), ())
    assert study.tables[0].headers[2:] == ("5", "10", "95 % interval of the last")
    assert {row[2:] for row in study.tables[0].rows} == {("10.0", "50.0", "25.2 to 74.8")}
    assert "The widths are a quarter of ResNet-18's (64 128 256 512)." in study.method
    assert any("Means over 3 seeds" in line for line in study.method)
    alone = few_iteration_study({**settings, "seeds": 1}, summarize_few_iteration(results), ())
    assert "One seed: no interval." in alone.method
    other = few_iteration_study({**settings, "model": "resnet-lcnn", "seeds": 3}, summarize_few_iteration(results), ())
    assert len(other.method) == len(study.method) - 1


def test_a_chart_draws_every_mark_to_scale_and_cuts_what_cannot_be():
    chart = Chart("t", "x", "y", (Curve("a", (Mark(0, 0, -50, 50), Mark(10, 100, 90, 130))),), ends=(0, 100))
    assert chart.y_bounds == (-8, 108)
    root = ElementTree.fromstring(inline(chart, "n"))
    marks = [(float(c.get("cx")[:-1]), float(c.get("cy"))) for c in root.iter("circle")]
    spreads = [line for line in root.iter("line") if line.get("class") == "spread own"]
    assert [float(line.get("y2")) for line in spreads][1] == marks[1][1]
    middle = Chart("t", "x", "y", (Curve("a", (Mark(0, 0), Mark(5, 50), Mark(10, 100))),))
    (x0, y0), (x1, y1), (x2, y2) = [
        (float(c.get("cx")[:-1]), float(c.get("cy")))
        for c in ElementTree.fromstring(inline(middle, "n")).iter("circle")
    ]
    assert (2 * x1, 2 * y1) == pytest.approx((x0 + x2, y0 + y2), abs=0.2)
    assert x0 < x1 < x2
    assert y0 > y1 > y2
    assert png((chart, middle)).startswith(b"\x89PNG")


def test_marks_stand_where_they_are_and_side_by_side_only_where_they_would_cover_each_other():
    curves = (
        Curve("a", (Mark(3, 94.0, 93.9, 94.1), Mark(10, 93.0, 92.9, 93.1))),
        Curve("b", (Mark(3, 94.05, 93.95, 94.15), Mark(10, 90.0, 89.9, 90.1))),
        Curve("c", (Mark(3, 90.0), Mark(4, 93.0))),
    )
    chart = Chart("t", "x", "y", curves, log=True, named=(3, 10))
    circles = ElementTree.fromstring(inline(chart, "n")).iter("circle")
    a3, a10, b3, b10, c3, _ = (float(circle.get("cx")[:-1]) for circle in circles)
    assert a10 == b10  # far apart: each at its own speedup
    assert c3 == pytest.approx((a3 + b3) / 2, abs=0.02)  # as is what covers nothing
    assert 0.8 < b3 - a3 < 1.5


def test_what_is_refused_leaves_a_folder_for_the_next(tmp_path, capsys):
    for options in (("--novel", "0"), ("--shots", "1,1000")):
        assert study("fewshot", tmp_path / "out", *options) in (2, 3)
        assert capsys.readouterr().err.count("\n") == 1
        assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_labels_from_files_stay_text():
    chart = Chart("<b>", "x", "y", (Curve("<script>", (Mark(1, 1), Mark(2, 2))),))
    assert "<script>" not in inline(chart, "n")
    assert "<b>" not in inline(chart, "n")


# Cost of a step


def bench(*arguments: str) -> int:
    return run("lcnn", single_command("bench", lcnn_analyze.cli.bench.bench), ["--training", *arguments])


def test_a_step_is_timed_against_the_twin_s(capsys):
    options = ("digits-resnet-lcnn", "--batch", "2,3", "--rounds", "2", "-f", "json")
    assert bench(*options) == 0
    steps = json.loads(capsys.readouterr().out)["steps"]
    assert [(step["name"], step["batch"], step["verdict"]) for step in steps] == [
        ("digits-resnet-lcnn", 2, None),
        ("digits-resnet-lcnn", 3, None),
    ]
    for step in steps:
        assert step["ratio"] == pytest.approx(step["lcnn"]["median"] / step["twin"]["median"])
        assert 0.05 < step["ratio"] < 20


def test_steps_of_networks_without_lookups_are_refused(capsys):
    assert bench("digits-resnet") == 2
    assert (
        "digits-resnet has no lookup layers; expected an architecture such as alexnet-lcnn" in capsys.readouterr().err
    )
    assert bench("digits-resnet-lcnn", "--threads", "9999") == 2
    assert "threads is 9999; expected 1 to" in capsys.readouterr().err


def test_the_verdict_is_the_ratio_of_the_medians():
    def time(median: float) -> Latency:
        return Latency(median, median, median, 3, 1)

    steps = tuple(StepTime("net", 32, 1, time(lookup), time(2.0), 0.6) for lookup in (1.2, 1.3))
    report = StepReport("c", Machine("p", 1, "s", None, {}), steps)
    assert [step.verdict for step in steps] == ["pass", "miss"]
    assert [row[3:8] for row in step_grid(report).rows] == [
        ("1,200 (1,200 to 1,200)", "2,000 (2,000 to 2,000)", "0.60", "0.60", "pass"),
        ("1,300 (1,300 to 1,300)", "2,000 (2,000 to 2,000)", "0.65", "0.60", "miss"),
    ]
    assert [step["verdict"] for step in json.loads(report.to_json())["steps"]] == ["pass", "miss"]
