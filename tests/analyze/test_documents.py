"""The generated documents: what they say, and that the files in reports/ are what the code makes today."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from test_comparison import document as sweep
from test_comparison import row

from lcnn_analyze.cli.spectrum import _digest
from lcnn_analyze.comparison import unpacked
from lcnn_analyze.documents import DOCUMENTS, audit, document, study, zoo
from lcnn_analyze.documents.page import Heading, Paragraph, Table, html, markdown
from lcnn_core import Split, checkpoint, describe, evaluate_classes, load_dataset, total_macs

REPORTS = Path(__file__).parents[2] / "reports"
FASHION = REPORTS.parents[1] / "shared" / "data" / "fashion-mnist"
SLOW = {"audit", "zoo"}  # minutes: what the engine executes, and every network three times


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in DOCUMENTS])
def test_committed_documents_are_current(name):
    for file, content in document(name).items():
        if file.endswith(".png"):  # whose bytes hang on the version of matplotlib
            continue
        assert (REPORTS / file).read_bytes() == content, f"make it again: python -m lcnn_analyze.documents {name}"


@pytest.mark.parametrize("network", sorted(path.name for path in (REPORTS / "study").iterdir() if path.is_dir()))
def test_the_dense_network_beside_a_study_is_the_one_that_it_is_of(network):
    path = REPORTS / "study" / network / "dense" / "best.pt"
    known = json.loads((REPORTS / "study" / f"{network}.json").read_text())
    assert known["settings"]["sha256"] == _digest(path)
    assert all(
        f"--from {network}/dense/best.pt " in t["command"] for t in known["trials"] if "lcnn train" in t["command"]
    )
    loaded = checkpoint.load(path)
    assert known["dense"]["macs"] == total_macs(describe(loaded.build(), loaded.input_shape).layers)
    if not FASHION.exists():
        pytest.skip("needs shared/data/fashion-mnist, which is not here")
    test = load_dataset(f"idx:{FASHION}", loaded.normalization).test
    right = evaluate_classes(loaded.build(), Split(test.images[:1000], test.labels[:1000])).right.numpy()
    assert (right != unpacked(known["dense"])[:1000]).sum() <= 1


def test_every_document_and_its_command_are_listed():
    listed = (REPORTS / "README.md").read_text()
    assert all(f"`python -m lcnn_analyze.documents {name}`" in listed for name in DOCUMENTS)
    assert all(f"| `{name}` |" in (REPORTS / "zoo.md").read_text() for name in zoo.ARCHITECTURES)


def test_the_audit_computes_what_the_design_document_states():
    """design/method.md, "Two facts" and the worked example: figures computed by hand, not by this code."""
    counts = {(case.name, name): audit.count(case, name) for case in audit.CASES for name in audit.countable()}
    caps = {key: count.cap for key, count in counts.items() if key[0].startswith("ResNet")}
    assert [round(cap, 2) for cap in caps.values()] == [18.85, 38.87, 2.89, 4.87]
    alexnet = counts["AlexNet LCNN-fast", "published"]
    assert (alexnet.baseline, alexnet.twin) == (1_135_256_096, 714_188_480)
    assert [case.claim for case in audit.CASES] == [37.6, 3.2, 29.2, 5.0]
    text = audit.files(engine=False)["published-audit.md"].decode()
    assert all(
        line in (REPORTS / "published-audit.md").read_text() for line in text.split("\n\n## AlexNet")[0].splitlines()
    )
    for known in (
        "1.59x",
        "23.7x and 2.0x",
        "| 39.2",
        "| 24.6",
        "| 5.37x | 3.38x |",
        "18.8x and 2.9x",
        "38.9x and 4.87x",
    ):
        assert known in text, known
    assert re.search(r"\| conv2 \| 30 \|.* 1,845,120 \|.* 3,569,184 \|", text)


def test_the_study_is_one_page_of_all_its_networks(tmp_path):
    rows = [row(method, 10.0, seed, 0.9) for method in ("from-dense", "pruning") for seed in (0, 1)]
    for name in ("b", "a"):
        (tmp_path / f"{name}.json").write_text(json.dumps(sweep(rows, network=f"net-{name}")))
    made = study.files(tmp_path)
    assert made.keys() == {"study/report.html", "study/report.md", "study/curves.png"}
    page = made["study/report.html"].decode()
    assert 0 < page.index("net-a: Which to use") < page.index("net-b: Which to use")
    assert study.files(tmp_path / "nothing") == {}


def test_a_density_that_reaches_the_claim_reaches_it():
    for case in audit.CASES[:2]:
        count = audit.count(case, "published")
        spec = audit.with_densities(audit.spec_of(case.architecture, **case.options), (count.needed_density,))
        assert count.baseline / audit.cost_table(spec).totals["macs"] == pytest.approx(case.claim, rel=1e-5)


BLOCKS = [Heading(2, "a < b"), Paragraph("<script>"), Table(("n", "x"), [["<b>", "1,000"]], (1,))]


def test_pages_escape_what_they_show_and_ask_for_nothing():
    page = html("t & u", BLOCKS)
    assert "<title>t &amp; u</title>" in page
    assert "<h2>a &lt; b</h2>" in page
    assert '<td>&lt;b&gt;</td><td class="number">1,000</td>' in page
    assert not re.search(r"https?:|src=|url\(|@import|<script", page)


def test_markdown_tables():
    assert markdown("t", BLOCKS).endswith("| n | x |\n| --- | ---: |\n| <b> | 1,000 |\n")
