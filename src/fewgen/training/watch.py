"""Warnings about how training goes: diverging, swinging, overfitting. Each is given once per stage."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

RUNAWAY = 100.0
"""Loss, in units of that of the first step (or of 1, if that is more), from which training has diverged."""

_SMOOTH = 5
_WINDOW = 20
_KEEP = 64
_REMEMBERED = ("train", "first", "lowest", "above", "held_out", "given")


class Watch:
    """Follows the losses of one stage.

    Thresholds are wide on purpose: a warning that fires on healthy training is soon ignored.
    """

    def __init__(self) -> None:
        self._train: dict[str, list[float]] = {}
        self._first: dict[str, float] = {}
        self._lowest: dict[str, float] = {}
        self._above: dict[str, int] = {}
        self._held_out: list[list[float]] = []
        self._given: list[str] = []

    def train(self, phase: str, loss: float, advice: str = "Lower the learning rate.") -> list[str]:
        """Take the mean total of a phase since the last log line; return new warnings, with this advice."""
        series = self._train.setdefault(phase, [])
        series.append(loss)
        del series[:-_KEEP]
        warnings = []
        if self._diverges(phase, series):
            warnings += self._once(
                f"diverge:{phase}",
                f'The loss of phase "{phase}" is {_mean(series[-_SMOOTH:]):.4g}, well above its minimum of '
                f"{self._lowest[phase]:.4g}: training diverges. {advice}",
            )
        if _swings(series):
            warnings += self._once(
                f"swing:{phase}",
                f'The loss of phase "{phase}" swings by {_relative_swing(series):.0%} of its level from '
                f"one log line to the next. {advice.removesuffix('.')}, or use a larger batch.",
            )
        return warnings

    def held_out(self, value: float) -> list[str]:
        """Take a held-out figure for which lower is better; return new warnings."""
        first = next(iter(self._train.values()), [])
        train_loss = _mean(first[-_SMOOTH:]) if first else 0.0
        self._held_out.append([value, train_loss])
        values = [held for held, _ in self._held_out]
        best = int(np.argmin(values))
        since = values[best + 1 :]
        margin = 0.02 * max(abs(values[best]), 1e-12)
        rising = len(since) >= 3 and all(held > values[best] + margin for held in since[-3:])
        falling = train_loss < self._held_out[best][1]
        if rising and falling:
            return self._once(
                "overfit",
                f"Overfitting: the held-out figure rose from {values[best]:.4g} to {value:.4g} while the "
                "training "
                "loss still falls. The best weights are kept; stronger augmentation, more weight decay or "
                "fewer steps help.",
            )
        return []

    def note(self, messages: Sequence[str]) -> list[str]:
        """Return those messages of a method's own diagnosis that are new, whatever their numbers."""
        new = []
        for message in messages:
            new += self._once("method:" + re.sub(r"\d[\d.,]*", "#", message), message)
        return new

    def _diverges(self, phase: str, series: list[float]) -> bool:
        if len(series) < _SMOOTH:
            return False
        smooth = _mean(series[-_SMOOTH:])
        self._first.setdefault(phase, smooth)
        self._lowest[phase] = min(self._lowest.get(phase, smooth), smooth)
        lowest = self._lowest[phase]
        drop = max(self._first[phase] - lowest, 0.0)
        high = smooth - lowest > max(abs(lowest), 0.5 * drop, 1e-6)
        self._above[phase] = self._above.get(phase, 0) + 1 if high else 0
        return self._above[phase] >= 3

    def _once(self, key: str, message: str) -> list[str]:
        if key in self._given:
            return []
        self._given.append(key)
        return [message]

    def state(self) -> dict[str, Any]:
        """Return all that is remembered, as JSON values."""
        return {name: getattr(self, f"_{name}") for name in _REMEMBERED}

    def load(self, state: dict[str, Any]) -> None:
        """Continue from `state()`."""
        for name in _REMEMBERED:
            setattr(self, f"_{name}", state[name])


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))


def _residual(series: Sequence[float]) -> np.ndarray:
    """Return the last points less their quadratic trend, so that a bend does not count as a swing."""
    points = np.asarray(series[-_WINDOW:], dtype=np.float64)
    x = np.linspace(-1.0, 1.0, len(points))
    return points - np.polynomial.Polynomial.fit(x, points, 2)(x)


def _relative_swing(series: Sequence[float]) -> float:
    level = max(abs(float(np.median(series[-_WINDOW:]))), 1e-12)
    return float(_residual(series).std()) / level


def _swings(series: Sequence[float]) -> bool:
    if len(series) < _WINDOW:
        return False
    steps = np.diff(series[-_WINDOW:])
    turns = int((np.sign(steps[1:]) != np.sign(steps[:-1])).sum())
    return turns >= _WINDOW // 2 and _relative_swing(series) > 0.3
