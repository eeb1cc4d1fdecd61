"""Checks that the settings of all methods share: one message for one kind of mistake."""

from __future__ import annotations

import math
from collections.abc import Sequence

from fewgen.errors import ConfigError, suggest


def choose(where: str, value: str, options: Sequence[str]) -> None:
    """Raise `ConfigError` unless `value` is one of `options`."""
    if value not in options:
        raise ConfigError(
            f'{where} is "{value}".{suggest(value, options)} Choose one of: {", ".join(options)}.'
        )


def at_least(where: str, value: float, least: float) -> None:
    """Raise `ConfigError` unless `value` is a finite number of `least` or more."""
    if not (value >= least and math.isfinite(value)):
        raise ConfigError(f"{where} must be {least:g} or more, got {value}.")


def share(where: str, value: float) -> None:
    """Raise `ConfigError` unless `value` is in [0, 1]."""
    if not 0 <= value <= 1:
        raise ConfigError(f"{where} must be in [0, 1], got {value}.")


def below_one(where: str, value: float) -> None:
    """Raise `ConfigError` unless `value` is in [0, 1)."""
    if not 0 <= value < 1:
        raise ConfigError(f"{where} must be at least 0 and below 1, got {value}.")
