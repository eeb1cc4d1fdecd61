"""Learning-rate schedules: pure functions of the step, so a resumed run needs no state for them."""

from __future__ import annotations

import math
from collections.abc import Callable

from fewgen.errors import ConfigError, suggest

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
    if not 0.0 <= warmup <= 1.0:
        raise ConfigError(f"warmup is a share of the steps between 0 and 1, got {warmup}.")

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
    if not 0.0 <= floor <= 1.0:
        raise ConfigError(f"floor is a factor between 0 and 1, got {floor}.")
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
    if not (0.0 <= start < 1.0 and 0.0 <= floor <= 1.0):
        raise ConfigError(f"start is a share below 1 and floor a factor up to 1, got {start} and {floor}.")

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
    if schedule not in SCHEDULES:
        raise ConfigError(
            f'There is no learning-rate schedule "{schedule}".{suggest(schedule, SCHEDULES)} '
            f"Known schedules: {', '.join(SCHEDULES)}."
        )
    return SCHEDULES[schedule]()
