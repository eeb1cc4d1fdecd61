"""Diffusion's formulas as they are printed, with numpy and loops, to compare the fast ones with."""

import math

import numpy as np


def scaled_linear(n=1000, start=0.00085, end=0.012):
    """abar by multiplying up, one time after the other."""
    bars, bar = [], 1.0
    for i in range(n):
        root = math.sqrt(start) + (math.sqrt(end) - math.sqrt(start)) * i / (n - 1)
        bar *= 1 - root * root
        bars.append(bar)
    return bars


def cosine(n=1000):
    """Nichol & Dhariwal 2021, Eq. 17, with the cut at 0.999."""

    def f(t):
        return math.cos((t / n + 0.008) / 1.008 * math.pi / 2) ** 2

    bars, bar = [], 1.0
    for i in range(n):
        bar *= 1 - min(1 - f(i + 1) / f(i), 0.999)
        bars.append(bar)
    return bars


def move(z, eps, bar_a, bar_b):
    """Through the clean image, as the paper writes it."""
    z, eps = np.asarray(z, float), np.asarray(eps, float)
    z0 = (z - math.sqrt(1 - bar_a) * eps) / math.sqrt(bar_a)
    return math.sqrt(bar_b) * z0 + math.sqrt(1 - bar_b) * eps


def gaussian_noise(z, bar, variance):
    """E[eps | z_t] when the data are N(0, variance): the posterior mean of a sum of two Gaussians."""
    return math.sqrt(1 - bar) * np.asarray(z, float) / (bar * variance + 1 - bar)


def sample_gaussian(z, bars, times, variance):
    """DDIM from the last time to the end (abar of time 0), with the exact noise."""
    for a, b in zip(times, [*times[1:], 0], strict=True):
        z = move(z, gaussian_noise(z, bars[a], variance), bars[a], bars[b])
    return z
