"""Do images and class texts find each other? Image-text retrieval accuracy, both ways."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fewgen.errors import ConfigError, DataError, ShapeError
from fewgen.evaluation.checks import check_classes, check_finite
from fewgen.evaluation.statistics import Share, shares_by_class, wilson_interval


def _check_scores(scores: Tensor, labels: Tensor, class_names: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Return scores as float64 and one-hot labels as booleans, both (N, n_classes)."""
    if scores.ndim != 2 or scores.shape[1] != len(class_names) or labels.shape != scores.shape[:1]:
        raise ShapeError(
            f"scores must be (N, {len(class_names)}) and labels (N,), got {tuple(scores.shape)} and "
            f"{tuple(labels.shape)}."
        )
    if len(scores) == 0:
        raise DataError("there are no images to score.")
    values = check_finite("scores", scores)
    check_classes("labels", labels, len(class_names))
    return values, labels[:, None] == torch.arange(len(class_names))


@dataclass(frozen=True)
class TextToImage:
    """Share of images that are nearest to the text they were made from.

    overall: of all images, with a Wilson interval.
    per_class: the same within each class that has images.
    chance: 1 / n_classes.
    n_ties: images whose own text shares the highest score with another; they count as missed.
    """

    overall: Share
    per_class: dict[str, Share]
    chance: float
    n_ties: int


def text_to_image_accuracy(
    scores: Tensor, labels: Tensor, class_names: Sequence[str], *, confidence: float = 0.95
) -> TextToImage:
    """Share of images made from a text for which this text scores higher than every other class text.

    Args:
        scores: similarity of every image and class text, (N, n_classes), higher is nearer.
        labels: int64 (N,), the class whose text an image was made from.
        class_names: names of the classes 0 ... len - 1, at least 2.
        confidence: of the intervals.

    Returns:
        `TextToImage`.

    Raises:
        ShapeError: scores and labels that do not fit.
        DataError: no images, a single class, scores that are not finite, labels outside the classes.

    Source: Radford et al. 2021, arXiv:2103.00020, Sec. 3.1 (zero-shot classification by class texts).
    Differs: it judges generated images, so a wrong answer may be the scorer's fault: compare with the same
    figure of held-out real images. A tie is a miss, so the order of the classes does not matter, and equal
    scores for everything give 0.
    """
    values, own = _check_scores(scores, labels, class_names)
    if len(class_names) < 2:
        raise DataError("a single class text is nearest to every image; at least 2 classes are needed.")
    wanted = values[own]
    others = values.masked_fill(own, -math.inf).amax(dim=1)
    hits = wanted > others
    return TextToImage(
        overall=wilson_interval(int(hits.sum()), len(hits), confidence),
        per_class=shares_by_class(hits, labels, class_names, confidence),
        chance=1 / len(class_names),
        n_ties=int((wanted == others).sum()),
    )


@dataclass(frozen=True)
class ImageToText:
    """How well the class texts find their own images among all.

    first: share of class texts whose first image is of their class, with a Wilson interval over texts.
    recall: k -> share of class texts with an image of their class among the first k.
    mean_recall: mean of `recall` over its k.
    rank: class -> rank of its best image, 1 is the first.
    precision: class of n images -> share of its own among the first n, with a Wilson interval.
    chance: of `first` under a random order: the mean share of a class among the images.
    """

    first: Share
    recall: dict[int, float]
    mean_recall: float
    rank: dict[str, int]
    precision: dict[str, Share]
    chance: float


def image_to_text_accuracy(
    scores: Tensor,
    labels: Tensor,
    class_names: Sequence[str],
    *,
    ks: Sequence[int] = (1, 5, 10),
    confidence: float = 0.95,
) -> ImageToText:
    """Rank all images for each class text and look whether its own images come first.

    Args:
        scores: similarity of every image and class text, (N, n_classes), higher is nearer.
        labels: int64 (N,), the class whose text an image was made from.
        class_names: names of the classes 0 ... len - 1; those without images are left out.
        ks: how many first images each recall looks at, each at least 1.
        confidence: of the intervals.

    Returns:
        `ImageToText`.

    Raises:
        ShapeError: scores and labels that do not fit.
        DataError: no images, images of one class only, scores that are not finite, labels outside the
            classes.
        ConfigError: a k below 1, or none.

    Source: Karpathy & Fei-Fei 2015, arXiv:1412.2306, Sec. 4.1 (recall at k in image retrieval by text).
    Differs: many images are right for a class text, and recall asks whether one of them is among the first
    k, as there; with many images per class it is easy, so the share among the first n (R-precision) is given
    per class. Images of other classes win every tie, so the order of the images does not matter.
    """
    values, own = _check_scores(scores, labels, class_names)
    if not ks or min(ks) < 1:
        raise ConfigError(f"ks must hold numbers from 1 on, got {list(ks)}.")
    counts = own.sum(dim=0)
    if int((counts > 0).sum()) < 2:
        raise DataError("all images are of one class, so any ranking is right; at least 2 are needed.")
    rank: dict[str, int] = {}
    precision: dict[str, Share] = {}
    for c, name in enumerate(class_names):
        n = int(counts[c])
        if n == 0:
            continue
        mine = values[own[:, c], c].sort(descending=True).values
        rest = values[~own[:, c], c].sort().values
        # Position of each own image if every equal image of another class comes before it.
        before = len(rest) - torch.searchsorted(rest, mine, side="left")
        position = before + torch.arange(1, n + 1)
        rank[name] = int(position[0])
        precision[name] = wilson_interval(int((position <= n).sum()), n, confidence)
    recall = {k: sum(r <= k for r in rank.values()) / len(rank) for k in ks}
    return ImageToText(
        first=wilson_interval(sum(r == 1 for r in rank.values()), len(rank), confidence),
        recall=recall,
        mean_recall=math.fsum(recall.values()) / len(recall),
        rank=rank,
        precision=precision,
        chance=1 / len(rank),
    )
