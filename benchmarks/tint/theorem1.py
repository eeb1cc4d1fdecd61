"""Theorem 1 against its simulation."""

from __future__ import annotations

from typing import Any

from benchmarks.ablation import Column
from benchmarks.tint.settings import Row
from fewgen.evaluation.planner import between_episode_variance, variance_of_mean
from fewgen.fitting.seeds import derive_seed

COLUMNS: tuple[Column, ...] = (
    ("predicted x10^6", "predicted", 1e6, 3),
    ("simulated x10^6", "simulated", 1e6, 3),
    ("ratio", "ratio", 1, 3),
    ("in standard errors", "deviation", 1, 2),
    ("s^2 x10^4", "s2", 1e4, 2),
    ("estimate of s^2 x10^4", "s2_estimate", 1e4, 2),
)


def theorem_figures(row: Row, seed: int, repeats: int) -> dict[str, Any]:
    """Return predicted and simulated variance of the mean accuracy over P episodes of Q queries.

    Source: TINT, Theorem 1; the standard error of a variance by its fourth moment.
    """
    import numpy as np

    a, s, p, q = (row.settings[key] for key in ("a", "s", "p", "q"))
    rng = np.random.default_rng(derive_seed(seed, "theorem 1", f"{a} {s} {p} {q}"))
    size = a * (1 - a) / s**2 - 1  # sum of the parameters of a Beta with these moments
    accuracies = rng.beta(a * size, (1 - a) * size, (repeats, p))
    measured = rng.binomial(q, accuracies) / q
    means = measured.mean(1)
    predicted = variance_of_mean(a, s, p, q)
    off = (means - means.mean()) ** 2
    simulated = float(off.sum() / (repeats - 1))
    error = float(np.sqrt(max(float((off**2).mean()) - simulated**2, 0.0) / repeats))
    estimate = None
    if q > 1:
        some = measured[: min(repeats, 200)]
        estimate = float(np.mean([between_episode_variance(values.tolist(), q) for values in some]))
    return {
        "predicted": predicted,
        "simulated": simulated,
        "ratio": simulated / predicted,
        "deviation": (simulated - predicted) / error if error else None,
        "s2": s**2,
        "s2_estimate": estimate,
    }
