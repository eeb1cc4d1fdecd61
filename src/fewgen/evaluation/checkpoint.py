"""How the images of a checkpoint are, in figures that cost little and need no judge.

The distance to held-out images is taken in two views, appearance (`appearance.py`) and reduced pixels, and
class by class where each has two images or more: right images under the wrong class are far, too.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fewgen.data.imageset import ImageSet, evenly
from fewgen.errors import DataError
from fewgen.evaluation.appearance import appearance
from fewgen.evaluation.copying import Aligner, clear_copies, reduced, tail_test
from fewgen.evaluation.distances import squared_distances
from fewgen.evaluation.outcome import ALPHA
from fewgen.evaluation.verdict_tests import COPIED
from fewgen.training.selection import Drawn

N_DRAWN = 64
"""Images that are drawn at a checkpoint."""

N_HELD_OUT = 256
"""Held-out images that they are compared with at most."""

N_SHOWN = 10


@dataclass(frozen=True)
class _View:
    """How numbers are made of images, and the held-out images in them.

    numbers: images uint8 (N, C, H, W) -> (N, D).
    held_out: (M, D), float64.
    """

    numbers: Callable[[Tensor], Tensor]
    held_out: Tensor

    def compare(self, images: Tensor, same: Tensor, same_held_out: Tensor) -> tuple[float, Tensor]:
        """Return the distance of images to the held-out ones, and each image's part in its error, (N,).

        Args:
            images: uint8 (N, C, H, W).
            same: which pairs of them count, bool (N, N).
            same_held_out: which pairs of them and held-out images count, bool (N, M).
        """
        x, y = self.numbers(images).double(), self.held_out
        between = _row_means(squared_distances(x, y).sqrt(), same_held_out)
        within = _row_means(squared_distances(x, x).sqrt(), same & ~torch.eye(len(x), dtype=torch.bool))
        # Of the held-out images, seen from each image: those that it is compared with.
        counted, pairs = same_held_out.double(), squared_distances(y, y).sqrt()
        n = counted.sum(1)
        of_real = ((counted @ pairs) * counted).sum(1) / (n * (n - 1))
        twice = 2 * float(between.mean())
        if twice <= 0:
            return 0.0, torch.zeros(len(x), dtype=torch.float64)
        return float((2 * between - within - of_real).mean()) / twice, (
            2 * between - within - of_real
        ) / twice


def _row_means(values: Tensor, mask: Tensor) -> Tensor:
    """Return the mean of the masked values of each row, (N,)."""
    return (values * mask).sum(1) / mask.sum(1)


class CheckpointJudge:
    """Compares drawn images with held-out and training images.

    Args:
        train: images that the generator learns from.
        held_out: images that it does not see, or None.
        with_classes: whether images are drawn by class.
    """

    def __init__(self, train: ImageSet, held_out: ImageSet | None, with_classes: bool = True) -> None:
        self._train, self._all_held_out, self._with_classes = train, held_out, with_classes

    @functools.cached_property
    def held_out(self) -> ImageSet:
        """The held-out images, or some of each class.

        Raises:
            DataError: fewer than two.
        """
        every = self._all_held_out
        if every is None or len(every) < 2:
            n = 0 if every is None else len(every)
            held = "no images are" if n == 0 else "only 1 image is"
            raise DataError(f"{held} held out to compare checkpoints with")
        return every.subset(evenly(every.labels.tolist(), N_HELD_OUT))

    @functools.cached_property
    def labels(self) -> Tensor:
        """Classes to draw, int64 (N_DRAWN,): those of held-out images, in their proportions."""
        held = self.held_out.labels
        chosen = evenly(held.tolist(), N_DRAWN)
        return held[torch.as_tensor(chosen)[torch.arange(N_DRAWN) % len(chosen)]]

    @functools.cached_property
    def _views(self) -> list[_View]:
        numbers = appearance(self._train.images)
        kinds: list[Callable[[Tensor], Tensor]] = [numbers, lambda images: reduced(images).flatten(1)]
        return [_View(kind, kind(self.held_out.images).double()) for kind in kinds]

    @functools.cached_property
    def _aligner(self) -> Aligner:
        return Aligner(self._train.images)

    @functools.cached_property
    def _real_scores(self) -> Tensor:
        """Copy scores of held-out images; one that equals a training image says nothing of unseen ones."""
        scores = self._aligner.nearest(self.held_out.images).score
        return scores[scores > 0]

    @functools.cached_property
    def _real_distance(self) -> float:
        some = self._train.subset(evenly(self._train.labels.tolist(), N_DRAWN))
        if len(some) < 2:
            raise DataError("a single training image cannot be compared with others")
        return self._distance(some.images, some.labels)[0]

    def _distance(self, images: Tensor, labels: Tensor) -> tuple[float, float]:
        """Return the mean distance over the views, and its standard error over the images.

        The energy distance in units of twice the mean distance between the sets: 0 on average for equal
        distributions, 1 for sets of which each is a single point.

        Source: Szekely & Rizzo 2013, Journal of Statistical Planning and Inference 143, Sec. 2.
        Differs: unbiased, and over pairs of one class, each drawn image counting equally. The error leaves
            out what the held-out images contribute: they are the same for all checkpoints.
        """
        held = self.held_out.labels
        pairs = labels[:, None] == labels[None], labels[:, None] == held[None]
        if not self._with_classes or min(int(pair.sum(1).min()) for pair in pairs) < 2:
            pairs = torch.ones_like(pairs[0]), torch.ones_like(pairs[1])
        found = [view.compare(images, *pairs) for view in self._views]
        parts = torch.stack([part for _, part in found]).mean(0)
        error = float(parts.std()) / len(parts) ** 0.5
        return sum(distance for distance, _ in found) / len(found), error

    def __call__(self, images: Tensor) -> Drawn:
        """Return the figures of images of the classes `labels`, uint8 (N_DRAWN, C, H, W).

        Raises:
            DataError: too few images to compare with.
            ShapeError: images that are too small.
        """
        distance, error = self._distance(images, self.labels)
        scores, real = self._aligner.nearest(images).score, self._real_scores
        flagged, of_real = scores == 0, 0.0
        copies = int(flagged.sum()) >= COPIED * len(images)
        if len(real):
            test = tail_test(scores, real, alpha=ALPHA)
            copies = copies or test.p_value < ALPHA or clear_copies(scores, real).p_value < ALPHA
            flagged = flagged | (scores < test.threshold)
            of_real = float((real < test.threshold).double().mean())
        share = float(flagged.double().mean())
        shown = torch.linspace(0, len(images) - 1, min(N_SHOWN, len(images))).round().long()
        return Drawn(distance, error, share, copies, self._real_distance, of_real, images[shown])
