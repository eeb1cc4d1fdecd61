"""Draw the images of a run and measure them, with what only a run can be asked."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from fewgen.errors import DataError
from fewgen.runs.run import Run

if TYPE_CHECKING:
    from fewgen.data import ImageSet
    from fewgen.encoders.base import FeatureExtractor
    from fewgen.evaluation.evaluation import Evaluation

    Progress = Callable[[str, float], None]


PER_CLASS = 100
"""Images per class that a run makes, unless another number is asked for."""


AT_LEAST = 300
"""Images that a run makes in all, however few its classes: zero copies in 300 bound their share at 1 %."""


@dataclasses.dataclass
class Sets:
    """Everything that an evaluation compares, checked; a run has not drawn its images yet.

    Attributes:
        subject: what is evaluated, in the user's words.
        run: the run that draws the images, or None.
        generated: the images at hand, or None for a run.
        train: images that were learned from.
        held_out: real images that were not, or None.
        pool: further real images, or None.
        notes: what a reader should know.
        labelled: whether the images at hand have classes.
        others: further runs with their training images, for usefulness.
    """

    subject: str
    run: Run | None
    generated: ImageSet | None
    train: ImageSet
    held_out: ImageSet | None
    pool: ImageSet | None
    notes: list[str]
    labelled: bool = True
    others: tuple[tuple[Run, ImageSet], ...] = ()


def images_per_class(n: int | None, n_classes: int) -> int:
    """Return how many images of each class a run draws for an evaluation.

    >>> images_per_class(None, 10), images_per_class(None, 2), images_per_class(7, 2)
    (100, 150, 7)
    """
    return max(PER_CLASS, math.ceil(AT_LEAST / n_classes)) if n is None else n


def evaluate_sets(
    sets: Sets,
    *,
    n: int | None = None,
    seed: int = 0,
    extractor: FeatureExtractor | None = None,
    useful_draws: int = 10,
    progress: Progress | None = None,
) -> Evaluation:
    """Draw the images of a run if there is one, measure, and add what only a run can be asked.

    Args:
        sets: what to compare.
        n: images per class that a run draws; None for the default.
        seed: of the drawn images and of the tests.
        extractor: features; None for the small classifier.
        useful_draws: paired draws of the usefulness test; 0 leaves it out.
        progress: told the name of the part and the share of it that is done.
    """
    from fewgen.evaluation.evaluation import RealSide, evaluate_images
    from fewgen.runs.asking import ask_run

    generated = sets.generated
    if generated is None:
        if sets.run is None:
            raise DataError("there are neither images nor a run to evaluate.")
        if progress is not None:
            progress("drawing images", 0.0)
        generated = draw_images(sets.run, images_per_class(n, sets.train.n_classes), seed, sets.subject)
    per_class = images_per_class(n, sets.train.n_classes)
    draws = [
        (own, draw_images(other, per_class, seed, other.path.name))
        for other, own in sets.others
        if useful_draws
    ]
    if progress is not None:
        progress("real images", 0.0)
    real = RealSide(sets.train, sets.held_out, extractor, sets.pool, seed, progress)
    evaluation = evaluate_images(
        generated,
        sets.train,
        sets.held_out,
        pool=sets.pool,
        useful_draws=useful_draws,
        draws=draws,
        seed=seed,
        progress=progress,
        real_side=real,
        labelled=sets.labelled,
    )
    evaluation.protocol["subject"] = sets.subject
    if sets.run is not None:
        if progress is not None:
            progress("words and walks", 0.0)
        ask_run(sets.run, evaluation, sets.held_out, real.extractor)
    return evaluation


def draw_images(run: Run, n: int, seed: int, subject: str) -> ImageSet:
    """Return `n` new images of each class of a run, named `subject`."""
    from fewgen.generation import GenerationRequest

    request = GenerationRequest.per_class(range(len(run.class_names)), n, seed)
    return dataclasses.replace(run.method.generate(request).to_image_set(), name=subject)
