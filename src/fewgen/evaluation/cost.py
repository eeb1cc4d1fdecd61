"""What an evaluation will take here, part by part, found out by a few steps of the small classifier."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable

import torch

from fewgen.data.imageset import ImageSet
from fewgen.encoders.classifier import ClassifierFeatures, ClassifierSettings, working_size
from fewgen.evaluation.arms import UsefulnessSettings, train_arm

JUDGE = "training a judge"
USEFULNESS = "training classifiers for usefulness"

PARTS = (
    "drawing images",
    JUDGE,
    "describing real images",
    "describing new images",
    "computing figures",
    "trying tests on controls",
    "weighing verdicts",
    USEFULNESS,
    "asking the run for words and walks",
)
"""Parts of an evaluation as progress names them, in their order."""

_TRIAL_STEPS = 6

_TRIAL_IMAGES = 256

FEW_IMAGES = 300

_SHARES = {PARTS[2]: 0.2, PARTS[3]: 0.3, PARTS[4]: 0.7, PARTS[5]: 1.6, PARTS[8]: 0.3}
"""Work on 300 new and 300 training images, in quarters of the training of a judge on these."""

_TRAININGS = 4, 15
"""Trainings per draw of usefulness (real, generated, both, a point of the curve), and of its controls."""


def judge_seconds(
    train: ImageSet, n_images: int | None = None, now: Callable[[], float] = time.perf_counter
) -> float:
    """Return the seconds of training the judge here.

    Args:
        train: images that it learns from.
        n_images: how many of such images there are; None: these.
        now: seconds of the clock that counts.
    """
    if train.n_classes < 2 or len(train) < 2:
        return 0.0
    n_images = len(train) if n_images is None else n_images
    settings = ClassifierSettings.for_images(n_images, min(working_size(*train.size)))
    few = train.subset(range(min(len(train), _TRIAL_IMAGES)))

    def trained(steps: int) -> object:
        own = dataclasses.replace(settings, steps=steps)
        return ClassifierFeatures.of(few, settings=own, use_cache=False)

    return settings.steps * _per_step(trained, now)


def useful_seconds(train: ImageSet, now: Callable[[], float] = time.perf_counter) -> float:
    """Return the seconds of one training of the classifier of usefulness, which has one thread."""
    settings, few = UsefulnessSettings(), train.subset(range(min(len(train), _TRIAL_IMAGES)))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return settings.steps * _per_step(
            lambda steps: train_arm([few], few, dataclasses.replace(settings, steps=steps), 0), now
        )
    finally:
        torch.set_num_threads(threads)


def _per_step(train: Callable[[int], object], now: Callable[[], float]) -> float:
    """Return the seconds of a step of a training of some steps."""
    times = []
    for steps in (1, 1 + _TRIAL_STEPS):  # the first one pays for warming up
        started = now()
        train(steps)
        times.append(now() - started)
    return times[1] / (1 + _TRIAL_STEPS)


def evaluation_seconds(
    n_generated: int,
    train: ImageSet,
    n_held_out: int,
    *,
    pool: ImageSet | None = None,
    useful_draws: int = 0,
    draw: float = 0.0,
    run: bool = True,
    classifier: bool = True,
    now: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Return the estimated seconds of each part of an evaluation, in their order.

    Args:
        n_generated: images to judge.
        train: training images.
        n_held_out: held-out images; 0: no test can be tried.
        pool: further real images.
        useful_draws: paired draws of usefulness.
        draw: seconds of drawing an image.
        run: whether a run is judged, which draws its images and is asked for words.
        classifier: whether the small classifier is the judge.
        now: seconds of the clock that counts.
    """
    few = judge_seconds(train, FEW_IMAGES, now)
    judged_by = train if pool is None else pool
    judge = few if len(judged_by) <= FEW_IMAGES else judge_seconds(judged_by, None, now)
    compared = 1 + 0.5 * min(len(train), 5000) / 300
    unit = few / 4 * max(n_generated, 50) / 300 * compared / 1.5
    seconds = {name: share * unit for name, share in _SHARES.items()}
    seconds |= {PARTS[0]: draw * n_generated, JUDGE: judge if classifier else 0.0}
    # Failed generators, which verdicts compare with, are made from held-out images.
    seconds[PARTS[6]] = few / 4 * (1.0 + 0.09 * min(n_held_out, 300))
    if n_held_out == 0:
        seconds |= dict.fromkeys(PARTS[4:7], 0.1 * unit)
    if useful_draws and n_held_out:
        per_draw, controls = _TRAININGS
        seconds[USEFULNESS] = (per_draw * useful_draws + controls) * useful_seconds(train, now)
    left_out = set() if run else {PARTS[0], PARTS[8]}
    left_out |= set() if classifier else {JUDGE}
    return {name: seconds[name] for name in PARTS if name in seconds and name not in left_out}
