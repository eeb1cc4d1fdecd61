"""Figures of `fewgen.evaluate` written a second time, plainly, in NumPy and SciPy; run it to store values.

    python tests/reference/naive_metrics.py > tests/reference/metrics.json

The inputs come from NumPy's legacy generator, whose stream is frozen across versions.
"""

from __future__ import annotations

import json

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


def frechet_wrong(x: np.ndarray, y: np.ndarray) -> float:
    """Negative control: takes the root of each element instead of the matrix root."""
    cov_x, cov_y = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    gap = x.mean(0) - y.mean(0)
    root = np.sqrt(np.abs(cov_x @ cov_y))
    return float(gap @ gap + np.trace(cov_x) + np.trace(cov_y) - 2 * np.trace(root))


def kernel_distance_by_loops(x: np.ndarray, y: np.ndarray, unbiased: bool) -> float:
    """Squared MMD with (<a, b> / D + 1)^3, pair by pair."""

    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        return float((a @ b / len(a) + 1) ** 3)

    def within(s: np.ndarray) -> float:
        pairs = [kernel(s[i], s[j]) for i in range(len(s)) for j in range(len(s)) if i != j or not unbiased]
        return sum(pairs) / len(pairs)

    between = [kernel(a, b) for a in x for b in y]
    return within(x) + within(y) - 2 * sum(between) / len(between)


def neighbours_by_loops(real: np.ndarray, generated: np.ndarray, k: int) -> dict[str, float]:
    """Precision, recall, density, coverage with open balls, point by point."""

    def radius(points: np.ndarray, i: int) -> float:
        return float(np.sort([np.linalg.norm(points[i] - p) for j, p in enumerate(points) if j != i])[k - 1])

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


def all_values() -> dict[str, dict[str, float]]:
    """Return every figure of every case."""
    values = {}
    for name in CASES:
        x, y = sample_case(name)
        values[name] = {
            "frechet_by_eigenvalues": frechet_by_eigenvalues(x, y),
            "kernel_distance": kernel_distance_by_loops(x, y, unbiased=True),
            "kernel_distance_biased": kernel_distance_by_loops(x, y, unbiased=False),
            **neighbours_by_loops(x, y, k=3),
        }
    return values


if __name__ == "__main__":
    import platform

    import scipy

    versions = {"python": platform.python_version(), "numpy": np.__version__, "scipy": scipy.__version__}
    print(json.dumps({"made_by": "naive_metrics.py", "versions": versions, "values": all_values()}, indent=1))
