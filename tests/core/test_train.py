"""Training against brute-force loops: objective, zeros kept, schedules, events, reproducibility, damage."""

from __future__ import annotations

import copy
import dataclasses
import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from lcnn_core.checkpoint import Normalization
from lcnn_core.data import Dataset, Split
from lcnn_core.errors import ConfigError, TrainingError
from lcnn_core.layers import LookupConv2d, LookupLinear
from lcnn_core.train import (
    OPTIMIZERS,
    SCHEDULES,
    BatchFinished,
    CrossEntropy,
    Distillation,
    EpochFinished,
    StateReached,
    TrainConfig,
    TrainingFinished,
    TrainingStarted,
    evaluate,
    keep_zeros,
    l1_penalty,
    train,
)
from lcnn_core.train.batches import Order, batch_count, shifted
from lcnn_core.train.evaluation import label_ranks


def split(count: int, classes: int = 3, seed: int = 0) -> Split:
    """Images whose brightest corner says their class: learnable in a moment."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    images = torch.randn(count, 1, 6, 6, generator=generator) * 0.3
    for number, label in enumerate(labels.tolist()):
        images[number, 0, 2 * (label // 2) : 2 * (label // 2) + 3, 3 * (label % 2) : 3 * (label % 2) + 3] += 1.5
    return Split(images, labels)


def small_data(train_count: int = 50) -> Dataset:
    names = ("a", "b", "c")
    normalization = Normalization((0.5,), (0.25,))
    return Dataset("corners", (1, 6, 6), names, split(train_count), split(20, seed=1), split(20, seed=2), normalization)


def small_net(l1_weight: float = 0.0, threshold: float = 0.02) -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(
        LookupConv2d(1, 8, 3, padding=1, bias=False, dictionary_size=None, threshold=threshold, l1_weight=l1_weight),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        LookupConv2d(8, 8, 3, stride=2, dictionary_size=3, threshold=threshold, l1_weight=l1_weight),
        nn.ReLU(),
        nn.Flatten(),
        LookupLinear(32, 3, dictionary_size=5, threshold=threshold, l1_weight=l1_weight),
    )


# --- objective ---------------------------------------------------------------------------------------------------


def test_l1_gradient_is_the_published_sign_rule() -> None:
    net = small_net(l1_weight=0.25, threshold=0.1)
    penalty = l1_penalty(net)
    penalty.backward()
    total = 0.0
    for layer in (net[0], net[3], net[6]):
        coefficients = layer.coefficients.detach()
        expected = torch.zeros_like(coefficients)
        for index in np.ndindex(*coefficients.shape):
            if abs(float(coefficients[index])) > 0.1:
                expected[index] = 0.25 * math.copysign(1, float(coefficients[index]))
                total += 0.25 * abs(float(coefficients[index]))
        torch.testing.assert_close(layer.coefficients.grad, expected, rtol=0, atol=0)
    assert float(penalty.detach()) == pytest.approx(total, rel=1e-5)


def test_distillation_is_cross_entropy_plus_softened_divergence() -> None:
    teacher, student = nn.Linear(4, 3).double(), nn.Linear(4, 3).double()
    x, labels = torch.randn(5, 4).double(), torch.tensor([0, 1, 2, 0, 1])
    loss = Distillation(teacher, temperature=3.0, weight=0.6)(student(x), x, labels)
    t, s = (model(x).detach().numpy() for model in (teacher, student))
    hard = soft = 0.0
    for row in range(5):
        p = np.exp(t[row] / 3) / np.exp(t[row] / 3).sum()
        q = np.exp(s[row] / 3) / np.exp(s[row] / 3).sum()
        soft += float((p * np.log(p / q)).sum()) * 9 / 5
        hard += float(-np.log(np.exp(s[row]) / np.exp(s[row]).sum())[labels[row]]) / 5
    assert float(loss.detach()) == pytest.approx(0.4 * hard + 0.6 * soft, rel=1e-10)
    loss.backward()
    assert teacher.weight.grad is None
    assert student.weight.grad is not None


def test_distillation_refuses_bad_values() -> None:
    with pytest.raises(ConfigError, match=r"distillation weight is 1.5; expected 0 to 1"):
        Distillation(nn.Identity(), weight=1.5)
    with pytest.raises(ConfigError, match=r"distillation temperature is 0; expected a finite number above 0"):
        Distillation(nn.Identity(), temperature=0)


# --- once zero, stays zero ---------------------------------------------------------------------------------------


def brute_sgd(p: float, g: float, state: dict, lr: float, decay: float, momentum: float) -> float:
    g += decay * p
    state["b"] = g if "b" not in state else momentum * state["b"] + g
    return p - lr * state["b"]


def brute_adam(p: float, g: float, state: dict, lr: float, decay: float, momentum: float) -> float:
    g += decay * p
    state["t"] = state.get("t", 0) + 1
    state["m"] = momentum * state.get("m", 0.0) + (1 - momentum) * g
    state["v"] = 0.999 * state.get("v", 0.0) + 0.001 * g * g
    m, v = state["m"] / (1 - momentum ** state["t"]), state["v"] / (1 - 0.999 ** state["t"])
    return p - lr * m / (math.sqrt(v) + 1e-8)


BRUTE = {"sgd": brute_sgd, "adam": brute_adam}
STATE = {"sgd": {"momentum_buffer": "b"}, "adam": {"exp_avg": "m", "exp_avg_sq": "v"}}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_keep_zeros_is_the_step_by_step_rule(name: str) -> None:
    """Every entry of P and D on its own, in float64: zero before the step means zero, and no memory, after it."""
    layer = LookupLinear(6, 5, bias=False, dtype=torch.float64, dictionary_size=4, threshold=0.12, l1_weight=0.05)
    with torch.no_grad():
        layer.dictionary[1, 2] = layer.dictionary[3] = 0
    optimizer = OPTIMIZERS[name](layer, 0.9)
    for group in optimizer.param_groups:
        group.update(lr=0.02, weight_decay=0.1)
    keep_zeros(optimizer, layer)
    x, goal = torch.randn(9, 6).double(), torch.randn(9, 5).double()
    parameters = (layer.coefficients, layer.dictionary)
    values = [p.detach().clone().numpy() for p in parameters]
    states: list[dict] = [{}, {}]
    died = 0
    for step in range(25):
        optimizer.zero_grad()
        (((layer(x) - goal) ** 2).mean() + l1_penalty(layer)).backward()
        for value, parameter, state, limit in zip(values, parameters, states, (0.12, 0.0), strict=True):
            for index in np.ndindex(*value.shape):
                dead = abs(value[index]) <= limit
                died += dead and step > 0
                own = state.setdefault(index, {})
                moved = BRUTE[name](value[index], float(parameter.grad[index]), own, 0.02, 0.1, 0.9)
                value[index] = 0.0 if dead else moved
                own.update({key: 0.0 for key in own if key != "t" and dead})
        optimizer.step()
        for value, parameter in zip(values, parameters, strict=True):
            np.testing.assert_allclose(parameter.detach().numpy(), value, rtol=1e-9, atol=1e-12)
        for parameter, state, names in zip(parameters, states, (STATE[name],) * 2, strict=True):
            for theirs, ours in names.items():
                expected = [state[index].get(ours, 0.0) for index in np.ndindex(*parameter.shape)]
                found = optimizer.state[parameter][theirs].flatten().tolist()
                np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)
    assert died
    assert int((layer.coefficients == 0).sum()) > int((np.abs(values[0]) > 0.12).sum() == 20)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_without_keep_zeros_momentum_revives_entries(name: str) -> None:
    """The defect of the released program, shown on ours: what keep_zeros is for."""
    revived = {}
    for kept in (True, False):
        layer = LookupLinear(6, 5, bias=False, dictionary_size=None, threshold=0.05)
        with torch.no_grad():
            layer.coefficients.fill_(0.2)
        optimizer = OPTIMIZERS[name](layer, 0.9)
        for group in optimizer.param_groups:
            group["lr"] = 0.01
        end = keep_zeros(optimizer, layer)
        if not kept:
            end()
        dead = torch.zeros(5, 6, dtype=torch.bool)
        for _ in range(40):
            optimizer.zero_grad()
            layer(torch.ones(1, 6)).sum().backward()
            optimizer.step()
            dead |= layer.coefficients.detach().abs() <= 0.05
        revived[kept] = bool((layer.coefficients.detach()[dead] != 0).any())
    assert revived == {True: False, False: True}


def test_keep_zeros_holds_the_s_largest_rule_too() -> None:
    layer = LookupConv2d(4, 6, 3, dictionary_size=5, lookups_per_position=2, threshold=0.0)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)
    keep_zeros(optimizer, layer)
    before = layer.effective_coefficients().detach() != 0
    layer(torch.randn(2, 4, 5, 5)).square().mean().backward()
    optimizer.step()
    assert torch.equal(layer.coefficients.detach() != 0, before)
    assert bool((before.sum(1) == 2).all())


# --- schedules ---------------------------------------------------------------------------------------------------


def test_published_schedules_epoch_by_epoch() -> None:
    alexnet = [1e-2] * 18 + [5e-3] * 11 + [1e-3] * 14 + [5e-4] * 9 + [1e-4] * 3
    resnet = [0.1] * 7 + [0.03] * 9 + [0.01] * 9 + [0.003] * 5 + [0.001] * 5
    for name, table in (("alexnet", alexnet), ("resnet", resnet)):
        config = TrainConfig(schedule=SCHEDULES[name], epochs=len(table))
        assert [config.rate(epoch + 0.5) for epoch in range(len(table))] == pytest.approx(table)
    decay = [SCHEDULES["resnet"].weight_decay(epoch) for epoch in range(35)]
    assert decay == [5e-4] * 16 + [0.0] * 19
    assert {SCHEDULES["alexnet"].weight_decay(epoch) for epoch in range(60)} == {0.0}


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_reaches_its_peak_and_scales(name: str) -> None:
    plain = TrainConfig(schedule=SCHEDULES[name], epochs=40)
    scaled = dataclasses.replace(plain, lr=3 * SCHEDULES[name].peak)
    rates = [plain.rate(epoch / 10) for epoch in range(401)]
    assert max(rates) == pytest.approx(SCHEDULES[name].peak, rel=1e-3)
    assert min(rates) >= 0
    assert [scaled.rate(epoch / 10) for epoch in range(401)] == pytest.approx([3 * rate for rate in rates])


def test_one_cycle_warms_up_then_falls_to_zero() -> None:
    config = TrainConfig(schedule=SCHEDULES["one-cycle"], epochs=10, lr=0.3)
    rates = [config.rate(epoch / 10) for epoch in range(101)]
    assert rates[0] == pytest.approx(0.3 * 0.04)
    assert rates.index(max(rates)) == 30
    assert all(a < b for a, b in pairwise(rates[:31]))
    assert all(a > b for a, b in pairwise(rates[30:]))
    assert rates[-1] == pytest.approx(0, abs=1e-12)


class Recorder:
    """Listens, and notes what the optimizer of the run was set to."""

    def __init__(self) -> None:
        self.events: list[Any] = []

    def __call__(self, event: Any) -> None:
        self.events.append(event)

    def of(self, kind: type) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]


@pytest.mark.parametrize(
    ("given_decay", "expected"), [(None, [5e-4] * 16 + [0.0] * 2), (0.01, [0.01] * 18), (0.0, [0.0] * 18)]
)
def test_weight_decay_given_by_the_user_beats_the_schedules(
    given_decay: float | None, expected: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[float] = []
    step = torch.optim.SGD.step

    def spying(self: torch.optim.SGD, *args: Any) -> Any:
        used.append(self.param_groups[0]["weight_decay"])
        return step(self, *args)

    monkeypatch.setattr(torch.optim.SGD, "step", spying)
    config = TrainConfig(epochs=18, batch_size=50, schedule=SCHEDULES["resnet"], weight_decay=given_decay, lr=0.001)
    recorder = Recorder()
    train(small_net(), small_data(), config, recorder)
    assert used == expected
    assert [event.weight_decay for event in recorder.of(EpochFinished)] == expected


# --- the loop ----------------------------------------------------------------------------------------------------


def brute_train(net: nn.Module, data: Dataset, epochs: int, size: int, lr: float, clip: float) -> nn.Module:
    """SGD with momentum, clipping and the published gradient rule, written out on plain tensors."""
    generator = torch.Generator().manual_seed(7)
    buffers: dict[str, Tensor] = {}
    for _ in range(epochs):
        net.train()
        order = torch.randperm(len(data.train), generator=generator)
        for chosen in order.split(size):
            logits = net(data.train.images[chosen])
            loss = -torch.log_softmax(logits, 1)[range(len(chosen)), data.train.labels[chosen]].mean()
            named = dict(net.named_parameters())
            grads = dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True))
            with torch.no_grad():
                for name, p in named.items():
                    if name.endswith("coefficients"):
                        layer = net.get_submodule(name.rpartition(".")[0])
                        grads[name] = grads[name] + layer.l1_weight * p.sign() * (p.abs() > layer.threshold)
                norm = math.sqrt(sum(float((g**2).sum()) for g in grads.values()))
                for name, p in named.items():
                    dead = torch.zeros_like(p, dtype=torch.bool)
                    if name.endswith("coefficients"):
                        dead = p.abs() <= net.get_submodule(name.rpartition(".")[0]).threshold
                    g = grads[name] * min(1.0, clip / (norm + 1e-6))
                    buffers[name] = 0.9 * buffers[name] + g if name in buffers else g.clone()
                    p -= lr * buffers[name]
                    p[dead] = 0
                    buffers[name][dead] = 0
    return net


def test_the_loop_is_the_brute_force_loop() -> None:
    data = small_data(50)
    config = TrainConfig(3, 16, schedule=SCHEDULES["constant"], lr=0.05, clip_norm=0.5, seed=7)
    ours, theirs = small_net(0.01).double(), small_net(0.01).double()
    data = dataclasses.replace(
        data,
        **{
            name: Split(getattr(data, name).images.double(), getattr(data, name).labels)
            for name in ("train", "validation")
        },
    )
    result = train(ours, data, config)
    brute_train(theirs, data, 3, 16, 0.05, 0.5)
    for (name, ours_value), theirs_value in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
        torch.testing.assert_close(ours_value, theirs_value, rtol=1e-9, atol=1e-11, msg=name)
    nnz = int(sum((layer.effective_coefficients() != 0).sum() for layer in (ours[0], ours[3], ours[6])))
    size = sum(layer.coefficients.numel() for layer in (ours[0], ours[3], ours[6]))
    densities = result.last.densities
    assert set(densities) == {"0", "3", "6"}
    assert sum(densities[name] * ours.get_submodule(name).coefficients.numel() for name in densities) == pytest.approx(
        nnz
    )
    assert nnz < size


def test_counted_speedup_of_an_epoch_is_counted_by_hand() -> None:
    net = small_net()
    result = train(net, small_data(), TrainConfig(1, 25))
    nnz = {name: int(net.get_submodule(name).effective_coefficients().count_nonzero()) for name in ("0", "3", "6")}
    dense = 8 * 9 * 36 + 8 * 8 * 9 * 4 + 32 * 3
    macs = nnz["0"] * 36 + nnz["3"] * 4 + 3 * 8 * 36 + nnz["6"] + 5 * 32
    assert result.last.counted_speedup == pytest.approx(dense / macs, rel=1e-12)


def test_training_learns_and_tells_its_events_in_order() -> None:
    recorder = Recorder()
    result = train(small_net(), small_data(50), TrainConfig(8, 16, lr=0.1), recorder)
    assert evaluate(small_net(), small_data().test).top1 < 0.8
    assert result.last.validation.top1 == 1.0
    kinds = [type(event) for event in recorder.events]
    epoch = [*[BatchFinished] * 4, EpochFinished, StateReached]
    assert kinds == [TrainingStarted, StateReached, *epoch * 8, TrainingFinished]
    started = recorder.of(TrainingStarted)[0]
    assert (started.epochs, started.batches, started.images) == (8, 4, 50)
    assert [(event.epoch, event.batch) for event in recorder.of(BatchFinished)[:5]] == [
        (1, 1),
        (1, 2),
        (1, 3),
        (1, 4),
        (2, 1),
    ]
    assert result.history == tuple(recorder.of(EpochFinished))
    merits = [(event.validation.top1, -event.validation.loss) for event in result.history]
    assert [event.best for event in result.history] == [
        merit > max([(-1, 0), *merits[:i]]) for i, merit in enumerate(merits)
    ]
    assert result.best_epoch == 1 + merits.index(max(merits))
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.last.loss = 0  # type: ignore[misc]


def test_running_accuracy_is_over_the_last_hundred_batches() -> None:
    """A model that answers class 0 for the first 100 batches seen and nothing right afterwards."""

    class Forgets(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bias = nn.Parameter(torch.zeros(3))
            self.seen = 0

        def forward(self, x: Tensor) -> Tensor:
            self.seen += self.training
            wrong = self.seen > 100
            return self.bias * 0 + x.new_tensor([[not wrong, wrong, 0]]).repeat(len(x), 1)

    zeros = Split(torch.zeros(300, 1, 6, 6), torch.zeros(300, dtype=torch.int64))
    data = dataclasses.replace(small_data(), train=zeros)
    recorder = Recorder()
    train(Forgets(), data, TrainConfig(1, 2), recorder)
    running = [event.running_accuracy for event in recorder.of(BatchFinished)]
    assert running[99] == 1.0
    assert running[110] == pytest.approx(0.89)
    assert running[149] == pytest.approx(0.5)
    assert recorder.of(EpochFinished)[0].train_accuracy == pytest.approx(100 / 150)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_run_is_bit_reproducible_and_the_seed_matters(name: str) -> None:
    def run(seed: int) -> dict[str, Tensor]:
        torch.rand(seed * 3 + 1)
        torch.manual_seed(3)
        net = nn.Sequential(*small_net(), nn.Dropout(0.3))
        before = torch.get_rng_state()
        train(net, small_data(), TrainConfig(2, 16, optimizer=name, shift=1, seed=seed))
        assert torch.equal(torch.get_rng_state(), before)
        return net.state_dict()

    first, second, other = run(1), run(1), run(2)
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not all(torch.equal(first[key], other[key]) for key in first)


@given(st.integers(1, 70), st.integers(1, 20), st.integers(1, 3), st.integers(1, 9))
def test_every_pass_uses_every_image_once_however_it_is_asked_for(
    images: int, size: int, pieces: int, most: int
) -> None:
    size *= pieces
    if images < pieces:
        with pytest.raises(ConfigError, match=f"{pieces} batch pieces, but {images} training images"):
            Order(images, size, pieces, seed=0)
        return
    order, passes = Order(images, size, pieces, seed=0), []
    for _ in range(2):
        seen = []
        while sum(map(len, seen)) < images:
            for batch in order.ahead(most):
                seen.append(batch)
                order.advance()
        assert len(seen) == batch_count(images, size, pieces)
        assert sorted(torch.cat(seen).tolist()) == list(range(images))
        assert all(len(batch) == size for batch in seen[:-1])
        assert size == pieces or images < 2 * pieces or len(seen[-1]) >= 2 * pieces
        passes.append(torch.cat(seen))
    assert images < 9 or not torch.equal(*passes)


def test_shifts_move_images_and_fill_with_the_background() -> None:
    images = torch.arange(2 * 3 * 4 * 5).float().reshape(2, 3, 4, 5) + 10
    background = torch.tensor([-1.0, -2.0, -3.0])
    moved = set()
    for seed in range(60):
        moves = torch.randint(0, 3, (2, 2), generator=torch.Generator().manual_seed(seed))
        out = shifted(images, 1, moves, background)
        for image, result in zip(images, out, strict=True):
            found = []
            for dy in (-1, 0, 1):
                for dx in (-1, 0, 1):
                    expected = background.reshape(3, 1, 1).expand(3, 4, 5).clone()
                    for y in range(4):
                        for x in range(5):
                            if 0 <= y + dy < 4 and 0 <= x + dx < 5:
                                expected[:, y, x] = image[:, y + dy, x + dx]
                    if torch.equal(expected, result):
                        found.append((dy, dx))
            assert len(found) == 1
            moved.add(found[0])
    assert len(moved) == 9


# --- evaluation --------------------------------------------------------------------------------------------------


@given(st.integers(1, 9), st.data())
def test_ranks_against_sorting_with_ties(classes: int, data: st.DataObject) -> None:
    logits = data.draw(
        st.lists(st.lists(st.integers(-2, 2), min_size=classes, max_size=classes), min_size=1, max_size=6)
    )
    labels = [data.draw(st.integers(0, classes - 1)) for _ in logits]
    ranks = label_ranks(torch.tensor(logits).float(), torch.tensor(labels)).tolist()
    for row, label, rank in zip(logits, labels, ranks, strict=True):
        assert sorted(range(classes), key=lambda c: (-row[c], c))[rank] == label


class Fixed(nn.Module):
    """Answers the image's own pixels."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)


@pytest.mark.parametrize("batch_size", [1, 3, 7, 100])
def test_accuracy_counts_every_image_whatever_the_batches(batch_size: int) -> None:
    images, labels = torch.randn(7, 1, 2, 4), torch.tensor([0, 1, 2, 3, 4, 5, 7])
    order = images.flatten(1).argsort(dim=1, descending=True)
    accuracy = evaluate(Fixed(), Split(images, labels), batch_size)
    assert accuracy.top1 == sum(int(labels[i]) == int(order[i, 0]) for i in range(7)) / 7
    assert accuracy.top5 == sum(int(labels[i]) in order[i, :5].tolist() for i in range(7)) / 7
    assert accuracy.count == 7
    assert accuracy.loss == pytest.approx(float(nn.functional.cross_entropy(images.flatten(1), labels)), rel=1e-5)


def test_top5_with_fewer_classes_is_one_and_modes_are_put_back() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(36, 3))
    net.train()
    net[1].eval()
    assert evaluate(net, small_data().test).top5 == 1.0
    assert [module.training for module in net] == [True, False, True]


def test_evaluation_refuses_what_does_not_fit() -> None:
    images = torch.randn(3, 1, 2, 2)
    with pytest.raises(ConfigError, match=r"the model answers 4 classes, but a label is 6; build it for 7 classes"):
        evaluate(Fixed(), Split(images, torch.tensor([0, 6, 1])))
    with pytest.raises(ConfigError, match=r"output has shape \(3, 1, 2, 2\); expected \(3, classes\)"):
        evaluate(nn.Identity(), Split(images, torch.tensor([0, 1, 2])))
    with pytest.raises(ConfigError, match=r"the split to evaluate on has no images"):
        evaluate(Fixed(), Split(images[:0], torch.tensor([], dtype=torch.int64)))
    with pytest.raises(TrainingError, match=r"the model answers NaN in evaluation"):
        evaluate(Fixed(), Split(images * float("nan"), torch.tensor([0, 1, 2])))


# --- damage ------------------------------------------------------------------------------------------------------


class Poison(nn.Module):
    """From its ``after``-th training batch on, returns NaN forwards or makes the gradient NaN backwards."""

    def __init__(self, after: int, where: str) -> None:
        super().__init__()
        self.after, self.where, self.seen = after, where, 0

    def forward(self, x: Tensor) -> Tensor:
        self.seen += self.training
        if not self.training or self.seen < self.after:
            return x
        if self.where == "forward":
            return x * float("nan")
        return x + ((x - x.detach()).clamp_min(0).sqrt() if x.requires_grad else 0)


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("forward", r"epoch 2, batch 3: the loss is nan: the output of layer 'bad' is not finite; lower"),
        (
            "backward",
            r"epoch 2, batch 3: the gradient's norm is nan: the gradient at the output of layer 'relu' is not",
        ),
    ],
)
def test_nan_stops_the_run_naming_epoch_batch_and_layer(where: str, message: str) -> None:
    net = nn.Sequential()
    for name, module in zip(("conv", "norm", "relu"), small_net()[:3], strict=True):
        net.add_module(name, module)
    net.add_module("bad", Poison(7, where))
    net.add_module("flat", nn.Flatten())
    net.add_module("fc", nn.Linear(288, 3))
    recorder = Recorder()
    with pytest.raises(TrainingError, match=message):
        train(net, small_data(50), TrainConfig(5, 16), recorder)
    assert len(recorder.of(EpochFinished)) == 1
    assert all(bool(p.isfinite().all()) for p in net.parameters())


@pytest.mark.parametrize(
    ("l1_weight", "scale", "message"),
    [
        (0.0, 1e25, r"epoch 1, batch 1: '1.running_var' is not finite after the last step; lower the learning rate"),
        (
            1e15,
            1.0,
            r"epoch 1, validation: the model answers NaN in evaluation: the output of layer '3' is not finite; l",
        ),
        (
            1e30,
            1.0,
            r"epoch 1, batch 1: the gradient's norm is inf: every layer's output and gradient is finite, but t",
        ),
    ],
)
def test_overflow_in_the_last_step_is_never_the_best(l1_weight: float, scale: float, message: str) -> None:
    recorder = Recorder()
    data = small_data(50)
    data = dataclasses.replace(data, train=Split(data.train.images * scale, data.train.labels))
    with pytest.raises(TrainingError, match=message):
        train(small_net(l1_weight), data, TrainConfig(1, 50, lr=1e6, momentum=0.0), recorder)
    assert not recorder.of(EpochFinished)


def test_images_that_are_not_finite_are_named() -> None:
    data = small_data(20)
    data.train.images[4, 0, 0, 0] = float("inf")
    with pytest.raises(
        TrainingError, match=r"epoch 1, batch 1: the loss is nan: the images of this batch are not finite"
    ):
        train(small_net(), data, TrainConfig(1, 20))


def test_a_model_for_fewer_classes_is_refused() -> None:
    data = dataclasses.replace(small_data(), train=split(30, classes=5))
    with pytest.raises(ConfigError, match=r"the model answers 3 classes, but a label is 4"):
        train(small_net(), data, TrainConfig(1, 30))


BAD = {
    "epochs": (0, r"epochs is 0; expected a whole number of 1 or more"),
    "batch_size": (1.5, r"batch_size is 1.5; expected a whole number"),
    "optimizer": ("lbfgs", r"optimizer is 'lbfgs'; expected one of sgd, adam"),
    "momentum": (1.0, r"momentum is 1.0; expected 0 or more and below 1"),
    "lr": (float("nan"), r"lr is nan; expected a number above 0 and at most 1e\+06"),
    "clip_norm": (-1.0, r"clip_norm is -1.0; expected a number above 0"),
    "weight_decay": (-0.1, r"weight_decay is -0.1; expected a number from 0 to 1e\+06"),
    "shift": (-1, r"shift is -1; expected a whole number of 0 or more"),
    "seed": (-1, r"seed is -1; expected a whole number of 0 or more"),
}


@pytest.mark.parametrize("option", BAD)
def test_bad_options_name_value_and_expectation(option: str) -> None:
    value, message = BAD[option]
    with pytest.raises(ConfigError, match=message):
        TrainConfig(**{option: value})


def test_training_objective_is_replaceable_and_the_teacher_stays() -> None:
    torch.manual_seed(1)
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(36, 3)).eval()
    before = copy.deepcopy(teacher.state_dict())
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))
    objective, images = Distillation(teacher, weight=1.0), small_data().test.images
    untrained = float(objective(net(images), images, small_data().test.labels).detach())
    train(net, small_data(), TrainConfig(12, 10, lr=0.1), objective=objective)
    assert float(objective(net(images), images, small_data().test.labels).detach()) < 0.2 * untrained
    assert all(torch.equal(value, before[key]) for key, value in teacher.state_dict().items())
    assert isinstance(CrossEntropy()(torch.zeros(2, 3), torch.zeros(2), torch.tensor([0, 1])), Tensor)
