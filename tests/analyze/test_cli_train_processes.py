"""Many processes are one process with as many batch pieces; one of them writes; a death is said."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from train_runs import epochs_of, in_child, lcnn, losses_of, same

from lcnn_core import Checkpoint, LookupLayer, build, load_dataset, load_state, save
from lcnn_core.checkpoint import load
from lcnn_core.compress import from_dense, post_training
from lcnn_core.compress.allocation import Option, allocate
from lcnn_core.compress.shares import measured_choices

FASHION = Path(__file__).parents[3] / "shared" / "data" / "fashion-mnist"
SMALL = ("--model", "digits-resnet-lcnn", "--lr", "0.1", "--log-every", "1", "--deterministic")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def as_rank(rank: int, count: int, port: int, *arguments: object) -> int:
    """``lcnn train`` with the environment that torchrun gives a process."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return lcnn(*arguments)


def torchrun(count: int, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--no-python", "--nproc-per-node", str(count)]
    command += ["--master-port", str(free_port()), sys.executable, "-m", "lcnn_analyze", "train", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


def test_two_processes_of_torchrun_are_two_pieces(tmp_path: Path) -> None:
    """The last batch is not even: 1,150 images are 8 batches of 128 and one of 126."""
    options = (*SMALL, "--batch-size", 128, "--epochs", 1, "--shift", 1)
    done = torchrun(2, *options, "-o", tmp_path / "two")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("best.pt: epoch") == 1
    assert [line.split("  ")[0] for line in done.stderr.splitlines() if "epoch" in line] == ["epoch 1/1"]
    assert "Warning" not in done.stderr
    assert lcnn(*options, "--batch-pieces", 2, "-o", tmp_path / "one", "-q") == 0
    ours, theirs = losses_of(tmp_path / "two"), losses_of(tmp_path / "one")
    assert len(ours) == 9
    assert ours == pytest.approx(theirs, abs=1e-4)
    for name in ("model", "optimizer", "order", "position"):  # so far the bits agree, too
        assert same(*(load_state(tmp_path / run / "state.pt")[name] for run in ("two", "one"))), name
    for a, b in zip(epochs_of(tmp_path / "two"), epochs_of(tmp_path / "one"), strict=True):
        assert a["validation"] == pytest.approx(b["validation"])  # its loss is a sum in another order
        assert a["densities"] == b["densities"]


def all_ranks(*arguments: object) -> list[int | None]:
    port = free_port()
    ranks = [in_child(lambda r=rank: as_rank(r, 2, port, *arguments)) for rank in (0, 1)]
    for process in ranks:
        process.join()
    return [process.exitcode for process in ranks]


def test_the_average_is_validated_with_the_statistics_of_the_first_process(tmp_path: Path) -> None:
    options = (*SMALL, "--batch-size", 128, "--epochs", 1, "--batches-per-epoch", 2, "--ema", "0.5", "-q")
    assert lcnn(*options, "--batch-pieces", 2, "-o", tmp_path / "one") == 0
    assert all_ranks(*options, "-o", tmp_path / "two") == [0, 0]
    (two,), (one,) = (epochs_of(tmp_path / run) for run in ("two", "one"))
    assert two["validation"] == pytest.approx(one["validation"])


@pytest.mark.parametrize("method", ["from-dense", "converted"])
def test_what_processes_measure_apart_is_that_of_the_first(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rounding may lead each to other dictionaries; weights of other shapes could not be trained together."""
    data = load_dataset("digits")
    dense = Checkpoint.from_model(
        build("digits-resnet"),
        architecture="digits-resnet",
        normalization=data.normalization,
        class_names=data.class_names,
    )
    save(tmp_path / "dense.pt", dense)

    def measured(*arguments: Any) -> dict[str, Option]:
        found = measured_choices(*arguments)
        size = 16 if os.environ["RANK"] == "0" else None
        return found | {"layer3.1.conv2": replace(found["layer3.1.conv2"], start=size)}

    def allocated(*arguments: Any) -> list[Option]:
        size = 16 if os.environ["RANK"] == "0" else None
        return [replace(option, start=size) if i == 10 else option for i, option in enumerate(allocate(*arguments))]

    monkeypatch.setattr(from_dense, "measured_choices", measured)
    monkeypatch.setattr(post_training, "allocate", allocated)
    options = ("--from", tmp_path / "dense.pt", "--data", "digits", "--speedup", 4, "--epochs", 1, "--method", method)
    more = ("--batch-size", 128, "--batches-per-epoch", 2, "--lr", 0.01, "-q")
    assert all_ranks(*options, *more, "-o", tmp_path / "run") == [0, 0]
    layer = load(tmp_path / "run" / "last.pt").build().get_submodule("layer3.1.conv2")
    assert isinstance(layer, LookupLayer)
    assert layer.dictionary_size == 16


@pytest.mark.slow
def test_two_processes_of_two_pieces_are_four_and_resume(tmp_path: Path) -> None:
    one, two, whole = (tmp_path / name for name in ("one", "two", "whole"))
    options = (*SMALL, "--batch-size", 128, "--schedule", "constant", "--lr", "0.01", "--ema", "0.9", "-q")
    assert lcnn(*options, "--epochs", 1, "--batch-pieces", 4, "-o", one) == 0
    assert all_ranks(*options, "--epochs", 1, "--batch-pieces", 2, "-o", two) == [0, 0]
    assert losses_of(two) == pytest.approx(losses_of(one), abs=1e-4)
    assert all_ranks(*options, "--epochs", 2, "--batch-pieces", 2, "-o", whole) == [0, 0]
    assert all_ranks("--resume", two, "--epochs", 2, "--allow-change", "-q") == [0, 0]
    assert losses_of(two) == losses_of(whole)
    assert epochs_of(two)[-1]["validation"] == epochs_of(whole)[-1]["validation"]


def test_another_number_of_processes_is_refused(tmp_path: Path, capfd: Any) -> None:
    folder = tmp_path / "run"
    assert lcnn(*SMALL, "--batch-size", 128, "--epochs", 1, "--batches-per-epoch", 2, "-o", folder, "-q") == 0
    assert all_ranks("--resume", folder, "-q") == [2, 2]
    assert "started otherwise: processes was 1, is now 2; leave it, or give --allow-change" in capfd.readouterr().err
    assert all_ranks("--resume", folder, "--epochs", 2, "--allow-change", "-q") == [0, 0]
    assert "changed: epochs was 1, is now 2; processes was 1, is now 2" in capfd.readouterr().err
    assert [line["epoch"] for line in epochs_of(folder)] == [1, 2]


def test_a_process_that_dies_ends_the_others_with_a_line(tmp_path: Path, capfd: Any) -> None:
    port, folder = free_port(), tmp_path / "run"
    options = (*SMALL, "--batch-size", 64, "--epochs", 500, "-q", "-o", folder)
    ranks = [in_child(lambda r=rank: as_rank(r, 2, port, *options)) for rank in (0, 1)]
    while not (folder / "best.pt").exists():
        assert ranks[0].is_alive()
        time.sleep(0.02)
    ranks[1].kill()
    for process in ranks:
        process.join(60)
    assert ranks[0].exitcode == 5
    err = capfd.readouterr().err
    assert re.fullmatch(
        r"lcnn: another process of this run ended \([^();]*Connection (closed|reset) by peer[^();]*\); "
        r"its own message says why; resume from the last state\n",
        err,
    ), err
    assert lcnn("--resume", folder, "--epochs", 1, "--batch-pieces", 2, "--allow-change", "-q") == 0


def test_a_process_that_fails_waits_for_no_sum_under_way(tmp_path: Path) -> None:
    """The second process never adds its part, and is stopped only after the first has ended."""
    script = """
import time, torch, torch.distributed as dist
from lcnn_core import TrainingError, join_processes
with join_processes("cpu") as (processes, _):
    dist.barrier()
    if processes.rank:
        time.sleep(300)
    dist.all_reduce(torch.ones(1), async_op=True)
    raise TrainingError("the loss is nan")
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "WORLD_SIZE": "2"}
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    first, second = (
        subprocess.Popen(
            [sys.executable, "-c", script], env={**environment, "RANK": str(rank)}, stderr=subprocess.PIPE, text=True
        )
        for rank in (0, 1)
    )
    try:
        assert "TrainingError: the loss is nan" in first.communicate(timeout=60)[1]
        assert first.returncode == 1
        assert second.poll() is None
    finally:
        for process in (first, second):
            process.kill()
            process.communicate()


def test_batches_that_do_not_divide(tmp_path: Path, capfd: Any) -> None:
    options = ("--model", "digits-resnet", "--batch-size", 63, "-q", "-o", tmp_path / "run")
    assert all_ranks(*options) == [2, 2]
    assert "batch_size is 63; expected a multiple of 2, the pieces of all 2 processes" in capfd.readouterr().err
    assert not (tmp_path / "run" / "best.pt").exists()


def test_an_unreadable_image_counts_once_however_many_processes_meet_it(tmp_path: Path) -> None:
    """Three epochs in another order each: both processes get to read every image, and so the broken ones."""
    for name in "ab":
        (tmp_path / "train" / name).mkdir(parents=True)
        (tmp_path / "train" / name / "broken.png").write_bytes(b"")
        for number in range(3):
            Image.new("RGB", (8, 8), (80 * number, 0, 0)).save(tmp_path / "train" / name / f"{number}.png")
    options = ("--model", "digits-resnet", "--data", f"imagefolder:{tmp_path}", "--batch-size", 4, "--epochs", 3, "-q")
    assert all_ranks(*options, "--image-size", 8, "--workers", 0, "-o", tmp_path / "two") == [0, 0]
    assert epochs_of(tmp_path / "two")[-1]["unreadable"] == 2


def test_a_world_without_torchrun_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert lcnn("--model", "digits-resnet", "-o", tmp_path / "run") == 2
    err = capsys.readouterr().err
    assert "WORLD_SIZE is set, but the processes do not meet" in err
    assert err.count("\n") == 1


@pytest.mark.slow
@pytest.mark.skipif(not FASHION.is_dir(), reason=f"{FASHION} is not there")
def test_fifty_steps_on_fashion_mnist(tmp_path: Path) -> None:
    options = ("--model", "small-resnet-lcnn", "--data", f"idx:{FASHION}", "--batch-size", 64, "--epochs", 1)
    options += ("--batches-per-epoch", 50, "--log-every", 1, "--lr", "0.1", "--deterministic")
    done = torchrun(2, *options, "-o", tmp_path / "two")
    assert done.returncode == 0, done.stderr
    assert lcnn(*options, "--batch-pieces", 2, "-o", tmp_path / "one", "-q") == 0
    ours, theirs = losses_of(tmp_path / "two"), losses_of(tmp_path / "one")
    assert len(ours) == 50
    assert max(abs(a - b) for a, b in zip(ours, theirs, strict=True)) < 1e-4
