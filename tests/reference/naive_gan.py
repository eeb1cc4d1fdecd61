"""Slow, independent versions of the losses of GANs: NumPy, float64, loops and other formulas."""

from __future__ import annotations

import math

import numpy as np


def cross_entropy_of_sigmoid(logits: np.ndarray, real: bool) -> float:
    """Mean of -log p (real) or -log(1 - p), p = 1/(1 + exp(-logit)): Eq. 1 of the GAN paper as it stands."""
    p = 1.0 / (1.0 + np.exp(-np.asarray(logits, dtype=np.float64)))
    return float(np.mean(-np.log(p if real else 1.0 - p)))


def finite_differences(function, x: np.ndarray, step: float = 1e-6) -> np.ndarray:
    """Central differences of a function array -> float, one element at a time."""
    x = np.array(x, dtype=np.float64)
    slopes = np.zeros_like(x)
    for place in np.ndindex(*x.shape):
        kept = x[place]
        x[place] = kept + step
        above = function(x)
        x[place] = kept - step
        below = function(x)
        x[place] = kept
        slopes[place] = (above - below) / (2 * step)
    return slopes


def uniformity(codes: np.ndarray, t: float = 2.0) -> float:
    """log mean over i != j of exp(-t |u_i - u_j|^2), pair by pair."""
    units = [code / math.sqrt(sum(v * v for v in code)) for code in codes]
    pairs = [
        math.exp(-t * sum((p - q) ** 2 for p, q in zip(units[i], units[j], strict=True)))
        for i in range(len(units))
        for j in range(len(units))
        if i != j
    ]
    return math.log(math.fsum(pairs) / len(pairs))


def sinkhorn(cost: np.ndarray, epsilon: float, n_iterations: int = 20_000) -> np.ndarray:
    """Plan by scaling the kernel exp(-cost/epsilon), not in the log domain; epsilon must not be small."""
    n, m = cost.shape
    a, b = np.full(n, 1 / n), np.full(m, 1 / m)
    kernel = np.exp(-cost / epsilon)
    v = np.ones(m)
    for _ in range(n_iterations):
        u = a / (kernel @ v)
        before, v = v, b / (kernel.T @ u)
        if np.max(np.abs(v / before - 1)) < 1e-15:
            break
    return u[:, None] * kernel * v[None, :]


def entropic_objective(cost: np.ndarray, epsilon: float) -> float:
    """min over plans with uniform marginals of <plan, cost> - epsilon H(plan), H = -sum plan log plan."""
    plan = sinkhorn(cost, epsilon)
    return float((plan * cost).sum() + epsilon * (plan * np.log(plan)).sum())


def cosine_cost(x: np.ndarray, y: np.ndarray, center: bool) -> np.ndarray:
    """1 - cos of every pair, one pair at a time."""
    x, y = ([v / np.linalg.norm(v) for v in rows] for rows in (x, y))
    if center:
        x, y = ([v - sum(rows) / len(rows) for v in rows] for rows in (x, y))
    return np.array([[1 - float(p @ q) / float(np.linalg.norm(p) * np.linalg.norm(q)) for q in y] for p in x])
