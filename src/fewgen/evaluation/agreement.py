"""Label agreement: does an independent classifier see the class that an image was generated for?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

from torch import Tensor

from fewgen.errors import DataError, ShapeError


@dataclass(frozen=True)
class Share:
    """A share of successes with its confidence interval; all three numbers in [0, 1]."""

    value: float
    low: float
    high: float
    successes: int
    n: int


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
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return Share(p, max(0.0, centre - half), min(1.0, centre + half), successes, n)


@dataclass(frozen=True)
class Agreement:
    """Agreement of predicted with wanted labels: overall, and per class that has images.

    confusion: counts[wanted][predicted].
    """

    overall: Share
    per_class: dict[str, Share]
    confusion: tuple[tuple[int, ...], ...]


def label_agreement(
    predicted: Tensor, wanted: Tensor, class_names: Sequence[str], confidence: float = 0.95
) -> Agreement:
    """Share of images whose predicted class is the wanted one, with Wilson intervals.

    Held-out real images do not reach 100 %: read the figure against the classifier's own accuracy.

    Args:
        predicted: int64 (N,), classes an independent classifier sees.
        wanted: int64 (N,), classes the images were generated for.
        class_names: names of the classes 0 ... len - 1.
        confidence: of the intervals.

    Returns:
        `Agreement`.

    Raises:
        ShapeError: the two label vectors differ in length.
        DataError: no images, or labels outside the classes.

    Source: Ravuri & Vinyals 2019, arXiv:1905.10887, relate generated images and classifiers; here the
    classifier is trained on real images and judges generated ones.
    """
    if predicted.shape != wanted.shape or predicted.ndim != 1:
        raise ShapeError(f"labels must both be (N,), got {tuple(predicted.shape)} and {tuple(wanted.shape)}.")
    n_classes = len(class_names)
    for name, labels in (("predicted", predicted), ("wanted", wanted)):
        if len(labels) and (int(labels.min()) < 0 or int(labels.max()) >= n_classes):
            raise DataError(f"{name} labels must lie in [0, {n_classes}), the number of class names.")
    hits = predicted == wanted
    flat = (wanted * n_classes + predicted).bincount(minlength=n_classes**2).reshape(n_classes, n_classes)
    per_class = {
        name: wilson_interval(int(hits[wanted == c].sum()), int((wanted == c).sum()), confidence)
        for c, name in enumerate(class_names)
        if bool((wanted == c).any())
    }
    return Agreement(
        overall=wilson_interval(int(hits.sum()), len(hits), confidence),
        per_class=per_class,
        confusion=tuple(tuple(int(v) for v in row) for row in flat),
    )
