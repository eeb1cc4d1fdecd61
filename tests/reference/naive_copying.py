"""The search for copies and its tests written a second time, plainly, with NumPy and loops.

Nothing here is fast, and nothing is shared with `fewgen.evaluation.copying`.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np

# Degrees and scale; every one also mirrored.
VERSIONS = [(d, 1.0) for d in (0.0, -10.0, -5.0, 5.0, 10.0, 90.0, 180.0, 270.0)]
VERSIONS += [(0.0, s) for s in (0.8, 0.9, 1.12, 1.25)]
LARGEST_SIDE = 32
N_NEXT = 10


def reduced(images: np.ndarray) -> np.ndarray:
    """Return images (N, C, H, W), uint8, as float64 in [0, 1] with at most 32 pixels a side.

    Each output pixel is the mean of the input pixels from floor(i * n / m) to ceil((i + 1) * n / m).
    """
    n, channels, height, width = images.shape
    side = max(height, width)
    if side <= LARGEST_SIDE:
        return images / 255.0
    rows, columns = (max(4, round(v * LARGEST_SIDE / side)) for v in (height, width))
    out = np.zeros((n, channels, rows, columns))
    for r, c in itertools.product(range(rows), range(columns)):
        top, bottom = r * height // rows, -(-(r + 1) * height // rows)
        left, right = c * width // columns, -(-(c + 1) * width // columns)
        out[:, :, r, c] = images[:, :, top:bottom, left:right].mean(axis=(2, 3)) / 255.0
    return out


def turned(image: np.ndarray, degrees: float, scale: float = 1.0) -> np.ndarray:
    """Turn and enlarge one image (C, H, W) about its centre; bilinear between pixels, the border goes on for ever."""
    channels, height, width = image.shape
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    out = np.zeros_like(image)
    for r, c in itertools.product(range(height), range(width)):
        down, right = (r - (height - 1) / 2) / scale, (c - (width - 1) / 2) / scale
        y = min(max(sin * right + cos * down + (height - 1) / 2, 0), height - 1)
        x = min(max(cos * right - sin * down + (width - 1) / 2, 0), width - 1)
        top, left = math.floor(y), math.floor(x)
        for i, j in itertools.product((top, top + 1), (left, left + 1)):
            weight = (1 - abs(y - i)) * (1 - abs(x - j))
            if weight > 0:
                out[:, r, c] += weight * image[:, min(i, height - 1), min(j, width - 1)]
    return out


def standardised(window: np.ndarray, flat: float) -> np.ndarray:
    """Return the values of a window with mean 0 and spread 1, or less where it has hardly any contrast."""
    values = window.reshape(-1)
    return (values - values.mean()) / math.sqrt(values.var() + flat**2)


def words(mirrored: bool, degrees: float, scale: float, down: int, right: int) -> str:
    parts = ["mirrored"] if mirrored else []
    parts += [f"turned {degrees:+g} degrees"] if degrees else []
    parts += [f"scaled by {scale:g}"] if scale != 1 else []
    parts += [f"shifted {down:+d} down, {right:+d} right"] if (down, right) != (0, 0) else []
    return ", ".join(parts) or "as it is"


@dataclass
class Found:
    """Nearest training image of one query: as `Nearest`, with the transform in words."""

    distance: float
    index: int
    others: float
    transform: str

    @property
    def score(self) -> float:
        return 0.0 if self.distance == 0 else self.distance / self.others


def nearest(train: np.ndarray, queries: np.ndarray, exclude: list[int] | None = None) -> list[Found]:
    """Compare every query with every training image under every mirror, turn, scale and shift."""
    small, asked = reduced(train), reduced(queries)
    height, width = small.shape[2:]
    margin = 2 if min(height, width) >= 16 else 1
    flat = max(0.05 * small.std(ddof=1), 0.5 / 255)
    high, wide = height - 2 * margin, width - 2 * margin
    bank = [standardised(x[:, margin : margin + high, margin : margin + wide], flat) for x in small]
    moves = range(-margin, margin + 1)
    found = []
    for q, query in enumerate(asked):
        best = [(math.inf, "")] * len(bank)
        for mirrored, (degrees, scale) in itertools.product((False, True), VERSIONS):
            image = turned(query[:, :, ::-1] if mirrored else query, degrees, scale)
            for down, right in itertools.product(moves, moves):
                top, left = margin + down, margin + right
                window = standardised(image[:, top : top + high, left : left + wide], flat)
                for i, one in enumerate(bank):
                    distance = math.sqrt(((window - one) ** 2).mean())
                    best[i] = min(best[i], (distance, words(mirrored, degrees, scale, down, right)))
        order = [i for i in range(len(bank)) if exclude is None or i != exclude[q]]
        order.sort(key=lambda i: best[i][0])
        others = sorted(best[i][0] for i in order[1 : 1 + N_NEXT])
        distance, transform = best[order[0]]
        middle = others[(len(others) - 1) // 2] if others else distance
        found.append(Found(distance, order[0], max(middle, distance), transform))
    return found


def feature_score(query: np.ndarray, train: np.ndarray) -> float:
    """Distance of the nearest training image over the lower median of that of the next ten."""
    distances = sorted(math.sqrt(((query - one) ** 2).sum()) for one in train)
    others = distances[1 : 1 + N_NEXT]
    return 0.0 if distances[0] == 0 else distances[0] / others[(len(others) - 1) // 2]


def authentic_share(distance: np.ndarray, index: np.ndarray, train: np.ndarray) -> float:
    """Share of images farther from their nearest training image than that one is from the other ones."""
    return sum(d > train[i] for d, i in zip(distance, index, strict=True)) / len(distance)


def orders_at_least(count: int, rank: int, n_generated: int, n_held_out: int) -> float:
    """Share of all orders in which `count` or more generated scores lie below the `rank`-th held-out one."""
    hits = total = 0
    for places in itertools.combinations(range(n_generated + n_held_out), n_held_out):
        below = places[rank - 1] - (rank - 1)  # before the rank-th held-out one, less the held-out among them
        hits, total = hits + (below >= count), total + 1
    return hits / total
