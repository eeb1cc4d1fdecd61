"""Aligned? Whether images show what was asked for, whether walks are smooth, and whether old classes survive.

Everything here works on labels, features, scores and vectors; who made the images does not matter.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fewgen.errors import ConfigError, DataError, ShapeError
from fewgen.evaluation.agreement import Share, wilson_interval

FloatArray = np.ndarray[Any, np.dtype[np.float64]]

MARGIN = 0.05
"""Agreement this far below that of real images counts as equal (or half the way to chance, if smaller)."""

CLASS_LEVEL = 0.01
"""Chance, over all classes together, that a class is said to fail although nothing is wrong."""

MISS_LEVEL = 0.02
"""Largest tolerated chance that shuffled labels would be answered with "yes"."""

# ---------------------------------------------------------------------------------------- small statistics


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values for the number of tests, so that `adjusted < level` bounds any false alarm by `level`.

    Args:
        p_values: of the tests, each in [0, 1].

    Returns:
        Adjusted p-values in [0, 1], in the order given.

    Source: Holm 1979, Scandinavian J. Statistics 6(2), p. 65.

    >>> holm([0.01, 0.04, 0.02])
    [0.03, 0.04, 0.04]
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted = [0.0] * len(p_values)
    highest = 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = highest
    return adjusted


def _wilson(p: FloatArray, n: float, z: float) -> tuple[FloatArray, FloatArray]:
    """Wilson limits of shares `p` of an effective, not necessarily whole, number `n` of trials."""
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return np.maximum(0.0, centre - half), np.minimum(1.0, centre + half)


def _combined(
    p1: FloatArray, n1: float, p2: FloatArray, n2: float, weight: float, z: float
) -> tuple[FloatArray, FloatArray]:
    """Limits of p1 - weight * p2 of independent shares, by squaring and adding their Wilson limits."""
    low1, high1 = _wilson(p1, n1, z)
    low2, high2 = _wilson(p2, n2, z)
    value = p1 - weight * p2
    low = value - np.sqrt((p1 - low1) ** 2 + (weight * (high2 - p2)) ** 2)
    high = value + np.sqrt((high1 - p1) ** 2 + (weight * (p2 - low2)) ** 2)
    return low, high


def _z(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise ConfigError(f"confidence must lie between 0 and 1, got {confidence}.")
    return NormalDist().inv_cdf(0.5 + confidence / 2)


@dataclass(frozen=True)
class Difference:
    """A difference of two shares with its confidence interval; all in [-1, 1]."""

    value: float
    low: float
    high: float


def share_difference(p1: float, n1: float, p2: float, n2: float, confidence: float = 0.95) -> Difference:
    """Difference p1 - p2 of two independent shares, with an interval that holds for few samples.

    Args:
        p1: first share, in [0, 1].
        n1: its number of trials, above 0; may be an effective number.
        p2: second share.
        n2: its number of trials.
        confidence: of the two-sided interval.

    Returns:
        `Difference`.

    Raises:
        DataError: shares outside [0, 1], or no trials.

    Source: Newcombe 1998, Statistics in Medicine 17, p. 873, method 10 (Wilson limits, squared and added).

    >>> d = share_difference(56 / 70, 70, 48 / 80, 80)
    >>> round(d.low, 4), round(d.high, 4)
    (0.0524, 0.3339)
    """
    if not (0 <= p1 <= 1 and 0 <= p2 <= 1) or n1 <= 0 or n2 <= 0:
        raise DataError(f"{p1} of {n1} and {p2} of {n2} are not two shares that can be compared.")
    low, high = _combined(np.asarray(p1), n1, np.asarray(p2), n2, 1.0, _z(confidence))
    return Difference(p1 - p2, float(low), float(high))


# ------------------------------------------------------------------------- agreement against real images


@dataclass(frozen=True)
class ClassMean:
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
    """

    answer: str
    why: str
    generated: ClassMean
    real: ClassMean
    chance: float
    difference: Difference
    margin: float
    nearness: Difference
    shuffled_yes: float
    per_class: tuple[ClassAlignment, ...]
    failing: tuple[str, ...]
    not_compared: tuple[str, ...]

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

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON-ready values."""
        return asdict(self)


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
        if int(labels.min()) < 0 or int(labels.max()) >= n_classes:
            raise DataError(
                f"{name} labels of {what} images reach from {int(labels.min())} to {int(labels.max())}, but "
                f"must lie in [0, {n_classes}), the number of class names."
            )
    hits = torch.bincount(wanted[predicted == wanted], minlength=n_classes)
    return hits.numpy().astype(np.float64), torch.bincount(wanted, minlength=n_classes).numpy().astype(
        np.float64
    )


def _class_mean(hits: FloatArray, counts: FloatArray, z: float) -> ClassMean:
    value = float(math.fsum(hits / counts) / len(counts))
    # Kish's effective size for equal weights of classes: exactly n if the classes have equally many images.
    n_effective = len(counts) ** 2 / math.fsum(1 / counts)
    low, high = _wilson(np.asarray(value), n_effective, z)
    return ClassMean(value, float(low), float(high), n_effective, int(counts.sum()))


def _decide(
    p: FloatArray, n: float, real: FloatArray, n_real: float, chance: float, margin: float, z: float
) -> tuple[Any, Any]:
    """Return where agreement `p` is answered "no" and where "yes"; "partly" is neither."""
    _, nearness_high = _combined(p, n, real, n_real, 0.5, z)
    _, difference_high = _combined(p, n, real, n_real, 1.0, z)
    no = nearness_high - chance / 2 < 0
    return no, ~no & (difference_high >= -margin)


def _percent(share: ClassMean) -> str:
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
    - "yes": the interval of generated - real reaches up to -`margin` or more, and no class fails.
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

    z = _z(confidence)
    hits, counts = _counts(predicted, wanted, class_names, "generated")
    real_hits, real_counts = _counts(real_predicted, real_wanted, class_names, "held-out")
    both = (counts > 0) & (real_counts > 0)
    chosen = np.flatnonzero(both)
    if not len(chosen):
        raise DataError(
            "no class has both generated and held-out images, so their agreement cannot be compared. "
            "Hold out images of the generated classes."
        )
    generated = _class_mean(hits[chosen], counts[chosen], z)
    real = _class_mean(real_hits[chosen], real_counts[chosen], z)

    # The judge's answers to real images, each true class weighing the same.
    n_classes = len(class_names)
    confusion = torch.bincount(real_wanted * n_classes + real_predicted, minlength=n_classes**2)
    shown = real_counts > 0
    answers = (confusion.reshape(n_classes, n_classes).numpy()[shown] / real_counts[shown][:, None]).mean(
        axis=0
    )
    chance = math.fsum(answers[chosen]) / len(chosen)

    p, n, q, m = np.asarray(generated.value), generated.n_effective, np.asarray(real.value), real.n_effective
    margin = max(0.0, min(MARGIN, (real.value - chance) / 2))
    difference = share_difference(generated.value, n, real.value, m, confidence)
    low, high = _combined(p, n, q, m, 0.5, z)
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
    return AlignmentTest(
        answer=answer,
        why=why,
        generated=generated,
        real=real,
        chance=chance,
        difference=difference,
        margin=margin,
        nearness=nearness,
        shuffled_yes=shuffled_yes,
        per_class=tuple(per_class),
        failing=failing,
        not_compared=tuple(class_names[c] for c in np.flatnonzero((counts > 0) & ~both).tolist()),
    )


# ------------------------------------------------------------------------------- texts and images, both ways


def _rows(x: Tensor, what: str) -> Tensor:
    if x.ndim != 2:
        raise ShapeError(f"{what} must be (N, D), got {tuple(x.shape)}.")
    x = x.detach().to(torch.float64)
    if not torch.isfinite(x).all():
        raise DataError(f"{what} hold NaN or infinity.")
    return x


def cosine_scores(image_vectors: Tensor, text_vectors: Tensor) -> Tensor:
    """Cosine of the angle between every image and every text of a joint space.

    Args:
        image_vectors: (N, D), such as CLIP's for images.
        text_vectors: (n_classes, D), of the class texts in the order of the labels.

    Returns:
        Scores in [-1, 1], (N, n_classes), float64; higher is nearer.

    Raises:
        ShapeError: other shapes, or vectors of different length.
        DataError: values that are not finite, or a vector of zeros, which has no direction.

    Source: Radford et al. 2021, arXiv:2103.00020, Fig. 3.
    Differs: no temperature, which changes no rank.
    """
    images, texts = _rows(image_vectors, "image vectors"), _rows(text_vectors, "text vectors")
    if images.shape[1] != texts.shape[1]:
        raise ShapeError(
            f"image vectors have {images.shape[1]} numbers and text vectors {texts.shape[1]}; both must come "
            "from one joint space."
        )
    for what, x in (("image", images), ("text", texts)):
        n_zero = int((x.norm(dim=1) == 0).sum())
        if n_zero:
            raise DataError(f"{n_zero} of {len(x)} {what} vectors are zero and have no direction.")
    unit = (x / x.norm(dim=1, keepdim=True) for x in (images, texts))
    return (next(unit) @ next(unit).T).clamp(-1, 1)


def prototype_scores(
    features: Tensor, train_features: Tensor, train_labels: Tensor, n_classes: int
) -> Tensor:
    """Nearness of every image to every class mean of the training images, where no joint space exists.

    Args:
        features: of the images to judge, (N, D).
        train_features: of real images, (M, D).
        train_labels: int64 (M,), in [0, n_classes).
        n_classes: number of classes.

    Returns:
        Minus the Euclidean distance, (N, n_classes), float64; higher is nearer.

    Raises:
        ShapeError: shapes that do not fit each other.
        DataError: values that are not finite, or a class without training images.

    Source: Snell et al. 2017, arXiv:1703.05175, Eq. 1.
    Differs: the class mean stands in for the class text, so the score knows images, not words.
    """
    x, train = _rows(features, "features"), _rows(train_features, "training features")
    if x.shape[1] != train.shape[1] or train_labels.shape != (len(train),):
        raise ShapeError(
            f"features (N, D), training features (M, D) and labels (M,) are needed, got {tuple(x.shape)}, "
            f"{tuple(train.shape)} and {tuple(train_labels.shape)}."
        )
    if len(train_labels) and not 0 <= int(train_labels.min()) <= int(train_labels.max()) < n_classes:
        raise DataError(f"training labels must lie in [0, {n_classes}).")
    counts = torch.bincount(train_labels, minlength=n_classes)
    if (counts == 0).any():
        empty = (counts == 0).nonzero().flatten().tolist()
        raise DataError(f"classes {empty} have no training image, so they have no mean to compare with.")
    sums = torch.zeros(n_classes, train.shape[1], dtype=torch.float64).index_add_(0, train_labels, train)
    # Exact differences: the product form loses digits where an image lies near a mean.
    return -torch.cdist(x, sums / counts[:, None], compute_mode="donot_use_mm_for_euclid_dist")


def _check_scores(scores: Tensor, labels: Tensor, class_names: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Return scores as float64 and one-hot labels as booleans, both (N, n_classes)."""
    if scores.ndim != 2 or scores.shape[1] != len(class_names) or labels.shape != scores.shape[:1]:
        raise ShapeError(
            f"scores must be (N, {len(class_names)}) and labels (N,), got {tuple(scores.shape)} and "
            f"{tuple(labels.shape)}."
        )
    if len(scores) == 0:
        raise DataError("there are no images to score.")
    if not torch.isfinite(scores).all():
        raise DataError("scores hold NaN or infinity.")
    if int(labels.min()) < 0 or int(labels.max()) >= len(class_names):
        raise DataError(f"labels must lie in [0, {len(class_names)}), the number of class names.")
    return scores.detach().to(torch.float64), labels[:, None] == torch.arange(len(class_names))


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
        scores: similarity of every image and class text, (N, n_classes), higher is nearer; see
            `cosine_scores` and `prototype_scores`.
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
    per_class = {
        name: wilson_interval(int(hits[own[:, c]].sum()), int(own[:, c].sum()), confidence)
        for c, name in enumerate(class_names)
        if bool(own[:, c].any())
    }
    return TextToImage(
        overall=wilson_interval(int(hits.sum()), len(hits), confidence),
        per_class=per_class,
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


# --------------------------------------------------------------------------------------------------- walks


@dataclass(frozen=True)
class Smoothness:
    """How evenly the images of walks change; each list has one entry per walk.

    Attributes:
        length: length of the path through the features, in their units.
        detour: length over the distance of the two ends, at least 1 (1 is a straight line); None where the
            ends are equal or nothing moves.
        largest_step: share of the length in the largest step, from 1 / steps to 1; None if nothing moves.
        evenness: entropy of the steps' shares of the length over its maximum, 1 for equal steps and 0 for a
            single jump; None if nothing moves.
        variation: standard deviation of the step lengths over their mean, 0 for equal steps; None if nothing
            moves. The mean squared step of the perceptual path length is
            (length / steps)^2 (1 + variation^2).
        jump: whether one step holds more than half of the path.
        n_steps: steps of each walk.
        n_still: walks whose images are all equal.
    """

    length: tuple[float, ...]
    detour: tuple[float | None, ...]
    largest_step: tuple[float | None, ...]
    evenness: tuple[float | None, ...]
    variation: tuple[float | None, ...]
    jump: tuple[bool, ...]
    n_steps: int
    n_still: int

    def summary(self) -> dict[str, dict[str, float | int | None]]:
        """Return mean, spread (sample standard deviation, None below two) and n of each figure over walks.

        A figure that no walk has is left out. `jump_share` is the share of the moving walks with a jump.
        """
        found: dict[str, dict[str, float | int | None]] = {}
        for name in ("length", "detour", "largest_step", "evenness", "variation"):
            values = [v for v in getattr(self, name) if v is not None]
            if values:
                mean = math.fsum(values) / len(values)
                squares = math.fsum((v - mean) ** 2 for v in values)
                spread = math.sqrt(squares / (len(values) - 1)) if len(values) > 1 else None
                found[name] = {"mean": mean, "spread": spread, "n": len(values)}
        moving = len(self.jump) - self.n_still
        if moving:
            found["jump_share"] = {"mean": sum(self.jump) / moving, "spread": None, "n": moving}
        return found

    def to_dict(self) -> dict[str, Any]:
        """Return everything, with the summary, as JSON-ready values."""
        return {**asdict(self), "summary": self.summary()}


def interpolation_smoothness(features: Tensor) -> Smoothness:
    """Measure how evenly images change along walks between two points of a latent space.

    Compare with the same walk through pixels (a cross-fade of the two end images): it is even, but its
    images are not real. Smooth is not realistic.

    Args:
        features: of the images in the order of the walk, (S, D), or of several walks, (W, S, D); S >= 4.

    Returns:
        `Smoothness`. Images count as equal if all lie within a millionth of the largest feature vector.

    Raises:
        ShapeError: another shape.
        DataError: fewer than 4 images per walk (with 2 steps the larger one always holds half), no walk, or
            values that are not finite.

    Source: Karras et al. 2019, arXiv:1812.04948, Sec. 4.1 (perceptual path length: how much images change
    per step of the latent).
    Differs: PPL divides the squared LPIPS-type distance of two images by a small squared step, 1e-4, averaged
    over random places. Here it is the given walk with its finite steps, so that a jump within a step counts
    with the step; the total length and its distribution over the steps are told apart; and the length is
    relative to the distance of the ends, because PPL alone rewards a generator that hardly changes anything.
    """
    if features.ndim == 2:
        features = features[None]
    if features.ndim != 3:
        raise ShapeError(f"features must be (S, D) or (W, S, D), got {tuple(features.shape)}.")
    n_walks, n_images, _ = features.shape
    if n_walks == 0 or n_images < 4:
        raise DataError(f"{n_walks} walks of {n_images} images; at least 1 walk of 4 images is needed.")
    x = features.detach().to(torch.float64)
    if not torch.isfinite(x).all():
        raise DataError("features hold NaN or infinity.")
    steps = (x[:, 1:] - x[:, :-1]).norm(dim=2)
    lengths = steps.sum(dim=1)
    ends = (x[:, -1] - x[:, 0]).norm(dim=1)
    smallest = 1e-6 * x.norm(dim=2).amax(dim=1)
    still = (steps.sum(dim=1) <= smallest).tolist()
    closed = (ends <= smallest).tolist()

    detour: list[float | None] = []
    largest: list[float | None] = []
    evenness: list[float | None] = []
    variation: list[float | None] = []
    for w in range(n_walks):
        if still[w]:
            detour.append(None)
            largest.append(None)
            evenness.append(None)
            variation.append(None)
            continue
        share = steps[w] / lengths[w]
        detour.append(None if closed[w] else max(1.0, float(lengths[w] / ends[w])))
        largest.append(float(share.max()))
        evenness.append(float(-torch.xlogy(share, share).sum()) / math.log(n_images - 1))
        variation.append(float(share.std(correction=0)) * (n_images - 1))
    return Smoothness(
        length=tuple(lengths.tolist()),
        detour=tuple(detour),
        largest_step=tuple(largest),
        evenness=tuple(evenness),
        variation=tuple(variation),
        jump=tuple(v is not None and v > 0.5 for v in largest),
        n_steps=n_images - 1,
        n_still=sum(still),
    )


# ----------------------------------------------------------------------------------------------- retention


@dataclass(frozen=True)
class Retained:
    """Agreement of the same images before and after a change.

    change: after minus before, with its interval; below 0 is a loss.
    n_lost: images that agreed before and no longer do; n_won: the other way round.
    p_value: exact McNemar test, two-sided; p_adjusted: over classes (Holm; equal to p_value overall).
    """

    before: Share
    after: Share
    change: Difference
    n_lost: int
    n_won: int
    p_value: float
    p_adjusted: float


@dataclass(frozen=True)
class Retention:
    """Class agreement before and after an adaptation or an edit.

    lost, won: classes with a significant change, 5 % over all classes together.
    """

    overall: Retained
    per_class: dict[str, Retained]
    lost: tuple[str, ...]
    won: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON-ready values."""
        return asdict(self)


def mcnemar_p(n_lost: int, n_won: int) -> float:
    """Two-sided p-value of the exact McNemar test: are `n_lost` and `n_won` heads and tails of a fair coin?

    Source: McNemar 1947, Psychometrika 12(2), p. 153, with the binomial distribution in place of its limit.

    >>> mcnemar_p(6, 0), mcnemar_p(0, 0)
    (0.03125, 1.0)
    """
    if n_lost < 0 or n_won < 0:
        raise DataError(f"counts cannot be negative, got {n_lost} and {n_won}.")
    # In whole numbers, which is exact, and spares a short command the second that scipy.stats takes to load.
    n = n_lost + n_won
    return min(1.0, 2 * sum(math.comb(n, k) for k in range(min(n_lost, n_won) + 1)) / 2**n)


def paired_difference(n_lost: int, n_won: int, n: int, confidence: float = 0.95) -> Difference:
    """Change of a share between two looks at the same n images, (n_won - n_lost) / n, with an interval.

    Args:
        n_lost: images right at the first look only.
        n_won: images right at the second look only.
        n: all images.
        confidence: of the interval.

    Returns:
        `Difference`, in [-1, 1].

    Raises:
        DataError: counts that cannot be.

    Source: Bonett & Price 2012, J. Educational and Behavioral Statistics 37(4), p. 479 (adjusted Wald). An
    interval from the exact test conditions on the changed images and has no width where nothing changed;
    this one keeps its coverage for few images.
    """
    if n < 1 or n_lost < 0 or n_won < 0 or n_lost + n_won > n:
        raise DataError(f"{n_lost} lost and {n_won} won of {n} images cannot be.")
    lost, won = (n_lost + 1) / (n + 2), (n_won + 1) / (n + 2)
    half = _z(confidence) * math.sqrt((lost + won - (won - lost) ** 2) / (n + 2))
    return Difference((n_won - n_lost) / n, max(-1.0, won - lost - half), min(1.0, won - lost + half))


def class_retention(
    before: Tensor,
    after: Tensor,
    labels: Tensor,
    class_names: Sequence[str],
    *,
    level: float = 0.05,
    confidence: float = 0.95,
) -> Retention:
    """Whether old classes are still recognised after a model was adapted, or images were edited.

    Row i must be the same case in both looks: the same seed and class generated by the model before and
    after, or an image before and after its edit.

    Args:
        before: int64 (N,), classes an independent judge sees before.
        after: int64 (N,), classes the same judge sees after. Numbers from len(class_names) on stand for new
            classes and are never right.
        labels: int64 (N,), wanted classes.
        class_names: names of the old classes 0 ... len - 1.
        level: chance, over all classes together, to call a class lost or won although nothing changed.
        confidence: of the intervals.

    Returns:
        `Retention`; classes without images are left out.

    Raises:
        ShapeError: vectors of different lengths.
        DataError: no images, or labels outside the classes.

    Source: McNemar 1947, Psychometrika 12(2), p. 153, exact, with Holm's correction over classes. Forgetting
    as the loss of accuracy on earlier classes: Chaudhry et al. 2018, arXiv:1801.10112, Sec. 3.
    Differs: one step before and after, not a sequence of tasks, and images are compared in pairs.
    """
    if not before.shape == after.shape == labels.shape or labels.ndim != 1:
        raise ShapeError(
            f"before, after and labels must all be (N,), got {tuple(before.shape)}, {tuple(after.shape)} and "
            f"{tuple(labels.shape)}."
        )
    if len(labels) == 0:
        raise DataError("there are no images, so there is nothing to retain.")
    n_classes = len(class_names)
    if int(labels.min()) < 0 or int(labels.max()) >= n_classes:
        raise DataError(f"labels must lie in [0, {n_classes}), the number of class names.")
    first, second = before == labels, after == labels

    def look(chosen: Tensor) -> tuple[int, int, int, int, int]:
        a, b = first[chosen], second[chosen]
        return int(chosen.sum()), int(a.sum()), int(b.sum()), int((a & ~b).sum()), int((~a & b).sum())

    def retained(counts: tuple[int, int, int, int, int], p_value: float, p_adjusted: float) -> Retained:
        n, n_before, n_after, n_lost, n_won = counts
        return Retained(
            before=wilson_interval(n_before, n, confidence),
            after=wilson_interval(n_after, n, confidence),
            change=paired_difference(n_lost, n_won, n, confidence),
            n_lost=n_lost,
            n_won=n_won,
            p_value=p_value,
            p_adjusted=p_adjusted,
        )

    overall = look(torch.ones_like(labels, dtype=torch.bool))
    overall_p = mcnemar_p(*overall[3:])
    present = [c for c in range(n_classes) if bool((labels == c).any())]
    looks = [look(labels == c) for c in present]
    p_values = [mcnemar_p(*counts[3:]) for counts in looks]
    per_class = {
        class_names[c]: retained(counts, p, adjusted)
        for c, counts, p, adjusted in zip(present, looks, p_values, holm(p_values), strict=True)
    }
    changed = {name: r for name, r in per_class.items() if r.p_adjusted < level}
    return Retention(
        overall=retained(overall, overall_p, overall_p),
        per_class=per_class,
        lost=tuple(name for name, r in changed.items() if r.n_lost > r.n_won),
        won=tuple(name for name, r in changed.items() if r.n_won > r.n_lost),
    )
