"""Class agreement: does a judge see the class that an image was generated for, as often as in real images?

Everything here works on labels; who made the images does not matter.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fewgen.errors import DataError, ShapeError
from fewgen.evaluation.checks import check_classes
from fewgen.evaluation.statistics import (
    Difference,
    FloatArray,
    Share,
    difference_limits,
    holm,
    normal_factor,
    share_difference,
    shares_by_class,
    wilson_interval,
    wilson_limits,
)

MARGIN = 0.05
"""Agreement this far below that of real images counts as equal (or half the way to chance, if smaller)."""

TOLERATED = 2.0
"""Loss of agreement, in margins, from which the answer is not yes, however uncertain the loss is."""

WIDEST = 0.15
"""Uncertainty of the difference, to either side, beyond which the answer is not yes."""

CLASS_LEVEL = 0.01
"""Chance, over all classes together, that a class is said to fail although nothing is wrong."""

MISS_LEVEL = 0.02
"""Largest tolerated chance that shuffled labels would be answered with "yes"."""


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
    for name, labels in (("predicted labels", predicted), ("wanted labels", wanted)):
        check_classes(name, labels, len(class_names))
    hits = predicted == wanted
    return Agreement(
        overall=wilson_interval(int(hits.sum()), len(hits), confidence),
        per_class=shares_by_class(hits, wanted, class_names, confidence),
        confusion=tuple(tuple(row) for row in _confusion(predicted, wanted, len(class_names)).tolist()),
    )


def _confusion(predicted: Tensor, wanted: Tensor, n_classes: int) -> Tensor:
    """Return how often each wanted class (row) was seen as each class (column), (n_classes, n_classes)."""
    return (wanted * n_classes + predicted).bincount(minlength=n_classes**2).reshape(n_classes, n_classes)


# ------------------------------------------------------------------------- agreement against real images


@dataclass(frozen=True)
class MeanShare:
    """Mean over classes of the share of agreement within each, with a Wilson interval; all in [0, 1].

    n_effective: images that an unweighted share of equal precision would have; the number of images if each
        class has equally many.
    n: images counted.
    """

    value: float
    low: float
    high: float
    n_effective: float
    n: int


@dataclass(frozen=True)
class ClassAlignment:
    """One class: agreement of its generated and held-out images.

    generated, real: shares with Wilson intervals.
    p_value: one-sided exact test (Fisher) that generated images agree less often than held-out ones.
    p_adjusted: the same, adjusted for the number of classes (Holm).
    fails: p_adjusted below `CLASS_LEVEL`, and the shares more than `MARGIN` apart.
    """

    class_name: str
    generated: Share
    real: Share
    p_value: float
    p_adjusted: float
    fails: bool


@dataclass(frozen=True)
class AlignmentTest:
    """Whether generated images show their class about as often as held-out real ones do.

    Attributes:
        answer: "yes", "partly", "no" or "cannot tell".
        why: one or more sentences with the numbers.
        generated: agreement of the generated images.
        real: agreement of the held-out images of the same classes.
        chance: agreement to expect if images were given without regard to the wanted class.
        difference: generated minus real.
        margin: how far below the real agreement still counts as equal.
        nearness: generated agreement minus the midpoint of chance and real agreement; below 0 is nearer to
            chance.
        shuffled_yes: probability that images at chance level, as many as here, would be answered "yes".
        per_class: one entry per class that has generated and held-out images.
        failing: names of the classes that fail.
        not_compared: classes that were generated but have no held-out image.
        doubt: why a "yes" means little here, or nothing.
    """

    answer: str
    why: str
    generated: MeanShare
    real: MeanShare
    chance: float
    difference: Difference
    margin: float
    nearness: Difference
    shuffled_yes: float
    per_class: tuple[ClassAlignment, ...]
    failing: tuple[str, ...]
    not_compared: tuple[str, ...]
    doubt: str = ""

    def figures(self) -> dict[str, dict[str, Any]]:
        """Return the figures for an evaluation: `class_agreement` and `class_agreement_difference`."""
        shown: dict[str, dict[str, Any]] = {
            "class_agreement": {
                "value": self.generated.value,
                "low": self.generated.low,
                "high": self.generated.high,
                "per_class": {c.class_name: c.generated.value for c in self.per_class},
                "real": self.real.value,
                "chance": self.chance,
                "question": "aligned",
            },
            "class_agreement_difference": {
                **asdict(self.difference),
                "per_class": {c.class_name: c.generated.value - c.real.value for c in self.per_class},
                "failing": list(self.failing),
                "question": "aligned",
            },
        }
        if self.not_compared:
            note = f"classes without held-out images are not compared: {', '.join(self.not_compared)}"
            for figure in shown.values():
                figure["note"] = note
        return shown


def _counts(
    predicted: Tensor, wanted: Tensor, class_names: Sequence[str], what: str
) -> tuple[FloatArray, FloatArray]:
    """Return per class the number of images that agree and the number of images, (n_classes,)."""
    if predicted.shape != wanted.shape or predicted.ndim != 1:
        raise ShapeError(
            f"labels of {what} images must both be (N,), got {tuple(predicted.shape)} and "
            f"{tuple(wanted.shape)}."
        )
    if len(wanted) == 0:
        raise DataError(f"there are no {what} images, so their agreement cannot be measured.")
    n_classes = len(class_names)
    for name, labels in (("predicted", predicted), ("wanted", wanted)):
        check_classes(f"{name} labels of {what} images", labels, n_classes)
    hits, counts = (
        torch.bincount(labels, minlength=n_classes).double().numpy()
        for labels in (wanted[predicted == wanted], wanted)
    )
    return hits, counts


def _mean_share(hits: FloatArray, counts: FloatArray, z: float) -> MeanShare:
    value = float(math.fsum(hits / counts) / len(counts))
    # Kish's effective size for equal weights of classes: exactly n if the classes have equally many images.
    n_effective = len(counts) ** 2 / math.fsum(1 / counts)
    low, high = wilson_limits(np.asarray(value), n_effective, z)
    return MeanShare(value, float(low), float(high), n_effective, int(counts.sum()))


def _decide(
    p: FloatArray, n: float, real: FloatArray, n_real: float, chance: float, margin: float, z: float
) -> tuple[Any, Any]:
    """Return where agreement `p` is answered "no" and where "yes"; "partly" is neither."""
    _, nearness_high = difference_limits(p, n, real, n_real, 0.5, z)
    _, difference_high = difference_limits(p, n, real, n_real, 1.0, z)
    no = nearness_high - chance / 2 < 0
    return no, ~no & (difference_high >= -margin)


def _percent(share: MeanShare) -> str:
    return f"{share.value:.0%} ({100 * share.low:.0f}-{100 * share.high:.0f})"


def alignment_test(
    predicted: Tensor,
    wanted: Tensor,
    real_predicted: Tensor,
    real_wanted: Tensor,
    class_names: Sequence[str],
    *,
    confidence: float = 0.95,
) -> AlignmentTest:
    """Compare how often a judge reads generated and held-out real images as the class they stand for.

    Each class weighs the same, on both sides, so sets with other shares of the classes can be compared, and
    labels shuffled within an uneven set are noticed. The answers:

    - "cannot tell": the judge's agreement on real images is not above chance (its Wilson interval reaches
      down to chance), or so few images are there that shuffled labels would get "yes" with a probability
      above `MISS_LEVEL`.
    - "no": significantly nearer to chance than to the real agreement (the interval of generated - (real +
      chance) / 2 lies below 0).
    - "yes": the interval of generated - real reaches up to -`margin` or more, and no class fails. If the loss
      is `TOLERATED` margins, or the interval reaches more than `WIDEST` to either side, `doubt` says that
      this means little, or may be a no.
    - "partly": everything else.

    Args:
        predicted: int64 (N,), the judge's classes of the generated images.
        wanted: int64 (N,), the classes that these were generated for.
        real_predicted: int64 (M,), the judge's classes of real images that neither judge nor generator saw.
        real_wanted: int64 (M,), their true classes.
        class_names: names of the classes 0 ... len - 1.
        confidence: of all two-sided intervals.

    Returns:
        `AlignmentTest`.

    Raises:
        ShapeError: label vectors that do not fit each other.
        DataError: no images on a side, labels outside the classes, or no class with images on both sides.

    Source: Newcombe 1998, Statistics in Medicine 17, p. 873 (difference of shares); Zou & Donner 2008,
    Statistics in Medicine 27, p. 1693 (the same limits squared and added for the weighted difference);
    Kish 1965, Survey Sampling (effective number of images under weights); Fisher's exact test per class
    with Holm's correction. Judging by a classifier as in Ravuri & Vinyals 2019, arXiv:1905.10887.
    Differs: the rule with its margin of 5 points is this library's. Chance is computed, not drawn: the mean
    over the compared classes of how often the judge answers with the class when it sees a real image of any
    class; with every class compared it is 1 / n_classes, the expectation under shuffled labels.
    """
    from scipy.stats import binom, hypergeom

    z = normal_factor(confidence)
    hits, counts = _counts(predicted, wanted, class_names, "generated")
    real_hits, real_counts = _counts(real_predicted, real_wanted, class_names, "held-out")
    both = (counts > 0) & (real_counts > 0)
    chosen = np.flatnonzero(both)
    if not len(chosen):
        raise DataError(
            "no class has both generated and held-out images, so their agreement cannot be compared. "
            "Hold out images of the generated classes."
        )
    generated = _mean_share(hits[chosen], counts[chosen], z)
    real = _mean_share(real_hits[chosen], real_counts[chosen], z)

    # The judge's answers to real images, each true class weighing the same.
    confusion = _confusion(real_predicted, real_wanted, len(class_names)).numpy()
    shown = real_counts > 0
    answers = (confusion[shown] / real_counts[shown][:, None]).mean(axis=0)
    chance = math.fsum(answers[chosen]) / len(chosen)

    p, n, q, m = np.asarray(generated.value), generated.n_effective, np.asarray(real.value), real.n_effective
    margin = max(0.0, min(MARGIN, (real.value - chance) / 2))
    difference = share_difference(generated.value, n, real.value, m, confidence)
    low, high = difference_limits(p, n, q, m, 0.5, z)
    nearness = Difference(
        generated.value - (real.value + chance) / 2, float(low) - chance / 2, float(high) - chance / 2
    )
    whole = max(1, math.floor(n))
    possible = np.arange(whole + 1)
    _, yes_at = _decide(possible / whole, whole, q, m, chance, margin, z)
    shuffled_yes = min(1.0, math.fsum(binom.pmf(possible, whole, chance)[yes_at]))

    p_values = hypergeom.cdf(
        hits[chosen], counts[chosen] + real_counts[chosen], hits[chosen] + real_hits[chosen], counts[chosen]
    )
    p_values = [min(1.0, float(v)) for v in p_values]
    per_class = []
    for c, p_value, p_adjusted in zip(chosen.tolist(), p_values, holm(p_values), strict=True):
        share = wilson_interval(int(hits[c]), int(counts[c]), confidence)
        real_share = wilson_interval(int(real_hits[c]), int(real_counts[c]), confidence)
        fails = p_adjusted < CLASS_LEVEL and share.value < real_share.value - MARGIN
        per_class.append(ClassAlignment(class_names[c], share, real_share, p_value, p_adjusted, fails))
    failing = tuple(c.class_name for c in per_class if c.fails)

    no, yes = _decide(p, n, q, m, chance, margin, z)
    doubt = ""
    numbers = (
        f"The judge reads {_percent(generated)} of the generated and {_percent(real)} of the held-out real "
        f"images as their class; chance is {chance:.0%}. The difference is {100 * difference.value:+.0f} "
        f"points ({100 * difference.low:+.0f} to {100 * difference.high:+.0f})."
    )
    if real.low <= chance:
        answer = "cannot tell"
        why = f"{numbers} On real images the judge cannot be told from chance, so it cannot judge others."
    elif shuffled_yes > MISS_LEVEL:
        answer = "cannot tell"
        why = (
            f"{numbers} With {generated.n} generated and {real.n} held-out images, shuffled labels would "
            f"pass in {shuffled_yes:.0%} of cases; more images are needed."
        )
    elif bool(no):
        answer, why = "no", f"{numbers} That is nearer to chance than to real images."
    elif bool(yes) and not failing:
        answer = "yes"
        why = f"{numbers} It is not shown to be more than {100 * margin:.0f} points below real images"
        # "yes" is no proof of equality: with few images the interval still holds a clear loss.
        limit = -100 * difference.low
        why += f", but {limit:.0f} are not ruled out." if limit > 100 * margin else "."
        if difference.value <= -TOLERATED * margin or difference.high - difference.low > 2 * WIDEST:
            doubt = (
                f"{numbers} So wide an interval does not rule out a loss of {limit:.0f} points; hold out "
                "more images."
            )
    else:
        answer = "partly"
        why = f"{numbers} That is above chance, but below real images." if not yes else numbers
    if failing:
        named = ", ".join(
            f'"{c.class_name}" ({c.generated.value:.0%} against {c.real.value:.0%})'
            for c in per_class
            if c.fails
        )
        why += f" Clearly worse than real: {named}."
    left_out = tuple(class_names[c] for c in np.flatnonzero((counts > 0) & ~both).tolist())
    numbers_of = (generated, real, chance, difference, margin, nearness, shuffled_yes)
    return AlignmentTest(answer, why, *numbers_of, tuple(per_class), failing, left_out, doubt)
