"""Checks that the settings of all methods share: one message for one kind of mistake.

The type of a field says what it may hold: a `Literal`, or one of the ranges below. `check_fields` looks.
"""

from __future__ import annotations

import functools
import math
import typing
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

from fewgen.errors import ConfigError, ProblemList, suggest


def choose(where: str, value: str, options: Sequence[str]) -> None:
    """Raise `ConfigError` unless `value` is one of `options`."""
    if value not in options:
        raise ConfigError(
            f'{where} is "{value}".{suggest(value, options)} Choose one of: {", ".join(options)}.'
        )


def one_of(what: str, value: str, options: Iterable[str]) -> None:
    """Raise `ConfigError` unless there is a `what` called `value` among `options`."""
    options = list(options)
    if value not in options:
        raise ConfigError(
            f'Unknown {what} "{value}".{suggest(value, options)} Choose one of: {", ".join(options)}.'
        )


def at_least(where: str, value: float, least: float) -> None:
    """Raise `ConfigError` unless `value` is a finite number of `least` or more."""
    if not (value >= least and math.isfinite(value)):
        raise ConfigError(f"{where} must be {least:g} or more, got {value}.")


def between(where: str, value: float, least: float, most: float) -> None:
    """Raise `ConfigError` unless `value` is in [`least`, `most`]."""
    if not least <= value <= most:
        raise ConfigError(f"{where} must be in [{least:g}, {most:g}], got {value}.")


def share(where: str, value: float) -> None:
    """Raise `ConfigError` unless `value` is in [0, 1]."""
    if not 0 <= value <= 1:
        raise ConfigError(f"{where} must be in [0, 1], got {value}.")


def below_one(where: str, value: float) -> None:
    """Raise `ConfigError` unless `value` is in [0, 1)."""
    if not 0 <= value < 1:
        raise ConfigError(f"{where} must be at least 0 and below 1, got {value}.")


def above_zero(where: str, value: float) -> None:
    """Raise `ConfigError` unless `value` is a finite number above 0."""
    if not (value > 0 and math.isfinite(value)):
        raise ConfigError(f"{where} must be above 0, got {value}.")


def not_empty(where: str, value: Sequence[Any]) -> None:
    """Raise `ConfigError` if there is nothing in `value`."""
    if not value:
        raise ConfigError(f"{where} must not be empty.")


Count = Annotated[int, partial(at_least, least=1)]
"""A whole number of 1 or more."""
Whole = Annotated[int, partial(at_least, least=0)]
"""A whole number of 0 or more."""
Few = Annotated[int, partial(between, least=1, most=1000)]
"""A whole number of 1 or more that says how often something is built or done: layers, draws of one image."""
Weight = Annotated[float, partial(at_least, least=0)]
"""A number of 0 or more."""
Rate = Annotated[float, partial(at_least, least=1e-8)]
"""A learning rate."""
Positive = Annotated[float, above_zero]
"""A number above 0."""
Share = Annotated[float, share]
"""A number in [0, 1]."""
BelowOne = Annotated[float, below_one]
"""A number of at least 0 and below 1."""


def check_fields(settings: Any, section: str = "", problems: ProblemList | None = None) -> None:
    """Check the values of a dataclass against the types of its fields; None is never looked at.

    Args:
        settings: the dataclass.
        section: its name, for messages.
        problems: where all that is wrong is added; None raises the first.

    Raises:
        ConfigError: a value is not among the options of its `Literal`, or outside its range.
    """
    for name, checks in _checks(settings.__class__).items():
        value = getattr(settings, name)
        for check in checks if value is not None else ():
            try:
                check(f"{section}.{name}" if section else name, value)
            except ConfigError as error:
                if problems is None:
                    raise
                problems.add(str(error))


class Checked:
    """Base of settings that check their own fields when they are made.

    Attributes:
        section: their name, for messages.
    """

    section: ClassVar[str] = ""

    def __post_init__(self) -> None:
        check_fields(self, self.section)


@functools.cache
def _checks(cls: type) -> dict[str, list[Any]]:
    """Return the checks of each field that has any."""
    found: dict[str, list[Any]] = {}
    for name, hint in typing.get_type_hints(cls, include_extras=True).items():
        for option in (hint, *typing.get_args(hint)):  # the parts of `Count | None`
            if typing.get_origin(option) is Annotated:
                found.setdefault(name, []).extend(option.__metadata__)
            elif typing.get_origin(option) is Literal:
                found.setdefault(name, []).append(partial(choose, options=typing.get_args(option)))
    return found
