"""Every command and every Python example of the README runs as it stands, in order, in one scratch folder."""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
INSTALLS = "pip install"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    lines = [line.split(" #")[0].strip() for block in blocks("bash") for line in block.splitlines()]
    return [line.split("&&")[-1].strip() if line.startswith(INSTALLS) else line for line in lines if line]


@pytest.fixture(scope="module")
def folder(quickstart: Path) -> Path:
    """The scratch folder in which the quickstart ran, once for the whole session."""
    return quickstart.parent


def run(arguments: str | list[str], folder: Path) -> None:
    done = subprocess.run(
        arguments, cwd=folder, shell=isinstance(arguments, str), capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, f"{arguments}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"


def test_the_first_two_commands_install_and_run_and_install_and_test():
    first, second = [line for block in blocks("bash") for line in block.splitlines()][:2]
    assert re.fullmatch(r"pip install \. && lcnn quickstart", first)
    assert re.fullmatch(r"pip install '\.\[.*\]' && pytest", second)


@pytest.mark.parametrize("command", [c for c in commands() if c not in ("lcnn quickstart", "pytest")])
def test_command_runs(command: str, folder: Path):
    run(command, folder)


@pytest.mark.parametrize("code", blocks("python"), ids=lambda code: code.strip().splitlines()[0])
def test_python_example_runs(code: str, folder: Path):
    run([sys.executable, "-c", code], folder)


def rows(text: str) -> list[list[str]]:
    """The cells of the tables in a markdown text, heads too, without markup."""
    lines = [line for line in text.splitlines() if re.match(r"\| [^-]", line)]
    return [[cell.strip(" `*") for cell in line.strip("|").split("|")] for line in lines]


START, REACHES, *_ = re.split(r"^## .*\n", README, flags=re.MULTILINE)


def test_accuracies_reached_are_those_of_the_study():
    study = json.loads((ROOT / "reports" / "study" / "small-resnet.json").read_text())
    (_, _, *heads), *found = [row for row in rows(REACHES) if len(row) == 5]
    targets = [float(re.fullmatch(r"top-1 at (\d+)x, %", head)[1]) for head in heads]
    assert len(found) == 6
    for label, start, *cells in found:
        method = label.partition("`")[0] + (":epochs=12" if label.endswith("12 epochs") else "")
        text = study["methods"][method.partition(":")[0]]
        assert start == ("fresh weights" if "fresh" in text or "scratch" in text else "dense network")
        for target, cell in zip(targets, cells, strict=True):
            trials = [t for t in study["trials"] if (t["method"], t["target"], t["status"]) == (method, target, "done")]
            deviation = next(point["pooled"] for point in study["points"] if point["target"] == target)
            assert cell == accuracy([100 * trial["top1"] for trial in trials], deviation), (method, target)
    assert f"{100 * study['dense']['top1']:.2f} % dense after 48 epochs" in README
    assert f"({study['dense']['macs'] / 1e6:.2f} M MACs)" in README
    converted = {t["target"]: 100 * t["top1"] for t in study["trials"] if t["method"] == "post-training"}
    assert f"{converted[2]:.2f} % at 2x and {converted[4]:.2f} at 4x" in " ".join(REACHES.split())


def accuracy(values: list[float], deviation: float) -> str:
    if len(values) < 2:
        return f"{values[0]:.2f} ± {deviation:.2f}, 1 seed" if values else ""
    text = f"{statistics.mean(values):.2f} ± {statistics.stdev(values) / len(values) ** 0.5:.2f}"
    return text if len(values) == 3 else f"{text}, {len(values)} seeds"


def test_speedups_reached_are_those_of_the_bench():
    summary = (ROOT / "reports" / "engine" / "one-thread.md").read_text().split("###")[1]
    bench = [[row[0], row[1], *row[3:9]] for row in rows(summary) if row[2] == "1"]
    _, *found = [row for row in rows(REACHES) if len(row) == 8]
    assert len(found) == 6
    assert [row for row in found if row not in bench] == []


def test_speedups_of_trained_networks_are_those_of_the_bench():
    summary = (ROOT / "reports" / "engine" / "trained.md").read_text().split("###")[1]
    bench = [[row[0], row[3].partition(" %")[0], *row[5:10]] for row in rows(summary) if row[1] == "1"]  # of one image
    _, *found = [row for row in rows(REACHES) if len(row) == 7]
    assert found == bench
    assert len(found) == 2


def test_the_quickstarts_table_is_its_report():
    models = json.loads((ROOT / "reports" / "quickstart" / "report.json").read_text())["models"]
    _, *found = rows(START)
    assert [row[1:] for row in found] == [
        [
            f"{model['costs']['totals']['macs']:,}",
            f"{model['baselines'][0]['speedup']:.1f}x",
            f"{model['accuracy'][0]['percent']:.2f} %",
        ]
        for model in models
    ]


def test_links_and_pictures_exist():
    targets = re.findall(r"\]\(([^)#]+)\)", README) + re.findall(r'src="([^"]+)"', README)
    missing = [target for target in targets if "://" not in target and not (ROOT / target).exists()]
    assert missing == []
