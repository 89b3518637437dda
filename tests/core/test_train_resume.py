"""A run that was stopped anywhere goes on to the very bits of the run that was not."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lcnn_core.checkpoint import Normalization
from lcnn_core.compress import FromDenseConfig, compress_from_dense
from lcnn_core.data import Dataset, Split
from lcnn_core.errors import CheckpointError
from lcnn_core.layers import LookupConv2d, LookupLinear
from lcnn_core.train import EpochFinished, StateReached, TrainConfig, load_state, save_state, train
from lcnn_core.train.schedule import SCHEDULES


def data(count: int = 50) -> Dataset:
    def split(images: int) -> Split:
        labels = torch.arange(images) % 3
        return Split(torch.randn(images, 1, 6, 6) + labels.reshape(-1, 1, 1, 1) - 1, labels)

    torch.manual_seed(5)
    return Dataset("noise", (1, 6, 6), ("a", "b", "c"), split(count), split(20), split(20), Normalization((0.5,), (1,)))


def net(dense: bool = False) -> nn.Sequential:
    torch.manual_seed(3)
    first = nn.Conv2d(1, 8, 3) if dense else LookupConv2d(1, 8, 3, dictionary_size=2, threshold=0.05, l1_weight=0.01)
    last = nn.Linear(128, 3) if dense else LookupLinear(128, 3, dictionary_size=4, threshold=0.01, l1_weight=0.01)
    return nn.Sequential(first, nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Dropout(0.4), last)


def equal(a: Any, b: Any) -> bool:
    """Bit for bit, whatever the nesting; wall times aside."""
    if isinstance(a, Tensor):
        return torch.equal(a, b) and a.dtype == b.dtype
    if isinstance(a, Mapping):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a if key != "seconds")
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


class Keeper:
    """Keeps every state as a file of its own, as a process that ended there would have left it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.paths, self.epochs = folder, [], []  # type: ignore[var-annotated]
        folder.mkdir()

    def __call__(self, event: Any) -> None:
        if isinstance(event, StateReached):
            self.paths.append(self.folder / f"{len(self.paths):03d}.pt")
            save_state(self.paths[-1], event.state)
        if isinstance(event, EpochFinished):
            self.epochs.append(dataclasses.replace(event, seconds=0.0))


CONFIGS = {
    "everything": TrainConfig(
        3,
        12,
        lr=0.1,
        shift=1,
        batch_pieces=2,
        batches_per_epoch=3,
        save_every=1,
        mixup=0.2,
        ema=0.9,
        warmup=1.0,
        seed=3,
    ),
    "adam": TrainConfig(2, 16, optimizer="adam", schedule=SCHEDULES["constant"], save_every=2, clip_norm=1.0),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_resumed_from_any_state_the_end_is_the_same(name: str, tmp_path: Path) -> None:
    config, whole = CONFIGS[name], Keeper(tmp_path / "whole")
    train(net(), data(), config, whole)
    assert len(whole.paths) == (10 if name == "everything" else 5)
    for number, path in enumerate(whole.paths):
        again, model, images = Keeper(tmp_path / str(number)), net(), data()
        random.seed(number)
        np.random.seed(number)
        torch.manual_seed(number)
        before = (random.getstate(), torch.get_rng_state(), np.random.get_state()[1].tolist())  # type: ignore[index]
        result = train(model, images, config, again, resume=load_state(path))
        after = (random.getstate(), torch.get_rng_state(), np.random.get_state()[1].tolist())  # type: ignore[index]
        assert equal(before, after)
        expected = whole.paths[number + 1 :] if number else whole.paths
        assert len(again.paths) == len(expected)
        for ours, theirs in zip(again.paths, expected, strict=True):
            assert equal(load_state(ours), load_state(theirs)), (path.name, theirs.name)
        assert [dataclasses.replace(event, seconds=0.0) for event in result.history] == whole.epochs


def test_what_a_listener_draws_is_part_of_the_state(tmp_path: Path) -> None:
    """Python's and NumPy's generators go on too: an augmentation or controller of the user's may use them."""
    drawn: dict[str, list[float]] = {"whole": [], "resumed": []}

    def listening(key: str, keeper: Keeper) -> Any:
        def listen(event: Any) -> None:
            if isinstance(event, EpochFinished):
                drawn[key].append(random.random() + np.random.rand() + float(torch.rand(())))
            keeper(event)

        return listen

    config, whole = TrainConfig(3, 25), Keeper(tmp_path / "whole")
    train(net(), data(), config, listening("whole", whole))
    random.seed(99)
    resumed = Keeper(tmp_path / "resumed")
    train(net(), data(), config, listening("resumed", resumed), resume=load_state(whole.paths[2]))
    assert drawn["resumed"] == drawn["whole"][2:]


def test_a_budget_goes_on_where_it_was(tmp_path: Path) -> None:
    config = FromDenseConfig(3.0, cuts=5, train=TrainConfig(3, 16, lr=0.05, save_every=2, clip_norm=1.0))
    dense, whole = net(dense=True), Keeper(tmp_path / "whole")
    compress_from_dense(dense, data(), config, whole)
    for number in (2, 4):
        again = Keeper(tmp_path / str(number))
        compress_from_dense(dense, data(), config, again, resume=load_state(whole.paths[number]))
        assert equal(load_state(again.paths[-1]), load_state(whole.paths[-1]))


def test_states_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    keeper, config = Keeper(tmp_path / "run"), TrainConfig(2, 10, save_every=2)
    train(net(), data(), config, keeper)
    middle = load_state(keeper.paths[1])
    with pytest.raises(
        CheckpointError, match=r"weights do not fit the network of this run: '0.weight', '5.weight' missing"
    ):
        train(net(dense=True), data(), config, resume=middle)
    with pytest.raises(CheckpointError, match=r"the state is of a run on 50 training images, now there are 40"):
        train(net(), data(40), dataclasses.replace(config, batch_size=8), resume=middle)
    with pytest.raises(CheckpointError, match=r"in the middle of an epoch of 5 batches in 1 pieces, now there are 2"):
        train(net(), data(), dataclasses.replace(config, batch_size=25), resume=middle)
    with pytest.raises(CheckpointError, match=r"another choice of ema; resume with the same"):
        train(net(), data(), dataclasses.replace(config, ema=0.9), resume=middle)
    with pytest.raises(CheckpointError, match=r"nowhere.pt does not exist; expected the state of a run"):
        load_state(tmp_path / "nowhere.pt")
    torch.save({"model": {}}, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match=r"other.pt is no state of a run; expected the state.pt of lcnn train"):
        load_state(tmp_path / "other.pt")
    torch.save({"format": "lcnn-run", "format_version": 7}, tmp_path / "newer.pt")
    with pytest.raises(CheckpointError, match=r"newer.pt has format_version 7; this release reads 1"):
        load_state(tmp_path / "newer.pt")
    longer = train(net(), data(), dataclasses.replace(config, epochs=3), resume=load_state(keeper.paths[-1]))
    assert [event.epoch for event in longer.history] == [1, 2, 3]
