"""Usefulness: does a small classifier get better when generated images join the real ones?

Three arms are trained with equal steps, batch sizes and augmentation and judged on the same real test
images: real images only, generated only, and both. A paired draw is one seed (first weights, order of the
batches) with one pair of training and generated images; the gain of "both" over "real" is taken draw by
draw, so that the noise they share cancels. The real arm uses the standard augmentation that
cross-validation inside the training images prefers, because a gain over a weak baseline is worth nothing.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewgen.config.keywords import whole
from fewgen.data.imageset import ImageSet
from fewgen.errors import ConfigError, DataError
from fewgen.evaluation.arms import AUGMENTATIONS, UsefulnessSettings, check_alike, check_arm
from fewgen.evaluation.curve import LearningCurve, Worth, curve_points, curve_reach, curve_sets, worth
from fewgen.evaluation.gains import ArmResult, Gain, by_class, crossed_gain, crossed_variance
from fewgen.evaluation.planner import smallest_gain
from fewgen.evaluation.trainings import OrderedSet, Trainer, Training
from fewgen.progress import Progress

MOST_TEST_IMAGES = 10_000

_PART = "training classifiers for usefulness"


# ------------------------------------------------------------------------------------- augmentation tuned


@dataclass(frozen=True)
class TunedAugmentation:
    """Which standard augmentation all arms use, and why.

    name: key of `AUGMENTATIONS`.
    scores: mean validation accuracy of each candidate; empty if it was not tuned.
    folds: number of folds.
    note: how it was chosen.
    """

    name: str
    scores: dict[str, float] = field(default_factory=dict)
    folds: int = 0
    note: str = "chosen by the caller"


def _folds(train: ImageSet, n_folds: int, seed: int) -> Tensor:
    """Return the fold of each image, (N,): every class spread evenly over the folds."""
    rng = torch.Generator().manual_seed(seed)
    fold = torch.empty(len(train), dtype=torch.int64)
    for c in range(train.n_classes):
        members = (train.labels == c).nonzero().flatten()
        fold[members[torch.randperm(len(members), generator=rng)]] = torch.arange(len(members)) % n_folds
    return fold


def _tuning(
    trains: Sequence[OrderedSet], settings: UsefulnessSettings, seed: int
) -> tuple[int, list[Training]]:
    """The trainings of the cross-validation: candidates by folds, none if a class has a single image."""
    least = min(int(t.images.counts().min()) for t in trains)
    n_folds = min(4, least)
    if n_folds < 2:
        return 0, []
    trainings = []
    for name in AUGMENTATIONS:
        # As many steps as in the arms: with fewer, weak augmentation looks better than it is.
        chosen = dataclasses.replace(settings, augmentation=name)
        for i in range(n_folds):
            # With several training sets, the folds take them in turn.
            train = trains[i % len(trains)]
            fold = _folds(train.images, n_folds, seed)
            inside = train.part((fold != i).nonzero().flatten())
            outside = train.part((fold == i).nonzero().flatten())
            trainings.append(Training((inside,), outside, chosen, seed + i, True))
    return n_folds, trainings


def _best_augmentation(n_folds: int, hits: Sequence[Tensor]) -> TunedAugmentation:
    if not n_folds:
        note = "not tuned: a class has a single training image, and cross-validation needs two"
        return TunedAugmentation(UsefulnessSettings.augmentation, note=note)
    right = {
        name: torch.cat(list(hits[i * n_folds : (i + 1) * n_folds])).to(torch.float64)
        for i, name in enumerate(AUGMENTATIONS)
    }
    scores = {name: float(found.mean()) for name, found in right.items()}
    best = max(scores, key=lambda name: scores[name])
    usual = UsefulnessSettings.augmentation
    lead = right[best] - right[usual]
    error = float(lead.std()) / math.sqrt(len(lead))
    note = f"best of {len(scores)} by {n_folds}-fold cross-validation inside the training images"
    if best != usual and float(lead.mean()) <= error:
        best = usual
        note += f"; {usual}, as none is better by more than one standard error"
    return TunedAugmentation(best, scores, n_folds, note)


# ------------------------------------------------------------------------------------------- the result


@dataclass(frozen=True)
class UsefulnessResult:
    """What generated images do for a classifier. Accuracies and gains are shares: 0.01 is one point.

    settings: of the classifier, with the augmentation that was used.
    tuning: how the augmentation was chosen.
    k: training images per class; the mean where classes differ.
    n_draws: paired draws.
    n_support_draws: different pairs of training and generated images among them.
    n_test: test images.
    n_seen: test images that are, pixel by pixel, among the training or generated images; they should be 0.
    arms: "real", "generated", "both".
    gain: of both over real; its interval covers other draws and other test images.
    gain_generated: of generated only over real.
    gain_per_class: of both over real, for each class with test images.
    losing_classes: classes whose interval lies below 0, at 95 % for all classes together (Bonferroni), so
        that none is named by chance in 39 of 40 evaluations.
    smallest_gain: smallest true gain that n_draws and n_test see with 80 % power; None for one draw.
    speaks_of: what the interval of `gain` covers, in words.
    curve: accuracy with more and fewer real images; None without a pool.
    worth: what "both" is worth in real images; None without a pool.
    worth_generated: what "generated" alone is worth; None without a pool.
    omitted: what is missing, with the reason.
    """

    settings: UsefulnessSettings
    tuning: TunedAugmentation
    k: float
    n_draws: int
    n_support_draws: int
    n_test: int
    n_seen: int
    arms: dict[str, ArmResult]
    gain: Gain
    gain_generated: Gain
    gain_per_class: dict[str, Gain]
    losing_classes: tuple[str, ...]
    smallest_gain: float | None
    speaks_of: str
    curve: LearningCurve | None = None
    worth: Worth | None = None
    worth_generated: Worth | None = None
    omitted: dict[str, str] = field(default_factory=dict)

    def power(self) -> str:
        """Say how small a gain these draws could have seen."""
        if self.smallest_gain is None:
            return "one draw gives no interval; at least two are needed, ten by default"
        return (
            f"{self.n_draws} draws and {self.n_test} test images see a gain of "
            f"{100 * self.smallest_gain:.1f} points with 80 % power"
        )

    def figures(self) -> dict[str, dict[str, Any]]:
        """Return the figures `usefulness`, `usefulness_generated_only` and, with a pool, `worth_images`."""

        def entry(gain: Gain, **more: Any) -> dict[str, Any]:
            ends = {} if gain.low is None else {"low": gain.low, "high": gain.high}
            return {"value": gain.mean, **ends, **more, "question": "useful"}

        means = {name: arm.mean for name, arm in self.arms.items()}
        figures = {
            "usefulness": entry(
                self.gain,
                per_class={name: gain.mean for name, gain in self.gain_per_class.items()},
                losing_classes=list(self.losing_classes),
                accuracy=means,
                augmentation=self.settings.augmentation,
                **{name: getattr(self, name) for name in ("n_draws", "n_support_draws", "smallest_gain")},
                note=f"gain of {self.settings.name} by generated images; {self.power()}; the interval "
                f"speaks of {self.speaks_of}",
            ),
            "usefulness_generated_only": entry(
                self.gain_generated,
                accuracy=means["generated"],
                note="accuracy with generated images alone minus accuracy with the training images",
            ),
        }
        if self.worth is not None:
            found = self.worth
            value = found.images
            if value is None:
                value = found.curve_from if "fewer" in found.text.split("(")[0] else found.curve_to
            ends = {name: end for name, end in (("low", found.low), ("high", found.high)) if end is not None}
            figures["worth_images"] = {
                "value": value,
                **ends,
                "k": found.k,
                "outside_curve": found.images is None,
                "note": found.text,
                "question": "useful",
            }
            if self.curve is not None:
                figures["worth_images"] |= {"curve": self.curve.points(), "accuracy": means["both"]}
            if self.worth_generated is not None:
                figures["worth_images"]["generated_only"] = self.worth_generated.text
        figures["usefulness"]["n_seen"] = self.n_seen
        return figures


def _check_class_counts(images: ImageSet, what: str) -> None:
    empty = [name for name, n in zip(images.class_names, images.counts().tolist(), strict=True) if n == 0]
    if empty:
        raise DataError(
            f"usefulness needs {what} images of every class, but there are none of "
            f"{', '.join(repr(name) for name in empty[:10])}{' and more' if len(empty) > 10 else ''}."
        )


def _at_most(test: OrderedSet, n: int) -> OrderedSet:
    """At most n test images, chosen by their content."""
    if len(test) <= n:
        return test
    order = sorted(range(len(test)), key=lambda i: (test.digests[i], i))
    return test.part(torch.tensor(sorted(order[:n])))


def _speaks_of(n_draws: int, n_pairs: int) -> str:
    classifier = "the classifier's first weights and batches and the choice of test images"
    if n_pairs == 1:
        return f"{classifier}, with these training and generated images alone"
    if n_pairs == n_draws:
        return f"{classifier}, and other draws of the training images"
    return f"{classifier}, with these {n_pairs} draws of the training images"


def measure_usefulness(
    draws: Sequence[tuple[ImageSet, ImageSet]],
    test: ImageSet,
    *,
    n_draws: int = 10,
    pool: ImageSet | None = None,
    settings: UsefulnessSettings | None = None,
    augmentation: str = "tuned",
    curve: Sequence[float] = (0.5, 1, 2, 4, 10),
    seed: int = 0,
    jobs: int = 1,
    real_cache: str | Path | None = None,
    progress: Progress | None = None,
) -> UsefulnessResult:
    """Compare a classifier trained on real images with one that sees generated ones too, draw by draw.

    Args:
        draws: pairs of training images and the labelled images generated from them. Several pairs, from
            different draws of the training images, are used in turn; a single pair serves all draws.
        test: real images in none of these sets; at most 10,000 are used, chosen by content.
        n_draws: paired draws, each with its own seed; two or more give intervals.
        pool: further labelled real images of the same classes, for the learning curve. Those that are
            equal to training or test images are left out.
        settings: of the classifier; None for the defaults.
        augmentation: "tuned", or a key of `AUGMENTATIONS`.
        curve: multiples of the training images per class, as far as the pool reaches.
        seed: another one gives other draws.
        jobs: processes; they change the time, not the result.
        real_cache: JSON file that keeps the trainings on real images, for other generators and runs.
        progress: called with what was done and the share of the work done.

    Returns:
        `UsefulnessResult`. The order of the images in their sets does not matter.

    Raises:
        DataError: an empty set, a class without training or generated images, other classes or shapes, or
            a `real_cache` that cannot be read.
        ConfigError: settings out of range.

    Source: as `fewgen.evaluation.arms.train_arm`; gains as `fewgen.evaluation.gains.crossed_gain`; worth as
    `fewgen.evaluation.curve.worth`.
    """
    settings = settings or UsefulnessSettings()
    draws = list(draws)
    if not draws:
        raise DataError("usefulness needs at least one pair of training and generated images.")
    n_draws = whole("n_draws", n_draws, 1)
    if jobs == 0:
        raise ConfigError("jobs must be a number of processes, or -1 for all processors; got 0.")
    if any(not (math.isfinite(m) and m > 0) for m in curve):
        raise ConfigError(f"the multiples of the learning curve must be above 0, got {list(curve)}.")
    if augmentation != "tuned":
        settings = dataclasses.replace(settings, augmentation=augmentation)
    for train, generated in draws:
        check_arm("both", [train, generated], test, settings)
        _check_class_counts(train, "training")
        _check_class_counts(generated, "generated")

    say = progress or (lambda part, share: None)
    say(_PART, 0.0)
    held = _at_most(OrderedSet.of(test), MOST_TEST_IMAGES)
    pairs = [(OrderedSet.of(train), OrderedSet.of(generated)) for train, generated in draws[:n_draws]]
    chosen = [pairs[i % len(pairs)] for i in range(n_draws)]
    seeds = [seed * 1_000_000 + i for i in range(n_draws)]

    omitted: dict[str, str] = {}
    if pool is not None:
        check_alike("the pool has", pool, test)
    more = None if pool is None else OrderedSet.of(pool)
    multiples = [1.0]
    if more is None:
        omitted["worth_images"] = "the learning curve needs further labelled real images (pool)"
    else:
        multiples = curve_points(curve, min(curve_reach(train, more, held) for train, _ in pairs))
        if len(multiples) < 2:
            omitted["worth_images"] = (
                "the pool holds too few further images of some class to extend the training images by a "
                "quarter, and no smaller part of them was asked for"
            )

    n_folds, tuning_runs = (
        _tuning([t for t, _ in pairs], settings, seed * 1_000_000) if augmentation == "tuned" else (0, [])
    )
    total = len(tuning_runs) + n_draws * (3 + len(multiples) - 1)
    trainer = Trainer(real_cache, jobs, total, lambda share: say(_PART, min(share, 0.99)))
    tuning = TunedAugmentation(settings.augmentation)
    if augmentation == "tuned":
        tuning = _best_augmentation(n_folds, trainer.run(tuning_runs))
        settings = dataclasses.replace(settings, augmentation=tuning.name)

    real_sets = [
        {1.0: train}
        if len(multiples) < 2 or more is None
        else dict(zip(multiples, curve_sets(train, more, held, multiples, s), strict=True))
        for (train, _), s in zip(chosen, seeds, strict=True)
    ]
    trainings = [
        Training((real_sets[i][m],), held, settings, s, True) for m in multiples for i, s in enumerate(seeds)
    ]
    trainings += [Training((g,), held, settings, s, False) for (_, g), s in zip(chosen, seeds, strict=True)]
    trainings += [Training(pair, held, settings, s, False) for pair, s in zip(chosen, seeds, strict=True)]
    hits = torch.stack(trainer.run(trainings)).reshape(-1, n_draws, len(held))
    by_multiple = dict(zip(multiples, hits, strict=False))
    arms = {"real": by_multiple[1.0], "generated": hits[-2], "both": hits[-1]}
    right = {name: table.to(torch.float64) for name, table in arms.items()}

    difference = right["both"] - right["real"]
    _, variance, _ = crossed_variance(difference)
    of_class = by_class(difference, held.images)
    together = 1 - 0.05 / len(of_class)
    highs = {name: crossed_gain(table, together).high for name, table in of_class.items()}
    mean_k = len(pairs[0][0]) / test.n_classes
    found_curve = found_worth = found_generated = None
    if more is not None and len(multiples) > 1:
        points = [len(real_sets[0][m]) / test.n_classes for m in multiples]
        # Rounding may give two multiples the same images.
        distinct = [i for i, n in enumerate(points) if i == 0 or n > points[i - 1]]
        if len(distinct) > 1:
            tables = [by_multiple[multiples[i]] for i in distinct]
            numbers = [points[i] for i in distinct]
            found_curve, found_worth = worth(tables, numbers, arms["both"], k=mean_k, seed=seed)
            _, found_generated = worth(tables, numbers, arms["generated"], k=mean_k, seed=seed)
    seen = set().union(*(set(s.digests) for pair in pairs for s in pair))
    say(_PART, 1.0)
    return UsefulnessResult(
        settings=settings,
        tuning=tuning,
        k=mean_k,
        n_draws=n_draws,
        n_support_draws=len(pairs),
        n_test=len(held),
        n_seen=sum(digest in seen for digest in held.digests),
        arms={name: ArmResult.of(table, held.images) for name, table in right.items()},
        gain=crossed_gain(difference),
        gain_generated=crossed_gain(right["generated"] - right["real"]),
        gain_per_class={name: crossed_gain(table) for name, table in of_class.items()},
        losing_classes=tuple(name for name, high in highs.items() if high is not None and high < 0),
        smallest_gain=None if variance is None else smallest_gain(n_draws, math.sqrt(variance * n_draws)),
        speaks_of=_speaks_of(n_draws, len(pairs)),
        curve=found_curve,
        worth=found_worth,
        worth_generated=found_generated,
        omitted=omitted,
    )


def usefulness_controls(
    train: ImageSet,
    test: ImageSet,
    *,
    n_draws: int = 5,
    settings: UsefulnessSettings | None = None,
    seed: int = 0,
    jobs: int = 1,
    real_cache: str | Path | None = None,
    progress: Progress | None = None,
) -> dict[str, Gain]:
    """Gains whose answers are known, from the data at hand: what the measurement must see, and must not.

    Args:
        train: real training images; the trainings on all of them are those of `measure_usefulness`.
        test: real images in none of the sets.
        n_draws: paired draws.
        settings: those of the result to be judged, with its augmentation; None for the defaults.
        seed: as in `measure_usefulness`.
        jobs: processes.
        real_cache: JSON file that keeps the trainings.
        progress: called with what was done and the share of the work done.

    Returns:
        "more_real_images": the gain of all training images over half of each class, which should be above
        0 (left out where a class has a single image); "copies": the gain of the training images as
        their own generated images, which should not be. Intervals as in `UsefulnessResult.gain`.

    Raises:
        DataError, ConfigError: as `measure_usefulness`.
    """
    settings = settings or UsefulnessSettings()
    check_arm("copies", [train, train], test, settings)
    _check_class_counts(train, "training")
    n_draws = whole("n_draws", n_draws, 1)
    own, held = OrderedSet.of(train), _at_most(OrderedSet.of(test), MOST_TEST_IMAGES)
    seeds = [seed * 1_000_000 + i for i in range(n_draws)]
    arms: dict[str, list[tuple[OrderedSet, ...]]] = {
        "all": [(own,)] * n_draws,
        "copies": [(own, own)] * n_draws,
    }
    if int(train.counts().min()) >= 2:
        arms["half"] = [tuple(curve_sets(own, own, held, [0.5], s)) for s in seeds]
    trainings = [
        Training(sources, held, settings, s, True)
        for arm in arms.values()
        for sources, s in zip(arm, seeds, strict=True)
    ]
    say = progress or (lambda part, share: None)
    trainer = Trainer(real_cache, jobs, len(trainings), lambda share: say(_PART, share))
    tables = torch.stack(trainer.run(trainings)).reshape(-1, n_draws, len(held))
    hits = dict(zip(arms, tables.to(torch.float64), strict=True))
    gains = {"copies": crossed_gain(hits["copies"] - hits["all"])}
    if "half" in hits:
        gains["more_real_images"] = crossed_gain(hits["all"] - hits["half"])
    return gains
