"""Runs that are killed, run out of space or meet another writer: nothing is lost, and the end is the same."""

from __future__ import annotations

import ctypes
import os
import random
import resource
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from train_runs import assert_same_run, epochs_of, in_child, lcnn, log_of

from lcnn_core import checkpoint, load_state, open_log

SMALL = ("--model", "digits-resnet-lcnn", "--batch-size", "128", "--lr", "0.1", "--deterministic", "-q")
LONG = (*SMALL, "--epochs", "4", "--shift", "1", "--ema", "0.8", "--save-every", "2", "--log-every", "1")


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    folder = tmp_path_factory.mktemp("unbroken") / "run"
    assert lcnn(*SMALL, "--epochs", 1, "-o", folder.parent / "warm") == 0  # what is imported only once
    started = time.monotonic()
    assert lcnn(*LONG, "-o", folder) == 0
    return folder, time.monotonic() - started


@pytest.mark.parametrize(
    ("kills", "seed"), [(3, 1), pytest.param(20, 2, marks=pytest.mark.slow)], ids=["3 times", "20 times"]
)
def test_killed_at_random_moments_the_end_is_the_same(
    kills: int, seed: int, unbroken: tuple[Path, float], tmp_path: Path
) -> None:
    whole, seconds = unbroken
    generator, folder, killed, resumed = random.Random(seed), tmp_path / "run", 0, 0
    while killed < kills:
        state = folder / "state.pt"
        arguments = ("--resume", folder, "-q") if state.exists() else (*LONG, "-o", folder, "--overwrite")
        resumed += state.exists()
        process = in_child(lambda arguments=arguments: lcnn(*arguments))
        process.join(generator.uniform(0.1, 0.8) * seconds)
        process.kill()
        process.join()
        for name in ("best.pt", "last.pt"):
            if (folder / name).exists():
                checkpoint.load(folder / name).build()
        if process.exitcode == 0:  # it came to its end first
            assert_same_run(folder, whole)
            shutil.rmtree(folder)
        else:
            killed += 1
    if folder.exists():
        assert lcnn("--resume", folder, "-q") == 0
        assert_same_run(folder, whole)
        assert not list(folder.glob(".*"))
        assert "--resume" not in checkpoint.load(folder / "last.pt").provenance["command"]
    assert resumed


def test_a_full_disk_leaves_the_last_checkpoint_and_a_way_on(
    unbroken: tuple[Path, float], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    assert lcnn(*LONG, "-o", folder, "--epochs", 2) == 0
    before = (folder / "last.pt").read_bytes()

    def full() -> int:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, resource.RLIM_INFINITY))
        return lcnn("--resume", folder, "--epochs", 4, "--allow-change", "-q")

    process = in_child(full)
    process.join()
    assert process.exitcode == 5
    err = capfd.readouterr().err
    assert "changed: epochs was 2, is now 4" in err
    assert f"lcnn: cannot write '{folder}/" in err
    assert "File too large" in err
    assert "Traceback" not in err
    assert (folder / "last.pt").read_bytes() == before
    assert not [path.name for path in folder.iterdir() if path.name.startswith(".")]
    started = checkpoint.load(folder / "best.pt").provenance["command"]
    assert lcnn("--resume", folder, "-q") == 0  # it is finished
    assert checkpoint.load(folder / "last.pt").provenance["command"] == started
    assert lcnn("--resume", folder, "--epochs", 4, "--allow-change", "-q") == 0
    assert "--resume" in checkpoint.load(folder / "last.pt").provenance["command"]
    assert [line["epoch"] for line in epochs_of(folder)] == [1, 2, 3, 4]


def test_a_log_without_space_is_named_and_keeps_its_lines(tmp_path: Path) -> None:
    path, before = tmp_path / "log.jsonl", resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill() -> None:
        with open_log(path) as log:
            log.write("Whole", {})
            log.write("Cut", {"text": "x" * 200})

    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        with pytest.raises(OSError, match=r"cannot write '.*/log\.jsonl': File too large; free some space"):
            fill()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert path.read_text().startswith('{"event": "Whole"}\n{"event": "Cut"')


@pytest.mark.parametrize(
    ("epochs", "files"),
    [(None, 0), (2, 0o444), (2, 0o644), (1, 0o644)],
    ids=["new run", "files too", "folder alone", "finished run"],
)
def test_no_permission_is_one_line_and_changes_nothing(
    epochs: int | None, files: int, unbroken: tuple[Path, float], capfd: pytest.CaptureFixture[str]
) -> None:
    """In folders that are read-only, resumed for so many epochs; root, who may write anywhere, gives up that right."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "run"
        if epochs:
            assert lcnn(*SMALL, "--epochs", 1, "-o", folder) == 0
            for path in folder.iterdir():
                path.chmod(files)
            folder.chmod(0o555)
        Path(name).chmod(0o555)
        before = {path: path.read_bytes() for path in folder.rglob("*")}

        def others() -> int:
            # Without its capabilities (linux/capability.h, version 3), root may write no more than others.
            header, none = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
            assert os.geteuid() or ctypes.CDLL(None).capset(header, none) == 0
            where = ("--resume", folder, "--allow-change") if epochs else (*SMALL, "-o", folder)
            return lcnn(*where, "--epochs", epochs or 2, "-q")

        capfd.readouterr()
        process = in_child(others)
        process.join()
        err = capfd.readouterr().err.strip()
        assert process.exitcode == 5
        assert "Permission denied" in err.splitlines()[-1]
        assert str(folder) in err.splitlines()[-1]
        assert "Traceback" not in err
        assert {path: path.read_bytes() for path in folder.rglob("*")} == before
        for made in (Path(name), folder):
            if made.exists():
                made.chmod(0o755)


def test_a_second_writer_is_refused_and_a_dead_one_forgotten(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    process = in_child(lambda: lcnn(*SMALL, "--epochs", 500, "-o", folder))
    while not (folder / "best.pt").exists():
        time.sleep(0.02)
    before = (folder / "log.jsonl").stat().st_size
    assert lcnn(*SMALL, "--epochs", 1, "-o", folder, "--overwrite") == 2
    assert lcnn("--resume", folder, "-q") == 2
    err = capfd.readouterr().err
    assert err == f"lcnn: another process is writing {folder}; wait for its end, or choose another -o\n" * 2
    assert (folder / "log.jsonl").stat().st_size >= before
    process.kill()
    process.join()
    assert lcnn(*SMALL, "--epochs", 1, "-o", folder, "--overwrite") == 0


def test_terminated_it_says_where_it_is(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    process = in_child(lambda: lcnn(*SMALL, "--epochs", 500, "-o", folder))
    while not (folder / "best.pt").exists():
        time.sleep(0.02)
    process.terminate()
    process.join()
    assert process.exitcode == 143
    epoch = checkpoint.load(folder / "last.pt").provenance["epoch"]
    assert (
        f"terminated; {folder}/last.pt holds the network after epoch {epoch}; go on with --resume"
        in capfd.readouterr().err
    )


def test_a_changed_option_is_shown_and_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    assert lcnn(*SMALL, "--epochs", 1, "-o", folder) == 0
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert lcnn("--resume", folder, "--lr", "0.2", "--epochs", 3, "-q") == 2
    message = "the run was started otherwise: epochs was 1, is now 3; lr was 0.1, is now 0.2; leave it, or give"
    assert message in capsys.readouterr().err
    assert lcnn(*SMALL, "--epochs", 1, "-o", folder) == 2
    assert f"{folder}/state.pt is of a run already; go on with --resume {folder}, replace" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert lcnn("--resume", folder, "--model", "digits-resnet", "--allow-change", "-q") == 3
    assert "weights do not fit the network of this run" in capsys.readouterr().err
    assert lcnn("--resume", folder, "--epochs", 1, "--workers", 2, "-q") == 2
    assert "workers cannot go with digits" in capsys.readouterr().err
    assert lcnn("--resume", folder, "--log-every", 3, "-q") == 0  # no result depends on it


def test_a_run_that_fails_at_once_leaves_no_older_best(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert lcnn(*SMALL, "--epochs", 1, "-o", folder) == 0
    assert lcnn("--model", "digits-resnet", "--lr", 1e5, "--epochs", 2, "-o", folder, "-q", "--overwrite") == 5
    assert sorted(path.name for path in folder.iterdir()) == ["config.yaml", "last.pt", "log.jsonl", "state.pt"]
    assert log_of(folder)[0]["config"]["lr"] == 1e5


def test_the_weights_that_a_run_starts_from_are_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert lcnn("--model", "digits-resnet", "--epochs", 1, "-q") == 0
    before = {path.name: path.read_bytes() for path in Path("lcnn-run").iterdir()}
    Path("link.pt").symlink_to("lcnn-run/best.pt")
    for option, path in (("--from", "lcnn-run/best.pt"), ("--from", "link.pt"), ("--load", "lcnn-run/last.pt")):
        model = ("--model", "digits-resnet") if option == "--load" else ()
        assert lcnn(option, path, *model, "--epochs", 1, "--overwrite", "-q") == 2
        message = f"lcnn: {option} {path} is a file that this run would replace; choose another -o\n"
        assert capsys.readouterr().err == message
    assert {path.name: path.read_bytes() for path in Path("lcnn-run").iterdir()} == before


def test_an_older_run_stays_where_there_is_no_space_for_a_new_one(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert lcnn(*SMALL, "--epochs", 1, "-o", folder) == 0
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def full() -> int:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before["last.pt"]) // 2, resource.RLIM_INFINITY))
        return lcnn(*SMALL, "--epochs", 1, "-o", folder, "--overwrite")

    process = in_child(full)
    process.join()
    assert process.exitcode == 5
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize("lr", [0.1, 0.012345678901], ids=["shorter header", "longer header"])
def test_a_run_stopped_in_its_first_epoch_resumes_with_other_options(lr: float, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert lcnn(*SMALL, "--epochs", 2, "--lr", 1e5, "-o", folder) == 5
    assert load_state(folder / "state.pt")["position"]["batch"] == 0
    assert lcnn("--resume", folder, "--epochs", 1, "--lr", lr, "--allow-change", "-q") == 0
    assert [line["event"] for line in log_of(folder)][:2] == ["Configured", "TrainingStarted"]
    assert (log_of(folder)[0]["config"]["lr"], len(epochs_of(folder))) == (lr, 1)
    assert lcnn("--resume", folder, "--epochs", 2, "--allow-change", "-q") == 0
    assert [line["epoch"] for line in epochs_of(folder)] == [1, 2]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--resume", "nowhere"], 3, "nowhere/state.pt does not exist; expected the state of a run"),
        (["--resume", "x", "--overwrite"], 2, "--overwrite cannot go with --resume"),
        (["--resume", "x", "-o", "y"], 2, "-o (output in a settings file) cannot go with --resume"),
    ],
)
def test_mistakes_of_resuming(
    arguments: list[str], code: int, message: str, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    assert lcnn(*arguments) == code
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_saved_configuration_is_one_that_trains_the_same(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    assert lcnn(*SMALL, "--epochs", 1, "--schedule", "1:0.05:1e-4,2:0.01", "-o", first) == 0
    saved = yaml.safe_load((first / "config.yaml").read_text())
    assert (saved["lr"], saved["epochs"], saved["schedule"]) == (0.1, 1, "1:0.05:0.0001,2:0.01:0.0")
    assert lcnn("--config", first / "config.yaml", "-o", second, "-q") == 0
    assert_same_run(first, second)
