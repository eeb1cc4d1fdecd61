"""Maximum mean discrepancy: are two sets of samples drawn from the same distribution?

Every statistic here is one quadratic form. With signed weights u (1/n for samples of `a`, -1/m for samples
of `b`) and the kernel matrix K of the pooled samples, the V-statistic is u' K u. Comparing class by class
only zeroes the entries of K between different classes, so no loop over classes is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fewgen.config.checks import above_zero
from fewgen.errors import ConfigError, ShapeError


class Kernel(Protocol):
    """A radial kernel with k(x, x) = 1."""

    def __call__(self, sq_distances: Tensor, pairs: Tensor | None = None) -> Tensor:
        """Kernel values of squared distances.

        Args:
            sq_distances: (N, N), squared Euclidean distances of the pooled samples.
            pairs: (N, N) bool, the pairs that the statistic compares (None: all). A kernel that fits its
                bandwidth to the data looks at these only.

        Returns:
            (N, N), values in [0, 1].
        """


def median_sq_distance(sq_distances: Tensor, pairs: Tensor | None = None) -> Tensor:
    """Median of the squared distances of pairs that are apart; a detached scalar > 0.

    Pairs of (nearly) equal samples are left out: the diagonal says nothing about the scale, and a batch in
    which a word stands many times would otherwise get bandwidth 0. It also makes the result independent of
    duplicating the batch. If no pair is apart, 1 is returned.

    Args:
        sq_distances: (N, N).
        pairs: (N, N) bool, pairs to look at; None: all.

    Source: Gretton et al. 2012, JMLR 13:723-773, Sec. 8 (the median heuristic).
    Differs: the lower median is taken, and pairs at distance zero are left out.
    """
    distances = sq_distances.detach()
    # Relative to the mean: a difference of two large equal numbers leaves rounding noise, not zero.
    apart = distances > 1e-5 * distances.mean()
    if pairs is not None:
        apart = apart & pairs
    median = distances.masked_fill(~apart, torch.nan).nanmedian()
    return torch.where(torch.isnan(median), torch.ones_like(median), median)


@dataclass(frozen=True)
class RBF:
    """k = exp(-gamma * d^2) with a fixed gamma, in inverse squared units of the samples.

    In 20 dimensions two independent standard normal samples are at d^2 = 40, so gamma = 1 gives exp(-40):
    no gradient. Use it to reproduce that; otherwise fit the bandwidth with `MixtureRBF`.

    Source: Gretton et al. 2012, JMLR 13:723-773, Sec. 8.
    """

    gamma: float = 1.0

    def __post_init__(self) -> None:
        above_zero("RBF gamma", self.gamma)

    def __call__(self, sq_distances: Tensor, pairs: Tensor | None = None) -> Tensor:
        """See `Kernel`."""
        return torch.exp(-self.gamma * sq_distances)


@dataclass(frozen=True)
class MixtureRBF:
    """Mean of RBF kernels exp(-d^2 / (2 sigma^2)) with sigma^2 = multiplier * median squared distance.

    The median is taken from the batch and detached, so the kernel adapts to the scale of the samples but
    offers no gradient for escaping the comparison by growing or shrinking. `MixtureRBF((1.0,))` is the plain
    median heuristic.

    Source: Gretton et al. 2012, JMLR 13:723-773, Sec. 8 (median heuristic).
    Differs: a mixture of five bandwidths around the median; the multipliers are our choice.
    """

    multipliers: Sequence[float] = (0.25, 0.5, 1.0, 2.0, 4.0)

    def __post_init__(self) -> None:
        if not self.multipliers or min(self.multipliers) <= 0:
            raise ConfigError(
                f"Kernel multipliers are {tuple(self.multipliers)}, but all must be greater than 0."
            )

    def __call__(self, sq_distances: Tensor, pairs: Tensor | None = None) -> Tensor:
        """See `Kernel`."""
        scaled = sq_distances / (-2.0 * median_sq_distance(sq_distances, pairs))
        values = torch.exp(scaled / self.multipliers[0])
        for multiplier in self.multipliers[1:]:
            values = values + torch.exp(scaled / multiplier)
        return values / len(self.multipliers)


def sq_distances(x: Tensor) -> Tensor:
    """Squared Euclidean distances (N, N) between the rows of `x` (N, D); the diagonal is exactly zero."""
    x = x - x.detach().mean(0)  # Distances do not change, but less is lost to rounding.
    norms = x.square().sum(1)
    distances = (norms[:, None] + norms[None, :] - 2.0 * (x @ x.T)).clamp_min(0.0)
    return distances * (1.0 - torch.eye(len(x), dtype=x.dtype, device=x.device))


def mmd2(a: Tensor, b: Tensor, kernel: Kernel | None = None, unbiased: bool = False) -> Tensor:
    """Squared maximum mean discrepancy between two sets of samples.

    Args:
        a: samples, (n, D), float.
        b: samples, (m, D), float.
        kernel: `MixtureRBF()` if None.
        unbiased: False: V-statistic, >= 0, also for a single sample. True: U-statistic (i = j left out),
            may be negative, needs two samples on each side.

    Returns:
        A scalar without unit, at most 2.

    Raises:
        ShapeError: if widths differ or there are too few samples.

    Source: Gretton et al. 2012, JMLR 13:723-773, Eq. 3 (unbiased) and Eq. 5 (biased).
    """
    _check_pair(a, b)
    needed = 2 if unbiased else 1
    if min(len(a), len(b)) < needed:
        raise ShapeError(f"MMD needs at least {needed} samples on each side; it got {len(a)} and {len(b)}.")
    labels = torch.zeros(len(a) + len(b), dtype=torch.long, device=a.device)
    return mmd2_per_class(a, b, labels[: len(a)], labels[len(a) :], kernel, unbiased)


def mmd2_per_class(
    a: Tensor,
    b: Tensor,
    labels_a: Tensor,
    labels_b: Tensor,
    kernel: Kernel | None = None,
    unbiased: bool = False,
) -> Tensor:
    """Mean over classes of the squared MMD between the samples of that class.

    The MMD of whole batches is also small when two classes have changed places; this one is not.

    Args:
        a: samples, (n, D), float.
        b: samples, (m, D), float.
        labels_a: classes of `a`, (n,), integers.
        labels_b: classes of `b`, (m,), integers.
        kernel: `MixtureRBF()` if None. A bandwidth that is fitted to the data is fitted once, to the
            pairs of equal class.
        unbiased: U-statistic instead of the V-statistic.

    Returns:
        A scalar without unit. Classes that lack samples on one side (fewer than one, or two with
        `unbiased`) are left out of the mean; if none remains the result is 0 with a zero gradient.

    Raises:
        ShapeError: if widths differ or labels do not fit the samples.

    Source: Gretton et al. 2012, JMLR 13:723-773, Eq. 3 and Eq. 5, for each class.
    Differs: the mean over classes, and one bandwidth for all of them, are our choices.
    """
    _check_pair(a, b)
    for side, samples, labels in (("a", a, labels_a), ("b", b, labels_b)):
        if labels.shape != (len(samples),):
            raise ShapeError(
                f"labels_{side} has shape {tuple(labels.shape)}, but {side} has {len(samples)} samples."
            )
    kernel = MixtureRBF() if kernel is None else kernel
    n = len(a)
    labels = torch.cat([labels_a, labels_b])
    same = labels[:, None] == labels[None, :]
    # Samples of the own class in a and in b, for every pooled sample.
    count_a = same[:, :n].sum(1).to(a.dtype)
    count_b = same[:, n:].sum(1).to(a.dtype)
    needed = 2 if unbiased else 1
    usable = (count_a >= needed) & (count_b >= needed)
    own = torch.cat([count_a[:n], count_b[n:]]).clamp_min(1.0)
    sign = torch.ones_like(own)
    sign[n:] = -1.0
    u = torch.where(usable, sign / own, torch.zeros_like(own))
    n_classes = (u[:n].sum()).clamp_min(1.0)  # every usable class contributes count * 1/count = 1
    pairs = same & usable[:, None]
    weights = u[:, None] * u[None, :] * pairs
    if unbiased:
        # Within one side, i = j is left out and 1/n^2 becomes 1/(n (n - 1)).
        rescale = own / (own - 1.0).clamp_min(1.0)
        within = sign[:, None] == sign[None, :]
        weights = torch.where(within, weights * rescale[:, None], weights)
        weights = weights - torch.diag(torch.diagonal(weights))
    distances = sq_distances(torch.cat([a, b]))
    return (weights * kernel(distances, pairs)).sum() / n_classes


def _check_pair(a: Tensor, b: Tensor) -> None:
    if a.dim() != 2 or b.dim() != 2 or a.shape[1] != b.shape[1]:
        raise ShapeError(
            f"MMD compares samples of shape (n, D) and (m, D); it got {tuple(a.shape)} and {tuple(b.shape)}."
        )
