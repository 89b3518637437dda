"""D and sparse P closest to a layer's dense filters on the inputs that it sees, in closed form, at many costs.

The error is trace(E C E^T), E = W - W', C the covariance of the input patches. Given D, P is a sparse least squares
problem with C seen through D, and given P, so is D; both are solved on their support by conjugate gradients. The
support shrinks along a path of falling cost: at each step the entries whose loss is least for what they cost go
(second order, diagonal), then P and D are solved for again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

SHRINK = 0.8
"""Cost of a step of the path over that of the step before."""
STEPS = 8
"""Of conjugate gradients, each time that D or P is solved for."""
ROUGHLY = 3
"""The same where it is only to be known what a layer loses at which cost."""
EXACT, FLAT = 1e-12, 1e-6
"""Of a system in float32: the squared residual over that at the start at which it is solved, and the curvature along a
direction over that of its entries taken alone below which it is none."""


@dataclass(frozen=True, eq=False)
class Problem:
    """A layer's filters, its inputs, and what an entry of P and of D costs.

    weight: (groups, n / groups, m / groups, area), area = kh * kw (1 for linear layers); covariance: (groups, d, d),
    d = m / groups * area, or the variances alone, (groups, d), with which only the identity dictionary can be fitted.
    coefficient, row: MACs on one image of an entry of P, of an entry of D.
    """

    weight: Tensor
    covariance: Tensor
    coefficient: int
    row: int

    @property
    def whole(self) -> bool:
        """Whether the covariance is there, not the variances alone."""
        return self.covariance.ndim == 3

    @property
    def variances(self) -> Tensor:
        """(groups, d)."""
        return self.covariance.diagonal(dim1=1, dim2=2) if self.whole else self.covariance

    @property
    def energy(self) -> float:
        """Variance of the dense layer's outputs, summed over the filters."""
        return self.squared(self.weight)

    def squared(self, difference: Tensor) -> float:
        """trace(E C E^T)."""
        return float((self.seen(difference) * difference).sum())

    def seen(self, weight: Tensor) -> Tensor:
        """E C, of the shape of E."""
        flat = weight.flatten(2)
        return (flat @ self.covariance if self.whole else flat * self.covariance[:, None]).reshape(weight.shape)


@dataclass(frozen=True, eq=False)
class Fit:
    """D (groups, k, m / groups), or None for the identity, and P (groups, n / groups, k, area); zeros are exact."""

    dictionary: Tensor | None
    coefficients: Tensor
    cost: int
    error: float
    """trace(E C E^T) over that of the dense filters: 0 is exact, 1 is a layer that answers a constant. Of a menu's
    fit to about 1e-6."""

    def dense(self) -> Tensor:
        """W' (groups, n / groups, m / groups, area)."""
        return compose(self.dictionary, self.coefficients)


def compose(dictionary: Tensor | None, coefficients: Tensor) -> Tensor:
    """W' = P D."""
    return coefficients if dictionary is None else torch.einsum("gnka,gkm->gnma", coefficients, dictionary)


def solve(
    apply: Callable[[Tensor], Tensor], right: Tensor, start: Tensor, scale: Tensor, steps: int, axes: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """Conjugate gradients for apply(x) = right on the nonzeros of ``start``, preconditioned by the diagonal ``scale``.

    ``axes`` are those of one system; the others count independent ones, solved side by side. Returns x and what is left
    of ``right``, on the same nonzeros.
    """
    mask = start != 0
    inverse = 1 / scale.clamp_min(1e-20)

    def inner(a: Tensor, b: Tensor) -> Tensor:
        return (a * b).sum(axes, keepdim=True)

    x = start
    residual = (right - apply(x)) * mask
    direction = z = inverse * residual
    size = inner(residual, z)
    solved = EXACT * size
    for _ in range(steps):
        applied = apply(direction) * mask
        curvature = inner(direction, applied)
        # What is solved, or flat as where two rows of D are alike, would go anywhere by rounding errors alone.
        sound = (size > solved) & (curvature > FLAT * inner(direction, scale * direction))
        step = torch.where(sound, size / curvature, 0.0)
        x, residual = x + step * direction, residual - step * applied
        z = inverse * residual
        before, size = size, inner(residual, z)
        direction = z + torch.where(sound, size / before, 0.0) * direction
    return x, residual


def _inner(a: Tensor, b: Tensor) -> float:
    return float((a * b).sum(dtype=torch.float64))


class Path:
    """A fit whose cost is lowered step by step."""

    def __init__(self, problem: Problem, dictionary: Tensor | None, coefficients: Tensor, steps: int = STEPS) -> None:
        self.problem, self.steps = problem, steps
        self.dictionary, self.coefficients = dictionary, coefficients
        self.target = problem.seen(problem.weight)
        self.energy = max(_inner(self.target, problem.weight), 1e-30)
        self.about = math.nan
        """The error after P was last solved for, to about 1e-6: what that left over tells it at no cost."""

    def fit(self) -> Fit:
        """As it stands."""
        error = self.problem.squared(self.problem.weight - compose(self.dictionary, self.coefficients))
        return Fit(self.dictionary, self.coefficients, self.cost(), error / self.energy)

    def cost(self) -> int:
        rows = 0 if self.dictionary is None else int(self.dictionary.count_nonzero()) * self.problem.row
        return int(self.coefficients.count_nonzero()) * self.problem.coefficient + rows

    def refit(self) -> None:
        """Solve for P, for D, and for P again, on their supports."""
        self.refit_coefficients()
        if self.dictionary is not None:
            self.refit_dictionary()
            self.refit_coefficients()

    def inner_covariance(self) -> Tensor:
        """Covariance of the response's patches: C seen through D, (groups, k * area, k * area)."""
        assert self.dictionary is not None
        groups, k, m = self.dictionary.shape
        area = self.problem.weight.shape[3]
        found = self.problem.covariance.reshape(groups, m, area * m * area)
        found = (self.dictionary @ found).reshape(groups, k * area, m, area).transpose(2, 3)
        found = found @ self.dictionary[:, None].transpose(2, 3)
        return found.transpose(2, 3).reshape(groups, k * area, k * area)

    def refit_coefficients(self) -> None:
        shape, steps = self.coefficients.shape, self.steps
        right, apply, scale = self.target, self.problem.seen, self.problem.variances
        if self.dictionary is not None:
            seen = self.inner_covariance()
            right, scale = torch.einsum("gnma,gkm->gnka", right, self.dictionary), seen.diagonal(dim1=1, dim2=2)
            apply = partial(torch.matmul, other=seen)
        elif not self.problem.whole:
            steps = 0  # each entry alone: those of W are the solution
        right = right.flatten(2)
        found, left = solve(apply, right, self.coefficients.flatten(2), scale[:, None], steps, (2,))
        self.coefficients = found.reshape(shape)
        # trace(E C E^T) = W C W^T - P (2 right - P seen), and P seen = right - left where P is not zero
        self.about = max(1 - _inner(found, right + left) / self.energy, 1e-6)

    def refit_dictionary(self) -> None:
        assert self.dictionary is not None
        right = torch.einsum("gnma,gnka->gkm", self.target, self.coefficients)
        self.dictionary, _ = solve(self.curved(), right, self.dictionary, self.row_curvature(), self.steps, (1, 2))

    def curved(self) -> Callable[[Tensor], Tensor]:
        """Second derivative of the error by D, halved, as a map from (groups, k, m) to the same.

        Whichever is cheaper: through W' = P D, or through the products P P^T of all pairs of kernel positions.
        """
        groups, n, m, area = self.problem.weight.shape
        k = self.coefficients.shape[2]

        def through_filters(x: Tensor) -> Tensor:
            return torch.einsum("gnma,gnka->gkm", self.problem.seen(compose(x, self.coefficients)), self.coefficients)

        if n * m < 2 * k * (m + k):
            return through_filters
        flat = self.coefficients.flatten(2)
        pairs = (flat.transpose(1, 2) @ flat).reshape(groups, k, area, k * area).transpose(1, 2).contiguous()
        inputs = self.problem.covariance.reshape(groups, m, area, m * area).transpose(1, 2).contiguous()

        def through_pairs(x: Tensor) -> Tensor:
            seen = (x[:, None] @ inputs).reshape(groups, area, k, m, area)  # a', k', m, a
            return (pairs @ seen.permute(0, 4, 2, 1, 3).reshape(groups, area, k * area, m)).sum(1)

        return through_pairs

    def row_curvature(self) -> Tensor:
        """Second derivative, halved, of the error by each entry of D: (groups, k, m)."""
        groups, _, m, area = self.problem.weight.shape
        own = self.problem.covariance.reshape(groups, m, area, m, area).diagonal(dim1=1, dim2=3)
        pairs = torch.einsum("gnka,gnkb->gkab", self.coefficients, self.coefficients)
        return torch.einsum("gkab,gabm->gkm", pairs, own)

    def prune(self, budget: int) -> None:
        """Zero the entries of least loss for their cost until what is left costs at most ``budget``."""
        seen = self.problem.variances
        if self.dictionary is not None:
            seen = self.inner_covariance().diagonal(dim1=1, dim2=2)
        curvature = seen.reshape(len(self.coefficients), 1, -1, self.coefficients.shape[3])
        worth = [(self.coefficients.square() * curvature / self.problem.coefficient).flatten()]
        costs = [torch.full_like(worth[0], self.problem.coefficient, dtype=torch.int64)]
        if self.dictionary is not None:
            rows = (self.dictionary.square() * self.row_curvature() / self.problem.row).flatten()
            worth.append(rows)
            costs.append(torch.full_like(rows, self.problem.row, dtype=torch.int64))
        ranks = torch.cat(worth)
        order = ranks.argsort(descending=True)
        running = torch.cat(costs)[order].cumsum(0)
        keep = torch.zeros_like(ranks, dtype=torch.bool)
        keep[order[(running <= budget) & (ranks[order] > 0)]] = True
        keep[order[0]] = True
        kept = keep[: worth[0].numel()].reshape(self.coefficients.shape)
        self.coefficients = self.coefficients * kept
        if self.dictionary is not None:
            self.dictionary = self.dictionary * keep[worth[0].numel() :].reshape(self.dictionary.shape)
            self.drop_useless()

    def drop_useless(self) -> None:
        """No row of D that nobody reads, no read of an empty row."""
        assert self.dictionary is not None
        filled = self.dictionary.any(2)
        self.coefficients = self.coefficients * filled[:, None, :, None]
        self.dictionary = self.dictionary * self.coefficients.any(3).any(1)[:, :, None]


def start(problem: Problem, dictionary_size: int | None, steps: int = STEPS) -> Path:
    """The path's beginning: the identity dictionary with P = W, or D and P from an SVD weighted by the inputs.

    With H the root of the inputs' covariance summed over kernel positions, the k leading right singular vectors V of
    W H give D = V H^-1 and P = W H V^T: of all D with k rows, the one whose outputs are closest, positions taken alone.
    """
    if dictionary_size is None:
        return Path(problem, None, problem.weight, steps)
    if not problem.whole:
        raise ValueError("a dictionary needs the covariance of the inputs; only their variances are there")
    groups, n, m, area = problem.weight.shape
    channels = problem.covariance.reshape(groups, m, area, m, area).diagonal(dim1=2, dim2=4).sum(-1).double()
    values, vectors = torch.linalg.eigh(channels)
    roots = values.clamp_min(1e-9 * float(values.max())).sqrt()
    root = (vectors * roots[:, None]) @ vectors.transpose(1, 2)
    inverse = (vectors / roots[:, None]) @ vectors.transpose(1, 2)
    filters = problem.weight.permute(0, 1, 3, 2).reshape(groups, n * area, m).double() @ root
    leading = torch.linalg.eigh(filters.transpose(1, 2) @ filters).eigenvectors.flip(2)[:, :, :dictionary_size]
    coefficients = (filters @ leading).reshape(groups, n, area, -1).transpose(2, 3)
    dictionary = (leading.transpose(1, 2) @ inverse).to(problem.weight)
    return Path(problem, dictionary, coefficients.to(problem.weight), steps)


def menu(problem: Problem, dictionary_size: int | None, least: int) -> Iterator[Fit]:
    """Fits of falling cost, from below the dense layer's to ``least`` MACs, each step 0.8 of the one before.

    To choose from, at less than half of the operations of :func:`fit_to`: not solved as far, and the error known to
    about 1e-6.
    """
    path, target = _begin(problem, dictionary_size, ROUGHLY)
    while target >= least:
        path.prune(int(target))
        path.refit()
        yield Fit(path.dictionary, path.coefficients, path.cost(), path.about)
        target *= SHRINK


def fit_to(problem: Problem, dictionary_size: int | None, cost: int) -> Fit:
    """The fit of at most ``cost`` MACs at the end of such a path, solved further at every step."""
    path, target = _begin(problem, dictionary_size, STEPS)
    while target > max(cost, 1):
        path.prune(int(target))
        path.refit()
        target *= SHRINK
    path.prune(cost)
    path.refit()
    return path.fit()


def _begin(problem: Problem, dictionary_size: int | None, steps: int) -> tuple[Path, float]:
    path = start(problem, dictionary_size, steps)
    path.refit()
    dense = problem.weight.numel() * problem.coefficient
    return path, SHRINK * min(path.cost(), dense)
