"""Statistics of few samples: shares and means with their intervals, differences, many tests at once.

SciPy and scikit-learn have no Holm correction, no Newcombe and no Bonett-Price interval, and their Wilson
interval knows whole numbers of trials only; these stand here. What they do have is loaded where it is needed:
it takes a second, which a short command should not wait for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fewgen.errors import ConfigError, DataError

FloatArray = np.ndarray[Any, np.dtype[np.float64]]


def check_confidence(confidence: float) -> None:
    """Raise ConfigError for a confidence outside (0, 1)."""
    if not 0 < confidence < 1:
        raise ConfigError(f"confidence must lie between 0 and 1, got {confidence!r}.")


def normal_factor(confidence: float) -> float:
    """Return how many standard errors a two-sided normal interval reaches to each side.

    Raises: ConfigError for a confidence outside (0, 1).
    """
    check_confidence(confidence)
    return NormalDist().inv_cdf(0.5 + confidence / 2)


def student_factor(confidence: float, degrees: float) -> float:
    """Return how many standard errors a two-sided Student interval reaches to each side.

    >>> round(student_factor(0.95, 9), 3)
    2.262
    """
    from scipy.stats import t as student

    return float(student.ppf(0.5 + confidence / 2, degrees))


# ------------------------------------------------------------------------------------------------ means


@dataclass(frozen=True)
class MeanInterval:
    """Mean of independent values with its Student interval.

    spread: sample standard deviation; None for a single value.
    half_width: of the interval; None for a single value.
    n: number of values.
    """

    mean: float
    spread: float | None
    half_width: float | None
    n: int

    @property
    def low(self) -> float | None:
        """Lower end of the interval; None for a single value."""
        return None if self.half_width is None else self.mean - self.half_width

    @property
    def high(self) -> float | None:
        """Upper end of the interval; None for a single value."""
        return None if self.half_width is None else self.mean + self.half_width


def mean_and_spread(values: Sequence[float]) -> tuple[float, float | None]:
    """Return mean and sample standard deviation, None for one value.

    >>> mean_and_spread([1.0, 3.0])
    (2.0, 1.4142135623730951)
    """
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return mean, None
    return mean, math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1))


def student_interval(values: Sequence[float], confidence: float = 0.95) -> MeanInterval:
    """Mean of independent values, such as paired differences, with its Student interval.

    Args:
        values: at least one.
        confidence: of the two-sided interval.

    Source: Student 1908, Biometrika 6(1).

    >>> found = student_interval([0.5, 0.6, 0.7])
    >>> round(found.mean, 3), round(found.half_width, 3)
    (0.6, 0.248)
    """
    mean, spread = mean_and_spread(values)
    n = len(values)
    half = None if spread is None else student_factor(confidence, n - 1) * spread / math.sqrt(n)
    return MeanInterval(mean, spread, half, n)


# ----------------------------------------------------------------------------------------------- shares


@dataclass(frozen=True)
class Share:
    """A share of successes with its confidence interval; all three numbers in [0, 1]."""

    value: float
    low: float
    high: float
    successes: int
    n: int


@dataclass(frozen=True)
class Difference:
    """A difference of two shares with its confidence interval; all in [-1, 1]."""

    value: float
    low: float
    high: float


def wilson_limits(p: FloatArray, n: float, z: float) -> tuple[FloatArray, FloatArray]:
    """Return the Wilson limits of shares `p` of an effective, not necessarily whole, number `n` of trials."""
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return np.maximum(0.0, centre - half), np.minimum(1.0, centre + half)


def wilson_interval(successes: int, n: int, confidence: float = 0.95) -> Share:
    """Share of successes with the Wilson score interval, which stays inside [0, 1] for few samples.

    Args:
        successes: how many of n.
        n: number of independent trials, at least 1.
        confidence: of the two-sided interval.

    Returns:
        `Share`.

    Raises:
        DataError: n below 1, or successes outside [0, n].

    Source: Wilson 1927, J. American Statistical Association 22(158), p. 209.

    >>> share = wilson_interval(9, 10)
    >>> round(share.low, 3), round(share.high, 3)
    (0.596, 0.982)
    """
    if n < 1 or not 0 <= successes <= n:
        raise DataError(f"{successes} successes out of {n} is not a share.")
    low, high = wilson_limits(np.asarray(successes / n), n, normal_factor(confidence))
    return Share(successes / n, float(low), float(high), successes, n)


def shares_by_class(
    hits: Tensor, labels: Tensor, class_names: Sequence[str], confidence: float = 0.95
) -> dict[str, Share]:
    """Return the share of hits, bool (N,), in each class that has images: class name -> `wilson_interval`."""
    return {
        name: wilson_interval(int(hits[labels == c].sum()), int((labels == c).sum()), confidence)
        for c, name in enumerate(class_names)
        if bool((labels == c).any())
    }


def difference_limits(
    p1: FloatArray, n1: float, p2: FloatArray, n2: float, weight: float, z: float
) -> tuple[FloatArray, FloatArray]:
    """Return limits of p1 - weight * p2 of independent shares, by squaring and adding their Wilson limits."""
    low1, high1 = wilson_limits(p1, n1, z)
    low2, high2 = wilson_limits(p2, n2, z)
    value = p1 - weight * p2
    low = value - np.sqrt((p1 - low1) ** 2 + (weight * (high2 - p2)) ** 2)
    high = value + np.sqrt((high1 - p1) ** 2 + (weight * (p2 - low2)) ** 2)
    return low, high


def share_difference(p1: float, n1: float, p2: float, n2: float, confidence: float = 0.95) -> Difference:
    """Difference p1 - p2 of two independent shares, with an interval that holds for few samples.

    Args:
        p1: first share, in [0, 1].
        n1: its number of trials, above 0; may be an effective number.
        p2: second share.
        n2: its number of trials.
        confidence: of the two-sided interval.

    Returns:
        `Difference`.

    Raises:
        DataError: shares outside [0, 1], or no trials.
        ConfigError: confidence outside (0, 1).

    Source: Newcombe 1998, Statistics in Medicine 17, p. 873, method 10 (Wilson limits, squared and added).

    >>> d = share_difference(56 / 70, 70, 48 / 80, 80)
    >>> round(d.low, 4), round(d.high, 4)
    (0.0524, 0.3339)
    """
    if not (0 <= p1 <= 1 and 0 <= p2 <= 1) or n1 <= 0 or n2 <= 0:
        raise DataError(f"{p1} of {n1} and {p2} of {n2} are not two shares that can be compared.")
    z = normal_factor(confidence)
    low, high = difference_limits(np.asarray(p1), n1, np.asarray(p2), n2, 1.0, z)
    return Difference(p1 - p2, float(low), float(high))


def paired_difference(n_lost: int, n_won: int, n: int, confidence: float = 0.95) -> Difference:
    """Change of a share between two looks at the same n images, (n_won - n_lost) / n, with an interval.

    Args:
        n_lost: images right at the first look only.
        n_won: images right at the second look only.
        n: all images.
        confidence: of the interval.

    Returns:
        `Difference`, in [-1, 1].

    Raises:
        DataError: counts that cannot be.

    Source: Bonett & Price 2012, J. Educational and Behavioral Statistics 37(4), p. 479 (adjusted Wald). An
    interval from the exact test conditions on the changed images and has no width where nothing changed;
    this one keeps its coverage for few images.
    """
    if n < 1 or n_lost < 0 or n_won < 0 or n_lost + n_won > n:
        raise DataError(f"{n_lost} lost and {n_won} won of {n} images cannot be.")
    lost, won = (n_lost + 1) / (n + 2), (n_won + 1) / (n + 2)
    half = normal_factor(confidence) * math.sqrt((lost + won - (won - lost) ** 2) / (n + 2))
    return Difference((n_won - n_lost) / n, max(-1.0, won - lost - half), min(1.0, won - lost + half))


# ------------------------------------------------------------------------------------------------ tests


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values for the number of tests, so that `adjusted < level` bounds any false alarm by `level`.

    Args:
        p_values: of the tests, each in [0, 1].

    Returns:
        Adjusted p-values in [0, 1], in the order given.

    Source: Holm 1979, Scandinavian J. Statistics 6(2), p. 65.

    >>> holm([0.01, 0.04, 0.02])
    [0.03, 0.04, 0.04]
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted = [0.0] * len(p_values)
    highest = 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = highest
    return adjusted


def mcnemar_p(n_lost: int, n_won: int) -> float:
    """Two-sided p-value of the exact McNemar test: are `n_lost` and `n_won` heads and tails of a fair coin?

    Source: McNemar 1947, Psychometrika 12(2), p. 153, with the binomial distribution in place of its limit.
    Differs: in whole numbers, which is exact, and spares a short command the second that SciPy takes to load.

    >>> mcnemar_p(6, 0), mcnemar_p(0, 0)
    (0.03125, 1.0)
    """
    if n_lost < 0 or n_won < 0:
        raise DataError(f"counts cannot be negative, got {n_lost} and {n_won}.")
    n = n_lost + n_won
    return min(1.0, 2 * sum(math.comb(n, k) for k in range(min(n_lost, n_won) + 1)) / 2**n)


# ------------------------------------------------------------------------------------------ regression


def isotonic(values: Tensor) -> Tensor:
    """Return the closest non-decreasing sequence in least squares, along the last axis.

    Args:
        values: (..., P), a few points P.

    Returns:
        float64 of the same shape.

    Source: scikit-learn's `isotonic_regression` (pool adjacent violators), with equal weights.

    >>> isotonic(torch.tensor([1.0, 3.0, 2.0, 5.0])).tolist()
    [1.0, 2.5, 2.5, 5.0]
    """
    from sklearn.isotonic import isotonic_regression

    return torch.from_numpy(np.apply_along_axis(isotonic_regression, -1, values.to(torch.float64).numpy()))
