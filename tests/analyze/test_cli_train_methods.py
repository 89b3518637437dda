"""``lcnn train --speedup S --method NAME``: every method by a plain command: landing, saving, resuming."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lcnn_analyze import analyze
from lcnn_core import METHODS, checkpoint, load_dataset
from tests.analyze.train_runs import assert_same_run, lcnn

SHORT = ("--epochs", 1, "--batch-size", 128, "--lr", 0.02, "-q")


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dense")
    assert lcnn("--model", "digits-resnet", *SHORT, "-o", folder) == 0
    return folder / "best.pt"


@pytest.mark.parametrize("method", [name for name, method in METHODS.items() if method.trained])
def test_every_method_by_one_command_lands_and_is_analysed(method: str, dense: Path, tmp_path: Path) -> None:
    """The checkpoint, read back, counts the asked speedup over the dense network, and answers as it was measured."""
    run = tmp_path / "run"
    assert lcnn("--from", dense, "--speedup", 4, "--method", method, *SHORT, "-o", run) == 0
    saved = checkpoint.load(run / "last.pt")
    assert saved.architecture == "digits-resnet"
    assert saved.provenance["method"] == method
    forms = {"from-dense": "measured", "lookup-only": "lookup", "pruning": "sparse", "published": "mixed"}
    assert saved.provenance["config"].get("forms") == forms.get(method)  # what was meant, named
    over = {found.kind: found.speedup for found in analyze(run / "last.pt", baseline=str(dense)).model.baselines}
    assert 4 <= over["checkpoint"] <= (4.6 if method == "narrow" else 4.08)  # whole channels are coarse
    last = json.loads((run / "log.jsonl").read_text().splitlines()[-2])
    assert (last["event"], last["counted_speedup"]) == ("EpochFinished", over["checkpoint"])
    assert over["twin"] == (1 if method == "narrow" else over["checkpoint"])
    assert saved.build()(load_dataset("digits").validation.images[:3]).shape == (3, 10)


def test_options_of_a_budget_reach_the_method_and_are_saved(dense: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    given = {
        "phase": 0.5, "cuts": 7, "floor": 0.1, "thresholds": "soft", "regrowth": 0.2, "layer_budgets": "uniform",
        "distillation": 0.4, "temperature": 3.0, "dictionary_ratio": 0.3, "forms": "lookup", "start": "dense",
        "ranking": "magnitude",
    }  # fmt: skip
    flags = [part for name, value in given.items() for part in (f"--{name.replace('_', '-')}", value)]
    assert lcnn("--from", dense, "--speedup", 5, *flags, *SHORT, "-o", run) == 0
    config = checkpoint.load(run / "best.pt").provenance["config"]
    assert {name: config[name] for name in given} == given
    again = tmp_path / "again"
    assert lcnn("--from", dense, "--config", run / "config.yaml", *SHORT, "-o", again) == 0
    assert_same_run(run, again)
    published = tmp_path / "published"
    scales = ("--threshold-scale", 0.002, "--l1-scale", 0.1)
    assert lcnn("--from", dense, "--speedup", 4, "--method", "published", *scales, *SHORT, "-o", published) == 0
    config = checkpoint.load(published / "best.pt").provenance["config"]
    assert (config["threshold_scale"], config["l1_scale"], config["start"]) == (0.002, 0.1, "scratch")


@pytest.mark.parametrize("method", ["pruning", "low-rank", "narrow"])
def test_a_method_resumes_to_the_same_bits(method: str, dense: Path, tmp_path: Path) -> None:
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    start = ("--from", dense, "--speedup", 4, "--method", method, *SHORT[2:], "--schedule", "constant")
    assert lcnn(*start, "--epochs", 2, "-o", whole) == 0
    assert lcnn(*start, "--epochs", 1, "-o", halves) == 0
    assert lcnn("--resume", halves, "--epochs", 2, "--allow-change", "-q") == 0
    if method != "pruning":  # whose schedule knows how long the run is
        ours, theirs = (checkpoint.load(folder / "last.pt").state_dict for folder in (whole, halves))
        assert all(bool((ours[name] == theirs[name]).all()) for name in ours)
    assert checkpoint.load(halves / "last.pt").provenance["epoch"] == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("--speedup", 4, "--method", "magic"),
            "method is 'magic'; expected one of from-dense, lookup-only, converted, pruning",
        ),
        (("--method", "pruning"), "a budget needs both --speedup and --from with a dense checkpoint; --speedup is"),
        (("--regrowth", 0.2), "--speedup is missing"),
        (("--speedup", 4, "--method", "narrow", "--regrowth", 0.2), "--regrowth cannot go with --method narrow, which"),
        (("--speedup", 4, "--method", "pruning", "--forms", "mixed"), "--forms cannot go with --method pruning, which"),
        (("--speedup", 4, "--thresholds", "soft", "--threshold-scale", 0.1), "soft thresholds cannot go with thresh"),
        (("--speedup", 4, "--l1-scale", 0.1), "l1_scale needs threshold_scale"),
        (("--speedup", 4, "--stages", "4,8"), "--stages cannot go with --from"),
        (("--speedup", 99, "--method", "low-rank"), "a speedup of 99 cannot be met: at most"),
    ],
)
def test_what_does_not_fit_is_one_line(
    arguments: tuple[object, ...], message: str, dense: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert lcnn("--from", dense, *arguments, *SHORT, "-o", tmp_path / "run") == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "run" / "best.pt").exists()
