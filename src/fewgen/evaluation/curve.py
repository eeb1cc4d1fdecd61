"""The learning curve on real images: its sets, and what generated images are worth on it, read backwards."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fewgen.errors import DataError
from fewgen.evaluation.statistics import isotonic
from fewgen.evaluation.trainings import OrderedSet

N_BOOTSTRAP = 2000


def curve_sets(
    train: OrderedSet, pool: OrderedSet, test: OrderedSet, multiples: Sequence[float], seed: int
) -> list[OrderedSet]:
    """Return nested sets of real images with these multiples of the training images of each class."""
    rng = torch.Generator().manual_seed(seed)
    fresh = _fresh(train, pool, test)
    own_order: dict[int, Tensor] = {}
    pool_order: dict[int, Tensor] = {}
    for c in range(train.images.n_classes):
        for order, candidates in (
            (own_order, train.images.labels == c),
            (pool_order, fresh & (pool.images.labels == c)),
        ):
            members = candidates.nonzero().flatten()
            order[c] = members[torch.randperm(len(members), generator=rng)]
    sets = []
    for multiple in multiples:
        own, more = [], []
        for c, members in own_order.items():
            n = max(1, round(multiple * len(members)))
            own.append(members[:n])
            more.append(pool_order[c][: max(0, n - len(members))])
        kept = train.part(torch.cat(own).sort().values)
        sets.append(kept.with_images_of(pool, torch.cat(more)) if multiple > 1 else kept)
    return sets


def curve_reach(train: OrderedSet, pool: OrderedSet, test: OrderedSet) -> float:
    """Return the largest multiple of the training images of each class that they and the pool can give."""
    fresh = _fresh(train, pool, test)
    counts = train.images.counts().to(torch.float64)
    extra = torch.bincount(pool.images.labels[fresh], minlength=train.images.n_classes)
    return float(((counts + extra) / counts).min())


def curve_points(curve: Sequence[float], reach: float) -> list[float]:
    """Return the points of the curve that the pool reaches, and its end if well beyond the last of them."""
    points = sorted({1.0, *(float(m) for m in curve if m <= reach)})
    if any(m > reach for m in curve) and reach >= 1.25 * points[-1]:
        points.append(reach)
    return points


def _fresh(train: OrderedSet, pool: OrderedSet, test: OrderedSet) -> Tensor:
    """Return which images of the pool are neither training nor test images, bool (N,)."""
    known = set(train.digests) | set(test.digests)
    return torch.tensor([digest not in known for digest in pool.digests], dtype=torch.bool)


# ------------------------------------------------------------------------------------------------ worth


@dataclass(frozen=True)
class LearningCurve:
    """Accuracy after training on n real images per class.

    images: n, increasing; where classes differ in size, the mean over classes.
    accuracy: mean over draws, share in [0, 1].
    monotone: the same, made isotonic in n: what `worth` reads.
    """

    images: tuple[float, ...]
    accuracy: tuple[float, ...]
    monotone: tuple[float, ...]

    def points(self) -> list[dict[str, float]]:
        """Return the points, JSON-ready."""
        pairs = zip(self.images, self.accuracy, strict=True)
        return [{"images_per_class": n, "accuracy": value} for n, value in pairs]


@dataclass(frozen=True)
class Worth:
    """Real images per class that reach the same accuracy.

    k: real images per class that the arm had.
    images: None where the accuracy lies outside the curve; `text` says on which side.
    low: of the 95 % interval; None if below the curve, or without an interval.
    high: of the interval; None if beyond the curve, or without an interval.
    curve_from: least n of the curve.
    curve_to: largest n of the curve.
    text: a sentence, such as "30 images work like 47 (41-55)".
    """

    k: float
    images: float | None
    low: float | None
    high: float | None
    curve_from: float
    curve_to: float
    text: str


def images_needed(images: Tensor, monotone: Tensor, accuracy: Tensor) -> Tensor:
    """Return the least number of real images whose accuracy on the curve is the given one.

    Args:
        images: n per class of the points, (P,), increasing.
        monotone: accuracies of one curve per row, (B, P), non-decreasing.
        accuracy: one per row, (B,).

    Returns:
        n per class, (B,), float64, linear between the points in log n; 0 below the curve and infinity
        beyond it. On a flat stretch it is the smaller end.
    """
    position = torch.searchsorted(monotone.contiguous(), accuracy[:, None].contiguous())[:, 0]
    last = monotone.shape[1] - 1
    right = position.clamp(1, last)
    rows = torch.arange(len(monotone))
    low, high = monotone[rows, right - 1], monotone[rows, right]
    share = ((accuracy - low) / (high - low).clamp(min=1e-300)).clamp(0, 1)
    logs = images.to(torch.float64).log()
    n = torch.exp(logs[right - 1] + share * (logs[right] - logs[right - 1]))
    n = torch.where(accuracy < monotone[:, 0], torch.zeros_like(n), n)
    return torch.where(accuracy > monotone[:, -1], torch.full_like(n, math.inf), n)


def _draw_weights(n_draws: int, size: int, rng: torch.Generator) -> Tensor:
    """Weights (size, n_draws) of draws, summing to 1, whose weighted means vary like a Student interval."""
    from scipy.stats import norm
    from scipy.stats import t as student

    weights = torch.empty(size, n_draws, dtype=torch.float64).exponential_(generator=rng)
    weights /= weights.sum(dim=1, keepdim=True)
    # A weighted mean varies by (n - 1) / (n + 1) too little, and normal tails are too short for few draws.
    widen = math.sqrt((n_draws + 1) / (n_draws - 1)) * student.ppf(0.975, n_draws - 1) / norm.ppf(0.975)
    return 1 / n_draws + (weights - 1 / n_draws) * float(widen)


def _bootstrap(hits: Tensor, seed: int, size: int, block: int = 200) -> Tensor:
    """Mean of each row of arms under random weights of draws and images: (arms, n, N) -> (size, arms)."""
    arms, n_draws, n_images = hits.shape
    rng = torch.Generator().manual_seed(seed)
    draws = _draw_weights(n_draws, size, rng)
    flat = hits.reshape(arms * n_draws, n_images).to(torch.float32)
    means = []
    for start in range(0, size, block):
        count = min(block, size - start)
        images = torch.empty(n_images, count).exponential_(generator=rng)
        by_draw = (flat @ images).to(torch.float64) / images.sum(dim=0, dtype=torch.float64)
        weights = draws[start : start + count]
        means.append(torch.einsum("adb,bd->ba", by_draw.reshape(arms, n_draws, count), weights))
    return torch.cat(means)


def worth(
    curve_hits: Sequence[Tensor], images: Sequence[float], arm_hits: Tensor, *, k: float, seed: int = 0
) -> tuple[LearningCurve, Worth]:
    """Compare an arm with the learning curve on real images.

    Args:
        curve_hits: per point of the curve, which test images were classified rightly in which draw:
            (n_draws, N), 0 or 1.
        images: real images per class of the points, increasing.
        arm_hits: the same of the arm to be judged, draw by draw paired with the curve.
        k: real images per class that the arm had.
        seed: of the bootstrap.

    Returns:
        The curve, and what the arm is worth, with a 95 % interval from 2 draws on.

    Raises:
        DataError: fewer than two points, or points that are not increasing.

    Source: isotonic regression, linear interpolation in log n; Bayesian bootstrap, Rubin 1981, Annals of
        Statistics 9(1), over draws and test images at once, as Owen 2007, arXiv:0712.1111 (conservative).
    Differs: the weights of draws are widened so that their share of the interval is Student's.
    """
    if len(images) < 2 or any(b <= a for a, b in zip(images, images[1:], strict=False)):
        raise DataError(
            f"a learning curve needs two or more increasing numbers of images, got {list(images)}."
        )
    hits = torch.stack([*curve_hits, arm_hits]).to(torch.float64)
    means = hits.mean(dim=2).mean(dim=1)
    monotone = isotonic(means[:-1])
    points = torch.tensor([float(n) for n in images], dtype=torch.float64)
    value = float(images_needed(points, monotone[None], means[-1:])[0])
    low = high = None
    if hits.shape[1] >= 2:
        sampled = _bootstrap(hits, seed, N_BOOTSTRAP)
        needed = images_needed(points, isotonic(sampled[:, :-1]), sampled[:, -1]).sort().values
        low, high = (float(needed[round(q * (N_BOOTSTRAP - 1))]) for q in (0.025, 0.975))
    curve = LearningCurve(tuple(points.tolist()), tuple(means[:-1].tolist()), tuple(monotone.tolist()))
    first, last = float(points[0]), float(points[-1])
    text = f"{_count(k)} images work like {_words(value, first, last)}"
    if low is not None and high is not None:
        text += f" ({_range(low, high, first, last)})"

    def inside(n: float | None) -> float | None:
        return n if n is not None and first <= n <= last else None

    return curve, Worth(k, inside(value), inside(low), inside(high), first, last, text)


def _count(n: float) -> str:
    return f"{n:.0f}" if n >= 10 or n == round(n) else f"{n:.1f}"


def _words(n: float, first: float, last: float) -> str:
    if n < first:
        return f"fewer than {_count(first)}"
    return f"more than {_count(last)}" if n > last else _count(n)


def _range(low: float, high: float, first: float, last: float) -> str:
    """Return "41-55", or words where an end lies outside the curve."""
    if first <= low and high <= last:
        return f"{_count(low)}-{_count(high)}"
    if _words(low, first, last) == _words(high, first, last):
        return _words(low, first, last)
    return f"{_words(low, first, last)} to {_words(high, first, last)}"
