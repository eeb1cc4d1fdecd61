"""Checks of what figures are computed from: features, labels, scores, images."""

from __future__ import annotations

import torch
from torch import Tensor

from fewgen.errors import DataError, ShapeError


def check_finite(what: str, x: Tensor) -> Tensor:
    """Return numbers as float64 without gradient; DataError if one is NaN or infinite."""
    x = x.detach().to(torch.float64)
    if not torch.isfinite(x).all():
        raise DataError(f"{what} hold NaN or infinity.")
    return x


def check_features(name: str, features: Tensor, at_least: int = 1) -> Tensor:
    """Return features (N, D) as float64 without gradient.

    Raises:
        ShapeError: not (N, D), or D is 0.
        DataError: fewer than `at_least` samples, or values that are not finite.
    """
    if features.ndim != 2:
        raise ShapeError(f"{name} must be (N, D) features, got shape {tuple(features.shape)}.")
    if len(features) < at_least:
        raise DataError(f"{name} holds {len(features)} samples, but this figure needs at least {at_least}.")
    if features.shape[1] == 0:
        raise ShapeError(f"{name} has no features per sample: shape {tuple(features.shape)}.")
    features = features.detach().to(torch.float64)
    bad = int((~torch.isfinite(features).all(dim=1)).sum())
    if bad:
        raise DataError(f"{name}: {bad} of {len(features)} feature vectors hold NaN or infinity.")
    return features


def check_pair(
    x: Tensor, y: Tensor, at_least: int = 1, names: tuple[str, str] = ("x", "y")
) -> tuple[Tensor, Tensor]:
    """Return two sets of features as `check_features` does; ShapeError if their sizes differ."""
    x, y = check_features(names[0], x, at_least), check_features(names[1], y, at_least)
    if x.shape[1] != y.shape[1]:
        raise ShapeError(f"{names[0]} has {x.shape[1]} features per sample, {names[1]} has {y.shape[1]}.")
    return x, y


def check_labels(name: str, labels: Tensor, n: int) -> Tensor:
    """Return one label per sample as int64, (n,); ShapeError for another shape."""
    if labels.shape != (n,):
        raise ShapeError(f"{name} must be ({n},), one label per sample, got shape {tuple(labels.shape)}.")
    return labels.detach().to(torch.int64)


def check_classes(name: str, labels: Tensor, n_classes: int) -> None:
    """Raise DataError unless all labels are classes, numbers in [0, n_classes)."""
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < n_classes:
        raise DataError(
            f"{name} reach from {int(labels.min())} to {int(labels.max())}, but must lie in "
            f"[0, {n_classes}), the number of class names."
        )
