"""What an evaluation will take here, part by part, found out by a few steps and a batch of the encoder."""

from __future__ import annotations

import copy
import dataclasses
import time
import warnings
from collections.abc import Callable, Sequence

import torch

from fewgen.data.imageset import ImageSet
from fewgen.encoders.base import FrozenEncoder, ImageEncoder
from fewgen.encoders.classifier import ClassifierFeatures, ClassifierSettings, working_size
from fewgen.evaluation.arms import UsefulnessSettings, train_arm
from fewgen.evaluation.failed import FAILED
from fewgen.evaluation.looks_failed import N_COMPARED
from fewgen.evaluation.real_side import N_CONTROL, N_PROBED, N_TESTED

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

_BATCH = 8

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


@dataclasses.dataclass(frozen=True)
class Describing:
    """What an encoder takes here.

    Attributes:
        encoder: whose features are kept on the disk where it says so.
        per_image: seconds.
    """

    encoder: ImageEncoder
    per_image: float

    @classmethod
    def tried(
        cls, encoder: ImageEncoder, images: ImageSet, now: Callable[[], float] = time.perf_counter
    ) -> Describing:
        """Describe a batch, and keep nothing."""
        timed, few = copy.copy(encoder), images.subset(range(min(len(images), _BATCH)))
        if isinstance(timed, FrozenEncoder):
            timed.folder = None
        times = []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is to be said of the images is said when they are measured
            for _ in range(2):  # the first one pays for warming up
                started = now()
                timed.features(few)
                times.append(now() - started)
        return cls(encoder, times[1] / len(few))

    def seconds(self, sets: Sequence[ImageSet | None], at_most: Sequence[int]) -> float:
        """Return the seconds of describing some sets, of each at most so many images.

        Sets whose features are kept take nothing.
        """
        kept = self.encoder.keeps if isinstance(self.encoder, FrozenEncoder) else lambda images: False
        wanted = [
            min(len(images), n)
            for images, n in zip(sets, at_most, strict=True)
            if images is not None and not (len(images) <= n and kept(images))
        ]
        return self.per_image * sum(wanted)


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
    extractor: ImageEncoder | None = None,
    held_out: ImageSet | None = None,
    probed: ImageEncoder | None = None,
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
        classifier: whether the small classifier, if it is the judge, has to be trained.
        extractor: the judge; None: the small classifier.
        held_out: the held-out images, if at hand: what is known of them already takes no time.
        probed: of a linear probe beside usefulness, or None.
        now: seconds of the clock that counts.
    """
    classifier = classifier and extractor is None
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
    if extractor is not None:
        tried = Describing.tried(extractor, train, now)
        for part, more in _described(tried, n_generated, train, pool, held_out, n_held_out).items():
            seconds[part] += more
    if probed is not None and USEFULNESS in seconds:
        tried = Describing.tried(probed, train, now)
        seconds[USEFULNESS] += tried.seconds((train, held_out), (N_PROBED, N_TESTED))
    left_out = set() if run else {PARTS[0], PARTS[8]}
    left_out |= set() if classifier else {JUDGE}
    return {name: seconds[name] for name in PARTS if name in seconds and name not in left_out}


def _described(
    describing: Describing,
    n_generated: int,
    train: ImageSet,
    pool: ImageSet | None,
    held_out: ImageSet | None,
    n_held_out: int,
) -> dict[str, float]:
    """Return the seconds that an encoder adds to the parts of an evaluation."""
    one, controls = describing.per_image, 4 * min(n_generated, N_CONTROL) + 2 * n_generated
    unknown = one * n_held_out if held_out is None else 0.0
    found = {
        PARTS[2]: describing.seconds((train, pool, held_out), (len(train), N_PROBED, n_held_out)) + unknown,
        PARTS[3]: one * n_generated,
    }
    if n_held_out:
        failed = min(len(train), N_COMPARED) + min(n_held_out, N_COMPARED)
        found |= {PARTS[5]: one * controls, PARTS[6]: one * len(FAILED) * failed}
    return found
