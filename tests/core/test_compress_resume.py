"""A compression that was stopped: every method goes on to the same bits, and measures nothing that it chose before."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lcnn_core.compress import METHODS, FromDenseConfig, compress_from_dense, converted, from_dense, low_rank
from lcnn_core.models import build
from lcnn_core.train import StateReached, TrainConfig, load_state, save_state
from tests.core.test_compress import lookups, small_data
from tests.core.test_compress_options import net


def of_few_directions() -> nn.Module:
    """Its middle layer's filters are what a dictionary holds."""
    torch.manual_seed(0)
    shared = nn.Conv2d(16, 24, 3, padding=1)
    with torch.no_grad():
        shared.weight.copy_(torch.einsum("nkyx,km->nmyx", torch.randn(24, 4, 3, 3), torch.randn(4, 16)) / 12)
    stem, head = nn.Conv2d(1, 16, 3, padding=1), nn.Linear(24 * 64, 10)
    return nn.Sequential(stem, nn.ReLU(), shared, nn.ReLU(), nn.Flatten(), head)


class Kept:
    """The states of a run."""

    def __init__(self) -> None:
        self.states: list[dict[str, Any]] = []

    def __call__(self, event: Any) -> None:
        if isinstance(event, StateReached):
            self.states.append(copy.deepcopy(event.state))


def same(model: nn.Module, other: nn.Module) -> bool:
    ours, theirs = model.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_run_with_all_ingredients_resumes_to_the_same_bits(tmp_path: Path) -> None:
    data, config = small_data(images=60), FromDenseConfig(
        5, cuts=6, thresholds="soft", regrowth=0.3, layer_budgets="uniform", forms="mixed",
        train=TrainConfig(3, 16, lr=0.05, save_every=1, clip_norm=1.0),
    )  # fmt: skip
    torch.manual_seed(0)
    dense, paths = net(), []

    def keep(event: Any) -> None:
        if isinstance(event, StateReached):
            paths.append(tmp_path / f"{len(paths)}.pt")
            save_state(paths[-1], event.state)

    whole, _ = compress_from_dense(dense, data, config, keep)
    for number in range(1, len(paths) - 1, 2):
        again, _ = compress_from_dense(dense, data, config, resume=load_state(paths[number]))
        assert same(again, whole), number


RUN = TrainConfig(2, 16, lr=0.01, save_every=2, clip_norm=1.0)


@pytest.mark.parametrize(
    "options",
    [{}, {"layer_budgets": "measured", "forms": "mixed"}, {"layer_budgets": "measured"}],
    ids=str,
)
def test_what_was_measured_is_not_measured_again(options: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    dense, kept = of_few_directions(), Kept()
    data, config = small_data(images=60), FromDenseConfig(4, cuts=4, train=RUN, **options)  # type: ignore[arg-type]
    whole, _ = compress_from_dense(dense, data, config, kept)
    if config.layer_forms == "measured":
        assert [lookups(whole)[name].dictionary is None for name in ("0", "2", "5")] == [True, False, True]
    monkeypatch.setattr(from_dense, "choices_of", None)
    for state in kept.states[:-1]:
        again, _ = compress_from_dense(dense, data, config, resume=state)
        assert same(again, whole)


def test_a_state_from_before_shares_were_kept_goes_on() -> None:
    dense, kept, data = of_few_directions(), Kept(), small_data(images=60)
    config = FromDenseConfig(4, cuts=4, layer_budgets="measured", forms="mixed", train=RUN)
    whole, _ = compress_from_dense(dense, data, config, kept)
    del kept.states[2]["controller"]["shares"]
    again, _ = compress_from_dense(dense, data, config, resume=kept.states[2])
    assert same(again, whole)


@pytest.mark.parametrize(("name", "measures"), [("converted", (converted, "convert_to_budget")),
                                                ("low-rank", (low_rank, "factorized"))])  # fmt: skip
def test_what_was_converted_is_not_converted_again(
    name: str, measures: tuple[Any, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    dense, kept, data = build("digits-resnet"), Kept(), small_data(images=60)
    method = METHODS[name]
    config = method.config(speedup=3.0, train=dataclasses.replace(RUN, ema=0.9))
    whole, _ = method.compress(dense, data, config, kept)
    monkeypatch.setattr(*measures, None)
    for state in kept.states[:-1]:
        again, _ = method.compress(dense, data, config, resume=state)
        assert same(again, whole)
