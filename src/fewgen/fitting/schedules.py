"""Learning-rate schedules: pure functions of the step, so a resumed run needs no state for them."""

from __future__ import annotations

import math
from collections.abc import Callable

from fewgen.config.checks import below_one, one_of, share

Schedule = Callable[[int, int], float]
"""(step, steps) -> factor on the learning rate."""


def constant() -> Schedule:
    """Return a schedule that is 1 throughout."""
    return lambda step, steps: 1.0


def linear_warmup(warmup: float = 0.05) -> Schedule:
    """Return a schedule that rises from near 0 to 1, then stays.

    Args:
        warmup: share of the steps spent rising, in [0, 1].

    >>> linear_warmup(0.5)(0, 4), linear_warmup(0.5)(3, 4)
    (0.5, 1.0)
    """
    share("warmup", warmup)

    def factor(step: int, steps: int) -> float:
        rising = warmup * steps
        return 1.0 if step >= rising else min(1.0, (step + 1) / max(rising, 1.0))

    return factor


def cosine(warmup: float = 0.0, floor: float = 0.0) -> Schedule:
    """Return a schedule that rises linearly, then falls along half a cosine to `floor`.

    Args:
        warmup: share of the steps spent rising, in [0, 1].
        floor: factor at the last step, in [0, 1].

    Source: Loshchilov, Hutter 2017, "SGDR", arXiv:1608.03983, Eq. 5, without restarts.
    """
    share("floor", floor)
    rise = linear_warmup(warmup)

    def factor(step: int, steps: int) -> float:
        start = warmup * steps
        if step < start:
            return rise(step, steps)
        along = (step - start) / max(steps - start, 1.0)
        return floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * min(along, 1.0)))

    return factor


def late_decay(start: float = 0.5, floor: float = 0.05) -> Schedule:
    """Return a schedule that is 1 at first, then falls linearly to `floor`.

    Args:
        start: share of the steps after which it falls, in [0, 1).
        floor: factor at the last step, in [0, 1].

    >>> late_decay(0.5, 0.0)(0, 8), late_decay(0.5, 0.0)(6, 8)
    (1.0, 0.5)
    """
    below_one("start", start)
    share("floor", floor)

    def factor(step: int, steps: int) -> float:
        along = (step / max(steps, 1) - start) / (1.0 - start)
        return 1.0 - (1.0 - floor) * min(1.0, max(0.0, along))

    return factor


SCHEDULES: dict[str, Callable[[], Schedule]] = {
    "constant": constant,
    "cosine": lambda: cosine(warmup=0.02),
    "late_decay": late_decay,
    "linear_warmup": linear_warmup,
}


def make_schedule(schedule: str | Schedule) -> Schedule:
    """Return the schedule of that name, or the given function itself.

    Raises:
        ConfigError: if the name is unknown.
    """
    if not isinstance(schedule, str):
        return schedule
    one_of("learning-rate schedule", schedule, SCHEDULES)
    return SCHEDULES[schedule]()
