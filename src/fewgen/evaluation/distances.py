"""Distances between two sets of feature vectors: Frechet, kernel (KID) with its test, precision to coverage.

Everything is computed in float64 and in blocks of rows, so that the order of the samples and the size of
the blocks change a figure by rounding only and memory stays bounded. A figure that cannot be computed is
an error that says what is missing; none of these functions returns NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fewgen.errors import ConfigError, DataError, ShapeError
from fewgen.evaluation.checks import check_classes, check_features, check_labels, check_pair
from fewgen.evaluation.statistics import normal_factor

# Rows times columns of one block of a distance or kernel matrix. 2**19 float64 numbers are 4 MiB: the passes
# over a block after its matrix product then run in the processor's cache, not in memory (twice as fast).
BLOCK_ENTRIES = 2**19

# Fewer rows than this make the matrix product itself slow; at 50,000 columns they are 13 MiB.
_LEAST_ROWS = 32

# Squared distances come from a matrix product, whose rounding is about 1e-14 of the squared norms. Below
# this share of them two vectors count as equal, so that an exact copy has distance zero, not 1e-7.
_SAME_POINT = 1e-12

# Slack of "inside the ball": a copy of a neighbour lies exactly on the sphere, and which side rounding
# puts it on must not depend on the order of the samples.
_ON_SPHERE = 1e-9


def row_blocks(n_rows: int, n_columns: int) -> Iterator[slice]:
    """Yield the rows of a matrix in blocks of about `BLOCK_ENTRIES` numbers."""
    rows = max(_LEAST_ROWS, BLOCK_ENTRIES // max(1, n_columns))
    for start in range(0, n_rows, rows):
        yield slice(start, min(start + rows, n_rows))


def squared_distances(
    x: Tensor, y: Tensor, squares_x: Tensor | None = None, squares_y: Tensor | None = None
) -> Tensor:
    """Return squared Euclidean distances (N, M) of rows; exactly zero for equal rows.

    The squared norms (N,) and (M,) may be passed where many blocks share them.
    """
    squares_x = (x * x).sum(dim=1) if squares_x is None else squares_x
    squares_y = (y * y).sum(dim=1) if squares_y is None else squares_y
    squares = squares_x[:, None] + squares_y[None, :]
    distances = torch.addmm(squares, x, y.T, alpha=-2.0)
    return distances.masked_fill_(distances <= squares.mul_(_SAME_POINT), 0.0)


def canonical_order(features: Tensor, labels: Tensor | None = None) -> Tensor:
    """Return the order (N,) that sorts samples by label, then by feature values, first feature first.

    Whatever is drawn from samples in this order depends on what they are, not on how they were listed.

    Args:
        features: finite, (N, D).
        labels: int64 (N,), or None.

    Returns:
        int64 (N,): indices into the rows.
    """
    values = np.ascontiguousarray(features.detach().to(torch.float64).numpy() + 0.0)  # -0.0 becomes 0.0
    bits = values.view(np.uint64)
    # Flipped so that the bits, read as bytes from the left, sort as the numbers do: one sort for all columns.
    sign = np.uint64(1 << 63)
    keys = np.where(bits & sign, ~bits, bits | sign).astype(">u8")
    order = np.argsort(keys.view(f"V{8 * keys.shape[1]}").ravel(), kind="stable")
    if labels is not None:
        order = order[np.argsort(labels.numpy()[order], kind="stable")]
    return torch.from_numpy(order)


# --------------------------------------------------------------------------------------------- Frechet


def mean_and_covariance(features: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean (D,) and unbiased covariance (D, D) of features (N, D), float64.

    Raises: DataError for fewer than two samples or non-finite values.
    """
    features = check_features("features", features, at_least=2)
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
    return _distance((mean_x, _factor(cov_x), cov_x.trace()), (mean_y, _factor(cov_y), cov_y.trace()))


def _distance(x: tuple[Tensor, Tensor, Tensor], y: tuple[Tensor, Tensor, Tensor]) -> float:
    """Return the distance of two Gaussians given by mean, factor of the covariance (D, R) and its trace."""
    (mean_x, factor_x, trace_x), (mean_y, factor_y, trace_y) = x, y
    overlap = torch.linalg.svdvals(factor_x.T @ factor_y).sum()
    return max(0.0, float((mean_x - mean_y).square().sum() + trace_x + trace_y - 2 * overlap))


def _fitted(features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean (D,), factor (D, min(N, D)) and trace of the covariance of features (N, D).

    With fewer samples than features the centred samples are a factor themselves, and no (D, D) matrix is
    made: raw pixels of small images have thousands of features.
    """
    n, d = features.shape
    if n >= d:
        mean, covariance = mean_and_covariance(features)
        return mean, _factor(covariance), covariance.trace()
    features = check_features("features", features, at_least=2)
    mean = features.mean(dim=0)
    factor = (features - mean).T / math.sqrt(n - 1)
    return mean, factor, factor.square().sum()


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
    x, y = check_pair(x, y, 2)
    return _distance(_fitted(x), _fitted(y))


# ------------------------------------------------------------------------------------------------- KID


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.T).div_(x.shape[1]).add_(1.0).pow_(3)


def distance_kernel(x: Tensor, y: Tensor) -> Tensor:
    """Return the negative Euclidean distances, (N, M); the kernel distance is then the energy distance.

    It grows with the distance, so sets that are far from a third one are still ranked.

    Source: Szekely & Rizzo 2013, Journal of Statistical Planning and Inference 143, Eq. 5; Sejdinovic et al.
    2013, arXiv:1207.6076, Sec. 5.
    """
    return -squared_distances(x, y).sqrt()


def energy_distance(x: Tensor, y: Tensor) -> float:
    """Return the unbiased energy distance of samples (N, D) and (M, D), at least 2 each; can be negative.

    Raises: DataError, ShapeError as `kernel_distance`.
    """
    x, y = check_pair(x, y, 2)
    n, m = len(x), len(y)
    within_x, within_y = (distance_kernel(s, s).sum() for s in (x, y))
    return float(within_x / (n * (n - 1)) + within_y / (m * (m - 1)) - 2 * distance_kernel(x, y).mean())


def _kernel_sum_within(x: Tensor) -> Tensor:
    """Sum over pairs of different samples; each unordered pair is computed once."""
    total = torch.zeros((), dtype=torch.float64)
    for rows in row_blocks(len(x), len(x)):
        square = _kernel(x[rows], x[rows])
        total += square.sum() - square.diagonal().sum()
        total += 2 * _kernel(x[rows], x[rows.stop :]).sum()
    return total


def kernel_distance(x: Tensor, y: Tensor) -> float:
    """Squared maximum mean discrepancy under the polynomial kernel ``(<a, b> / D + 1)^3`` (KID).

    The pairs of a sample with itself are left out (U-statistic): the distance is zero on average for equal
    distributions, so it can be negative.

    Args:
        x: features, (N, D).
        y: features, (M, D).

    Returns:
        The squared discrepancy over all pairs.

    Raises:
        DataError: fewer than two samples in a set, or non-finite features.
        ShapeError: different feature sizes.

    Source: Binkowski et al. 2018, arXiv:1801.01401, Sec. 3; Gretton et al. 2012, JMLR 13, Eq. 3.
    Differs: one estimate from all pairs instead of a mean over random subsets (`kernel_distance_blocks`
    gives those), so no seed enters.
    """
    x, y = check_pair(x, y, 2)
    n, m = len(x), len(y)
    within_x, within_y = (_kernel_sum_within(s) for s in (x, y))
    between = sum(_kernel(x[rows], y).sum() for rows in row_blocks(n, m)) / (n * m)
    return float(within_x / (n * (n - 1)) + within_y / (m * (m - 1)) - 2 * between)


def kernel_distance_blocks(
    x: Tensor,
    y: Tensor,
    *,
    block_size: int | tuple[int, int],
    n_blocks: int,
    rng: torch.Generator,
) -> Tensor:
    """Unbiased kernel distance on random subsets; their mean is the usual KID, their spread its error.

    Args:
        x: features, (N, D).
        y: features, (M, D).
        block_size: samples per subset, drawn without replacement: of each set, or a number for x and one
            for y.
        n_blocks: number of subsets.
        rng: random stream of the subsets.

    Returns:
        One distance per subset, (n_blocks,), float64; the order of the samples does not enter.

    Raises:
        DataError: a set is smaller than its `block_size`.

    Source: Binkowski et al. 2018, arXiv:1801.01401, Sec. 4.
    """
    x, y = check_pair(x, y, 2)
    size_x, size_y = block_size if isinstance(block_size, tuple) else (block_size, block_size)
    if size_x > len(x) or size_y > len(y):
        raise DataError(
            f"block_size is {block_size}, but the sets hold {len(x)} and {len(y)} samples. "
            f"Set block_size to at most {min(len(x), len(y))}."
        )
    x, y = x[canonical_order(x)], y[canonical_order(y)]
    values = []
    for _ in range(n_blocks):
        i = torch.randperm(len(x), generator=rng)[:size_x]
        j = torch.randperm(len(y), generator=rng)[:size_y]
        values.append(kernel_distance(x[i], y[j]))
    return torch.tensor(values, dtype=torch.float64)


@dataclass(frozen=True)
class KernelInterval:
    """Kernel distance from random subsets: their `mean`, and the interval from `low` to `high` around it.

    block_sizes: samples of x and of y per subset.
    n_blocks: number of subsets.
    """

    mean: float
    low: float
    high: float
    block_sizes: tuple[int, int]
    n_blocks: int


def kernel_distance_interval(
    x: Tensor,
    y: Tensor,
    rng: torch.Generator,
    *,
    confidence: float = 0.95,
    n_blocks: int = 100,
    max_block: int = 1000,
) -> KernelInterval:
    """Interval of the kernel distance from subsets of half of each set, 1,000 samples at most.

    Subsets of b out of n samples, drawn without replacement, add to the variance in proportion to
    1/b - 1/n, the whole set to that of the whole estimate in proportion to 1/n; the variance of the subsets
    is scaled by the ratio of the two, b / (n - b), which is 1 for halves. The larger ratio of the two sets is
    taken. The interval is too wide for large samples of one distribution, whose estimate converges faster.

    Args:
        x: features, (N, D), at least 4.
        y: features, (M, D), at least 4.
        rng: random stream of the subsets.
        confidence: of the two-sided interval.
        n_blocks: number of subsets, at least 2.
        max_block: most samples per subset.

    Returns:
        `KernelInterval`, in units of the kernel; the order of the samples does not enter.

    Raises:
        DataError: fewer than four samples in a set, or non-finite features.
        ConfigError: confidence outside (0, 1), fewer than two blocks, or blocks below two samples.

    Source: Binkowski et al. 2018, arXiv:1801.01401, Sec. 4, for the blocks; Politis & Romano 1994, Annals of
    Statistics 22(4), Sec. 2, for intervals from subsets.
    Differs: scaled to the whole sets instead of the error of the mean over blocks, which overlap.
    """
    if not 0 < confidence < 1 or n_blocks < 2 or max_block < 2:
        raise ConfigError(
            f"an interval needs a confidence between 0 and 1 and at least two blocks of two samples, "
            f"got {confidence}, {n_blocks} and {max_block}."
        )
    x, y = check_pair(x, y, 4)
    sizes = min(max_block, len(x) // 2), min(max_block, len(y) // 2)
    values = kernel_distance_blocks(x, y, block_size=sizes, n_blocks=n_blocks, rng=rng)
    mean, spread = float(values.mean()), float(values.std())
    ratio = max(size / (len(s) - size) for size, s in zip(sizes, (x, y), strict=True))
    half = normal_factor(confidence) * spread * math.sqrt(ratio)
    return KernelInterval(mean, mean - half, mean + half, sizes, n_blocks)


@dataclass(frozen=True)
class KernelTest:
    """Kernel distance of two samples and the p-value of "both come from one distribution".

    value: unbiased squared discrepancy of the samples used; can be negative.
    p_value: in [1 / (n_permutations + 1), 1]; near 1 if the sets are more alike than two draws would be.
    n_permutations: number of permutations.
    n_x: samples of the first set that were used.
    n_y: samples of the second set that were used.
    """

    value: float
    p_value: float
    n_permutations: int
    n_x: int
    n_y: int


def _drawn(features: Tensor, labels: Tensor, n: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return the samples in canonical order, or n of them drawn with every class in proportion."""
    order = canonical_order(features, labels)
    if len(order) > n:
        order = order[torch.rand(len(order), generator=rng).argsort()]
        order = order[labels[order].argsort(stable=True)]
        order = order[torch.arange(n) * len(order) // n]
    return features[order], labels[order]


def _permuted_distances(kernel: Tensor, in_x: Tensor) -> Tensor:
    """Unbiased discrepancy for each column of in_x (N, P), 1 for samples of the first set; (P,).

    The kernel matrix (N, N) must have a zero diagonal.
    """
    n = in_x.sum(dim=0)
    m = len(in_x) - n
    rows = kernel.sum(dim=1)
    within_x = (in_x * (kernel @ in_x)).sum(dim=0)
    between = rows @ in_x - within_x
    within_y = rows.sum() - 2 * between - within_x
    return within_x / (n * (n - 1)) + within_y / (m * (m - 1)) - 2 * between / (n * m)


def kernel_test(
    x: Tensor,
    y: Tensor,
    *,
    rng: torch.Generator,
    n_permutations: int = 200,
    max_per_set: int = 1000,
    labels_x: Tensor | None = None,
    labels_y: Tensor | None = None,
    kernel: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> KernelTest:
    """Permutation test on the unbiased kernel distance (KID): are x and y draws of one distribution?

    ``p = (1 + number of permutations with at least the observed distance) / (1 + n_permutations)``

    The kernel of the pooled samples is computed once; a permutation is a column of zeros and ones.

    Pass the labels where both sets hold fixed numbers per class, as few-shot sets do. Without them the
    permutations unbalance the classes, which the observed sets are not: differences are then overlooked.

    Args:
        x: features, (N, D).
        y: features, (M, D).
        rng: random stream of subsets and permutations.
        n_permutations: number of permutations; the smallest p-value is 1 / (n_permutations + 1).
        max_per_set: larger sets are represented by so many samples, classes in proportion.
        labels_x: int64 (N,); with labels, samples are exchanged within their class only, so that unequal
            class counts are no difference. Give both or neither.
        labels_y: int64 (M,).
        kernel: of samples (N, D) and (M, D), (N, M); None: the polynomial kernel of `kernel_distance`.

    Returns:
        `KernelTest`; the order of the samples does not enter.

    Raises:
        DataError: fewer than two samples in a set, no class with samples on both sides, or non-finite
            features.
        ShapeError: different feature sizes, or labels of another length.
        ConfigError: labels for one set only, no permutations, or max_per_set below 2.

    Source: Gretton et al. 2012, JMLR 13, Sec. 6 (quadratic-time test); Phipson & Smyth 2010,
    arXiv:1603.05766, Sec. 3 (p-values that are never zero); kernel of Binkowski et al. 2018.
    """
    if n_permutations < 1 or max_per_set < 2:
        raise ConfigError(
            f"a test needs at least one permutation and two samples per set, got n_permutations "
            f"{n_permutations} and max_per_set {max_per_set}."
        )
    if (labels_x is None) != (labels_y is None):
        raise ConfigError("give labels_x and labels_y together.")
    x, y = check_pair(x, y, 2)
    labels_x = torch.zeros(len(x)) if labels_x is None else labels_x
    labels_y = torch.zeros(len(y)) if labels_y is None else labels_y
    x, classes_x = _drawn(x, check_labels("labels_x", labels_x, len(x)), max_per_set, rng)
    y, classes_y = _drawn(y, check_labels("labels_y", labels_y, len(y)), max_per_set, rng)
    pool, classes = torch.cat([x, y]), torch.cat([classes_x, classes_y])
    from_x = torch.arange(len(pool)) < len(x)

    # Column 0 is what was observed.
    in_x = from_x[:, None].repeat(1, n_permutations + 1).to(torch.float64)
    exchanged = False
    for c in classes.unique():
        members = (classes == c).nonzero()[:, 0]
        n = int(from_x[members].sum())
        if not 0 < n < len(members):
            continue
        exchanged = True
        ranks = torch.rand(n_permutations, len(members), generator=rng).argsort(dim=1).argsort(dim=1)
        in_x[members, 1:] = (ranks < n).T.to(torch.float64)
    if not exchanged:
        raise DataError(
            f"the sets of {len(x)} and {len(y)} samples share no class with a sample on both sides, so "
            "nothing can be exchanged between them."
        )
    values_of_pairs = (kernel or _kernel)(pool, pool)
    scale = float(values_of_pairs.abs().mean())
    values_of_pairs.fill_diagonal_(0.0)
    values = _permuted_distances(values_of_pairs, in_x)
    # Permutations that only exchange equal samples give the observed distance up to rounding: they count.
    extreme = int((values[1:] >= values[0] - 1e-12 * scale).sum())
    return KernelTest(float(values[0]), (1 + extreme) / (1 + n_permutations), n_permutations, len(x), len(y))


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


def neighbour_radii(features: Tensor, k: int) -> Tensor:
    """Return the squared distance (N,) of each point to its k-th nearest other point.

    Raises: DataError unless 1 <= k < N.
    """
    features = check_features("features", features, at_least=2)
    if not 1 <= k < len(features):
        raise DataError(f"k is {k}, but it must lie between 1 and {len(features) - 1} (samples minus one).")
    radii = torch.empty(len(features), dtype=torch.float64)
    squares = (features * features).sum(dim=1)
    for rows in row_blocks(len(features), len(features)):
        distances = squared_distances(features[rows], features, squares[rows], squares)
        # The point itself is one of the k + 1 smallest (with duplicates any of them may stand for it).
        radii[rows] = distances.topk(k + 1, dim=1, largest=False).values[:, -1]
    return radii


def neighbour_scores(real: Tensor, generated: Tensor, *, k: int | None = None) -> NeighbourScores:
    """Precision, recall, density and coverage of generated against real features.

    Coverage grows with the number of generated samples and falls with the number of real ones: compare
    only figures with equal counts.

    Args:
        real: features, (N, D).
        generated: features, (M, D).
        k: neighbour that sets the radii; None chooses `default_k` of the smaller set.

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
    real, generated = check_pair(real, generated, 2, ("real", "generated"))
    k = default_k(min(len(real), len(generated))) if k is None else k
    real_radii = neighbour_radii(real, k) * (1 + _ON_SPHERE)
    generated_radii = neighbour_radii(generated, k) * (1 + _ON_SPHERE)

    balls_per_generated = torch.zeros(len(generated), dtype=torch.int64)
    covered = torch.zeros(len(real), dtype=torch.bool)
    recalled = torch.zeros(len(real), dtype=torch.bool)
    squares_real, squares_generated = ((s * s).sum(dim=1) for s in (real, generated))
    for rows in row_blocks(len(real), len(generated)):
        distances = squared_distances(real[rows], generated, squares_real[rows], squares_generated)
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


def nearest_distances(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return, for each row of x (N, D), the Euclidean distance (N,) to the nearest row of y and its index.

    Raises: DataError for empty sets or non-finite values; ShapeError for different feature sizes.
    """
    x, y = check_pair(x, y, 1)
    distances = torch.empty(len(x), dtype=torch.float64)
    indices = torch.empty(len(x), dtype=torch.int64)
    squares_x, squares_y = ((s * s).sum(dim=1) for s in (x, y))
    for rows in row_blocks(len(x), len(y)):
        nearest = squared_distances(x[rows], y, squares_x[rows], squares_y).min(dim=1)
        distances[rows], indices[rows] = nearest.values.sqrt(), nearest.indices
    return distances, indices


# ----------------------------------------------------------------------------------------- class by class


class PerClass(NamedTuple):
    """A figure class by class: `values` (None where it was left out) and `omitted`, the reason for each."""

    values: dict[str, float | None]
    omitted: dict[str, str]


def per_class(
    figure: Callable[[Tensor, Tensor], float],
    x: Tensor,
    labels_x: Tensor,
    y: Tensor,
    labels_y: Tensor,
    class_names: Sequence[str],
) -> PerClass:
    """Compute a figure of two sets of features for each class; too few samples leave a class out by name.

    Args:
        figure: function of features (n, D) and (m, D), such as `kernel_distance`.
        x: features, (N, D).
        labels_x: int64 (N,), in [0, len(class_names)).
        y: features, (M, D).
        labels_y: int64 (M,).
        class_names: names of the classes.

    Returns:
        `PerClass`: every class name is a key of `values`.

    Raises:
        DataError: labels outside the classes, or non-finite features (a fault of the input, not of a class).
        ShapeError: different feature sizes, or labels of another length.
    """
    x, y = check_pair(x, y, 0)
    labels_x = check_labels("labels_x", labels_x, len(x))
    labels_y = check_labels("labels_y", labels_y, len(y))
    for name, labels in (("labels_x", labels_x), ("labels_y", labels_y)):
        check_classes(name, labels, len(class_names))
    values: dict[str, float | None] = {}
    omitted: dict[str, str] = {}
    for c, name in enumerate(class_names):
        try:
            values[name] = figure(x[labels_x == c], y[labels_y == c])
        except DataError as reason:
            values[name], omitted[name] = None, str(reason)
    return PerClass(values, omitted)
