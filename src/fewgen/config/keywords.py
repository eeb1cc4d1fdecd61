"""Checks of the keywords of public functions."""

from __future__ import annotations

import functools
import math
import numbers
import operator
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from fewgen.errors import ConfigError
from fewgen.folders import locked

P = ParamSpec("P")
T = TypeVar("T")


def whole(name: str, value: Any, low: int | None = None, high: int | None = None) -> int:
    """Return a whole number between two limits, or say which keyword is not one."""
    wanted = "a whole number"
    if low is not None:
        wanted += f" of {low} or more" if high is None else f" from {low} to {high}"
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None or (low is not None and number < low) or (high is not None and number > high):
        raise ConfigError(f"{name} must be {wanted}, got {value!r}.")
    return number


def checked_temperature(value: Any) -> float:
    """Return a finite number of 0 or more, or say that this is none."""
    fits = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not (fits and math.isfinite(value) and value >= 0):
        raise ConfigError(
            f"temperature must be a number of 0 or more, got {value!r}. 1 is the learned spread."
        )
    return float(value)


def writes_out(function: Callable[P, T]) -> Callable[P, T]:
    """Let a function hold the lock of its keyword `out`; if it fails, no empty folder is left there."""

    @functools.wraps(function)
    def wrapper(*args: P.args, **keywords: P.kwargs) -> T:
        out: Any = keywords.get("out")
        if out is None:
            return function(*args, **keywords)
        with locked(out):
            return function(*args, **keywords)

    return wrapper
