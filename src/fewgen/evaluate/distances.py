"""Distances between two sets of feature vectors: Frechet, kernel (KID), precision to coverage.

Everything is computed in float64 and in blocks of rows, so that the order of the samples and the size of
the blocks change a figure by rounding only and memory stays bounded. A figure that cannot be computed is
an error that says what is missing; none of these functions returns NaN.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from fewgen.errors import DataError, ShapeError

# Rows times columns of one block of a distance or kernel matrix: 2**23 float64 numbers are 64 MiB.
BLOCK_ENTRIES = 2**23

# Squared distances come from a matrix product, whose rounding is about 1e-14 of the squared norms. Below
# this share of them two vectors count as equal, so that an exact copy has distance zero, not 1e-7.
_SAME_POINT = 1e-12

# Slack of "inside the ball": a copy of a neighbour lies exactly on the sphere, and which side rounding
# puts it on must not depend on the order of the samples.
_ON_SPHERE = 1e-9


def _check(name: str, features: Tensor, at_least: int = 1) -> Tensor:
    if features.ndim != 2:
        raise ShapeError(f"{name} must be (N, D) features, got shape {tuple(features.shape)}.")
    if len(features) < at_least:
        raise DataError(f"{name} holds {len(features)} samples, but this figure needs at least {at_least}.")
    features = features.detach().to(torch.float64)
    if not torch.isfinite(features).all():
        bad = int((~torch.isfinite(features).all(dim=1)).sum())
        raise DataError(f"{name}: {bad} of {len(features)} feature vectors hold NaN or infinity.")
    return features


def _check_pair(x: Tensor, y: Tensor, at_least: int, names: tuple[str, str]) -> tuple[Tensor, Tensor]:
    x, y = _check(names[0], x, at_least), _check(names[1], y, at_least)
    if x.shape[1] != y.shape[1]:
        raise ShapeError(f"{names[0]} has {x.shape[1]} features per sample, {names[1]} has {y.shape[1]}.")
    return x, y


def _row_blocks(n_rows: int, n_columns: int, block_rows: int | None) -> Iterator[slice]:
    rows = block_rows or max(1, BLOCK_ENTRIES // max(1, n_columns))
    for start in range(0, n_rows, rows):
        yield slice(start, min(start + rows, n_rows))


def _squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """Return squared Euclidean distances (N, M) of rows; exactly zero for equal rows."""
    squares = (x * x).sum(dim=1)[:, None] + (y * y).sum(dim=1)[None, :]
    distances = squares - 2.0 * (x @ y.T)
    return torch.where(distances <= _SAME_POINT * squares, torch.zeros_like(distances), distances)


# --------------------------------------------------------------------------------------------- Frechet


def mean_and_covariance(features: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean (D,) and unbiased covariance (D, D) of features (N, D), float64.

    Raises: DataError for fewer than two samples or non-finite values.
    """
    features = _check("features", features, at_least=2)
    mean = features.mean(dim=0)
    centred = features - mean
    return mean, centred.T @ centred / (len(features) - 1)


def _factor(covariance: Tensor) -> Tensor:
    """Return L (D, D) with L L^T equal to the covariance; exists for singular covariances too."""
    values, vectors = torch.linalg.eigh((covariance + covariance.T) / 2)
    return vectors * values.clamp_min(0).sqrt()


def frechet_distance_of_moments(mean_x: Tensor, cov_x: Tensor, mean_y: Tensor, cov_y: Tensor) -> float:
    """Squared Frechet (2-Wasserstein) distance of two Gaussians given by their moments.

    ``|m_x - m_y|^2 + tr(C_x) + tr(C_y) - 2 tr((C_x C_y)^(1/2))``

    With C = L L^T the last trace is the sum of the singular values of L_x^T L_y: they are the square
    roots of the eigenvalues of the symmetric product C_x^(1/2) C_y C_x^(1/2). Nothing is inverted and no
    root of a non-symmetric matrix is taken, so singular covariances (fewer samples than features) need no
    added diagonal.

    Args:
        mean_x: (D,).
        cov_x: (D, D), symmetric, positive semi-definite up to rounding.
        mean_y: (D,).
        cov_y: (D, D).

    Returns:
        The squared distance in squared units of the features, never negative.

    Raises:
        ShapeError: the moments do not fit together.

    Source: Dowson & Landau 1982, J. Multivariate Analysis 12(3); Heusel et al. 2017, arXiv:1706.08500, Eq. 6.
    Differs: singular values of L_x^T L_y instead of a matrix square root.
    """
    shapes = [tuple(mean_x.shape), tuple(cov_x.shape), tuple(mean_y.shape), tuple(cov_y.shape)]
    d = mean_x.numel()
    if shapes != [(d,), (d, d), (d,), (d, d)]:
        raise ShapeError(f"moments must be (D,), (D, D), (D,), (D, D), got {shapes}.")
    mean_x, cov_x, mean_y, cov_y = (m.to(torch.float64) for m in (mean_x, cov_x, mean_y, cov_y))
    overlap = torch.linalg.svdvals(_factor(cov_x).T @ _factor(cov_y)).sum()
    distance = (mean_x - mean_y).square().sum() + cov_x.trace() + cov_y.trace() - 2 * overlap
    return max(0.0, float(distance))


def frechet_distance(x: Tensor, y: Tensor) -> float:
    """Squared Frechet distance of Gaussians fitted to two sets of features (FID in the given features).

    Biased upwards for few samples: two sets of n draws from one distribution have a positive distance
    that falls about as 1/n. Compare only figures with equal sample counts and the same extractor.

    Args:
        x: features, (N, D).
        y: features, (M, D).

    Returns:
        The squared distance, in squared units of the features.

    Raises:
        DataError: fewer than two samples in a set, or non-finite features.
        ShapeError: different feature sizes.

    Source: Heusel et al. 2017, arXiv:1706.08500, Eq. 6.
    Differs: any extractor; the formula of `frechet_distance_of_moments`.
    """
    x, y = _check_pair(x, y, 2, ("x", "y"))
    return frechet_distance_of_moments(*mean_and_covariance(x), *mean_and_covariance(y))


# ------------------------------------------------------------------------------------------------- KID


def _kernel_sum(x: Tensor, y: Tensor, degree: int, block_rows: int | None) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for rows in _row_blocks(len(x), len(y), block_rows):
        total += (x[rows] @ y.T / x.shape[1] + 1.0).pow(degree).sum()
    return total


def kernel_distance(
    x: Tensor, y: Tensor, *, degree: int = 3, unbiased: bool = True, block_rows: int | None = None
) -> float:
    """Squared maximum mean discrepancy under the polynomial kernel ``(<a, b> / D + 1)^degree`` (KID).

    Args:
        x: features, (N, D).
        y: features, (M, D).
        degree: of the kernel.
        unbiased: leave out the pairs of a sample with itself (U-statistic: zero on average for equal
            distributions, so it can be negative); False keeps them (V-statistic, biased upwards).
        block_rows: rows per block; changes rounding only.

    Returns:
        The squared discrepancy over all pairs.

    Raises:
        DataError: fewer than two samples in a set, or non-finite features.
        ShapeError: different feature sizes.

    Source: Binkowski et al. 2018, arXiv:1801.01401, Sec. 3; Gretton et al. 2012, JMLR 13, Eq. 3 and 5.
    Differs: one estimate from all pairs instead of a mean over random subsets (`kernel_distance_blocks`
    gives those), so no seed enters.
    """
    x, y = _check_pair(x, y, 2, ("x", "y"))
    n, m = len(x), len(y)
    within_x, within_y = (_kernel_sum(s, s, degree, block_rows) for s in (x, y))
    between = _kernel_sum(x, y, degree, block_rows) / (n * m)
    if not unbiased:
        return float(within_x / n**2 + within_y / m**2 - 2 * between)
    diagonal_x, diagonal_y = (((s * s).sum(dim=1) / s.shape[1] + 1.0).pow(degree).sum() for s in (x, y))
    within_x = (within_x - diagonal_x) / (n * (n - 1))
    within_y = (within_y - diagonal_y) / (m * (m - 1))
    return float(within_x + within_y - 2 * between)


def kernel_distance_blocks(
    x: Tensor, y: Tensor, *, block_size: int, n_blocks: int, rng: torch.Generator, degree: int = 3
) -> Tensor:
    """Unbiased kernel distance on random subsets; their mean is the usual KID, their spread its error.

    Args:
        x: features, (N, D).
        y: features, (M, D).
        block_size: samples per subset and set, drawn without replacement.
        n_blocks: number of subsets.
        rng: random stream of the subsets.
        degree: of the kernel.

    Returns:
        One distance per subset, (n_blocks,), float64.

    Raises:
        DataError: a set is smaller than `block_size`.

    Source: Binkowski et al. 2018, arXiv:1801.01401, Sec. 4.
    """
    x, y = _check_pair(x, y, 2, ("x", "y"))
    if block_size > min(len(x), len(y)):
        raise DataError(
            f"block_size is {block_size}, but the sets hold {len(x)} and {len(y)} samples. "
            f"Set block_size to at most {min(len(x), len(y))}."
        )
    values = []
    for _ in range(n_blocks):
        i = torch.randperm(len(x), generator=rng)[:block_size]
        j = torch.randperm(len(y), generator=rng)[:block_size]
        values.append(kernel_distance(x[i], y[j], degree=degree))
    return torch.tensor(values, dtype=torch.float64)


# ----------------------------------------------------------------- precision, recall, density, coverage


@dataclass(frozen=True)
class NeighbourScores:
    """Shares (0 to 1; density may exceed 1) from balls that reach to each point's k-th neighbour.

    precision: share of generated points inside some real ball.
    recall: share of real points inside some generated ball.
    density: real balls around a generated point, in units of k; 1 is expected of real images.
    coverage: share of real balls that hold a generated point.
    k: the neighbour that sets the radii.
    """

    precision: float
    recall: float
    density: float
    coverage: float
    k: int


def default_k(n: int) -> int:
    """Return the neighbour count for n samples: 5, or 3 below 100, and always below n.

    Source: Naeem et al. 2020, arXiv:2002.09797, use 5 at 10,000 samples.
    Differs: with 30 samples the 5th neighbour is a sixth of the set away, so the balls would cover all.
    """
    return max(1, min(5 if n >= 100 else 3, n - 1))


def neighbour_radii(features: Tensor, k: int, block_rows: int | None = None) -> Tensor:
    """Return the squared distance (N,) of each point to its k-th nearest other point.

    Raises: DataError unless 1 <= k < N.
    """
    features = _check("features", features, at_least=2)
    if not 1 <= k < len(features):
        raise DataError(f"k is {k}, but it must lie between 1 and {len(features) - 1} (samples minus one).")
    radii = torch.empty(len(features), dtype=torch.float64)
    for rows in _row_blocks(len(features), len(features), block_rows):
        distances = _squared_distances(features[rows], features)
        # The point itself is one of the k + 1 smallest (with duplicates any of them may stand for it).
        radii[rows] = distances.topk(k + 1, dim=1, largest=False).values[:, -1]
    return radii


def neighbour_scores(
    real: Tensor, generated: Tensor, *, k: int | None = None, block_rows: int | None = None
) -> NeighbourScores:
    """Precision, recall, density and coverage of generated against real features.

    Coverage grows with the number of generated samples and falls with the number of real ones: compare
    only figures with equal counts.

    Args:
        real: features, (N, D).
        generated: features, (M, D).
        k: neighbour that sets the radii; None chooses `default_k` of the smaller set.
        block_rows: rows per block; changes rounding only.

    Returns:
        `NeighbourScores`.

    Raises:
        DataError: fewer than two samples in a set, k not below the smaller set, non-finite features.
        ShapeError: different feature sizes.

    Source: Kynkaanniemi et al. 2019, arXiv:1904.06991, Eq. 1-2 (precision, recall); Naeem et al. 2020,
    arXiv:2002.09797, Eq. 4-5 (density, coverage).
    Differs: balls are closed (the authors' code uses "<"), so that copies of a duplicated image, whose
    radius is zero, still count as covering it.
    """
    real, generated = _check_pair(real, generated, 2, ("real", "generated"))
    k = default_k(min(len(real), len(generated))) if k is None else k
    real_radii = neighbour_radii(real, k, block_rows) * (1 + _ON_SPHERE)
    generated_radii = neighbour_radii(generated, k, block_rows) * (1 + _ON_SPHERE)

    balls_per_generated = torch.zeros(len(generated), dtype=torch.int64)
    covered = torch.zeros(len(real), dtype=torch.bool)
    recalled = torch.zeros(len(real), dtype=torch.bool)
    for rows in _row_blocks(len(real), len(generated), block_rows):
        distances = _squared_distances(real[rows], generated)
        inside = distances <= real_radii[rows, None]
        balls_per_generated += inside.sum(dim=0)
        covered[rows] = inside.any(dim=1)
        recalled[rows] = (distances <= generated_radii[None, :]).any(dim=1)
    return NeighbourScores(
        precision=float((balls_per_generated > 0).double().mean()),
        recall=float(recalled.double().mean()),
        density=float(balls_per_generated.double().mean() / k),
        coverage=float(covered.double().mean()),
        k=k,
    )


def nearest_distances(x: Tensor, y: Tensor, block_rows: int | None = None) -> tuple[Tensor, Tensor]:
    """Return, for each row of x (N, D), the Euclidean distance (N,) to the nearest row of y and its index.

    Raises: DataError for empty sets or non-finite values; ShapeError for different feature sizes.
    """
    x, y = _check_pair(x, y, 1, ("x", "y"))
    distances = torch.empty(len(x), dtype=torch.float64)
    indices = torch.empty(len(x), dtype=torch.int64)
    for rows in _row_blocks(len(x), len(y), block_rows):
        nearest = _squared_distances(x[rows], y).min(dim=1)
        distances[rows], indices[rows] = nearest.values.sqrt(), nearest.indices
    return distances, indices
