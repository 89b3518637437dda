"""The named ingredients of training to a budget: each does what it says, lands exactly, resumes, refuses nonsense."""

from __future__ import annotations

import copy
import dataclasses
import itertools
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lcnn_core.compress import (
    METHODS,
    FromDenseConfig,
    LowRankConfig,
    calibration_images,
    compress_from_dense,
    train_low_rank,
)
from lcnn_core.compress.allocation import DENSE
from lcnn_core.compress.budget import prune_to_
from lcnn_core.compress.control import Budget
from lcnn_core.compress.fitting import Problem
from lcnn_core.compress.from_dense import choices_of, started
from lcnn_core.compress.ledger import Ledger
from lcnn_core.compress.low_rank import factorized, options_of_ranks
from lcnn_core.compress.measured import Convertible
from lcnn_core.compress.ranking import Fisher, by_magnitude
from lcnn_core.compress.regrowth import regrow_
from lcnn_core.compress.shares import measured_shares, uniform_shares
from lcnn_core.compress.thresholds import SoftThresholds
from lcnn_core.counting import counted_speedup
from lcnn_core.describe import describe
from lcnn_core.errors import CheckpointError, ConfigError
from lcnn_core.layers import LookupConv2d, LookupLinear
from lcnn_core.models import build
from lcnn_core.train import Preparing, StateReached, TrainConfig, evaluate, train
from tests.core.test_compress import lookups, mlp, small_data

SHORT = TrainConfig(2, 16, lr=0.02, clip_norm=1.0)


def net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 12, 3, padding=1),
        nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 16, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10),
    )  # fmt: skip


def spent_by_layer(ledger: Ledger) -> dict[str, int]:
    return {c.name: sum(int(t.count_nonzero()) * cost for t, cost in c.tensors()) for c in ledger.layers}


# --- regrowth --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["two_convs", "dense"])
def test_unmasked_gradients_are_those_of_the_filters(form: Any) -> None:
    """Against autograd through W = P D alone; the answer, and the masked gradient elsewhere, stay what they were."""
    torch.manual_seed(0)
    layer = LookupConv2d(5, 4, 3, padding=1, dictionary_size=3, threshold=0.05, form=form).double()
    x = torch.rand(2, 5, 6, 6, dtype=torch.float64)
    masked = layer(x)
    masked.square().sum().backward()
    before = layer.coefficients.grad.clone()
    layer.coefficients.grad = None
    layer.masked_gradient = False
    assert torch.equal(layer(x), masked)
    layer(x).square().sum().backward()
    free = layer.effective_coefficients().detach().requires_grad_()
    weight = torch.einsum("nkyx,km->nmyx", free, layer.dictionary.detach())
    F.conv2d(x, weight, layer.bias.detach(), padding=1).square().sum().backward()
    torch.testing.assert_close(layer.coefficients.grad, free.grad)
    dead = layer.coefficients.detach().abs() <= 0.05
    assert bool(dead.any())
    assert not bool(before[dead].any())
    assert bool(free.grad[dead].all())


def test_regrowth_brings_back_the_largest_gradients_for_their_cost() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        LookupConv2d(4, 4, 3, padding=1, dictionary_size=2, threshold=0.0),
        LookupConv2d(4, 6, 3, stride=2, dictionary_size=None, threshold=0.0),
    )
    ledger = Ledger.of(model, (4, 9, 9))
    prune_to_(ledger, 4000)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    costs = {"0.coefficients": 81, "0.dictionary": 121, "1.coefficients": 16}
    gains = {
        (name, index): float(model.get_parameter(name).grad[index]) ** 2 / cost
        for name, cost in costs.items()
        for index in itertools.product(*map(range, before[name].shape))
        if before[name][index] == 0
    }
    regrow_(ledger, 6000)
    back = {key for key in gains if bool(model.get_parameter(key[0])[key[1]])}
    spent = sum(costs[name] for name, _ in back)
    left = 6000 - int(sum(costs[name] * before[name].count_nonzero() for name in costs)) - spent
    assert 0 <= left < 121
    assert {name for name, _ in back} == set(costs)
    best = sorted(gains, key=lambda key: -gains[key])
    running = list(itertools.accumulate(costs[name] for name, _ in best))
    assert back >= {key for key, cost in zip(best, running, strict=True) if cost <= spent + left}
    assert all(costs[key[0]] > left or key in back for key in gains)
    for name, index in back:
        value, gradient = (
            float(t[index]) for t in (model.get_parameter(name).detach(), model.get_parameter(name).grad)
        )
        living = before[name][before[name] != 0].square().mean().sqrt()
        assert value * gradient < 0
        assert abs(value) == pytest.approx(1e-3 * float(living), rel=1e-5)
    for name, old in before.items():
        assert torch.equal(model.get_parameter(name)[old != 0], old[old != 0])


def test_entries_come_back_in_a_run_only_where_regrowth_is_asked_for() -> None:
    """Zeros after one epoch that are none after a later one; the last zeros are final, and the landing exact."""
    torch.manual_seed(0)
    data, dense = small_data(images=96), net()

    def came_back(regrowth: float) -> int:
        zeros: list[Tensor] = []
        models: list[nn.Module] = []

        def listen(event: Any) -> None:
            if type(event).__name__ == "TrainingStarted":
                models.append(event.model)
            elif type(event).__name__ == "EpochFinished":
                zeros.append(torch.cat([p.detach().flatten() == 0 for p in models[0].parameters() if p.ndim > 1]))

        run = dataclasses.replace(SHORT, epochs=4)
        model, result = compress_from_dense(
            dense, data, FromDenseConfig(6, cuts=10, regrowth=regrowth, forms="mixed", train=run), listen
        )
        assert 6 <= result.last.counted_speedup < 6.12
        assert torch.equal(zeros[2], zeros[3])
        assert all(layer.masked_gradient for layer in lookups(model).values())
        return int((zeros[0] & ~zeros[1]).sum() + (zeros[1] & ~zeros[2]).sum())

    assert came_back(0.0) == 0
    assert came_back(0.4) > 20


def test_zeros_without_gradient_come_back_last_and_frozen_ones_never() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*(LookupLinear(4, 4, dictionary_size=None, threshold=0.0) for _ in range(2)))
    ledger = Ledger.of(model, (4,))
    with torch.no_grad():
        for layer in model:
            layer.coefficients[:, 1:] = 0  # 4 of 16 entries live
    moved, frozen = model[0].coefficients, model[1].coefficients
    moved.grad = torch.zeros_like(moved)
    moved.grad[:, 1] = 1.0
    regrow_(ledger, 8 + 6)  # the frozen layer's 4, the other's 4, and 6 more
    assert bool((moved[:, 1] < 0).all())
    assert int((moved[:, 2:] > 0).sum()) == 2
    assert int(frozen.count_nonzero()) == 4


# --- rankings --------------------------------------------------------------------------------------------------------


def rises(layer: LookupLinear, x: Tensor, answers: Tensor) -> Tensor:
    """How much the loss rises without each entry of P, tried one by one."""
    found = []
    with torch.no_grad():
        whole = F.cross_entropy(layer(x), answers)
        for index in range(layer.coefficients.numel()):
            kept = layer.coefficients.flatten()[index].clone()
            layer.coefficients.view(-1)[index] = 0
            found.append(F.cross_entropy(layer(x), answers) - whole)
            layer.coefficients.view(-1)[index] = kept
    return torch.stack(found)


def agreement(first: Tensor, second: Tensor) -> float:
    """Spearman's rank correlation."""
    return float(torch.corrcoef(torch.stack([first.argsort().argsort(), second.argsort().argsort()]).double())[0, 1])


def test_fisher_ranks_follow_what_the_loss_loses_where_magnitudes_do_not() -> None:
    """A layer that is as good as it gets on its labels, with inputs of very different sizes."""
    torch.manual_seed(0)
    layer = LookupLinear(12, 4, dictionary_size=None, threshold=0.0).double()
    with torch.no_grad():
        layer.coefficients.copy_(torch.rand_like(layer.coefficients) + 0.2)
    x = torch.randn(20_000, 12, dtype=torch.float64) * torch.logspace(-1, 0, 12)
    answers = torch.distributions.Categorical(logits=layer(x).detach()).sample()
    fisher = Fisher(Ledger.of(nn.Sequential(layer).float(), (12,)))
    layer.double()
    for one, answer in zip(x[:2000], answers[:2000], strict=True):
        layer.zero_grad()
        F.cross_entropy(layer(one[None]), answer[None]).backward()
        fisher.listen()
    (found,) = fisher.ranks()
    measured = rises(layer, x, answers)
    assert agreement(found, measured) > 0.9
    assert agreement(layer.coefficients.detach().abs().flatten(), measured) < 0.6


@pytest.mark.parametrize("size", [None, 3])
def test_fisher_ranks_written_out(size: int | None) -> None:
    """Against a loop over batches and entries: costs of P and D, and a mean that forgets."""
    torch.manual_seed(0)
    model = nn.Sequential(LookupConv2d(4, 6, 3, padding=1, dictionary_size=size, threshold=0.0))
    ledger = Ledger.of(model, (4, 5, 5))
    fisher = Fisher(ledger)
    gradients = []
    for _ in range(4):
        model.zero_grad()
        model(torch.randn(2, 4, 5, 5)).square().sum().backward()
        fisher.listen()
        gradients.append([t.grad.clone() for t, _ in ledger.layers[0].tensors()])
    costs = [25, 49][: 1 if size is None else 2]  # 5 x 5 positions of output, 7 x 7 of padded input
    assert [cost for _, cost in ledger.layers[0].tensors()] == costs
    for place, (tensor, rank) in enumerate(zip(fisher.tensors, fisher.ranks(), strict=True)):
        for index, entry in enumerate(tensor.detach().flatten().tolist()):
            mean = sum(
                0.01 * 0.99 ** (3 - batch) * float(g[place].flatten()[index]) ** 2 for batch, g in enumerate(gradients)
            )
            assert float(rank[index]) == pytest.approx(abs(entry) * (mean / costs[place]) ** 0.5, rel=1e-4)


def test_a_frozen_layer_has_no_gradients_to_rank_by() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*(LookupLinear(6, 6, dictionary_size=None, threshold=0.0) for _ in range(2)))
    model[0].requires_grad_(False)
    ledger = Ledger.of(model, (6,))
    fisher = Fisher(ledger)
    model(torch.randn(3, 6)).sum().backward()
    fisher.listen()
    for found, expected in zip(fisher.ranks(), by_magnitude(ledger), strict=True):
        assert torch.equal(found, expected)


class WithDeadBranch(nn.Module):
    """A residual branch whose last batch norm multiplies by 0: its filters change nothing and have no gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.dead = nn.Conv2d(1, 32, 3, padding=1), nn.Conv2d(32, 32, 3, padding=1)
        self.fc = nn.Linear(32, 10)
        self.norm = nn.BatchNorm2d(32)
        nn.init.zeros_(self.norm.weight)
        self.norm.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        return self.fc((x + self.norm(self.dead(x))).mean((2, 3)))


@pytest.mark.parametrize("forms", ["lookup", "sparse"])
@pytest.mark.parametrize("budgets", ["ranking", "uniform"])
def test_a_layer_without_gradients_keeps_its_floor_and_its_share(forms: str, budgets: str) -> None:
    """Entries that the loss does not mind go by magnitude, and are not mixed up with those that are gone."""
    torch.manual_seed(0)
    data, dense = small_data(images=64), WithDeadBranch()
    config = FromDenseConfig(20, forms=forms, layer_budgets=budgets, train=dataclasses.replace(SHORT, lr=1e-4))
    model, _ = compress_from_dense(dense, data, config)
    ledger = Ledger.of(model, data.input_shape)
    spent = spent_by_layer(ledger)
    if budgets == "uniform":
        shares = uniform_shares(ledger)
        assert spent["dead"] / sum(spent.values()) == pytest.approx(shares["dead"], rel=0.15)
    floor = 0.25 * sum(spent.values()) / int(ledger.costs().sum())
    for tensor in (model.dead.coefficients, model.dead.dictionary):
        if tensor is not None:
            assert int(tensor.count_nonzero()) >= 0.8 * floor * tensor.numel() > 3
    if forms == "sparse" and budgets == "ranking":
        whole = started(dense, config).dead.coefficients.detach()
        kept = model.dead.coefficients != 0
        assert whole[kept].abs().min() > whole[~kept].abs().quantile(0.9)


def test_soft_thresholds_are_in_units_of_the_ranking_that_cuts() -> None:
    """Of two layers of one size the one that the loss minds less bears the cut."""
    torch.manual_seed(0)
    model = nn.Sequential(*(LookupLinear(20, 20, dictionary_size=None, threshold=0.0) for _ in range(2)))
    budget = Budget(Ledger.of(model, (20,)), 2, phase=1.0, cuts=1, floor=0.0, soft=True, ranking="fisher")
    model[0].coefficients.grad = 0.01 * torch.rand_like(model[0].coefficients)
    model[1].coefficients.grad = torch.rand_like(model[1].coefficients)
    before = [layer.coefficients.detach().clone() for layer in model]
    budget.after_batch()
    budget.before_batch(1.0)
    quiet, loud = (float((layer.coefficients.detach() / old).mean()) for layer, old in zip(model, before, strict=True))
    assert quiet < 0.1 < 0.8 < loud
    assert budget.fisher is not None
    assert budget.fisher.squares == [None, None]  # nothing is kept for cuts that do not come


@pytest.mark.parametrize(
    ("made", "resumed", "named"),
    [
        ({"ranking": "magnitude"}, {"ranking": "fisher"}, "ranking"),
        ({"ranking": "fisher"}, {"ranking": "magnitude"}, "ranking"),
        ({"soft": False}, {"soft": True}, "thresholds"),
    ],
)
def test_a_state_of_other_options_is_refused_by_name(made: dict[str, Any], resumed: dict[str, Any], named: str) -> None:
    model = nn.Sequential(LookupLinear(6, 6, dictionary_size=None, threshold=0.0))
    state = Budget(Ledger.of(model, (6,)), 2, **made).state_dict()
    with pytest.raises(CheckpointError, match=f"another choice of {named}; resume with the same"):
        Budget(Ledger.of(model, (6,)), 2, **resumed).load_state_dict(state)


def test_the_baselines_are_cut_by_magnitude_and_the_rankings_differ() -> None:
    assert {name: METHODS[name].config(speedup=5).ranking for name in ("from-dense", "lookup-only")} == {
        "from-dense": "fisher", "lookup-only": "fisher"
    }  # fmt: skip
    assert all(METHODS[name].config(speedup=5).ranking == "magnitude" for name in ("pruning", "published"))
    torch.manual_seed(0)
    data, dense, found = small_data(images=64), net(), []
    for ranking in ("fisher", "magnitude"):
        model, result = compress_from_dense(
            dense, data, FromDenseConfig(6, ranking=ranking, forms="mixed", train=SHORT)
        )
        assert 6 <= result.last.counted_speedup < 6.12
        found.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert not torch.equal(*found)


# --- soft thresholds -------------------------------------------------------------------------------------------------


def test_a_soft_cut_takes_what_a_hard_one_takes_and_shrinks_the_rest_by_the_threshold() -> None:
    """Plain sparse layers, equal factors: everything against soft thresholding written out."""
    torch.manual_seed(0)
    model = nn.Sequential(*(LookupLinear(20, 20, dictionary_size=None, threshold=0.0) for _ in range(2)))
    hard = copy.deepcopy(model)
    prune_to_(Ledger.of(hard, (20,)), 240, floor=0.0)
    before = [layer.coefficients.detach().clone() for layer in model]
    ledger = Ledger.of(model, (20,))
    SoftThresholds(ledger, partial(by_magnitude, ledger)).shrink_(240)
    prune_to_(ledger, 240, floor=0.0)
    ranking = torch.cat([(old.abs() / old.norm() / 1**0.5).flatten() for old in before])
    threshold = float(ranking.sort(descending=True).values[240])
    for layer, twin, old in zip(model, hard, before, strict=True):
        expected = F.softshrink(old / old.norm(), threshold) * old.norm()
        torch.testing.assert_close(layer.coefficients.detach(), expected, rtol=1e-5, atol=1e-7)
        assert torch.equal(layer.coefficients == 0, twin.coefficients == 0)


def test_the_threshold_rises_where_the_loss_wants_smaller_entries() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*(LookupLinear(30, 30, dictionary_size=None, threshold=0.0) for _ in range(2)))
    ledger = Ledger.of(model, (30,))
    soft = SoftThresholds(ledger, partial(by_magnitude, ledger))
    model[0].coefficients.grad = model[0].coefficients.detach().sign()  # descent would shrink all of these
    model[1].coefficients.grad = -model[1].coefficients.detach().sign()
    soft.listen()
    soft.shrink_(900)
    first, second = soft.logarithms
    assert first > 0 > second
    prune_to_(ledger, 900, floor=0.0)
    kept = [int(layer.coefficients.count_nonzero()) for layer in model]
    assert sum(kept) == 900
    assert kept[0] < 0.8 * kept[1]


def test_soft_thresholds_learn_in_a_run_and_land_exactly() -> None:
    torch.manual_seed(0)
    data, dense = small_data(images=96), net()
    found = {}
    for thresholds in ("hard", "soft"):
        config = FromDenseConfig(6, thresholds=thresholds, forms="mixed", train=SHORT)
        states: list[Any] = []
        model, result = compress_from_dense(dense, data, config, states.append)
        assert 6 <= result.last.counted_speedup < 6.12
        found[thresholds] = torch.cat([p.detach().flatten() for p in model.parameters()])
        if thresholds == "soft":
            last = [event for event in states if isinstance(event, StateReached)][-1].state
            assert len({round(value, 6) for value in last["controller"]["thresholds"]["logarithms"]}) > 3
    assert not torch.equal(found["hard"], found["soft"])


@pytest.mark.parametrize("speedup", [1.5, 2.0, 3.0, 8.0])
def test_measured_forms_spend_small_budgets_too(speedup: float) -> None:
    """Filters of 4 shared vectors: the dictionaries that hold them exactly, all whole, cost less than the budget."""
    torch.manual_seed(0)
    convs = [nn.Conv2d(32, 32, 3, padding=1) for _ in range(2)]
    with torch.no_grad():
        for conv in convs:
            conv.weight.copy_(torch.einsum("nkyx,km->nmyx", torch.randn(32, 4, 3, 3), torch.randn(4, 32)) / 24)
    dense = nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), convs[0], nn.ReLU(), convs[1], nn.Flatten(), nn.Linear(2048, 10)
    )
    config = FromDenseConfig(speedup, cuts=3, forms="measured", train=TrainConfig(1, 16, lr=0.001))
    model, result = compress_from_dense(dense, small_data(images=40), config)
    assert speedup <= result.last.counted_speedup <= 1.02 * speedup
    assert (lookups(model)["1"].dictionary is None and lookups(model)["3"].dictionary is None) == (speedup == 1.5)


# --- layer budgets ---------------------------------------------------------------------------------------------------


def test_uniform_budgets_give_every_layer_the_same_speedup() -> None:
    torch.manual_seed(0)
    model = started(build("digits-resnet"), FromDenseConfig(forms="mixed"))
    ledger = Ledger.of(model, (1, 8, 8))
    shares = uniform_shares(ledger)
    assert sum(shares.values()) == pytest.approx(1)
    prune_to_(ledger, ledger.allowance(6), shares=shares)
    for cost in ledger.layers:
        assert cost.dense() / spent_by_layer(ledger)[cost.name] == pytest.approx(6, rel=0.06), cost.name
    assert 6 <= counted_speedup(describe(model, (1, 8, 8)).layers) < 6.03
    ranked = started(build("digits-resnet"), FromDenseConfig(forms="mixed"))
    free = Ledger.of(ranked, (1, 8, 8))
    prune_to_(free, free.allowance(6))
    speedups = [cost.dense() / spent_by_layer(free)[cost.name] for cost in free.layers]
    assert max(speedups) > 1.5 * min(speedups)


def test_measured_budgets_spare_the_layers_whose_errors_matter() -> None:
    """A branch that hardly reaches the answer gets a small part of what its twin gets."""

    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.loud, self.quiet, self.fc = nn.Conv2d(8, 16, 3), nn.Conv2d(8, 16, 3), nn.Linear(16 * 36, 10)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc((self.loud(x) + 0.01 * self.quiet(x)).relu().flatten(1))

    torch.manual_seed(0)
    dense = Branches()
    config = FromDenseConfig(4.0, forms="mixed")
    choices = choices_of(dense, torch.randn(128, 8, 8, 8), config)
    shares = measured_shares(choices)
    ledger = Ledger.of(started(dense, config), (8, 8, 8))
    assert sum(shares.values()) == pytest.approx(1)
    assert set(shares) == {"loud", "quiet", "fc"}
    assert shares["loud"] > 3 * shares["quiet"]
    prune_to_(ledger, ledger.allowance(4), shares=shares)
    spent = spent_by_layer(ledger)
    assert spent["loud"] == pytest.approx(shares["loud"] * sum(spent.values()), rel=0.15)
    assert spent["loud"] > 2 * spent["quiet"]


@pytest.mark.parametrize("budgets", ["uniform", "measured"])
def test_layer_budgets_hold_through_a_run(budgets: str) -> None:
    torch.manual_seed(0)
    data, dense = small_data(images=64), net()
    config = FromDenseConfig(6, layer_budgets=budgets, forms="mixed", train=dataclasses.replace(SHORT, epochs=1))
    model, result = compress_from_dense(dense, data, config)
    assert 6 <= result.last.counted_speedup < 6.12
    ledger = Ledger.of(model, data.input_shape)
    if budgets == "uniform":
        shares: Any = uniform_shares(ledger)
    else:
        shares = measured_shares(choices_of(dense, calibration_images(data, 512), config))
    spent = spent_by_layer(ledger)
    for name, share in shares.items():
        assert spent[name] / sum(spent.values()) == pytest.approx(share, rel=0.15, abs=0.005), name


def test_measured_forms_give_shared_filters_a_dictionary_and_scattered_ones_none() -> None:
    """Filters of few directions, and filters of few entries: each gets the form in which it is exact."""
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Conv2d(16, 24, 3, padding=1), nn.ReLU(), nn.Conv2d(24, 24, 3, padding=1))
    with torch.no_grad():
        dense[0].weight.copy_(torch.einsum("nkyx,km->nmyx", torch.randn(24, 4, 3, 3), torch.randn(4, 16)))
        dense[2].weight.mul_(torch.rand_like(dense[2].weight) < 0.1)
    config = FromDenseConfig(3.5, forms="measured")
    choices = choices_of(dense, torch.randn(64, 16, 8, 8), config)
    assert isinstance(choices["0"].start, int)
    assert choices["2"].start is None
    model = started(dense, config, choices)
    assert model[0].dictionary_size == choices["0"].start
    assert model[2].dictionary is None
    unmeasured = choices_of(dense, torch.randn(64, 16, 8, 8), FromDenseConfig(3.5, 0.3, forms="mixed"))
    assert {name: option.start for name, option in unmeasured.items()} == {"0": 5, "2": 7}


def test_a_layer_of_one_weight_is_measured_and_the_dense_network_stays_in_training() -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.gate, self.fc = nn.Conv2d(1, 8, 3), nn.Linear(1, 1), nn.Linear(288, 10)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            return self.fc(y.flatten(1)) * torch.sigmoid(self.gate(y.mean((1, 2, 3))[:, None]))

    torch.manual_seed(0)
    dense = Gated()
    dense.conv.eval()
    config = FromDenseConfig(4, forms="measured", train=dataclasses.replace(SHORT, epochs=1, lr=0.01))
    model, result = compress_from_dense(dense, small_data(), config)
    assert result.last.counted_speedup >= 4
    assert isinstance(model.gate, LookupLinear)
    assert [dense.training, dense.conv.training, dense.fc.training] == [True, False, True]


@pytest.mark.parametrize("method", ["from-dense", "converted", "post-training", "lookup-only"])
def test_what_is_measured_is_told_before_training(method: str) -> None:
    told: list[Any] = []
    made = METHODS[method]
    more: dict[str, Any] = {"train": dataclasses.replace(SHORT, epochs=1)} if made.trained else {}
    made.compress(build("digits-resnet"), small_data(), made.config(speedup=3.0, **more), told.append)
    preparing = [event for event in told if isinstance(event, Preparing)]
    assert told[: len(preparing)] == preparing
    stages = list(dict.fromkeys(event.what for event in preparing))
    expected = ["measuring inputs", "fitting", "probing", "converting"]
    assert stages == {"from-dense": expected[:3], "lookup-only": []}.get(method, expected)
    assert all(0 <= event.done < event.total for event in preparing)


# --- landing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["digits-resnet", "small-alexnet", "mlp"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"thresholds": "soft", "forms": "mixed"},
        {"regrowth": 0.3, "forms": "mixed"},
        {"forms": "measured", "layer_budgets": "measured", "dictionary_ratio": 0.25},
        {"thresholds": "soft", "regrowth": 0.3, "layer_budgets": "uniform", "forms": "mixed"},
        {"start": "scratch", "distillation": 0.0, "regrowth": 0.2, "threshold_scale": 0.001, "l1_scale": 0.3},
        {"dictionaries": "dense"},
        {"dictionaries": "dense", "forms": "lookup", "regrowth": 0.2, "layer_budgets": "uniform"},
    ],
)
def test_every_ingredient_lands_between_7_35_and_7_65(name: str, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    size = 28 if name == "small-alexnet" else 8
    dense, data = mlp() if name == "mlp" else build(name), small_data(size, images=16)
    config = FromDenseConfig(7.5, cuts=4, train=TrainConfig(1, 4, lr=0.01, clip_norm=1.0), **options)
    model, _ = compress_from_dense(dense, data, config)
    assert 7.5 <= counted_speedup(describe(model, data.input_shape).layers) <= 7.65


@pytest.mark.parametrize("speedup", [3, 10, 20])
def test_dense_dictionaries_lose_whole_rows_that_nothing_reads_and_no_entries(speedup: float) -> None:
    torch.manual_seed(0)
    data, config = small_data(images=16), METHODS["published"].config
    train_config = TrainConfig(1, 4, lr=0.01, clip_norm=1.0)
    model, _ = compress_from_dense(build("digits-resnet"), data, config(speedup, cuts=4, train=train_config))
    shared = [layer for layer in lookups(model).values() if layer.dictionary is not None]
    assert shared
    for layer in shared:
        n, k = layer.coefficients.shape[:2]
        read = layer.coefficients.detach().reshape(layer.groups, n // layer.groups, k, -1).ne(0).any(3).any(1).flatten()
        assert torch.equal((layer.dictionary != 0).all(1), read)
        assert torch.equal((layer.dictionary != 0).any(1), read)


def test_what_was_counted_at_the_last_cut_stays_whatever_threshold_and_penalty_would_take() -> None:
    torch.manual_seed(0)
    data = small_data(images=64)
    config = METHODS["published"].config(
        3, cuts=2, phase=0.2, threshold_scale=0.05, l1_scale=100.0, train=TrainConfig(12, 4, lr=0.02, clip_norm=1.0)
    )
    model, _ = compress_from_dense(build("digits-resnet"), data, config)
    assert 3 <= counted_speedup(describe(model, data.input_shape).layers) <= 3.06


def test_a_budget_that_the_dictionaries_cannot_spend_is_refused() -> None:
    config = FromDenseConfig(3, dictionary_ratio=0.1, forms="mixed", train=SHORT)
    with pytest.raises(
        ConfigError, match=r"speedup of 3 cannot be met: with these .* starts at 6\.\d+x already; choose a larger"
    ):
        compress_from_dense(build("digits-resnet"), small_data(), config)


def test_lookup_only_has_dictionaries_at_small_speedups_too() -> None:
    found = lookups(started(build("digits-resnet"), FromDenseConfig(1.5, forms="lookup")))
    assert all(layer.dictionary is not None for name, layer in found.items() if ".conv" in name)


def test_whole_dictionaries_bound_what_can_be_met() -> None:
    """Of one layer: 6 x 6 positions for each of 8 x 8 entries of D (k of 8 channels), one entry of P: 2,340 MACs."""
    dense = nn.Sequential(nn.Conv2d(8, 16, 3, padding=1))
    config = FromDenseConfig(15, dictionary_ratio=0.9, dictionaries="dense", forms="lookup")
    ledger = Ledger.of(started(dense, config), (8, 4, 4))
    assert ledger.allowance(7, whole=True) == 16 * 8 * 9 * 16 // 7
    with pytest.raises(
        ConfigError, match=r"15 cannot be met: at most 9.\d+, bounded by one entry of each P and the whole"
    ):
        ledger.allowance(15, whole=True)


# --- low rank --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "size"), [("digits-resnet", 8), ("small-resnet", 28), ("small-alexnet", 28)])
def test_low_rank_lands_on_the_asked_speedup(name: str, size: int) -> None:
    """No zero in D or P, one of fewer channels than the input has, and the budget met as near as ranks come; the stem,
    of one channel, is sparse."""
    torch.manual_seed(0)
    dense = build(name)
    for speedup in (3.0, 7.5):
        model = factorized(dense, torch.randn(32, 1, size, size), speedup)
        assert speedup <= counted_speedup(describe(model, (1, size, size)).layers) <= 1.02 * speedup
        assert lookups(model)["conv1"].dictionary is None
        for layer in lookups(model).values():
            if layer.dense_shape[1] == 1:
                assert 0 < layer.coefficients.count_nonzero() < layer.coefficients.numel()
                continue
            assert bool(layer.coefficients.detach().all())
            assert layer.dictionary is not None
            assert layer.dictionary_size < layer.dense_shape[1]


def test_the_error_of_a_rank_is_the_singular_values_that_it_leaves_out() -> None:
    """White inputs: the decomposition weighted by the inputs is then the plain one (Eckart and Young 1936)."""
    torch.manual_seed(0)
    conv = nn.Conv2d(6, 20, 1, bias=False)
    filters = conv.weight.detach().reshape(1, 20, 6, 1)
    layer = Convertible("conv", conv, Problem(filters, torch.eye(6)[None], 16, 16), 1920, torch.zeros(1, 6))
    singular = torch.linalg.svdvals(conv.weight.detach().flatten(1))
    options, _ = options_of_ranks(layer)
    assert [option.start for option in options] == [1, 2, 3, 4, DENSE]  # 26 * 5 entries are more than 120
    for option in options[:-1]:
        left = singular[option.start :].square().sum() / singular.square().sum()
        assert option.error == pytest.approx(float(left), rel=1e-4)
        assert option.cost == 16 * 26 * option.start


def test_low_rank_trains_and_is_refused_beyond_rank_one() -> None:
    data = small_data(images=240)
    torch.manual_seed(0)
    dense = build("digits-resnet")
    train(dense, data, TrainConfig(3, 32, lr=0.05))
    before = copy.deepcopy(dense.state_dict())
    config = LowRankConfig(5, images=128, train=TrainConfig(2, 32, lr=0.05, clip_norm=1.0))
    start = factorized(dense, calibration_images(data, 128), 5)
    model, result = train_low_rank(dense, data, config)
    assert 5 <= result.last.counted_speedup <= 5.1
    stem, before_training = (lookups(network)["conv1"].coefficients != 0 for network in (model, start))
    assert torch.equal(stem, before_training)  # what is zero stays zero
    assert evaluate(model, data.validation).loss < evaluate(start, data.validation).loss
    assert all(torch.equal(value, before[name]) for name, value in dense.state_dict().items())
    with pytest.raises(ConfigError, match=r"speedup of 99 cannot be met: at most \d+.*bounded by the cheapest forms"):
        train_low_rank(dense, data, dataclasses.replace(config, speedup=99.0))
    with pytest.raises(ConfigError, match=r"is already a lookup layer; start from a dense network"):
        train_low_rank(model, data, config)


@pytest.mark.parametrize("images", [-1, 0, 1, 15])
def test_low_rank_wants_images_to_calibrate_on(images: int) -> None:
    with pytest.raises(ConfigError, match=f"images is {images}; expected 16 or more to calibrate on"):
        LowRankConfig(5, images=images)
    with pytest.raises(ConfigError, match=f"{max(images, 0)} calibration images; expected 16 or more"):
        factorized(build("digits-resnet"), torch.randn(max(images, 0), 1, 8, 8), 5)


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"thresholds": "firm"}, r"thresholds is 'firm'; expected one of hard, soft"),
        ({"ranking": "size"}, r"ranking is 'size'; expected one of fisher, magnitude"),
        ({"layer_budgets": "even"}, r"layer_budgets is 'even'; expected one of ranking, uniform, measured"),
        ({"regrowth": 1.0}, r"regrowth 1.0; expected .*0 <= regrowth < 1"),
        ({"regrowth": 0.1, "cuts": 1}, r"regrowth cannot go with a single cut, which is the last; ask for 2"),
        ({"thresholds": "soft", "threshold_scale": 0.001}, r"soft thresholds cannot go with threshold_scale"),
        ({"l1_scale": 0.3}, r"l1_scale needs threshold_scale: .*; give both"),
        (
            {"forms": "measured", "start": "scratch"},
            r"forms 'measured' cannot go with start 'scratch'",
        ),
        ({"layer_budgets": "measured", "start": "scratch"}, r"'measured' cannot go with start 'scratch'.*uniform"),
        ({"forms": "sparse", "dictionary_ratio": 0.5}, r"dictionary_ratio cannot go with forms 'sparse'"),
        ({"dictionaries": "whole"}, r"dictionaries is 'whole'; expected one of sparse, dense"),
        ({"dictionaries": "dense", "forms": "sparse"}, r"dense dictionaries cannot go with forms 'sparse'"),
        (
            {"dictionaries": "dense", "forms": "measured"},
            r"cannot go with forms 'measured', which measures sparse ones",
        ),
        ({"dictionaries": "dense", "thresholds": "soft"}, r"dense dictionaries cannot go with soft thresholds"),
    ],
)
def test_contradictions_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        FromDenseConfig(**options)
