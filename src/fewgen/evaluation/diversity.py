"""Diversity within a class: pair distances, nearest neighbours, Vendi score, share of collapsed pairs.

None of these figures says that images look real: noise is diverse. Read them beside the same figure on real
images of the same class and count, which `vendi_ratio` and `collapse_share` do.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fewgen.errors import ConfigError, DataError
from fewgen.evaluation.checks import check_features, check_labels, check_pair
from fewgen.evaluation.distances import canonical_order, row_blocks, squared_distances


@dataclass(frozen=True)
class ClassMean:
    """A figure class by class: `per_class` (None: too few samples) and `mean`, classes weighing equally."""

    mean: float
    per_class: tuple[float | None, ...]


def _labelled(name: str, features: Tensor, labels: Tensor, at_least: int = 1) -> tuple[Tensor, Tensor]:
    features = check_features(name, features, at_least)
    labels = check_labels(f"labels of {name}", labels, len(features))
    if len(labels) and int(labels.min()) < 0:
        raise DataError(f"labels of {name} must not be negative, but {int((labels < 0).sum())} are.")
    return features, labels


def _class_count(n_classes: int | None, *labels: Tensor) -> int:
    largest = max((int(part.max()) for part in labels if len(part)), default=-1)
    if n_classes is not None and largest >= n_classes:
        raise DataError(f"labels reach to {largest}, but there are {n_classes} classes.")
    return largest + 1 if n_classes is None else n_classes


# ------------------------------------------------------------------------------------------ pair distances


def _mean_pair_distance(x: Tensor) -> float:
    """Mean Euclidean distance of the pairs of different rows, in blocks; each pair is computed once."""
    squares = (x * x).sum(dim=1)
    total = torch.zeros((), dtype=torch.float64)
    for rows in row_blocks(len(x), len(x)):
        later = slice(rows.stop, len(x))
        # The square of the block itself holds its pairs twice.
        total += squared_distances(x[rows], x[rows], squares[rows], squares[rows]).sqrt_().sum() / 2
        total += squared_distances(x[rows], x[later], squares[rows], squares[later]).sqrt_().sum()
    return float(total) / (len(x) * (len(x) - 1) / 2)


def within_class_distance(features: Tensor, labels: Tensor, n_classes: int) -> ClassMean:
    """Mean Euclidean distance of all pairs of different samples within a class: how diverse a class is.

    Compare with the same figure on held-out real images: far below it means collapse, far above it junk.

    Args:
        features: (N, D).
        labels: int64 (N,), in [0, n_classes).
        n_classes: number of classes.

    Returns:
        `ClassMean`, in units of the features.

    Raises:
        DataError: no class has two samples, features are not finite, or labels outside the classes.
        ShapeError: features are not (N, D), or labels of another length.

    Source: the pairwise diversity of few-shot generation papers (LPIPS among samples of one class), as in
    Hong et al. 2020, arXiv:2008.01999, Sec. 4, here with any features.
    """
    features, labels = _labelled("features", features, labels, 0)
    _class_count(n_classes, labels)
    members = [features[labels == c] for c in range(n_classes)]
    per_class = tuple(_mean_pair_distance(x) if len(x) > 1 else None for x in members)
    known = [value for value in per_class if value is not None]
    if not known:
        raise DataError("no class has two images, so there is no distance within a class.")
    return ClassMean(math.fsum(known) / len(known), per_class)


def nearest_within(features: Tensor, labels: Tensor) -> Tensor:
    """Return the Euclidean distance (N,) of each sample to the nearest other sample of its class.

    A repeated sample has distance 0; a sample that is alone in its class has distance infinity.

    Args:
        features: (N, D).
        labels: int64 (N,), not negative.

    Returns:
        float64 (N,), in units of the features.

    Raises:
        DataError: no samples, non-finite features, or negative labels.
        ShapeError: features are not (N, D), or labels of another length.
    """
    features, labels = _labelled("features", features, labels)
    nearest = torch.full((len(features),), math.inf, dtype=torch.float64)
    for c in labels.unique():
        members = (labels == c).nonzero()[:, 0]
        x = features[members]
        squares = (x * x).sum(dim=1)
        for rows in row_blocks(len(x), len(x)):
            distances = squared_distances(x[rows], x, squares[rows], squares)
            # Not the second smallest of a row: the sample itself is left out by its place.
            distances[torch.arange(len(distances)), torch.arange(rows.start, rows.stop)] = math.inf
            nearest[members[rows]] = distances.min(dim=1).values.sqrt()
    return nearest


# --------------------------------------------------------------------------------------------------- Vendi


def _unit_rows(features: Tensor) -> Tensor:
    """Return rows of length one. Zero rows, which have no direction, share one that no other row has."""
    lengths = features.norm(dim=1, keepdim=True)
    zero = lengths == 0
    return torch.cat([features / torch.where(zero, 1.0, lengths), zero.to(torch.float64)], dim=1)


def vendi_score(features: Tensor) -> float:
    """Effective number of different samples: the exponential of the entropy of the kernel's eigenvalues.

    With K (N, N) the cosines of the features and lambda the eigenvalues of K / N:
    ``exp(-sum lambda log lambda)``. One image repeated scores 1, N images without any similarity N. It grows
    with N, so compare equal counts only (`vendi_ratio`), and it rewards junk.

    Args:
        features: (N, D), at least 2 samples.

    Returns:
        In [1, N], at most D + 1.

    Raises:
        DataError: fewer than two samples, or non-finite features.
        ShapeError: features are not (N, D).

    Source: Friedman & Dieng 2022, arXiv:2210.02410, Eq. 2.
    Differs: the eigenvalues come from the D x D side where it is the smaller one (they are the
    same); an all-zero feature vector is similar to its like only.
    """
    features = check_features("features", features, at_least=2)
    unit = _unit_rows(features)
    gram = unit.T @ unit if unit.shape[1] < len(unit) else unit @ unit.T
    values = torch.linalg.eigvalsh(gram / len(features)).clamp_min(0)
    return math.exp(float(torch.special.entr(values / values.sum()).sum()))


def _drawn_scores(x: Tensor, count: int, n_draws: int, rng: torch.Generator) -> list[float]:
    """Return the Vendi scores of random subsets of `count` samples."""
    if len(x) == count:
        return [vendi_score(x)] * n_draws
    x = x[canonical_order(x)]
    draws = [torch.randperm(len(x), generator=rng)[:count] for _ in range(n_draws)]
    return [vendi_score(x[i]) for i in draws]


@dataclass(frozen=True)
class VendiRatio:
    """Vendi score of generated over that of real samples, at equal counts within each class.

    mean: over draws of the mean over classes; 1 is expected of real images, less means less diverse.
    spread: standard deviation over draws; 0 if no class had anything to draw.
    per_class: mean over draws for each class (None: fewer than two samples on a side).
    generated: mean score of the generated samples over draws and classes, in effective samples.
    real: the same of the real samples.
    counts: samples used on each side, for each class (0: left out).
    n_draws: number of draws.
    """

    mean: float
    spread: float
    per_class: tuple[float | None, ...]
    generated: float
    real: float
    counts: tuple[int, ...]
    n_draws: int


def vendi_ratio(
    generated: Tensor,
    real: Tensor,
    labels_generated: Tensor,
    labels_real: Tensor,
    *,
    rng: torch.Generator,
    n_draws: int = 10,
    max_per_class: int = 1000,
    n_classes: int | None = None,
) -> VendiRatio:
    """Compare the Vendi scores of generated and real samples, class by class and at equal counts.

    The score grows with the count, so the larger side of a class is cut down to the smaller one by `n_draws`
    random subsets; the spread is theirs and does not include the error from the smaller side.

    Args:
        generated: features, (N, D).
        real: features, (M, D).
        labels_generated: int64 (N,), in [0, n_classes).
        labels_real: int64 (M,).
        rng: random stream of the subsets.
        n_draws: number of subsets.
        max_per_class: samples per class and side at most.
        n_classes: number of classes; None: up to the largest label.

    Returns:
        `VendiRatio`; the order of the samples does not enter.

    Raises:
        DataError: no class has two samples on both sides, non-finite features, or labels outside the classes.
        ShapeError: different feature sizes, or labels of another length.
        ConfigError: fewer than one draw or two samples per class.

    Source: Friedman & Dieng 2022, arXiv:2210.02410, Eq. 2, for the score.
    """
    if n_draws < 1 or max_per_class < 2:
        raise ConfigError(
            f"a ratio needs at least one draw and two samples per class, got n_draws {n_draws} and "
            f"max_per_class {max_per_class}."
        )
    generated, real = check_pair(generated, real, 1, ("generated", "real"))
    generated, labels_generated = _labelled("generated", generated, labels_generated)
    real, labels_real = _labelled("real", real, labels_real)
    n_classes = _class_count(n_classes, labels_generated, labels_real)
    counts: list[int] = []
    scores = []  # of the classes that have enough samples: (2 sides, n_draws)
    for c in range(n_classes):
        sides = [x[labels == c] for x, labels in ((generated, labels_generated), (real, labels_real))]
        count = min(*map(len, sides), max_per_class)
        counts.append(count if count > 1 else 0)
        if count < 2:
            continue
        scores.append([_drawn_scores(members, count, n_draws, rng) for members in sides])
    if not scores:
        raise DataError(
            f"no class has two samples among both the {len(generated)} generated and the {len(real)} real "
            "images, so their Vendi scores cannot be compared."
        )
    table = torch.tensor(scores, dtype=torch.float64)  # (classes, 2, n_draws)
    ratios = table[:, 0] / table[:, 1]
    means = iter(ratios.mean(dim=1).tolist())
    over_draws = ratios.mean(dim=0)
    return VendiRatio(
        mean=float(over_draws.mean()),
        spread=float(over_draws.std(unbiased=n_draws > 1)),
        per_class=tuple(next(means) if count else None for count in counts),
        generated=float(table[:, 0].mean()),
        real=float(table[:, 1].mean()),
        counts=tuple(counts),
        n_draws=n_draws,
    )


# ------------------------------------------------------------------------------------------------ collapse


@dataclass(frozen=True)
class CollapseShare:
    """How many pairs of generated samples of a class are nearer than real pairs of that class are.

    share: of all generated pairs of the classes that have a threshold (0 to 1).
    quantile: of the real pairs; so the share expected of real images is about this number.
    per_class: share for each class (None: no pair, or no threshold).
    thresholds: distance for each class, in units of the features (None: no threshold).
    pooled: classes with too few real pairs of their own, whose threshold comes from all classes together.
    n_pairs: generated pairs behind `share`.
    """

    share: float
    quantile: float
    per_class: tuple[float | None, ...]
    thresholds: tuple[float | None, ...]
    pooled: tuple[int, ...]
    n_pairs: int


def _pair_distances(x: Tensor, n: int, rng: torch.Generator) -> Tensor:
    """Return the distances of all pairs of different rows, of n drawn rows at most."""
    if len(x) > n:
        x = x[canonical_order(x)][torch.randperm(len(x), generator=rng)[:n]]
    i, j = torch.triu_indices(len(x), len(x), offset=1)
    return squared_distances(x, x)[i, j].sqrt_()


def _near_pairs(x: Tensor, threshold: float) -> int:
    """Count pairs of different rows nearer than the threshold, or equal."""
    squares = (x * x).sum(dim=1)
    count = 0
    for rows in row_blocks(len(x), len(x)):
        distances = squared_distances(x[rows], x[rows.start :], squares[rows], squares[rows.start :])
        # A threshold of zero (real images that repeat) must still catch exact repetitions.
        near = (distances < threshold**2) | (distances == 0)
        count += int(near.triu_(diagonal=1).sum())
    return count


def collapse_share(
    features: Tensor,
    labels: Tensor,
    real_features: Tensor,
    real_labels: Tensor,
    *,
    quantile: float = 0.01,
    n_classes: int | None = None,
    max_real_per_class: int = 2000,
    seed: int = 0,
) -> CollapseShare:
    """Share of same-class generated pairs nearer than the lowest 1 % of same-class real pairs.

    A class whose real pairs are fewer than 1 / quantile has too few for a quantile of its own. Its threshold
    is then the quantile of the pairs of all classes, each in units of the mean distance of its class, times
    the mean distance of this class.

    Args:
        features: of generated samples, (N, D).
        labels: int64 (N,), in [0, n_classes).
        real_features: (M, D).
        real_labels: int64 (M,).
        quantile: of the real pair distances that serves as threshold.
        n_classes: number of classes; None: up to the largest label.
        max_real_per_class: real samples of a class whose pairs give the threshold, at most.
        seed: of the draw where a class has more.

    Returns:
        `CollapseShare`; the order of the samples does not enter.

    Raises:
        DataError: fewer real pairs than the quantile needs over all classes, no class with two generated
            samples and a threshold, non-finite features, or labels outside the classes.
        ShapeError: different feature sizes, or labels of another length.
        ConfigError: quantile outside (0, 1), or max_real_per_class below 2.

    Source: Carlini et al. 2023, arXiv:2301.13188, find repeated samples by their mutual distances; Meehan et
    al. 2020, arXiv:2004.05675, for reading a lower tail against that of real images.
    """
    if not 0 < quantile < 1 or max_real_per_class < 2:
        raise ConfigError(
            f"quantile must lie between 0 and 1 and max_real_per_class be at least 2, got {quantile} and "
            f"{max_real_per_class}."
        )
    features, real_features = check_pair(features, real_features, 1, ("generated", "real"))
    features, labels = _labelled("generated", features, labels)
    real_features, real_labels = _labelled("real", real_features, real_labels)
    n_classes = _class_count(n_classes, labels, real_labels)
    needed = math.ceil(1 / quantile)
    rng = torch.Generator().manual_seed(seed)
    pairs = [
        _pair_distances(real_features[real_labels == c], max_real_per_class, rng) for c in range(n_classes)
    ]
    total = sum(map(len, pairs))
    if total < needed:
        n_images = math.ceil(0.5 + math.sqrt(0.25 + 2 * needed))
        raise DataError(
            f"the real images hold {total} pairs of one class, too few for a quantile of {quantile:g}; at "
            f"least {needed} are needed, such as {n_images} images of one class."
        )
    typical = [float(part.mean()) if len(part) else 0.0 for part in pairs]
    relative = torch.cat(
        [part / mean for part, mean in zip(pairs, typical, strict=True) if mean > 0] or [pairs[0][:0]]
    )
    thresholds: list[float | None] = []
    pooled = []
    for c, part in enumerate(pairs):
        if len(part) >= needed:
            thresholds.append(_lower_quantile(part, quantile))
        elif len(part) and len(relative) >= needed:
            thresholds.append(_lower_quantile(relative, quantile) * typical[c])
            pooled.append(c)
        else:
            thresholds.append(None)

    per_class: list[float | None] = []
    near, n_pairs = 0, 0
    for c, threshold in enumerate(thresholds):
        members = features[labels == c]
        if threshold is None or len(members) < 2:
            per_class.append(None)
            continue
        of_class, count = len(members) * (len(members) - 1) // 2, _near_pairs(members, threshold)
        per_class.append(count / of_class)
        near, n_pairs = near + count, n_pairs + of_class
    if n_pairs == 0:
        raise DataError(
            "no class has both two generated images and two real ones, so there are no pairs to compare."
        )
    return CollapseShare(
        near / n_pairs, quantile, tuple(per_class), tuple(thresholds), tuple(pooled), n_pairs
    )


def _lower_quantile(values: Tensor, quantile: float) -> float:
    """Return the sample at the quantile, rounded down; `torch.quantile` refuses more than 2**24 values."""
    return float(values.kthvalue(1 + math.floor(quantile * (len(values) - 1))).values)
