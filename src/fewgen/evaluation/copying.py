"""New, or a copy? Each generated image against its nearest training image, mirrored, turned, scaled, moved.

What counts is not how near the nearest training image is (blurred images are near to everything) but how
much nearer it is than the next ones: a copy has one source. Held-out real images show what is usual.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn import functional

from fewgen.errors import DataError, ShapeError
from fewgen.evaluation.checks import check_finite, check_pair
from fewgen.evaluation.distances import row_blocks, squared_distances
from fewgen.evaluation.statistics import wilson_interval

MAX_SIDE = 32
"""Pixels; larger images are reduced to this side before they are compared."""

ROTATIONS = (0.0, -10.0, -5.0, 5.0, 10.0)
"""Degrees by which a query is turned."""

QUARTER_TURNS = (90.0, 180.0, 270.0)
"""Further degrees by which a query is turned; of a square image exactly."""

SCALES = (0.8, 0.9, 1.12, 1.25)
"""Factors by which a query is enlarged about its centre."""

VERSIONS = (
    *((degrees, 1.0) for degrees in (*ROTATIONS, *QUARTER_TURNS)),
    *((0.0, scale) for scale in SCALES),
)
"""(degrees, scale) of all versions of a query; each also mirrored. Their combinations would be too many."""

MAX_SHIFT = 2
"""Pixels by which a query is moved (1 below 16 pixels), at the size at which images are compared."""

N_OTHERS = 10
"""Next training images against which the nearest one is judged."""

# Contrast below which an image counts as flat, as a share of the spread of the training images.
_FLAT = 0.05

# Float32 numbers of one block of transformed queries; 2**23 are 32 MiB. Blocks of 128 MiB take twice as long:
# each of their many copies is fresh memory from the system.
_BLOCK = 2**23


@dataclass(frozen=True)
class Nearest:
    """The nearest training image of each query after the best mirror, shift and rotation.

    distance: root mean squared difference of the standardised images, (N,), float64.
    index: index of the training image, int64 (N,).
    others: median distance of the next `N_OTHERS` training images, each at its best transform, (N,).
    transform: index into `Aligner.transforms`, int64 (N,).
    """

    distance: Tensor
    index: Tensor
    others: Tensor
    transform: Tensor

    @property
    def score(self) -> Tensor:
        """Distance of the nearest over that of the next ones, (N,), in [0, 1]: 0 is an exact copy."""
        return torch.where(self.distance == 0, 0.0, self.distance / self.others.clamp_min(1e-12))

    @staticmethod
    def unknown(n: int) -> Nearest:
        """Return the place of what was not searched: NaN, which every test refuses."""
        nothing, first = torch.full((n,), math.nan, dtype=torch.float64), torch.zeros(n, dtype=torch.int64)
        return Nearest(nothing, first, nothing, first)

    def at(self, indices: Tensor) -> Nearest:
        """Return those of some queries."""
        return Nearest(*(getattr(self, f.name)[indices] for f in fields(self)))


class Aligner:
    """Finds nearest training images over mirrors, shifts and small rotations.

    Images are reduced to at most `MAX_SIDE` pixels. The training images are cut to their centre, a query
    to all windows of that size, mirrored or not, in all of `VERSIONS`; so a shifted copy meets its source
    exactly, whatever was filled in at its border. Each window is standardised (mean 0, spread 1 over all
    its values; flat windows stay small), so that brightness and contrast do not matter. A coarse search in
    blurred images picks `n_candidates` training images, all transforms are tried on those.

    Args:
        train: uint8 (M, C, H, W), at least two.
        n_candidates: training images that are compared in full.

    Raises:
        DataError: fewer than two training images.

    Source: the question of Carlini et al. 2023, arXiv:2301.13188, Sec. 4.2 (distance relative to that of
    neighbours).
    Differs: transforms are searched; neighbours are training images, of which there are few, not samples.
    """

    def __init__(self, train: Tensor, *, n_candidates: int = 32) -> None:
        if len(train) < 2:
            raise DataError(f"{len(train)} training images cannot show copying; at least 2 are needed.")
        self.shape = tuple(int(v) for v in train.shape[1:])
        self.n_train = len(train)
        self.n_candidates = min(n_candidates, len(train))
        x = reduced(train)
        side = min(x.shape[2:])
        self.margin = MAX_SHIFT if side >= 16 else 1
        self.window = (x.shape[2] - 2 * self.margin, x.shape[3] - 2 * self.margin)
        if min(self.window) < 2:
            raise ShapeError(f"images of {x.shape[2]} x {x.shape[3]} pixels are too small; 4 x 4 are needed.")
        # Half a grey value at least: training images that are all one flat image have no spread.
        self.flat = max(_FLAT * float(x.double().std()), 0.5 / 255)
        m = self.margin
        centre = x[:, :, m : m + self.window[0], m : m + self.window[1]]
        self.centres = centre.flatten(1)
        self.train = self._standard(self.centres)
        self.coarse_train = self._coarse(centre)
        shifts = sorted(
            ((dy, dx) for dy in range(-m, m + 1) for dx in range(-m, m + 1)),
            key=lambda s: s[0] ** 2 + s[1] ** 2,
        )
        self.shifts = shifts
        self.transforms = [
            _describe(mirrored, angle, scale, shift)
            for mirrored in (False, True)
            for angle, scale in VERSIONS
            for shift in shifts
        ]

    def nearest(self, queries: Tensor, *, exclude: Tensor | None = None) -> Nearest:
        """Return the nearest training image of each query.

        Args:
            queries: uint8 (N, C, H, W), of the training images' shape.
            exclude: int64 (N,), a training image that a query must not be compared with (a training image
                against the others), or None.

        Raises:
            ShapeError: another image shape.
            DataError: no training image would be left.
        """
        if tuple(queries.shape[1:]) != self.shape:
            raise ShapeError(
                f"training images have the shape {self.shape}, these images {tuple(queries.shape[1:])}."
            )
        numbers = len(self.transforms) * (self.train.shape[1] + self.n_candidates)
        rows = max(1, _BLOCK // numbers)
        parts = []
        for start in range(0, len(queries), rows):
            chunk = slice(start, min(start + rows, len(queries)))
            parts.append(self._block(reduced(queries[chunk]), None if exclude is None else exclude[chunk]))
        if not parts:
            raise DataError("there are no images to compare with the training images.")
        return Nearest(*(torch.cat(columns) for columns in zip(*parts, strict=True)))

    # ---------------------------------------------------------------------------------------- pieces

    def _block(self, x: Tensor, exclude: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        turned = self._turned(x)  # (N, 2 * versions, C, H, W)
        candidates = self._candidates(turned, exclude)  # (N, K)
        windows, deviation = self._windows(turned)  # (N, V, P), (N, V)
        bank = self.train[candidates]  # (N, K, P), mean 0, so that the windows' means drop out of the product
        squares = bank.square().sum(2)[:, None, :] + self._squares(deviation)[:, :, None]
        product = torch.bmm(windows, bank.transpose(1, 2))
        squared = (squares - product.mul_(2 / deviation[:, :, None])).clamp_min_(0)  # (N, V, K)
        best = squared.min(dim=1)  # over transforms: (N, K)
        order = best.values.argsort(dim=1, stable=True)
        count = min(order.shape[1], 1 + N_OTHERS)
        rows = torch.arange(len(x))
        first = order[:, 0]
        transform = best.indices[rows, first]
        index = candidates[rows, first]
        # The product above rounds at 1e-6; the one distance that decides is computed from the difference,
        # both sides standardised in float64 alike, so that an exact copy has distance 0.
        chosen, source = windows[rows, transform].double(), self.centres[index].double()
        difference = self._standard(chosen) - self._standard(source)
        distance = difference.square().mean(1).sqrt()
        if count == 1:  # of two training images one was excluded: there is no next one
            return distance, index, distance, transform
        ordered = best.values.gather(1, order[:, 1:count]).double()
        others = (ordered / self.train.shape[1]).sqrt().median(dim=1).values
        return distance, index, torch.maximum(others, distance), transform

    def _standard(self, flat: Tensor) -> Tensor:
        centred = flat - flat.mean(dim=-1, keepdim=True)
        return centred / (centred.square().mean(dim=-1, keepdim=True) + self.flat**2).sqrt()

    def _turned(self, x: Tensor) -> Tensor:
        """Return each image mirrored or not, in all of `VERSIONS`, (N, 2 * versions, C, H, W)."""
        n = len(x)
        both = torch.stack([x, x.flip(3)], dim=1)
        versions = []
        for angle, scale in VERSIONS:
            if (angle, scale) == (0, 1):
                versions.append(both)
                continue
            if angle % 90 == 0 and scale == 1 and (angle == 180 or x.shape[2] == x.shape[3]):
                versions.append(both.rot90(round(angle / 90), (3, 4)))
                continue
            height, width = x.shape[2:]
            cos, sin = math.cos(math.radians(angle)) / scale, math.sin(math.radians(angle)) / scale
            # In units of half the image; the ratio of the sides keeps a rotation a rotation.
            matrix = torch.tensor([[cos, -sin * height / width, 0.0], [sin * width / height, cos, 0.0]])
            flat = both.flatten(0, 1)
            where = functional.affine_grid(matrix.expand(2 * n, 2, 3), list(flat.shape), align_corners=False)
            moved = functional.grid_sample(flat, where, padding_mode="border", align_corners=False)
            versions.append(moved.reshape(both.shape))
        return torch.stack(versions, dim=2).flatten(1, 2)

    def _windows(self, turned: Tensor) -> tuple[Tensor, Tensor]:
        """Return all windows of all versions, (N, V, P), in the order of `transforms`, as they are.

        Also the deviations by which `_standard` divides, (N, V).
        """
        m, (height, width) = self.margin, self.window
        crops = [turned[..., m + dy : m + dy + height, m + dx : m + dx + width] for dy, dx in self.shifts]
        windows = torch.stack(crops, dim=2).flatten(1, 2).flatten(2)
        flat = turned.flatten(0, 1).double()
        means, squares = self._window_means(flat), self._window_means(flat.square())
        deviation = (squares - means.square()).clamp_min(0).add(self.flat**2).sqrt()
        places = torch.tensor([(m + dy) * (2 * m + 1) + m + dx for dy, dx in self.shifts])
        return windows, deviation.flatten(1)[:, places].reshape(len(turned), -1).float()

    def _window_means(self, x: Tensor) -> Tensor:
        """Return the mean of each window over its channels and pixels: rows first, then columns."""
        height, width = self.window
        rows = functional.avg_pool2d(x.mean(1, keepdim=True), (height, 1), stride=1)
        return functional.avg_pool2d(rows, (1, width), stride=1).squeeze(1)

    def _squares(self, deviation: Tensor) -> Tensor:
        """Return the sum of squares of standardised windows with these deviations."""
        return self.train.shape[1] * (1 - (self.flat / deviation.double()).square()).float()

    def _coarse(self, centre: Tensor) -> Tensor:
        """Return blurred, reduced, standardised windows (N, c)."""
        side = min(8, *centre.shape[2:])
        pooled = functional.adaptive_avg_pool2d(centre, side)
        return self._standard(pooled.flatten(1))

    def _candidates(self, turned: Tensor, exclude: Tensor | None) -> Tensor:
        """Return the training images (N, K) that the coarse search finds nearest."""
        if self.n_train <= self.n_candidates and exclude is None:
            return torch.arange(self.n_train).expand(len(turned), self.n_train)
        m, (height, width) = self.margin, self.window
        nearest = torch.full((len(turned), self.n_train), math.inf)
        train_squares = self.coarse_train.square().sum(1)
        half = len(VERSIONS)
        moves = [(0, 0), (m, 0), (-m, 0), (0, m), (0, -m)]
        if min(self.window) < 24:  # hardly blurred, so that the corners are far from all of these
            moves += [(m, m), (m, -m), (-m, m), (-m, -m)]
        # Straight and turned by 10, both ways round, moved; the quarter turns and the scales as they are.
        further = range(len(ROTATIONS), half)
        tried = [(v, move) for v in (0, half, half + 1, half + 4, 1, 4) for move in moves]
        tried += [(v + way, (0, 0)) for way in (0, half) for v in further]
        for version, (dy, dx) in tried:
            crop = turned[:, version, :, m + dy : m + dy + height, m + dx : m + dx + width]
            query = self._coarse(crop)
            squared = query.square().sum(1)[:, None] + train_squares - 2 * query @ self.coarse_train.T
            torch.minimum(nearest, squared, out=nearest)
        if exclude is not None:
            nearest[torch.arange(len(turned)), exclude] = math.inf
        keep = self.n_candidates if exclude is None else min(self.n_candidates, self.n_train - 1)
        return nearest.topk(keep, dim=1, largest=False).indices


def reduced(images: Tensor) -> Tensor:
    """Return float images (N, C, h, w) of at most `MAX_SIDE` pixels, values in [0, 1]."""
    x = images.to(torch.float32)
    side = max(x.shape[2:])
    if side > MAX_SIDE:
        height, width = (max(4, round(v * MAX_SIDE / side)) for v in x.shape[2:])
        # Sums of whole numbers are exact, so that a mirrored image is reduced to the mirrored reduced image.
        x = functional.adaptive_avg_pool2d(x, (height, width))
    return x / 255


def _describe(mirrored: bool, angle: float, scale: float, shift: tuple[int, int]) -> str:
    parts = ["mirrored"] if mirrored else []
    if angle:
        parts.append(f"turned {angle:+g} degrees")
    if scale != 1:
        parts.append(f"scaled by {scale:g}")
    if shift != (0, 0):
        parts.append(f"shifted {shift[0]:+d} down, {shift[1]:+d} right")
    return ", ".join(parts) or "as it is"


# --------------------------------------------------------------------------------------------- the tests


@dataclass(frozen=True)
class TailTest:
    """How many generated images lie nearer to one training image than held-out images ever do.

    share: of generated images below `threshold`, with `low` and `high` (Wilson, 95 %).
    expected: the share that real images would have, rank / (n_held_out + 1).
    threshold: the `rank`-th smallest score of the held-out images.
    p_value: probability of at least so many below it, if generated and held-out images were alike.
    detectable: smallest share of copies that would have given p < `alpha` here, the rest being real.
    """

    share: float
    low: float
    high: float
    expected: float
    threshold: float
    rank: int
    p_value: float
    detectable: float | None
    n_generated: int
    n_held_out: int


def _p_value(count: int, rank: int, n_generated: int, n_held_out: int) -> float:
    from scipy.stats import hypergeom

    if count == 0:
        return 1.0
    return float(hypergeom.cdf(rank - 1, n_generated + n_held_out, n_held_out, count + rank - 1))


def tail_rank(n_held_out: int) -> int:
    """Return which of the smallest held-out scores is the threshold: the 1 % quantile, or up to the 5th.

    The smallest score alone would hang on a single pair of look-alikes; so with few held-out images the
    threshold moves up to their 5 % quantile, at most to the 5th smallest score.

    >>> [tail_rank(n) for n in (10, 60, 100, 400, 1000)]
    [1, 3, 5, 5, 10]
    """
    return max(1, n_held_out // 100, min(5, n_held_out // 20))


def tail_test(generated: Tensor, held_out: Tensor, *, alpha: float = 0.005) -> TailTest:
    """Test whether more generated than held-out scores lie in the lower tail of the held-out ones.

    The threshold is the r-th smallest held-out score, r as in `tail_rank`. If both kinds were
    alike, every order of the pooled scores would be equally likely, and the number K of generated scores
    below the threshold follows the negative hypergeometric distribution: K >= k means that at most r - 1
    of the k + r - 1 smallest pooled scores are held-out ones. Exact for any number of held-out images,
    so the uncertainty of the threshold itself is in the p-value.

    Args:
        generated: scores, lower is nearer to a copy, (N,).
        held_out: scores of real images that were not trained on, (M,).
        alpha: for `detectable`.

    Returns:
        `TailTest`. Equal scores count for the generated images' innocence.

    Raises:
        DataError: an empty set, or scores that are not finite.

    Source: the tail of held-out distances as threshold: Meehan et al. 2020, arXiv:2004.05675, compare the
    same two samples by rank; negative hypergeometric law: Johnson, Kemp & Kotz 2005, Sec. 6.2.2.
    Differs: only the lower tail, per image, because an average of ranks hides a few copies among junk.
    """
    generated, held_out = _scores("generated", generated), _scores("held-out", held_out)
    n, m = len(generated), len(held_out)
    rank = tail_rank(m)
    threshold = float(held_out.sort().values[rank - 1])
    count = int((generated < threshold).sum())
    share = wilson_interval(count, n)
    low, high = 1, n
    while low < high:  # the p-value falls with the count
        middle = (low + high) // 2
        low, high = (low, middle) if _p_value(middle, rank, n, m) < alpha else (middle + 1, high)
    needed = low if _p_value(low, rank, n, m) < alpha else None
    p_value, detectable = _p_value(count, rank, n, m), None if needed is None else needed / n
    interval = (share.value, share.low, share.high)
    return TailTest(*interval, rank / (m + 1), threshold, rank, p_value, detectable, n, m)


def _scores(name: str, values: Tensor) -> Tensor:
    if values.ndim != 1:
        raise ShapeError(f"{name} scores must be (N,), got {tuple(values.shape)}.")
    if len(values) == 0:
        raise DataError(f"there are no {name} scores to compare.")
    return check_finite(f"{name} scores", values)


FEWEST_FOR_CLEAR = 30
"""Held-out scores from which their tail bounds clear copies; with 10, real images would pass it in 17 %."""

NATURAL = 0.01
"""Share of look-alikes that real images may have by nature (the same object taken twice, reprints)."""


@dataclass(frozen=True)
class ClearCopies:
    """Images that are copies beyond doubt, one by one.

    which: bool (N,).
    p_value: probability of at least so many if a share `NATURAL` of real images looked alike by nature.
    """

    which: Tensor
    p_value: float


def clear_copies(generated: Tensor, held_out: Tensor) -> ClearCopies:
    """Find scores that are as far below the tail of the held-out ones as that lies below their median.

    With threshold t (of `tail_rank`) and median m the bound is t * t / m, never above the smallest held-out
    score. Below `FEWEST_FOR_CLEAR` held-out scores only exact copies (score 0) count.

    Args:
        generated: scores, (N,).
        held_out: scores, (M,).

    Returns:
        `ClearCopies`.

    Raises:
        DataError: an empty set, or scores that are not finite.
    """
    from scipy.stats import binom

    generated, held_out = _scores("generated", generated), _scores("held-out", held_out)
    ordered = held_out.sort().values
    threshold, median = float(ordered[tail_rank(len(ordered)) - 1]), float(ordered.median())
    bound = min(float(ordered[0]), threshold * threshold / median) if median > 0 else 0.0
    if len(held_out) < FEWEST_FOR_CLEAR:
        bound = 0.0  # so few scores do not show their tail: only exact copies are beyond doubt
    which = (generated == 0) | (generated < bound)
    return ClearCopies(which, float(binom.sf(int(which.sum()) - 1, len(which), NATURAL)))


@dataclass(frozen=True)
class RankTest:
    """Mann-Whitney comparison of generated with held-out scores.

    z: standardised rank sum; far below 0: generated images lie nearer to the training images.
    p_value: one-sided, for "nearer".
    area: probability that a generated score is above a held-out one; 0.5 for real images.
    """

    z: float
    p_value: float
    area: float


def c_t(generated: Tensor, held_out: Tensor) -> RankTest:
    """Data-copying test: do generated images lie nearer to the training images than held-out ones do?

    Args:
        generated: distances (or scores) of generated images to their nearest training image, (N,).
        held_out: the same of held-out real images, (M,).

    Returns:
        `RankTest`, with the normal approximation and its correction for ties.

    Raises:
        DataError: an empty set, or values that are not finite.

    Source: Meehan, Chaudhuri & Dasgupta 2020, arXiv:2004.05675, Eq. 1-2 (C_T).
    Differs: one cell (few images per class leave no cells with 20 images), so a sum over no partition.
    """
    from scipy.stats import rankdata, tiecorrect

    generated, held_out = _scores("generated", generated), _scores("held-out", held_out)
    n, m = len(generated), len(held_out)
    ranks = rankdata(torch.cat([generated, held_out]).numpy())
    u = float(ranks[:n].sum()) - n * (n + 1) / 2
    variance = n * m / 12 * (n + m + 1) * tiecorrect(ranks)
    if variance <= 0:  # all values are equal
        return RankTest(0.0, 0.5, 0.5)
    z = (u - n * m / 2) / math.sqrt(variance)
    return RankTest(z, 0.5 * math.erfc(-z / math.sqrt(2)), u / (n * m))


@dataclass(frozen=True)
class Authenticity:
    """Share of images that are farther from their nearest training image than that one is from the others.

    share: of the generated images; `null`: of the held-out images.
    p_value: one-sided, that the generated share is as high as the held-out one (Fisher's exact test).
    """

    share: float
    null: float
    p_value: float


def authenticity(generated: Nearest, held_out: Nearest, train: Tensor) -> Authenticity:
    """Authenticity of generated images, against the same share of held-out real images.

    Args:
        generated: nearest training images of the generated images.
        held_out: of held-out images.
        train: distance of each training image to its nearest other training image, (M,).

    Raises:
        DataError: no generated or no held-out images.

    Source: Alaa et al. 2022, arXiv:2102.08921, Sec. 3.3.
    Differs: distances over mirrors, shifts and rotations; the null share is measured, as it is not 50 %.
    """
    from scipy.stats import fisher_exact

    hits = [int((found.distance > train[found.index]).sum()) for found in (generated, held_out)]
    sizes = [len(generated.distance), len(held_out.distance)]
    if 0 in sizes:
        raise DataError(f"{sizes[0]} generated and {sizes[1]} held-out images cannot be compared.")
    table = [[hits[0], sizes[0] - hits[0]], [hits[1], sizes[1] - hits[1]]]
    return Authenticity(hits[0] / sizes[0], hits[1] / sizes[1], float(fisher_exact(table, "less")[1]))


def feature_scores(queries: Tensor, train: Tensor) -> Tensor:
    """Return the score of `Nearest` in features: distance of the nearest over that of the next ones, (N,).

    Args:
        queries: features, (N, D).
        train: features, (M, D), M at least 2.

    Raises:
        DataError: fewer than two training images, or features that are not finite.
    """
    if len(train) < 2:
        raise DataError(f"{len(train)} training images cannot show copying; at least 2 are needed.")
    queries, train = check_pair(queries, train, 1, ("queries", "training images"))
    count = min(1 + N_OTHERS, len(train))
    found = torch.empty(len(queries), count, dtype=torch.float64)
    for rows in row_blocks(len(queries), len(train)):
        squared = squared_distances(queries[rows], train)
        found[rows] = squared.topk(count, dim=1, largest=False).values.sqrt()
    nearest, others = found[:, 0], found[:, 1:].median(dim=1).values
    return torch.where(nearest == 0, 0.0, nearest / others.clamp_min(1e-300)).clamp_max(1.0)


def worst(scores: Tensor, n: int = 10) -> Sequence[int]:
    """Return the indices of the n lowest scores, lowest first; equal ones in their order."""
    return scores.argsort(stable=True)[:n].tolist()
