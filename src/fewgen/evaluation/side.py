"""A side of a comparison: images with what figures and tests need of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fewgen.data.imageset import ImageSet
from fewgen.evaluation.controls import halves
from fewgen.evaluation.copying import Nearest


@dataclass(frozen=True)
class Side:
    """Images with what the tests need of them, computed once.

    images: the set.
    features: of the judge, (N, D).
    predictions: classes the judge sees, int64 (N,); None if it knows no classes.
    nearest: nearest training images over mirrors, shifts and rotations.
    feature_scores: nearest over next training image in features, (N,).
    """

    images: ImageSet
    features: Tensor
    predictions: Tensor | None
    nearest: Nearest
    feature_scores: Tensor

    @property
    def labels(self) -> Tensor:
        """Classes that the images stand for, int64 (N,)."""
        return self.images.labels

    @property
    def labelled(self) -> bool:
        """Whether the images have classes."""
        return not bool((self.labels < 0).any())

    def at(self, indices: Tensor) -> Side:
        """Return some of the images."""
        return Side(
            self.images.subset(indices),
            self.features[indices],
            None if self.predictions is None else self.predictions[indices],
            self.nearest.at(indices),
            self.feature_scores[indices],
        )


def split(side: Side, rng: torch.Generator) -> tuple[Side, Side]:
    """Return two random halves, each class split evenly."""
    first, second = halves(side.images, rng)
    return side.at(first), side.at(second)


def n_distinct(images: ImageSet) -> int:
    """Return how many different images a set holds."""
    return len(images.images.flatten(1).unique(dim=0))


def matched(labels: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """Return indices of both sides such that both have the same proportions of the classes both have.

    The reference keeps all its images of the shared classes; the other side as many as the scarcest class
    allows. Without a shared class, or without labels (-1), or with an empty side, everything is kept.

    Args:
        labels: int64 (N,).
        reference: int64 (M,).
    """
    every = torch.arange(len(labels)), torch.arange(len(reference))
    if bool((labels < 0).any()) or len(labels) == 0 or len(reference) == 0:
        return every
    n = max(int(labels.max()), int(reference.max())) + 1
    own, other = torch.bincount(labels, minlength=n), torch.bincount(reference, minlength=n)
    shared = (own > 0) & (other > 0)
    if not bool(shared.any()):
        return every
    scale = float((own[shared].double() / other[shared].double()).min())
    wanted = torch.where(shared, (other.double() * scale + 1e-9).floor().clamp_min(1).long(), 0)
    order = labels.argsort(stable=True)
    starts = own.cumsum(0) - own
    rank = torch.empty_like(labels)
    rank[order] = torch.arange(len(labels)) - starts[labels[order]]
    return (rank < wanted[labels]).nonzero().flatten(), shared[reference].nonzero().flatten()
