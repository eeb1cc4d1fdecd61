"""Figures of `fewgen.evaluate` written a second time, plainly, in NumPy and SciPy; run it to store values.

    python tests/reference/naive_metrics.py > tests/reference/metrics.json

The inputs come from NumPy's legacy generator, whose stream is frozen across versions.
"""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
from scipy import linalg

# Name -> (samples in x, samples in y, features). "few" has singular covariances of rank 9 in 64 dimensions.
CASES = {"many": (120, 150, 16), "few": (10, 10, 64), "unequal": (10, 200, 64)}


def sample_case(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return x (N, D) and y (M, D), float64: correlated, of different mean and scale."""
    n, m, d = CASES[name]
    stream = np.random.RandomState(sum(map(ord, name)))  # noqa: NPY002 - frozen stream
    mixing = stream.randn(d, d) / np.sqrt(d)
    x = stream.randn(n, d) @ mixing
    y = 1.3 * stream.randn(m, d) @ mixing + 0.4 * stream.randn(d)
    return x, y


def sample_labels(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the classes of x (N,) and y (M,), three in turn."""
    n, m, _ = CASES[name]
    return np.arange(n) % 3, np.arange(m) % 3


def frechet_by_matrix_root(x: np.ndarray, y: np.ndarray) -> float:
    """Textbook formula with SciPy's matrix square root; the real part, as every FID code takes it."""
    cov_x, cov_y = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = linalg.sqrtm(cov_x @ cov_y)
    gap = x.mean(0) - y.mean(0)
    return float(gap @ gap + np.trace(cov_x) + np.trace(cov_y) - 2 * np.trace(root).real)


def frechet_by_eigenvalues(x: np.ndarray, y: np.ndarray) -> float:
    """The same through the eigenvalues of the product, which exist for singular covariances."""
    cov_x, cov_y = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    values = np.linalg.eigvals(cov_x @ cov_y)
    gap = x.mean(0) - y.mean(0)
    root = np.sqrt(np.clip(values.real, 0, None)).sum()
    return float(gap @ gap + np.trace(cov_x) + np.trace(cov_y) - 2 * root)


def frechet_population(x: np.ndarray, y: np.ndarray) -> float:
    """Negative control: divides the covariance by N, not N - 1."""
    cov_x, cov_y = np.cov(x, rowvar=False, bias=True), np.cov(y, rowvar=False, bias=True)
    gap = x.mean(0) - y.mean(0)
    root = np.sqrt(np.clip(np.linalg.eigvals(cov_x @ cov_y).real, 0, None)).sum()
    return float(gap @ gap + np.trace(cov_x) + np.trace(cov_y) - 2 * root)


def frechet_wrong(x: np.ndarray, y: np.ndarray) -> float:
    """Negative control: takes the root of each element instead of the matrix root."""
    cov_x, cov_y = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    gap = x.mean(0) - y.mean(0)
    root = np.sqrt(np.abs(cov_x @ cov_y))
    return float(gap @ gap + np.trace(cov_x) + np.trace(cov_y) - 2 * np.trace(root))


def cubic_kernel(a: np.ndarray, b: np.ndarray) -> float:
    """The kernel of KID."""
    return float((a @ b / len(a) + 1) ** 3)


def kernel_distance_by_loops(x: np.ndarray, y: np.ndarray, unbiased: bool) -> float:
    """Squared MMD with (<a, b> / D + 1)^3, pair by pair."""

    def within(s: np.ndarray) -> float:
        pairs = [
            cubic_kernel(s[i], s[j]) for i in range(len(s)) for j in range(len(s)) if i != j or not unbiased
        ]
        return sum(pairs) / len(pairs)

    between = [cubic_kernel(a, b) for a in x for b in y]
    return within(x) + within(y) - 2 * sum(between) / len(between)


def exact_kernel_p_value(
    x: np.ndarray, y: np.ndarray, labels_x: np.ndarray | None = None, labels_y: np.ndarray | None = None
) -> float:
    """Share of all ways to divide the pooled samples, class counts kept, that are as far apart or further."""
    pool = np.concatenate([x, y])
    labels = np.zeros(len(pool)) if labels_x is None else np.concatenate([labels_x, labels_y])
    wanted = sorted(labels[: len(x)])
    observed = kernel_distance_by_loops(x, y, unbiased=True)
    values = []
    for chosen in itertools.combinations(range(len(pool)), len(x)):
        if sorted(labels[list(chosen)]) == wanted:
            rest = [i for i in range(len(pool)) if i not in chosen]
            values.append(kernel_distance_by_loops(pool[list(chosen)], pool[rest], unbiased=True))
    return float(np.mean(np.array(values) >= observed - 1e-9))


def neighbours_by_loops(
    real: np.ndarray, generated: np.ndarray, k: int, include_self: bool = False
) -> dict[str, float]:
    """Precision, recall, density, coverage with open balls, point by point.

    Negative control: include_self=True takes a point as its own first neighbour.
    """

    def radius(points: np.ndarray, i: int) -> float:
        others = [np.linalg.norm(points[i] - p) for j, p in enumerate(points) if j != i or include_self]
        return float(np.sort(others)[k - 1])

    real_radii = [radius(real, i) for i in range(len(real))]
    generated_radii = [radius(generated, i) for i in range(len(generated))]
    inside = np.array(
        [[np.linalg.norm(r - g) < real_radii[i] for g in generated] for i, r in enumerate(real)]
    )
    recalled = [
        any(np.linalg.norm(r - g) < generated_radii[j] for j, g in enumerate(generated)) for r in real
    ]
    return {
        "precision": float(inside.any(0).mean()),
        "recall": float(np.mean(recalled)),
        "density": float(inside.sum(0).mean() / k),
        "coverage": float(inside.any(1).mean()),
    }


def vendi_by_kernel_matrix(x: np.ndarray, bandwidth: float | None = None) -> float:
    """exp(-tr(K/N log K/N)) with the matrix logarithm's eigenvalues; cosine, or Gaussian with a bandwidth."""
    n = len(x)
    kernel = np.empty((n, n))
    for i in range(n):
        for j in range(n):
            if bandwidth is None:
                kernel[i, j] = x[i] @ x[j] / math.sqrt((x[i] @ x[i]) * (x[j] @ x[j]))
            else:
                kernel[i, j] = math.exp(-((x[i] - x[j]) ** 2).sum() / (2 * bandwidth**2))
    values = linalg.eigvals(kernel / n).real
    return math.exp(-sum(v * math.log(v) for v in values if v > 1e-14))


def vendi_wrong(x: np.ndarray) -> float:
    """Negative control: entropy of the eigenvalues in bits, raised with base e."""
    return math.exp(math.log(vendi_by_kernel_matrix(x)) / math.log(2))


def pairs_by_loops(x: np.ndarray, labels: np.ndarray, c: int) -> list[float]:
    """Distances of the pairs of different samples of class c."""
    rows = x[labels == c]
    return [float(np.linalg.norm(a - b)) for a, b in itertools.combinations(rows, 2)]


def within_class_by_loops(x: np.ndarray, labels: np.ndarray) -> float:
    """Mean over classes of the mean pair distance."""
    return float(np.mean([np.mean(pairs_by_loops(x, labels, c)) for c in np.unique(labels)]))


def nearest_within_by_loops(x: np.ndarray, labels: np.ndarray) -> list[float]:
    """Distance of each sample to the nearest other one of its class."""
    return [
        min(float(np.linalg.norm(x[i] - x[j])) for j in range(len(x)) if j != i and labels[i] == labels[j])
        for i in range(len(x))
    ]


def collapse_by_loops(
    x: np.ndarray, labels: np.ndarray, real: np.ndarray, real_labels: np.ndarray, quantile: float
) -> float:
    """Share of same-class pairs of x below the lower sample quantile of the real pairs of that class."""
    near = count = 0
    for c in np.unique(labels):
        threshold = np.quantile(pairs_by_loops(real, real_labels, c), quantile, method="lower")
        pairs = pairs_by_loops(x, labels, c)
        near, count = near + sum(p < threshold for p in pairs), count + len(pairs)
    return near / count


def all_values() -> dict[str, dict[str, float]]:
    """Return every figure of every case."""
    values = {}
    for name in CASES:
        x, y = sample_case(name)
        labels_x, labels_y = sample_labels(name)
        values[name] = {
            "frechet_by_eigenvalues": frechet_by_eigenvalues(x, y),
            "kernel_distance": kernel_distance_by_loops(x, y, unbiased=True),
            "kernel_distance_biased": kernel_distance_by_loops(x, y, unbiased=False),
            **neighbours_by_loops(x, y, k=3),
            "vendi_x": vendi_by_kernel_matrix(x),
            "vendi_y": vendi_by_kernel_matrix(y),
            "vendi_rbf_x": vendi_by_kernel_matrix(x, bandwidth=4.0),
            "within_class_distance_y": within_class_by_loops(y, labels_y),
            "nearest_within_mean_y": float(np.mean(nearest_within_by_loops(y, labels_y))),
            # 1.3 x is spread like y; three pairs of a class are enough for a quantile of 0.35.
            "collapse_share": collapse_by_loops(1.3 * x, labels_x, y, labels_y, quantile=0.35),
        }
    return values


if __name__ == "__main__":
    import platform

    import scipy

    versions = {"python": platform.python_version(), "numpy": np.__version__, "scipy": scipy.__version__}
    print(json.dumps({"made_by": "naive_metrics.py", "versions": versions, "values": all_values()}, indent=1))
