"""Conversion without gradients: fits against least squares and brute force, landing, and what the answers lose."""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from lcnn_core.compress import METHODS, PostTrainingConfig, calibration, convert_only, convert_to_budget, fitting
from lcnn_core.compress.allocation import Option, allocate, pareto
from lcnn_core.compress.calibration import Moments, input_moments, patches_of, reestimate_batch_norm_
from lcnn_core.compress.fitting import Path, Problem, fit_to
from lcnn_core.counting import counted_speedup
from lcnn_core.data import load_dataset
from lcnn_core.describe import describe
from lcnn_core.errors import ConfigError, ShapeError
from lcnn_core.layers import LookupLayer
from lcnn_core.models import build
from lcnn_core.train import TrainConfig, evaluate, train

# --- what a layer sees ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {}, {"stride": 2, "padding": 1}, {"dilation": 2, "padding": 2}, {"groups": 2}, {"padding": "same"},
        {"padding": 1, "padding_mode": "reflect"}, {"padding": (1, 0), "padding_mode": "circular"},
    ],
)  # fmt: skip
def test_patches_times_weight_are_the_layers_outputs(options: dict) -> None:
    layer = nn.Conv2d(4, 6, 3, bias=False, **options).double()
    x = torch.randn(2, 4, 7, 6).double()
    patches = patches_of(layer, x, torch.Generator(), 10**6)
    weight = layer.weight.reshape(layer.groups, 6 // layer.groups, -1)
    found = (patches @ weight.transpose(1, 2)).transpose(1, 2)
    expected = layer(x).reshape(2, layer.groups, 6 // layer.groups, -1).permute(1, 2, 0, 3).flatten(2)
    torch.testing.assert_close(found, expected)


def test_the_error_is_the_mean_square_of_the_outputs_differences() -> None:
    layer = nn.Conv2d(4, 6, 3, stride=2, padding=1).double()
    x, other = torch.randn(5, 4, 8, 8).double() + 1, torch.randn(6, 4, 3, 3).double()
    problem = problem_of(layer, x)
    difference = layer.weight.detach() - other
    lost = F.conv2d(x, difference, None, 2, 1).transpose(0, 1).flatten(1)
    expected = float(lost.var(1, unbiased=False).sum())
    assert problem.squared(difference.reshape(problem.weight.shape).float()) == pytest.approx(expected, rel=1e-3)


def test_moments_of_pieces_are_those_of_the_whole() -> None:
    rows = torch.randn(1, 50, 6).double() + 2
    moments = Moments(torch.zeros(1, 6, 6).double(), torch.zeros(1, 6).double())
    for piece in rows.split(13, 1):
        moments.add(piece)
    for centred, expected in (
        (True, np.cov(rows[0].T.numpy(), bias=True)),
        (False, (rows[0].T @ rows[0] / 50).numpy()),
    ):
        found = moments.covariance(centred)[0].numpy()
        np.testing.assert_allclose(found - np.diag(np.diag(found - expected)), expected, rtol=1e-9)
        np.testing.assert_allclose(np.diag(found), np.diag(expected) + 1e-4 * np.diag(expected).mean(), rtol=1e-9)


@settings(max_examples=30)
@given(st.integers(0, 2**16), st.floats(-5, 5), st.booleans(), st.booleans())
def test_inputs_far_from_zero_keep_their_variance(seed: int, distance: float, centred: bool, whole: bool) -> None:
    """Of inputs around 10^distance that vary by about 1; in float32 their products hold little of that."""
    numbers = np.random.default_rng(seed)
    rows = (numbers.normal(size=(2, 90, 5)) @ numbers.normal(size=(2, 5, 5)) + 10**distance).astype(np.float32)
    moments = Moments(torch.zeros(2, 5 if whole else 1, 5), torch.zeros(2, 5))
    for piece in torch.from_numpy(rows).split(40, 1):
        moments.add(piece)
    exact = rows.astype(np.float64)
    np.testing.assert_allclose(moments.mean(), exact.mean(1), rtol=1e-5, atol=1e-5)
    for group, found in zip(exact, moments.covariance(centred).double().numpy(), strict=True):
        expected = np.cov(group.T, bias=True) if centred else group.T @ group / len(group)
        expected = expected + 1e-4 * np.diag(expected).mean() * np.eye(5)
        if not whole:
            expected = np.diag(expected)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=3e-5 * expected.max())


def test_a_layer_whose_inputs_hardly_vary_is_fitted_as_another() -> None:
    """Of fewer images than inputs, all close to a mean: where it is lost in float32, fits go to infinity."""
    torch.manual_seed(0)
    layer, x = nn.Linear(96, 64), torch.randn(40, 96) * 0.1 + 8
    near, far = (
        [(fit.cost, fit.error) for fit in fitting.menu(problem_of(layer, inputs), 48, 300)] for inputs in (x - 8, x)
    )
    assert len(near) == len(far)
    for (_, error), (_, other) in zip(near, far, strict=True):
        assert other == pytest.approx(error, rel=0.2, abs=1e-4)


@pytest.mark.parametrize("limit", [1, 300, 10**9])
def test_patches_are_taken_from_a_few_images_at_a_time(monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    monkeypatch.setattr(calibration, "UNFOLDED", limit)
    sizes: list[int] = []
    taken = calibration.patches_of
    monkeypatch.setattr(calibration, "patches_of", lambda *args: sizes.append(len(args[1])) or taken(*args))
    torch.manual_seed(0)
    model, images = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1)), torch.randn(5, 2, 4, 4)
    moments = input_moments(model, {"0": model[0]}, images)["0"]
    every = patches_of(model[0], images, torch.Generator(), 10**6)[0]
    assert sizes == {1: [1] * 5, 300: [1] * 5, 10**9: [5]}[limit]
    assert moments.count == 5 * 16
    torch.testing.assert_close(moments.products[0], every.T @ every)


def test_of_many_patches_some_of_every_image_are_taken_at_random(monkeypatch: pytest.MonkeyPatch) -> None:
    """Groups see the same ones, and each image shows others."""
    monkeypatch.setattr(calibration, "PATCHES", 64)
    monkeypatch.setattr(calibration, "UNFOLDED", 1)
    model = nn.Sequential(nn.Conv2d(2, 2, 1, groups=2))
    numbers = torch.arange(100.0).reshape(1, 1, 10, 10).expand(4, 2, 10, 10)  # every position shows its number
    moments = input_moments(model, {"0": model[0]}, numbers)["0"]
    assert moments.count == 4 * 17
    assert torch.equal(moments.sums[0], moments.sums[1])
    generator = torch.Generator()
    draws = [set(patches_of(model[0], numbers[:1], generator, 17)[0, :, 0].tolist()) for _ in range(4)]
    assert all(len(draw) == 17 for draw in draws)
    assert len(set.union(*draws)) > 40


def test_an_image_without_a_batch_is_one_image_and_none_are_none() -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(2, 3, 3, padding=1)

    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.layer(x[:0])
            return torch.stack([self.layer(image) for image in x])

    images = torch.randn(3, 2, 5, 4)
    moments = input_moments(Odd(), {"layer": layer}, images)["layer"]
    every = patches_of(layer, images, torch.Generator(), 10**6)[0]
    assert moments.count == 3 * 20
    torch.testing.assert_close(moments.products[0], every.T @ every)


def test_of_a_patch_too_wide_only_the_variances_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "WIDEST", 5)
    model = nn.Sequential(nn.Linear(6, 3))
    x = torch.randn(40, 6)
    found = input_moments(model, {"0": model[0]}, x)["0"].covariance(True)[0]
    torch.testing.assert_close(found, x.var(0, unbiased=False), rtol=1e-3, atol=0)


def test_fits_by_variances_alone_are_those_by_a_diagonal_covariance() -> None:
    torch.manual_seed(0)
    variances, weight = torch.rand(2, 12) + 0.1, torch.randn(2, 5, 3, 4)
    alone, whole = Problem(weight, variances, 7, 9), Problem(weight, torch.diag_embed(variances), 7, 9)
    pairs = list(zip(fitting.menu(alone, None, 50), fitting.menu(whole, None, 50), strict=True))
    assert len(pairs) > 5
    for a, b in [*pairs, (fit_to(alone, None, 200), fit_to(whole, None, 200))]:
        assert a.cost == b.cost
        assert a.error == pytest.approx(b.error, rel=1e-4)
        torch.testing.assert_close(a.coefficients, b.coefficients)
    with pytest.raises(ValueError, match="a dictionary needs the covariance"):
        fitting.start(alone, 2)


@pytest.mark.parametrize("name", ["post-training", "low-rank", "from-dense"])
def test_a_network_with_a_layer_too_wide_lands(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The wide layer, of which no covariance is known, becomes sparse."""
    monkeypatch.setattr(calibration, "WIDEST", 100)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 16), nn.ReLU(), nn.Linear(16, 10))
    data, method = load_dataset("digits"), METHODS[name]
    more: dict = {"train": TrainConfig(1, 64, lr=0.01)} if method.trained else {}
    more |= {} if name == "from-dense" else {"images": 64}
    model, _ = method.compress(net, data, method.config(speedup=2.0, **more))
    assert 2 <= counted_speedup(describe(model, data.input_shape).layers) <= 2.2
    wide = model.get_submodule("3")
    assert isinstance(wide, LookupLayer)
    assert wide.dictionary is None


def test_batch_norm_statistics_are_measured_anew() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.BatchNorm2d(3))
    images = torch.randn(100, 3, 4, 4) * 3 + 5
    reestimate_batch_norm_(model, images)
    torch.testing.assert_close(model[0].running_mean, images.mean((0, 2, 3)), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(model[0].running_var, images.var((0, 2, 3)), rtol=1e-2, atol=0)
    assert model[0].momentum == 0.1
    assert not any(module.training for module in model.modules())


# --- fits -----------------------------------------------------------------------------------------------------------


def problem_of(layer: nn.Module, x: Tensor, coefficient: int = 10, row: int = 12) -> Problem:
    covariance = input_moments(layer, {"": layer}, x)[""].covariance(True)
    groups = getattr(layer, "groups", 1)
    weight: Tensor = layer.weight.detach().to(covariance)
    return Problem(weight.reshape(groups, len(weight) // groups, weight.shape[1], -1), covariance, coefficient, row)


def small_problem(groups: int = 1) -> Problem:
    torch.manual_seed(3)
    mixing = torch.randn(6, 6)  # correlated channels
    return problem_of(
        nn.Conv2d(6, 8, 3, groups=groups), torch.einsum("bchw,cd->bdhw", torch.randn(40, 6, 8, 8), mixing)
    )


@pytest.mark.parametrize("groups", [1, 2])
def test_refitted_coefficients_are_the_least_squares_solution_on_their_support(groups: int) -> None:
    problem = small_problem(groups)
    support = torch.rand_like(problem.weight) < 0.4
    path = Path(problem, None, problem.weight * support, steps=200)
    path.refit_coefficients()
    for g, f in itertools.product(range(groups), range(8 // groups)):
        on = support[g, f].flatten().nonzero()[:, 0].numpy()
        covariance = problem.covariance[g].double().numpy()
        right = covariance @ problem.weight[g, f].flatten().double().numpy()
        expected = np.linalg.solve(covariance[np.ix_(on, on)], right[on])
        np.testing.assert_allclose(path.coefficients[g, f].flatten()[on].numpy(), expected, rtol=2e-2, atol=2e-4)
    assert torch.equal(path.coefficients != 0, support)


@pytest.mark.parametrize("groups", [1, 2])
def test_a_refitted_dictionary_is_stationary_and_each_step_lowers_the_error(groups: int) -> None:
    problem = small_problem(groups)
    path = fitting.start(problem, 2)
    path.prune(1200)
    errors = [path.fit().error]
    assert path.cost() <= 1200
    for refit in (path.refit_coefficients, path.refit_dictionary, path.refit_coefficients, path.refit_dictionary):
        refit()
        errors.append(path.fit().error)
    assert all(later <= earlier * 1.0001 for earlier, later in itertools.pairwise(errors))
    assert errors[-1] < 0.99 * errors[0]
    path.steps = 300
    path.refit_dictionary()
    assert path.dictionary is not None
    leaf = path.dictionary.clone().requires_grad_()
    difference = problem.weight - fitting.compose(leaf, path.coefficients)
    (problem.seen(difference) * difference).sum().backward()
    assert leaf.grad is not None
    assert float((leaf.grad * (leaf != 0)).abs().max()) < 1e-2 * float(path.row_curvature().max())


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(("size", "way"), [(2, "through_pairs"), (3, "through_filters")])
def test_both_ways_through_the_curvature_of_a_dictionary_agree_with_the_error(groups: int, size: int, way: str) -> None:
    problem = small_problem(groups)
    filters = torch.randn(groups, 24 // groups if size == 2 else 4, 6 // groups, 9).double()
    path = fitting.start(dataclasses.replace(problem, covariance=problem.covariance.double(), weight=filters), size)
    assert path.dictionary is not None
    curved = path.curved()
    assert curved.__name__ == way
    a, b = torch.randn(2, *path.dictionary.shape, dtype=torch.double)
    moved = [fitting.compose(step, path.coefficients) for step in (a, b, a + b)]
    one, other, both = map(path.problem.squared, moved)
    assert float((curved(a) * a).sum()) == pytest.approx(one, rel=1e-9)
    assert float((curved(a) * b).sum()) == pytest.approx((both - one - other) / 2, rel=1e-6)


@pytest.mark.parametrize("groups", [1, 2])
def test_curvatures_are_second_derivatives(groups: int) -> None:
    problem = dataclasses.replace(small_problem(groups), covariance=small_problem(groups).covariance.double())
    problem = dataclasses.replace(problem, weight=problem.weight.double())
    path = fitting.start(problem, 2)
    assert path.dictionary is not None
    for index in ((0, 0, 0), (groups - 1, 1, 2)):
        step = torch.zeros_like(path.dictionary)
        step[index] = 1
        moved = fitting.compose(path.dictionary + step, path.coefficients) - fitting.compose(
            path.dictionary, path.coefficients
        )
        assert float(path.row_curvature()[index]) == pytest.approx(problem.squared(moved), rel=1e-6)
    for index in ((0, 0, 0, 0), (groups - 1, 3, 1, 5)):
        step = torch.zeros_like(path.coefficients)
        step[index] = 1
        expected = problem.squared(fitting.compose(path.dictionary, step))
        seen = path.inner_covariance().diagonal(dim1=1, dim2=2).reshape(groups, -1, 9)
        assert float(seen[index[0], index[2], index[3]]) == pytest.approx(expected, rel=1e-6)


def test_the_svd_start_beats_one_that_ignores_the_inputs() -> None:
    from lcnn_core.factors import svd_factors

    torch.manual_seed(1)
    mixing = torch.randn(16, 3) @ torch.randn(3, 16) + 0.1 * torch.randn(16, 16)
    layer = nn.Conv2d(16, 24, 3)
    problem = problem_of(layer, torch.einsum("bchw,cd->bdhw", torch.randn(30, 16, 8, 8), mixing))
    dictionary, coefficients = svd_factors(layer.weight.detach(), 4)
    blind = Path(problem, dictionary[None], coefficients.reshape(1, 24, 4, 9))
    blind.refit_coefficients()
    assert fitting.start(problem, 4).fit().error < 0.5 * blind.fit().error


@pytest.mark.parametrize("rank", [1, 2, 5])
def test_systems_that_are_solved_or_singular_stay_where_they_are(rank: int) -> None:
    """Few unknowns, as at high speedups, are solved after as many steps; alike rows of D make the system singular."""
    generator = torch.Generator().manual_seed(rank)
    factor = torch.randn(5, rank, generator=generator) * 10.0 ** torch.randint(-3, 4, (5, 1), generator=generator)
    matrix = factor @ factor.T
    exact = torch.randn(200, 5, generator=generator) * (torch.rand(200, 5, generator=generator) < 0.5)
    start = torch.where(exact != 0, torch.randn(200, 5, generator=generator), 0.0)
    right, scale = exact @ matrix, matrix.diagonal()[None]
    found, left = fitting.solve(lambda x: x @ matrix, right, start, scale, 40, (1,))
    assert found.isfinite().all()
    assert torch.equal(found == 0, start == 0)
    before, after = (((right - x @ matrix) * (start != 0)).square() / scale for x in (start, found))
    assert (after.sum(1) <= 1e-6 * before.sum(1) + 1e-9).all()
    torch.testing.assert_close(
        left, (right - found @ matrix) * (start != 0), rtol=0, atol=1e-4 * float(right.abs().max())
    )


def test_dictionaries_with_vectors_alike_are_fitted() -> None:
    problem = small_problem()
    path = fitting.start(problem, 3)
    assert path.dictionary is not None
    path.dictionary = torch.cat([path.dictionary, path.dictionary, 1e-8 * path.dictionary], 1)
    path.coefficients = torch.cat([path.coefficients] * 3, 2)
    before = path.fit().error
    for cost in (8000, 4000, 2000, 900, 300, 100):
        path.refit()
        exact = path.fit()
        assert path.coefficients.isfinite().all()
        assert exact.error <= 1.001 * before
        assert path.about == pytest.approx(exact.error, rel=5e-3, abs=3e-6)
        path.prune(cost)
        before = path.fit().error


@pytest.mark.parametrize("size", [None, 2])
def test_a_fit_costs_at_most_what_was_asked_and_errors_rise_as_costs_fall(size: int | None) -> None:
    problem = small_problem()
    fits = list(fitting.menu(problem, size, 200))
    assert len(fits) > 8
    errors = [fit.error for fit in fits]
    assert all(later > 0.98 * earlier for earlier, later in itertools.pairwise(errors))
    for fit in fits:
        exact = problem.squared(problem.weight - fit.dense()) / problem.energy
        assert fit.error == pytest.approx(exact, rel=1e-3, abs=3e-6)
    for cost in (3000, 1717, 333):
        fit = fit_to(problem, size, cost)
        spent = int(fit.coefficients.count_nonzero()) * 10
        if fit.dictionary is not None:
            spent += int(fit.dictionary.count_nonzero()) * 12
            read = fit.coefficients.any(3).any(1)
            assert torch.equal(read, fit.dictionary.any(2))
        assert fit.cost == spent <= cost
        assert fit.error == pytest.approx(problem.squared(problem.weight - fit.dense()) / problem.energy, rel=1e-4)


# --- the choice under one budget ------------------------------------------------------------------------------------

OPTIONS = st.lists(st.builds(Option, st.just(None), st.integers(0, 60), st.floats(0, 1)), min_size=1, max_size=5)


@given(st.lists(OPTIONS, min_size=1, max_size=4), st.integers(1, 150))
def test_allocation_is_the_best_of_all_choices(menus: list[list[Option]], budget: int) -> None:
    weights = [1.0 + row for row in range(len(menus))]
    reachable = [c for c in itertools.product(*menus) if sum(o.cost for o in c) <= budget]
    if not reachable:
        with pytest.raises(ConfigError, match="cannot be met"):
            allocate(menus, weights, budget)
        return

    def total(choice: object) -> float:
        return sum(w * o.error for w, o in zip(weights, choice, strict=True))  # type: ignore[call-overload]

    chosen = allocate(menus, weights, budget)
    assert sum(option.cost for option in chosen) <= budget
    assert total(chosen) == pytest.approx(min(map(total, reachable)))


def test_costs_beyond_the_number_of_cells_never_exceed_the_budget() -> None:
    menus = [[Option(None, 10**6 + 7 * i, 1 / (i + 1)) for i in range(50)] for _ in range(9)]
    budget = 9 * 10**6 + 1500
    assert budget - 600 * 9 < sum(option.cost for option in allocate(menus, [1.0] * 9, budget)) <= budget


@given(OPTIONS)
def test_pareto_keeps_what_nothing_beats(options: list[Option]) -> None:
    kept = pareto(options)
    for option in options:
        assert any(k.cost <= option.cost and k.error <= option.error for k in kept)
    assert all(a.cost < b.cost and a.error > b.error for a, b in itertools.pairwise(kept))


# --- whole networks -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits() -> nn.Module:
    torch.manual_seed(0)
    model = build("digits-resnet")
    train(model, load_dataset("digits"), TrainConfig(epochs=6, batch_size=32, lr=0.05))
    return model.eval()


def test_digits_at_two_and_four_times_without_labels(digits: nn.Module) -> None:
    data = load_dataset("digits")
    images = data.train.images[:512]
    before = {name: tensor.clone() for name, tensor in digits.state_dict().items()}
    reference = evaluate(digits, data.validation).top1
    for speedup, lost in ((2.0, 0.01), (4.0, 0.04)):
        model, report = convert_to_budget(digits, images, PostTrainingConfig(speedup, ratios=(0.5,)))
        landed = counted_speedup(describe(model, (1, 8, 8)).layers)
        assert speedup <= landed <= 1.02 * speedup
        assert landed == pytest.approx(report.speedup, rel=1e-12)
        assert evaluate(model, data.validation).top1 >= reference - lost
    assert all(torch.equal(tensor, before[name]) for name, tensor in digits.state_dict().items())
    by_name = {row.name: row for row in report.layers}
    for name, layer in model.named_modules():
        if isinstance(layer, LookupLayer):
            row = by_name.pop(name)
            assert row.form == ("sparse" if layer.dictionary is None else "lookup")
            assert row.density == pytest.approx(float((layer.coefficients != 0).float().mean()), abs=1e-6)
    assert all(row.form == "dense" for row in by_name.values())


def stem(name: str) -> nn.Module:
    return build(name, num_classes=10, in_channels=1, stem="small")


def mixed() -> nn.Module:
    """Biases without batch norm, groups, a depthwise layer, strides."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, groups=2), nn.ReLU(),
        nn.Conv2d(16, 16, 3, groups=16), nn.Conv2d(16, 24, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(24, 10),
    )  # fmt: skip


NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "digits-resnet": (lambda: build("digits-resnet"), 8),
    "small-alexnet": (lambda: build("small-alexnet"), 28),
    "mixed": (mixed, 8),
    "mlp": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 40), nn.ReLU(), nn.Linear(40, 10)), 8),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_it_lands_within_two_percent(name: str) -> None:
    make, size = NETWORKS[name]
    torch.manual_seed(0)
    images = F.interpolate(load_dataset("digits").train.images[:32], size=size)
    model, _ = convert_to_budget(make(), images, PostTrainingConfig(7.5, ratios=(0.25,) if size == 8 else ()))
    assert 7.5 <= counted_speedup(describe(model, tuple(images.shape[1:])).layers) <= 7.65
    assert not model.training
    assert bool(model(images).isfinite().all())


def test_forms_limit_what_layers_become(digits: nn.Module) -> None:
    images = load_dataset("digits").train.images[:64]
    _, report = convert_to_budget(digits, images, PostTrainingConfig(3.0, forms=("sparse",)))
    assert {row.form for row in report.layers} == {"sparse"}
    _, report = convert_to_budget(digits, images, PostTrainingConfig(3.0, forms=("dense", "lookup"), ratios=(0.5,)))
    assert {row.form for row in report.layers} <= {"dense", "lookup"}
    _, report = convert_to_budget(digits, images, PostTrainingConfig(3.0, forms=("lookup",), ratios=(0.5,)))
    assert {row.form for row in report.layers} == {"lookup", "sparse"}  # of the stem's one channel, say
    with pytest.raises(ConfigError, match=r"a speedup of 3 cannot be met: at most 1, bounded by the cheapest forms"):
        convert_to_budget(digits, images, PostTrainingConfig(3.0, forms=("dense",)))


def test_a_layer_too_wide_to_measure_gets_no_form_that_was_not_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "WIDEST", 100)
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(576, 10)
    )
    images = load_dataset("digits").train.images[:64]
    _, report = convert_to_budget(model, images, PostTrainingConfig(4.0, forms=("dense", "lookup"), ratios=(0.125,)))
    assert [row.form for row in report.layers] == ["dense", "lookup", "dense"]


def test_biases_take_up_the_change_of_the_means() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 30))
    images = torch.rand(64, 1, 1, 20) + 3
    converted, _ = convert_to_budget(model, images, PostTrainingConfig(4.0))
    torch.testing.assert_close(converted(images).mean((0, 1, 2)), model(images).mean((0, 1, 2)), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda m, x: (m, x[:3], {}), ConfigError, r"3 calibration images; expected 16 or more"),
        (lambda m, x: (m, x.repeat(1, 3, 1, 1), {}), ShapeError, r"input of shape \(3, 8, 8\) does not run through"),
        (lambda m, x: (m, x / 0, {}), ConfigError, r"hold NaN or infinity; check how they were normalised"),
        (lambda m, x: (m, x, {"speedup": 1.0}), ConfigError, r"speedup is 1.0; expected a finite number above 1"),
        (lambda m, x: (m, x, {"forms": ("tiny",)}), ConfigError, r"forms are \('tiny',\); expected one or more"),
        (lambda m, x: (m, x, {"ratios": (1.5,)}), ConfigError, r"ratios are \(1.5,\); expected numbers between"),
        (lambda m, x: (m, x, {"images": 1}), ConfigError, r"images is 1; expected 16 or more"),
        (lambda m, x: (m, x, {"speedup": 5000.0}), ConfigError, r"5000 cannot be met: at most \d+.* by one nonzero"),
        (lambda m, x: (build("digits-resnet-lcnn"), x, {}), ConfigError, r"already a lookup layer; start from a dense"),
        (lambda m, x: (nn.Flatten(), x, {}), ConfigError, r"no layer that can become a lookup layer"),
    ],
)  # fmt: skip
def test_mistakes_are_named(digits: nn.Module, change: Callable, error: type[Exception], message: str) -> None:
    images = load_dataset("digits").train.images[:32]
    model, images, options = change(digits, images)

    def attempt() -> object:
        return convert_to_budget(model, images, PostTrainingConfig(**{"ratios": (), **options}))

    with pytest.raises(error, match=message):
        attempt()


def test_a_speedup_out_of_reach_is_refused_before_anything_is_fitted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "menu", lambda *given: pytest.fail("fitted first"))
    images, dense = load_dataset("digits").train.images[:32], build("digits-resnet").eval()
    sizes: list[int] = []  # a layer's pixels of output
    watched = copy.deepcopy(dense)
    for module in watched.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(lambda m, x, y: sizes.append(y[0, 0].numel()))
    watched(images[:1])
    positions = sum(sizes)
    with pytest.raises(
        ConfigError, match=rf"at most [\d.]+, bounded by one nonzero in each P .*\({positions} MACs\)"
    ) as no:
        convert_to_budget(dense, images, PostTrainingConfig(5000.0))
    monkeypatch.undo()
    reach = float(str(no.value).split("at most ")[1].split(",")[0])
    model, report = convert_to_budget(dense, images, PostTrainingConfig(reach, ()))
    assert report.speedup >= reach
    assert report.speedup == pytest.approx(counted_speedup(describe(model, (1, 8, 8)).layers))


def test_a_layer_that_no_dictionary_makes_cheaper_is_fitted_all_the_same() -> None:
    """Its cheapest fit has nothing left; a path to no cost at all ends."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(2, 2, 1, stride=2), nn.Conv2d(2, 16, 3, padding=1), nn.Flatten(), nn.Linear(256, 4)
    )  # fmt: skip
    _, report = convert_to_budget(net, torch.randn(32, 2, 8, 8), PostTrainingConfig(2.0, (0.5,), ("lookup",)))
    assert report.speedup >= 2


def test_conversion_as_a_method_takes_its_choices_and_trains_nothing() -> None:
    torch.manual_seed(0)
    dense, data = build("digits-resnet").eval(), load_dataset("digits")
    for forms, stored in ((("sparse",), {False}), (("lookup",), {True, False})):  # a stem of one channel shares nothing
        config = PostTrainingConfig(3.0, (0.5,), forms, images=32)
        model, result = convert_only(dense, data, config)
        layers = [module for module in model.modules() if isinstance(module, LookupLayer)]
        assert {layer.dictionary is not None for layer in layers} == stored
        assert all(
            layer.dictionary_size == layer.dense_shape[1] // 2 for layer in layers if layer.dictionary is not None
        )
        assert (result.history, result.best_epoch) == ((), 0)
