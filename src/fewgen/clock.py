"""Time that passes or is computed, and the promise that a command ends in time."""

from __future__ import annotations

import math
import os
import time

from fewgen.errors import ConfigError, FewgenError, suggest

CLOCKS = ("wall", "cpu")


def shown_minutes(minutes: float | None) -> str:
    """Return a time limit as a reader writes it.

    >>> shown_minutes(1), shown_minutes(0.5), shown_minutes(None)
    ('1 minute', '0.5 minutes', 'no time limit')
    """
    if minutes is None:
        return "no time limit"
    return "1 minute" if minutes == 1 else f"{minutes:g} minutes"


class TimeIsUp(FewgenError, TimeoutError):
    """The time limit of a command has come before a part of it was done."""


def n_cores() -> int:
    """Return how many processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Clock:
    """Seconds by the wall, or seconds of computing.

    The processor clock is for a machine that others use too: it counts the time of all threads and divides
    it by `cores`, so that 6 minutes mean 6 minutes of `cores` fully used cores.

    Args:
        kind: "wall" or "cpu".
        cores: that "cpu" seconds stand for; None: those that this process may use.

    Raises:
        ConfigError: an unknown kind, or no core.
    """

    def __init__(self, kind: str = "wall", cores: int | None = None) -> None:
        if kind not in CLOCKS:
            raise ConfigError(f'The clock must be "wall" or "cpu", got "{kind}".{suggest(kind, CLOCKS)}')
        self.kind, self.cores = kind, n_cores() if cores is None else cores
        if self.cores < 1:
            raise ConfigError(f"A clock needs at least 1 core, got {cores}.")

    def now(self) -> float:
        """Return seconds since some moment."""
        return time.monotonic() if self.kind == "wall" else time.process_time() / self.cores


class Limit:
    """The time that a command may take, over all its sessions; it begins when this is made.

    Args:
        minutes: None: no limit.
        clock: "wall" or "cpu".

    Attributes:
        before: seconds of the sessions before this one.
    """

    def __init__(self, minutes: float | None = None, clock: str = "wall") -> None:
        self.minutes, self.clock = minutes, Clock(clock)
        self.before = 0.0
        self._begun = self.clock.now()

    @property
    def seconds(self) -> float:
        """Length; infinite without a limit."""
        return math.inf if self.minutes is None else 60.0 * self.minutes

    def spent(self) -> float:
        """Return the seconds that are gone."""
        return self.before + self.clock.now() - self._begun

    def check(self) -> None:
        """Raise `TimeIsUp` if it is over."""
        if self.left() < 0:
            raise TimeIsUp(self.missed)

    @property
    def missed(self) -> str:
        """Why something was not measured."""
        return f"Not measured: the time limit of {shown_minutes(self.minutes)}."

    def left(self) -> float:
        """Return the seconds that are left, below 0 if it took longer; infinite without a limit."""
        return self.seconds - self.spent()
