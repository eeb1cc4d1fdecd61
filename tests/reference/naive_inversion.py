"""Slow, independent versions of inversion and blending: NumPy, one sample at a time, other formulas."""

from __future__ import annotations

import math

import numpy as np
from tests.reference.naive_gan import finite_differences


def gaussian_noise_prediction(z, bar: float, mean, spread: float) -> np.ndarray:
    """Noise in z that remains after the posterior mean of N(mean, spread^2 I) given z, Bayes' rule."""
    gain = spread**2 * math.sqrt(bar) / (spread**2 * bar + 1 - bar)
    clean = mean + gain * (z - math.sqrt(bar) * mean)
    return (z - math.sqrt(bar) * clean) / math.sqrt(1 - bar)


def move(z, noise, bar_from: float, bar_to: float) -> np.ndarray:
    """By way of the clean image."""
    clean = (z - math.sqrt(1 - bar_from) * noise) / math.sqrt(bar_from)
    return math.sqrt(bar_to) * clean + math.sqrt(1 - bar_to) * noise


def invert(predict, z0, bars, rising_times) -> list[np.ndarray]:
    """predict(z, t) -> noise, asked at the time that is moved to; pivots from z0 on."""
    pivots, here = [np.asarray(z0)], 0
    for t in rising_times:
        pivots.append(move(pivots[-1], predict(pivots[-1], t), bars[here], bars[t]))
        here = t
    return pivots


def null_texts(
    predict, pivots, cond, null, guidance_scale, bars, falling_times, inner_steps, rates, tolerances
):
    """predict(z, t, context) -> noise, for one image; slopes by differences, Adam as in its paper."""
    z, u, found = pivots[-1], np.array(null), []
    for i, t in enumerate(falling_times):
        after = falling_times[i + 1] if i + 1 < len(falling_times) else 0
        target = pivots[len(falling_times) - 1 - i]

        def arrive(x, z=z, t=t, after=after):
            e_u, e_v = predict(z, t, x), predict(z, t, cond)
            return move(z, e_u + guidance_scale * (e_v - e_u), bars[t], bars[after])

        def loss(x, arrive=arrive, target=target):
            return float(np.mean((arrive(x) - target) ** 2))

        first, second = np.zeros_like(u), np.zeros_like(u)
        tried = [(loss(u), u.copy())]
        for n in range(1, inner_steps + 1):
            if tried[-1][0] < tolerances[i]:
                break
            slope = finite_differences(loss, u, 1e-5)
            first = 0.9 * first + 0.1 * slope
            second = 0.999 * second + 0.001 * slope**2
            u = u - rates[i] * (first / (1 - 0.9**n)) / (np.sqrt(second / (1 - 0.999**n)) + 1e-8)
            tried.append((loss(u), u.copy()))
        u = min(tried, key=lambda pair: pair[0])[1]
        z = arrive(u)
        found.append(u.copy())
    return np.stack(found), z


def blend(z_T, noise, alpha: float) -> np.ndarray:
    """Published form: root mean squares instead of norms, sample by sample."""

    def rms(x):
        return math.sqrt(math.fsum(v * v for v in x.ravel()) / x.size)

    rows = []
    for a, n in zip(z_T, noise, strict=True):
        mixed = (1 - alpha) * a + alpha * n
        rows.append(mixed / rms(mixed) * ((1 - alpha) * rms(a) + alpha * rms(n)))
    return np.stack(rows)


def sample_with_null_texts(predict, z, cond, nulls, guidance_scale: float, bars, falling_times) -> np.ndarray:
    """predict(z, t, context) -> noise, for one image; guidance written as a weighted mean of two."""
    after = [*falling_times[1:], 0]
    for t, below, null in zip(falling_times, after, nulls, strict=True):
        noise = guidance_scale * predict(z, t, cond) + (1 - guidance_scale) * predict(z, t, null)
        z = move(z, noise, bars[t], bars[below])
    return z
