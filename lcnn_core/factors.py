"""D and P from the dense filters that a layer already has."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lcnn_core.errors import ShapeError
from lcnn_core.spec import check_dictionary_size

_EXACT_SIZE = 1024
"""Up to this size all eigenvectors are computed; beyond it, only the leading ones, where few are asked for."""


def svd_factors(weight: Tensor, dictionary_size: int, groups: int = 1) -> tuple[Tensor, Tensor]:
    """D (groups * k, m / groups) and P (n, k, *kernel) whose product is closest to the dense filters, W ~ P D.

    The filters are arranged as one matrix (n * kh * kw, m) for each group and cut to their k leading singular
    directions, the best there is in the 2-norm; exact, up to rounding, for k >= m. All rows of D are orthogonal and of
    one length, so that an entry of P weighs in W by its own magnitude, and a threshold drops what matters least. For
    k > m, D is a tight frame: all k rows are in use. One factor for the layer is moved from D to P, such that the root
    mean square of P is that of its published start, 1 / sqrt(3 * kh * kw * k): published thresholds, l1 weights and
    learning rates then mean what they mean there, however large or small the dense weights are.

    weight: (n, m / groups, *kernel), float; computed in float64 on the CPU, returned with its dtype and device. Cost:
    about n * kh * kw * m^2 MACs. Raises ShapeError when the groups do not divide n, ConfigError for a bad k.
    """
    check_dictionary_size(dictionary_size)
    n, m, *kernel = weight.shape
    k = dictionary_size
    if groups < 1 or n % groups:
        raise ShapeError(f"weight {tuple(weight.shape)} does not fit groups={groups}: expected a divisor of {n}")
    exact = weight.detach().to("cpu", torch.float64)
    matrices = exact.reshape(groups, n // groups, m, -1).transpose(2, 3).reshape(groups, -1, m)
    pairs = [_factor(matrix, k) for matrix in matrices]
    dictionary = torch.cat([d for d, _ in pairs])
    coefficients = torch.stack([p for _, p in pairs]).reshape(n, -1, k).transpose(1, 2).reshape(n, k, *kernel)
    rms = float(coefficients.square().mean().sqrt())
    scale = 1 / (rms * math.sqrt(3 * k * math.prod(kernel))) if rms else 1.0
    return (dictionary / scale).to(weight), (coefficients * scale).contiguous().to(weight)


def _factor(matrix: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """D (k, m) with rows of length 1 and P (rows, k) for one matrix (rows, m)."""
    rows, m = matrix.shape
    if rows >= m or k >= m:
        dictionary = _leading(matrix.T, min(k, m)).T
        if k > m:
            dictionary = _frame(k, m) @ dictionary
        return dictionary, matrix @ dictionary.T
    left = _leading(matrix, min(k, rows))
    dictionary = left.T @ matrix
    lengths = dictionary.norm(dim=1)
    missing = k - len(lengths)
    dictionary = dictionary / lengths.clamp_min(torch.finfo(torch.float64).tiny)[:, None]
    return torch.nn.functional.pad(dictionary, (0, 0, 0, missing)), torch.nn.functional.pad(
        left * lengths, (0, missing)
    )


def _leading(matrix: Tensor, k: int) -> Tensor:
    """The k leading left singular vectors of a matrix as columns, largest singular value first.

    Few of many are found by subspace iteration, where the spectrum is flat to within about 0.2 % of the least error.
    """
    size = len(matrix)
    block = k + 32
    whole = size <= _EXACT_SIZE or 4 * block > size
    # The iteration multiplies by the Gram matrix nine times: for few columns that costs less than to form it.
    gram = matrix @ matrix.T if whole or 18 * block > size else None
    if whole:
        return torch.linalg.eigh(gram).eigenvectors.flip(1)[:, :k]

    def apply(x: Tensor) -> Tensor:
        return matrix @ (matrix.T @ x) if gram is None else gram @ x

    basis = torch.linalg.qr(torch.randn(size, block, dtype=matrix.dtype, generator=torch.Generator().manual_seed(0))).Q
    for _ in range(4):
        basis = torch.linalg.qr(apply(apply(basis))).Q
    return basis @ torch.linalg.eigh(basis.T @ apply(basis)).eigenvectors.flip(1)[:, :k]


def _frame(k: int, m: int) -> Tensor:
    """(k, m) with orthonormal columns: the first m columns of the cosine transform's matrix."""
    rows = torch.arange(k, dtype=torch.float64)[:, None] + 0.5
    columns = torch.arange(m, dtype=torch.float64)
    frame = torch.cos(torch.pi / k * rows * columns) * math.sqrt(2 / k)
    frame[:, 0] = 1 / math.sqrt(k)
    return frame
