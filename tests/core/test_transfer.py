"""Few-shot and few-iteration learning: what is frozen, what is carried over, who chooses, and the statistics."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import lcnn_core.transfer.iterations
from lcnn_core import (
    ConfigError,
    DataError,
    Family,
    FewIterationConfig,
    FewIterationResult,
    FewShotConfig,
    FewShotResult,
    LookupLayer,
    build,
    carry_dictionaries_,
    estimate,
    few_iteration,
    few_shot,
    load_dataset,
    summarize_few_iteration,
    summarize_few_shot,
)
from lcnn_core.data import Split
from lcnn_core.transfer.networks import carry_pretrained_, classifier_name
from lcnn_core.transfer.shots import tune
from lcnn_core.transfer.subsets import class_splits, draw, only_classes, read_once

SMALL = Family("digits-resnet-lcnn", {"widths": (8, 12), "blocks": 1}, classifier=6)
QUICK = FewShotConfig(splits=2, resamplings=2, shots=(1, 3), steps=1, validation_images=2, test_images=3)


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits")


def dictionaries(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if name.endswith("dictionary")}


# Statistics


def test_an_interval_by_hand():
    """Means of the groups 2, 3 and 7: mean 4, deviation sqrt(7), and t(0.975, 2) = 4.3027 from the tables."""
    found = estimate([[1, 3], [2, 4], [6, 8]])
    half = 4.30265 * math.sqrt(7) / math.sqrt(3)
    assert (found.mean, found.low, found.high) == pytest.approx((4, 4 - half, 4 + half), abs=1e-4)
    alone = estimate([[1, 3]])
    assert (alone.mean, alone.low, alone.high) == (2, None, None)


def test_intervals_hold_the_truth_as_often_as_they_say_although_groups_share_something():
    generator = np.random.default_rng(0)
    held = []
    for _ in range(1500):
        shared, own = generator.normal(0, 1, (5, 1)), generator.normal(0, 2, (5, 20))
        found = estimate((shared + own).tolist())
        held.append(found.low <= 0 <= found.high)
    assert 0.93 < np.mean(held) < 0.97


def test_groups_without_values_are_refused():
    with pytest.raises(ConfigError, match=r"2 groups, some without values"):
        estimate([[1.0], []])


def few_shot_results(validation: dict[float, float], test: dict[float, float]) -> list[FewShotResult]:
    return [
        FewShotResult(split, draw, 1, kind, share, validation[share], test[share] + (kind == "lcnn") * 0.1 * split)
        for split in range(3)
        for draw in range(2)
        for kind in ("lcnn", "cnn")
        for share in validation
    ]


def test_the_rate_is_chosen_on_validation_images_whatever_the_test_images_say():
    (summary,) = summarize_few_shot(few_shot_results({0.0: 0.5, 0.1: 0.7, 1.0: 0.7}, {0.0: 0.8, 0.1: 0.3, 1.0: 0.9}))
    assert summary.share == {"lcnn": 0.1, "cnn": 0.1}  # the lower of equals
    assert summary.accuracy["cnn"].mean == pytest.approx(0.3)
    assert summary.accuracy["lcnn"].mean == pytest.approx(0.4)
    assert summary.by_split["lcnn"] == pytest.approx((0.3, 0.4, 0.5))
    assert summary.by_share["cnn"][1.0] == pytest.approx((0.7, 0.9))
    half = 4.30265 * 0.1 / math.sqrt(3)
    assert (summary.gain.mean, summary.gain.low) == pytest.approx((0.1, 0.1 - half), abs=1e-6)


def test_few_iteration_rates_are_chosen_by_the_last_validation():
    results = [
        FewIterationResult(seed, "cnn", rate, (5, 10), validation, (0.1 * (seed + 1), rate))
        for seed in range(2)
        for rate, validation in ((0.1, (0.9, 0.2)), (0.03, (0.1, 0.4)))
    ]
    (summary,) = summarize_few_iteration(results)
    assert summary.rate == 0.03
    assert [point.mean for point in summary.accuracy] == pytest.approx([0.15, 0.03])
    assert summary.by_rate == {0.1: pytest.approx((0.2, 0.1)), 0.03: pytest.approx((0.4, 0.03))}


# Classes and images


def test_only_some_classes_numbered_anew(digits):
    part = only_classes(digits, (7, 2))
    assert part.class_names == ("7", "2")
    for whole, some in ((digits.train, part.train), (digits.test, part.test)):
        keep = [place for place, label in enumerate(whole.labels.tolist()) if label in (7, 2)]
        assert some.labels.tolist() == [(7, 2).index(int(whole.labels[place])) for place in keep]
        (images, labels), *_ = some.read([torch.tensor([3, 0])])
        assert torch.equal(images, whole.images[[keep[3], keep[0]]])
        assert torch.equal(labels, some.labels[[3, 0]])


def test_drawing_takes_as_many_of_each_class_and_none_twice(digits):
    part = only_classes(digits, (1, 4, 8)).validation
    chosen = draw(part, 5, torch.Generator().manual_seed(0))
    assert part.labels[chosen].tolist() == [0] * 5 + [1] * 5 + [2] * 5
    assert len(set(chosen.tolist())) == 15
    assert torch.equal(read_once(part, chosen).labels, part.labels[chosen])
    with pytest.raises(DataError, match=r"class 0 has \d+ images, 999 are wanted; ask for fewer"):
        draw(part, 999, torch.Generator())


def test_class_splits_are_random_and_repeatable():
    splits = class_splits(10, 3, 50, 0)
    assert splits == class_splits(10, 3, 50, 0) != class_splits(10, 3, 50, 1)
    assert all(len(set(split)) == 3 and list(split) == sorted(split) for split in splits)
    assert {number for split in splits for number in split} == set(range(10))
    with pytest.raises(ConfigError, match=r"novel is 9 of 10 classes; expected 2 to 8"):
        class_splits(10, 9, 1, 0)


# Networks


def test_a_family_makes_both_networks_and_a_lookup_classifier_for_few_classes():
    lcnn, cnn = SMALL.build("lcnn", 3, 0), SMALL.build("cnn", 3, 0)
    head = lcnn.get_submodule(classifier_name(lcnn))
    assert isinstance(head, LookupLayer)
    assert (head.dictionary.shape, head.coefficients.shape) == ((6, 12), (3, 6))
    registered = build("digits-resnet-lcnn", widths=(8, 12), blocks=1, num_classes=10, classifier=6).fc
    assert head.config == registered.config
    assert not [module for module in cnn.modules() if isinstance(module, LookupLayer)]
    assert sum(isinstance(m, nn.Conv2d | LookupLayer) for m in lcnn.modules()) == 1 + sum(
        isinstance(m, nn.Conv2d) for m in cnn.modules()
    )
    again = SMALL.build("lcnn", 3, 0)
    assert all(torch.equal(p, q) for p, q in zip(lcnn.parameters(), again.parameters(), strict=True))
    with pytest.raises(ConfigError, match=r"resnet18 has no lookup layers; expected an architecture such as"):
        Family("resnet18")


def test_one_number_of_blocks_is_meant_for_every_stage():
    names = dict(build("small-resnet-lcnn", blocks=2).named_modules())
    assert {"layer1.1.conv2", "layer2.1.conv2", "layer3.1.conv2"} <= set(names)
    assert "layer3.2.conv1" not in names


def test_a_deeper_network_takes_every_dictionary_from_its_own_stage():
    shallow, deep = SMALL.build("lcnn", 10, 0), SMALL.build("lcnn", 10, 1, blocks=2)
    before = copy.deepcopy(deep)
    carry_dictionaries_(deep, shallow)
    source, found = dictionaries(shallow), dictionaries(deep)
    expected = {
        "layer1.0.conv1": "layer1.0.conv1",
        "layer1.0.conv2": "layer1.0.conv2",
        "layer1.1.conv1": "layer1.0.conv2",
        "layer1.1.conv2": "layer1.0.conv2",
        "layer2.0.conv1": "layer2.0.conv1",
        "layer2.0.conv2": "layer2.0.conv2",
        "layer2.1.conv1": "layer2.0.conv2",
        "layer2.1.conv2": "layer2.0.conv2",
        "fc": "fc",
    }
    assert set(found) == {f"{name}.dictionary" for name in expected}
    for name, origin in expected.items():
        assert torch.equal(found[f"{name}.dictionary"], source[f"{origin}.dictionary"]), name
    for (name, p), q in zip(deep.named_parameters(), before.parameters(), strict=True):
        assert name.endswith("dictionary") or torch.equal(p, q), name


def test_dictionaries_of_another_width_are_refused_and_nothing_changes():
    deep = SMALL.build("lcnn", 10, 0)
    before = copy.deepcopy(deep.state_dict())
    with pytest.raises(ConfigError, match=r"no layer of 'layer2' in the trained network has a dictionary \(3, 8\)"):
        carry_dictionaries_(deep, SMALL.build("lcnn", 10, 0, widths=(8, 20)))
    assert all(torch.equal(tensor, before[name]) for name, tensor in deep.state_dict().items())


# Few-shot


@pytest.fixture
def few(digits) -> Split:
    part = only_classes(digits, (0, 1, 2)).train
    return read_once(part, draw(part, 2, torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("kind", ["lcnn", "cnn"])
def test_pretrained_layers_and_the_dictionary_of_the_classifier_are_carried_over(kind):
    trained = SMALL.build(kind, 7, 0)
    model = SMALL.build(kind, 3, 1)
    fresh = copy.deepcopy(model.state_dict())
    carry_pretrained_(model, trained)
    for name, tensor in model.state_dict().items():
        new = name.startswith("fc.") and name != "fc.dictionary"
        assert torch.equal(tensor, fresh[name] if new else trained.state_dict()[name]), name


@pytest.mark.parametrize("kind", ["lcnn", "cnn"])
@pytest.mark.parametrize("share", [0.5, 0.0])
def test_one_step_of_tuning_is_the_gradient_at_two_rates_and_nothing_else(kind, share, few):
    model = SMALL.build(kind, 3, 0)
    for module in model.modules():
        if isinstance(module, LookupLayer):
            module.prune_()
            module.l1_weight = 0.3
    before = copy.deepcopy(model).eval()
    tune(model, few, replace(QUICK, rate=0.1), share)
    loss = F.cross_entropy(before(few.images), few.labels)
    lookups = [m for m in before.modules() if isinstance(m, LookupLayer)]
    (loss + sum(0.3 * layer.coefficients.abs().sum() for layer in lookups)).backward()
    frozen = {
        f"{n}.{p}" for n, m in before.named_modules() if isinstance(m, nn.BatchNorm2d) for p in ("weight", "bias")
    }
    for (name, p), old in zip(model.named_parameters(), before.parameters(), strict=True):
        held = name in frozen or name.endswith("dictionary")
        rate = 0.0 if held else 0.1 * (1 if name.startswith("fc.") else share)
        torch.testing.assert_close(p.detach(), old - rate * old.grad, rtol=1e-4, atol=1e-6, msg=name)
        assert not held or torch.equal(p, old), name
    for (name, tensor), old in zip(model.named_buffers(), before.buffers(), strict=True):
        assert torch.equal(tensor, old), name


def test_what_falls_below_the_threshold_while_it_is_tuned_is_zero_from_then_on(few):
    earlier, later = (SMALL.build("lcnn", 3, 0) for _ in range(2))
    for module in [*earlier.modules(), *later.modules()]:
        if isinstance(module, LookupLayer):
            module.threshold *= 100  # so that there are entries below it
    tune(earlier, few, replace(QUICK, steps=5, rate=0.1), 1.0)
    tune(later, few, replace(QUICK, steps=6, rate=0.1), 1.0)
    fallen = 0
    for name, layer in earlier.named_modules():
        if isinstance(layer, LookupLayer):
            dead = layer.effective_coefficients() == 0
            fallen += int(dead.sum())
            assert not later.get_submodule(name).coefficients[dead].any(), name
    assert fallen


def untrained(split, kind, dataset):
    return SMALL.build(kind, len(dataset.class_names), split)


def test_few_shot_goes_on_where_it_stopped_with_the_same_results(digits):
    whole = list(few_shot(digits, SMALL, untrained, QUICK))
    assert len(whole) == len({result.key for result in whole}) == 2 * 2 * 2 * 2 * 4
    asked = []

    def base(split, kind, dataset):
        asked.append((split, kind))
        return untrained(split, kind, dataset)

    half = whole[: len(whole) // 2 + 3]
    rest = list(few_shot(digits, SMALL, base, QUICK, {result.key for result in half}))
    assert half + rest == whole
    assert asked == [(1, "lcnn"), (1, "cnn")]


def test_both_networks_and_all_rates_learn_from_the_same_images_of_novel_classes(digits, monkeypatch):
    seen: dict[tuple[int, int], set[bytes]] = {}
    monkeypatch.setattr(
        "lcnn_core.transfer.shots.tune",
        lambda model, images, config, share: seen.setdefault((len(images), split[0]), set()).add(
            images.images.numpy().tobytes()
        ),
    )
    split = [0]
    bases = []

    def base(number, kind, dataset):
        split[0] = number
        bases.append((number, dataset.class_names))
        return untrained(number, kind, dataset)

    list(few_shot(digits, SMALL, base, QUICK))
    assert {key: len(images) for key, images in seen.items()} == {(3, 0): 2, (9, 0): 2, (3, 1): 2, (9, 1): 2}
    novel = class_splits(10, 3, 2, 0)
    assert bases == [(n, tuple(str(c) for c in range(10) if c not in novel[n])) for n in (0, 0, 1, 1)]


def test_a_rate_at_which_tuning_diverges_counts_as_wrong_everywhere(digits):
    config = replace(QUICK, splits=1, resamplings=1, shots=(1,), rate=1e30, steps=5, shares=(1.0,))
    assert [(result.validation, result.test) for result in few_shot(digits, SMALL, untrained, config)] == [(0, 0)] * 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shots": (1, 1)}, r"shots is \(1, 1\); expected different whole numbers of 1 or more"),
        ({"splits": 0}, r"splits is 0; expected 1 or more"),
        ({"rate": 0.0}, r"rate is 0\.0; expected a number above 0"),
        ({"shares": (-1.0,)}, r"shares is \(-1\.0,\); expected numbers of 0 or more"),
    ],
)
def test_few_shot_options_that_make_no_sense(options, message):
    with pytest.raises(ConfigError, match=message):
        FewShotConfig(**options)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"novel": 0}, ConfigError, "novel is 0 of 10 classes; expected 2 to 8"),
        ({"shots": (1, 1000)}, DataError, r"class 0 has \d+ images, 1000 are wanted; ask for fewer"),
        ({"validation_images": 9999}, DataError, r"class 0 has \d+ images, 9999 are wanted"),
    ],
)
def test_few_shot_is_refused_before_anything_is_trained(digits, options, error, message):
    with pytest.raises(error, match=message):
        few_shot(digits, SMALL, None, replace(QUICK, **options))


# Few-iteration


def test_few_iteration_freezes_carried_dictionaries_and_trains_the_rest(digits, monkeypatch):
    config = FewIterationConfig(iterations=2, every=1, seeds=1, rates=(0.05,), batch_size=8, images=20)
    shallow = SMALL.build("lcnn", 10, 5)
    trained = []

    def train(model, dataset, options, listener):
        before = copy.deepcopy(model.state_dict())
        result = original(model, dataset, options, listener)
        trained.append((model, before, options.seed, len(dataset.validation)))
        return result

    original = lcnn_core.transfer.iterations.train
    monkeypatch.setattr(lcnn_core.transfer.iterations, "train", train)
    results = list(few_iteration(digits, SMALL, {"blocks": 2}, lambda number: shallow, config))
    assert [result.key for result in results] == [(0, "carried", 0.05), (0, "scratch", 0.05), (0, "cnn", 0.05)]
    assert all(result.iterations == (1, 2) and len(result.test) == len(result.validation) == 2 for result in results)
    assert {count for *_, count in trained} == {20}
    assert len({seed for *_, seed, _ in trained}) == 1
    for place, (model, before, *_) in enumerate(trained):
        for name, p in model.named_parameters():
            held = place == 0 and name.endswith("dictionary")
            assert torch.equal(p, before[name]) == held, (place, name)
    carried, source = dictionaries(trained[0][0]), dictionaries(shallow)
    assert torch.equal(carried["layer2.1.conv1.dictionary"], source["layer2.0.conv2.dictionary"])
    again = list(few_iteration(digits, SMALL, {"blocks": 2}, lambda number: shallow, config, {results[0].key}))
    assert again == results[1:]


def test_a_rate_at_which_a_training_diverges_is_not_chosen_and_ends_nothing(digits):
    config = FewIterationConfig(iterations=4, every=2, seeds=1, rates=(1e6, 0.03), batch_size=8, images=20)
    results = list(few_iteration(digits, SMALL, {"blocks": 2}, lambda number: SMALL.build("lcnn", 10, 5), config))
    assert [result.rate for result in results] == [1e6, 0.03] * 3
    assert all(result.iterations == (2, 4) and len(result.test) == len(result.validation) == 2 for result in results)
    assert {result.validation[-1] for result in results if result.rate == 1e6} == {0.0}
    assert all(result.validation[-1] > 0 for result in results if result.rate == 0.03)


def test_few_iteration_options_that_make_no_sense():
    with pytest.raises(ConfigError, match=r"every is 7; expected a divisor of the 300 iterations"):
        FewIterationConfig(every=7)
    with pytest.raises(ConfigError, match=r"rates is \(0\.0,\); expected numbers above 0"):
        FewIterationConfig(rates=(0.0,))
