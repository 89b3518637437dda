"""What ``lcnn spectrum`` reports, keeps and prints: looking changes nothing, commands are those that exist."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
import typer

from lcnn_analyze.cli.app import app, load_command
from lcnn_analyze.cli.errors import run
from lcnn_analyze.cli.recipes import OWN, _settings
from lcnn_analyze.cli.sweep_report import _told, command
from lcnn_analyze.cli.trials import _state_left, load_subject
from lcnn_analyze.comparison import packed, unpacked
from lcnn_analyze.study import Trial
from lcnn_core import METHODS, Checkpoint, CheckpointError, build, load_dataset, save

QUICK = ("--epochs", 1, "--batch-size", 256, "-q")
SETTINGS = {"dense": "d.pt", "data": "digits", "epochs": 2, "batch_size": None, "lr": None}


def lcnn(*arguments: object) -> int:
    return run("lcnn", typer.main.get_command(app), list(map(str, arguments)))


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained network: what is asked here does not hang on how well it answers."""
    torch.manual_seed(0)
    data, path = load_dataset("digits"), tmp_path_factory.mktemp("dense") / "dense.pt"
    options = {"normalization": data.normalization, "class_names": data.class_names}
    save(path, Checkpoint.from_model(build("digits-resnet"), architecture="digits-resnet", **options))
    return path


@pytest.fixture(scope="module")
def studied(dense: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of two methods, both networks kept."""
    folder = tmp_path_factory.mktemp("study")
    grid = ("--methods", "pruning,published", "--speedups", 4, *QUICK)
    assert lcnn("spectrum", dense, *grid, "--keep", "all", "-o", folder) == 0
    return folder


@pytest.fixture
def study(studied: Path, tmp_path: Path) -> Path:
    """A copy, to change."""
    return Path(shutil.copytree(studied, tmp_path / "study"))


def networks(folder: Path) -> set[str]:
    return {path.parent.name for path in folder.glob("trials/*/network.pt*")}


def test_a_report_alone_asks_for_nothing_and_deletes_nothing(
    dense: Path, study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (study / "journal.jsonl").read_bytes()
    (study / "spectrum.md").unlink()
    assert lcnn("spectrum", dense, *QUICK, "--report-only", "-o", study) == 0
    assert "2 of 2 done, 0 failed\n" in capsys.readouterr().out
    assert (study / "journal.jsonl").read_bytes() == before
    assert "Under way" not in (study / "spectrum.md").read_text()
    assert networks(study) == {"0-4-pruning", "0-4-published"}
    assert lcnn("spectrum", dense, *QUICK, "--report-only", "--keep", "front", "-o", study) == 0
    assert len(networks(study)) == 1


@pytest.mark.parametrize("method", METHODS)
def test_of_each_method_it_is_said_how_it_trains(method: str) -> None:
    """Methods have rates and shifts of their own, so that one may be ahead for them alone."""
    trains = {"converted": "0.02, images as they are", "narrow": "0.1, images moved by up to 1 each way"}
    said = f"; unless set otherwise at a peak rate of {trains.get(method, '0.05, images moved by up to 1 each way')}"
    trained = METHODS[method].trained
    assert _told(method, SETTINGS) == METHODS[method].doc + (said if trained else "")
    if trained:
        assert "at a peak rate of 0.3, images" in _told(method, {**SETTINGS, "lr": 0.3})


def test_what_one_worker_said_is_kept_another_does_not_delete(dense: Path, study: Path) -> None:
    more = ("spectrum", dense, "--methods", "post-training", "--speedups", 4, *QUICK, "-o", study)
    assert lcnn(*more) == 0
    assert len(networks(study)) == 3
    assert lcnn(*more, "--keep", "front") == 0
    assert len(networks(study)) < 3


def test_the_dense_network_may_be_named_by_another_path(
    dense: Path, study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(dense, tmp_path / "elsewhere.pt")
    monkeypatch.chdir(tmp_path)
    (study / "journal.jsonl").unlink()  # so that the results are found in the trials' folders
    grid = ("--methods", "pruning,published", "--speedups", 4, *QUICK)
    before = {path: path.stat().st_mtime_ns for path in study.glob("trials/*/result.json")}
    assert lcnn("spectrum", "elsewhere.pt", *grid, "-o", study) == 0
    assert lcnn("spectrum", dense, *grid, "-o", study) == 0
    assert {path: path.stat().st_mtime_ns for path in study.glob("trials/*/result.json")} == before


def test_a_report_goes_on_where_its_data_lie_elsewhere_if_the_dense_network_answers_alike(
    dense: Path, study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = json.loads((study / "spectrum.json").read_text())
    document["settings"]["data"] = "idx:/mnt/elsewhere"
    report = tmp_path / "spectrum.json"
    report.write_text(json.dumps(document))
    here = ("spectrum", dense, *QUICK, "--from-report", report, "--report-only", "-o")
    assert lcnn(*here, tmp_path / "new") == 0
    assert "2 of 2 done" in capsys.readouterr().out
    document["dense"]["right"] = packed((1 - unpacked(document["dense"])).tolist())
    report.write_text(json.dumps(document))
    assert lcnn(*here, tmp_path / "other") == 2
    assert "data was idx:/mnt/elsewhere, is now digits; choose its own report" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("method", METHODS)
def test_every_setting_of_a_recipe_gives_a_command_of_known_options(method: str) -> None:
    config = METHODS[method].config(speedup=4.0)
    for key, value in _settings(config):
        if key in OWN or key in METHODS[method].fixed:
            continue
        value = getattr(value, "name", value)
        text = command(Trial("t", {"method": f"{method}:{key}={value}", "speedup": 4.0, "seed": 0}), SETTINGS)
        _, _, name, *words = text.split()
        known = {flag for option in load_command(name).params for flag in (*option.opts, *option.secondary_opts)}
        assert {word for word in words if word.startswith("--")} <= known, text


def test_commands_are_what_train_accepts(dense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def made(recipe: str) -> str:
        return command(Trial("t", {"method": recipe, "speedup": 4.0, "seed": 0}), {**SETTINGS, "dense": str(dense)})

    assert made("converted:forms=lookup").split()[2] == "spectrum"  # train has no --forms beside it
    monkeypatch.chdir(tmp_path)
    for recipe, flag in (
        ("from-dense:bfloat16=True", " --bfloat16 "),
        ("pruning:channels_last=False", " --no-channels-last "),
    ):
        text = made(recipe)
        assert flag in text
        assert " --device cpu " in text  # where a study trains
        assert lcnn(*text.split()[2:], "--dry-run") == 0


def test_image_files_are_read_at_the_size_of_the_network(tmp_path: Path) -> None:
    data = load_dataset("fake:4x10")
    options = {"input_shape": (3, 32, 32), "normalization": data.normalization, "class_names": data.class_names}
    model = build("resnet", depth=8, stem="small", num_classes=10)
    arguments = {"depth": 8, "stem": "small", "num_classes": 10}
    save(tmp_path / "d.pt", Checkpoint.from_model(model, architecture="resnet", arguments=arguments, **options))
    assert load_subject({"dense": str(tmp_path / "d.pt"), "data": "fake:4x10"})[1].input_shape == (3, 32, 32)


def test_a_lookup_network_is_refused_before_any_trial(
    dense: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lookups = tmp_path / "lookups.pt"
    data = load_dataset("digits")
    made = Checkpoint.from_model(build("digits-resnet-lcnn"), architecture="digits-resnet-lcnn")
    save(lookups, dataclasses.replace(made, normalization=data.normalization))
    assert lcnn("spectrum", lookups, *QUICK, "-o", tmp_path / "study") == 2
    assert "is already a lookup layer; start from a dense network" in capsys.readouterr().err
    assert not (tmp_path / "study").exists()


def test_a_state_that_another_worker_takes_away_meanwhile_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It wrote the result before, which is looked for after."""
    path = tmp_path / "state.pt"
    assert _state_left(path) is None
    path.write_bytes(b"damaged")
    with pytest.raises(CheckpointError):
        _state_left(path)

    def load(path: Path) -> None:
        path.unlink()
        raise CheckpointError(f"{path} does not exist")

    monkeypatch.setattr("lcnn_core.load_state", load)
    assert _state_left(path) is None
