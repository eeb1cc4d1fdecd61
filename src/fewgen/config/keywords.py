"""Checks of the keywords of public functions."""

from __future__ import annotations

import functools
import math
import numbers
import operator
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar

from fewgen.errors import ConfigError, ProblemList
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


def flag(name: str) -> str:
    """Return the flag of a keyword, or of a setting of one of its sections.

    >>> flag("per_class"), flag("model.latent_size")
    ('--per-class', '--model.latent_size')
    """
    return f"--{name if '.' in name else name.replace('_', '-')}"


def refuse_ignored(why: str, given: Mapping[str, Any], usual: Mapping[str, Any], *names: str) -> None:
    """Refuse keywords that were chosen and have no effect beside the others.

    Args:
        why: what makes them idle, after "has no effect".
        given: the keywords of a call.
        usual: their defaults.
        *names: of the idle ones.

    Raises:
        ConfigError: names all of them.

    >>> refuse_ignored("with --seeds", {"n": 5}, {"n": None}, "n")
    Traceback (most recent call last):
        ...
    fewgen.errors.ConfigError: This would be ignored: --n has no effect with --seeds. Leave it out.
    """
    problems = ProblemList("This would be ignored", ConfigError)
    for name in names:
        if given[name] is not usual[name] and given[name] != usual[name]:
            problems.add(f"{flag(name)} has no effect {why}. Leave it out.")
    problems.raise_if_any()


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
