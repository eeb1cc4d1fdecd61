"""Gains of one arm over another, draw by draw, with intervals for other draws and other test images."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fewgen.data.imageset import ImageSet
from fewgen.errors import DataError
from fewgen.evaluation.statistics import student_factor


@dataclass(frozen=True)
class ArmResult:
    """Accuracy of one arm on the test images, one entry per seed; shares in [0, 1].

    per_class: mean over seeds of the accuracy within each class that has test images.
    """

    accuracy: tuple[float, ...]
    per_class: dict[str, float]

    @property
    def mean(self) -> float:
        """Mean accuracy over seeds."""
        return math.fsum(self.accuracy) / len(self.accuracy)

    @classmethod
    def of(cls, hits: Tensor, test: ImageSet) -> ArmResult:
        """Return the accuracies of a table of draws by test images, 1 for right, (n_draws, N)."""
        per_class = {name: float(right.mean()) for name, right in by_class(hits, test).items()}
        return cls(tuple(hits.mean(dim=1).tolist()), per_class)


def by_class(table: Tensor, test: ImageSet) -> dict[str, Tensor]:
    """Return the columns of each class that has test images, (n_draws, n), of a table (n_draws, N)."""
    return {
        name: table[:, test.labels == c]
        for c, name in enumerate(test.class_names)
        if bool((test.labels == c).any())
    }


@dataclass(frozen=True)
class Gain:
    """Mean paired difference of two arms over draws, with its interval (None for one draw)."""

    mean: float
    low: float | None
    high: float | None
    n: int


def crossed_gain(differences: Tensor, confidence: float = 0.95) -> Gain:
    """Mean of a table of draws by test images, with an interval for other draws and other test images.

    Args:
        differences: (n_draws, N): new arm right minus old arm right, in {-1, 0, 1}, or means of that.
        confidence: of the interval.

    Returns:
        `Gain`; without interval for one draw or one image.

    Raises:
        DataError: an empty table.

    Source: variance components of a crossed random-effects layout, Searle, Casella & McCulloch 1992,
        Variance Components, Ch. 4: Var = rows / n + columns / N - residual / (n N); degrees of freedom by
        Satterthwaite 1946, Biometrics Bulletin 2(6).
    Differs: never smaller than one of the two parts alone.
    """
    mean, variance, degrees = crossed_variance(differences)
    n = differences.shape[0]
    if variance is None:
        return Gain(mean, None, None, n)
    half = student_factor(confidence, degrees) * math.sqrt(variance) if variance > 0 else 0.0
    return Gain(mean, mean - half, mean + half, n)


def crossed_variance(differences: Tensor) -> tuple[float, float | None, float]:
    """Return mean of a table, variance of that mean (None for one row or column), degrees of freedom."""
    table = differences.to(torch.float64)
    n, count = table.shape
    if n == 0 or count == 0:
        raise DataError("a gain needs at least one draw and one test image.")
    mean = table.mean()
    if n < 2 or count < 2:
        return float(mean), None, 0.0
    rows, columns = table.mean(dim=1), table.mean(dim=0)
    residual = (table - rows[:, None] - columns[None, :] + mean).square().sum() / ((n - 1) * (count - 1))
    by_row, by_column = float(rows.var()) / n, float(columns.var()) / count
    variance = max(by_row + by_column - float(residual) / (n * count), by_row, by_column)
    if variance == 0:
        return float(mean), 0.0, float(n - 1)
    degrees = (by_row + by_column) ** 2 / (by_row**2 / (n - 1) + by_column**2 / (count - 1))
    return float(mean), variance, degrees
