"""Every renderer, walked through the registry: from the JSON alone, the same bytes, all metrics, no markup let in."""

from __future__ import annotations

import csv
import html.parser
import io
import json
import os
import re
import struct
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from html import escape
from pathlib import Path

import pytest
from handmade import HOSTILE, both, checked, everything, hostile, many_layers, model_report, report, spec

from lcnn_analyze import METRICS, RENDERERS, Report
from lcnn_analyze.render import numbers, renderer_for, words
from lcnn_core import ConfigError

GOLDEN = Path(__file__).parent / "golden"


def text(name: str, made: Report, **options) -> str:
    return RENDERERS[name].render(made, **options).decode()


@pytest.mark.parametrize("name", RENDERERS)
@pytest.mark.parametrize("make", [everything, both, hostile])
def test_every_format_comes_from_the_json_alone_byte_for_byte(name, make):
    made = make()
    content = RENDERERS[name].render(made)
    assert content
    assert RENDERERS[name].render(Report.from_json(made.to_json())) == content
    assert RENDERERS[name].text == (name != "png")
    if RENDERERS[name].text:
        assert content.decode().endswith("\n")


def test_suffixes_are_distinct_and_pick_the_format():
    suffixes = [suffix for renderer in RENDERERS.values() for suffix in renderer.suffixes]
    assert len(suffixes) == len(set(suffixes))
    for renderer in RENDERERS.values():
        for suffix in renderer.suffixes:
            assert renderer_for(f"some/Report{suffix.upper()}") is renderer
    with pytest.raises(ConfigError, match=r"output file 'x\.pdf' ends in '\.pdf'; expected one of \.txt, \.json"):
        renderer_for("x.pdf")


@pytest.mark.parametrize(
    ("file", "options"),
    [
        ("everything-80.txt", {"width": 80}),
        ("everything-140.txt", {"width": 140}),
        ("everything.md", {}),
        ("everything.csv", {}),
        ("everything.json", {}),
        ("everything.html", {}),
    ],
)
def test_golden_bytes(file, options):
    """``UPDATE_GOLDEN=1 pytest tests/analyze/test_render.py`` writes them anew: look at the difference."""
    content = renderer_for(file).render(everything(), **options)
    if os.environ.get("UPDATE_GOLDEN"):
        (GOLDEN / file).write_bytes(content)
    assert content.decode() == (GOLDEN / file).read_text(encoding="utf-8")


# Every metric, with its unit, everywhere


@pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)
def test_every_metric_reaches_every_table(metric):
    made = report(model_report(spec(), "m", 90.0))
    assert metric.name in made.to_json()
    assert f"{metric.name} [{metric.unit}]" in text("csv", made).splitlines()[0]
    page = text("html", made)
    assert f">{escape(metric.title)}<small>" in page
    assert metric.doc.split(";")[0] in html_text(page)
    if metric.rank <= 2:
        assert metric.title.split()[0] in text("table", made, width=200)
        assert f"| {metric.title}, " in text("md", made).replace("\\", "")


def test_no_header_lacks_its_unit_and_no_flops_are_bare():
    made = everything()
    for name in ("table", "md", "html"):
        shown = html_text(text(name, made)) if name == "html" else text(name, made)
        assert "MACs" in shown
        assert "2 FLOPs" in shown
        assert not re.search(r"(?<![\d,] )(?<!\d )\bFLOPs", shown.replace("= 2 FLOPs", ""))


def test_counted_and_measured_never_share_a_panel_or_a_table():
    made = everything()
    assert {panel.kind for panel in made.spectrum} == {"counted", "measured"}
    assert all(point.kind == panel.kind for panel in made.spectrum for point in panel.points)
    heads = re.findall(r"(?s)<thead>.*?</thead>", text("html", made))
    assert heads
    assert not any("counted" in head and "measured" in head for head in heads)


# Markup


class Tags(html.parser.HTMLParser):
    """Tag names, attribute names and text of a page, as a browser would see them."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.words: list[str] = []
        self.inside: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        self.inside.append(tag)

    def handle_endtag(self, tag):
        while self.inside and self.inside.pop() != tag:
            pass

    def handle_data(self, data):
        if not self.inside or self.inside[-1] not in ("script", "style"):
            self.words.append(data)


def parsed(page: str) -> Tags:
    tags = Tags()
    tags.feed(page)
    return tags


def html_text(page: str) -> str:
    return " ".join("".join(parsed(page).words).split())


def test_names_cannot_inject_markup_into_html():
    page = text("html", hostile())
    tags = parsed(page)
    assert "img" not in tags.tags
    assert not [name for name, _ in tags.attributes if name.startswith("on")]
    assert tags.tags.count("script") == page.count("</script>") == 2
    assert "<img" not in page
    assert "alert(1)" in html_text(page)  # shown, as text


def test_the_embedded_json_is_the_report():
    for made in (hostile(), everything()):
        page = text("html", made)
        data = page.split('<script type="application/json" id="report">')[1].split("</script>")[0]
        assert Report.from_json(data) == made


def test_names_are_not_markup_in_the_terminal_and_send_no_control_characters():
    shown = text("table", hostile(), width=200, color=True)
    plain = re.sub(r"\x1b\[[\d;]*m", "", shown)
    assert "\x1b" not in plain
    assert "[bold red]\\x1b[31m=1+1" in plain.replace("\n", "")


def test_names_are_not_markup_in_markdown():
    shown = text("md", hostile())
    assert "\x1b" not in shown
    assert not re.search(r"(?<!\\)<", shown.replace("<0.", ""))
    rows = [line for line in shown.splitlines() if line.startswith("| ")]
    tables = {}
    for row in rows:
        tables.setdefault(len(re.findall(r"(?<!\\)\|", row)), []).append(row)
    assert all(len(group) >= 3 for group in tables.values()), "a name broke a row"


def test_names_are_not_formulas_in_csv():
    made = report(model_report(spec(), "=HYPERLINK(1)"))
    rows = list(csv.DictReader(io.StringIO(text("csv", made))))
    assert {row["model"] for row in rows} == {"'=HYPERLINK(1)"}
    hostile_rows = list(csv.DictReader(io.StringIO(text("csv", hostile()))))
    assert {row["layer"] for row in hostile_rows} == {HOSTILE}


def test_csv_is_exact():
    made = everything()
    rows = list(csv.DictReader(io.StringIO(text("csv", made))))
    expected = [layer.values["macs"] for model in made.models for layer in model.costs.layers]
    assert [int(row["macs [MACs]"]) for row in rows] == expected


# The page


def test_the_page_needs_nothing_from_outside():
    page = text("html", everything())
    attributes = parsed(page).attributes
    assert not [value for name, value in attributes if name in ("src", "href", "action", "data")]
    assert not re.findall(r"url\(|@import|fetch\(|XMLHttp|https?://", page)


def test_pictures_have_titles_and_descriptions():
    page = text("html", everything())
    pictures = re.findall(r'<svg role="img" aria-labelledby="(\S+) (\S+)".*?</svg>\n', page, re.S)
    assert len(pictures) == 1 + 1 + len(everything().models)
    for title, description in pictures:
        assert re.search(rf'<title id="{title}">[^<]+</title><desc id="{description}">[^<]+</desc>', page)
    assert len(re.findall(r' id="([^"]+)"', page)) == len(set(re.findall(r' id="([^"]+)"', page)))


def test_inline_pictures_are_well_formed():
    for picture in re.findall(r"<svg role=.*?</svg>(?=\n)", text("html", hostile()), re.S):
        ElementTree.fromstring(picture)


def test_the_verdict_comes_first_and_says_what_it_saves_and_costs():
    made = everything()
    shown = html_text(text("html", made))
    sentence = words.verdict(made.models[1], made)
    assert shown.index(sentence) < shown.index("Comparison")
    assert sentence == (
        "lookup saves 86 % of the dense twin's multiplications: 12.77 k MACs per image, 7.43x fewer than its dense "
        "twin (94.88 k); it reaches 55.1 % top-1 on ImageNet, 1.5 points below the dense network. "
        "Partial: 2 calls of operations without a formula are not counted: aten.fft."
    )


def test_a_page_of_200_layers_is_small_and_grows_slowly():
    sizes = {count: len(RENDERERS["html"].render(many_layers(count))) for count in (200, 400)}
    assert sizes[200] < 300_000
    assert (sizes[400] - sizes[200]) / 200 <= 1_500


def test_facts_are_stated_wherever_published_points_are():
    made = everything()
    for name in ("table", "md", "html", "svg", "json"):
        shown = " ".join(re.sub(r"<[^>]+>", " ", text(name, made)).replace("\\", "").split())
        for fact in made.facts:
            for phrase in ("compare two different networks", "cannot be", "still short of 5.0x"):
                assert phrase in shown or phrase not in fact, (name, phrase)
    assert "compare two different networks" not in text("md", both())


# The terminal


@pytest.mark.parametrize("width", [60, 80, 100, 140, 200])
def test_tables_fit_the_terminal(width):
    for made in (everything(), both(), many_layers(3)):
        lines = text("table", made, width=width).splitlines()
        assert max(map(len, lines)) <= width
        assert not [line for line in lines if line != line.rstrip()]


def test_a_wide_terminal_shows_more():
    narrow, wide = (text("table", report(), width=width) for width in (80, 140))
    extra = ("kernel", "in → out", "nnz(P)")
    assert all(title in wide for title in extra)
    assert not all(title in narrow for title in extra)
    assert all(title in narrow for title in ("dictionary", "lookups", "total", "speedup"))


def test_colour_only_where_asked():
    assert "\x1b[" not in text("table", everything())
    assert "\x1b[" in text("table", everything(), color=True)


# Pictures


def test_png_and_svg_are_what_they_say():
    png = RENDERERS["png"].render(everything())
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", png[16:24])
    assert width >= 1000
    assert height >= 600
    root = ElementTree.fromstring(RENDERERS["svg"].render(everything()))
    shown = " ".join(root.itertext())
    assert "lookup" in shown
    assert "counted speedup over hand" in shown


def test_without_an_accuracy_there_is_no_picture():
    with pytest.raises(ConfigError, match="no model carries an accuracy"):
        RENDERERS["png"].render(report(model_report(spec(), "m")))


def test_every_panel_is_drawn():
    one = model_report(spec(), "a", 90.0, "digits")
    two = model_report(spec(), "b", 50.0, "letters")
    shown = " ".join(ElementTree.fromstring(RENDERERS["svg"].render(report(one, two))).itertext())
    assert "digits" in shown
    assert "letters" in shown


# Numbers


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "0"),
        (999, "999"),
        (9_999, "9,999"),
        (12_345, "12.35 k"),
        (1.5e6, "1.50 M"),
        (714_188_480, "714.2 M"),
        (1.81e9, "1.81 G"),
    ],
)
def test_counts_in_sentences(value, shown):
    assert numbers.count_text(value) == shown
    assert numbers.count_text(value, "MACs").endswith("MACs")


def test_small_numbers_never_read_as_zero():
    assert numbers.scale_for(714e6).text(12) == "<0.001"
    assert numbers.scale_for(714e6).text(0) == "0.000"
    assert numbers.percent_text(0.0001) == "<0.1"
    assert numbers.percent_text(0.0) == "0.0"


@pytest.mark.parametrize(
    ("value", "shown"), [(5.374, "5.37x"), (9.996, "10.0x"), (24.66, "24.7x"), (312.4, "312x"), (None, numbers.ABSENT)]
)
def test_ratios(value, shown):
    assert numbers.ratio_text(value) == shown


def test_every_sentence_of_a_costlier_model_is_true():
    heavier = spec(layers=tuple(layer for layer in spec().layers if layer.name == "body.0"))
    (layer,) = heavier.layers
    full = replace(layer, lookup=replace(layer.lookup, coefficients_nnz=16 * 8 * 9 * 2))
    made = report(model_report(replace(heavier, layers=(full,), parameters=full.parameters), "heavy"))
    sentence = words.verdict(made.model, made)
    assert "costs 102 % more multiplications than the dense twin" in sentence
    assert "2.02x as many as its dense twin" in sentence


def test_cross_checks_are_quoted_with_both_figures():
    made = report(model_report(spec(), "m", check=checked(95_136, off_by=7)))
    shown = text("md", made)
    assert "fvcore 0.1.5 disagrees: 95,143 MACs; head ours 160, theirs 167" in shown
    assert "torch flop counter 2.13.0 agrees: 95,136 MACs" in shown
    assert json.loads(text("json", made))["models"][0]["cross_check"]["tools"][0]["disagreements"][0]["theirs"] == 167
