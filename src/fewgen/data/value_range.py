"""Values of pixels that use a part of their type, or that are no 8-bit numbers at all.

Cameras store 12 bits in 16, microscopes floats, masks 0 and 1. One linear map for a whole set makes LOW black
and HIGH white, so that the order of brightness between images is kept. Nothing is spread or darkened in
silence: without a range, 8-bit values stay as they are, with a warning if the set uses less than a quarter
of the 256; 16-bit values of such a set are refused, as are floats and other types, until the user says which
values are black and white.
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np

from fewgen.errors import ConfigError, DataError

ValueRange = tuple[float, float]

SMALL_PART = 4
"""A set that uses less than this part of its type is noted or refused; 14 bits in 16 are just as much."""


def checked_range(value_range: Any) -> ValueRange | None:
    """Return two finite numbers, the lower one first, or None.

    Raises:
        ConfigError: it is anything else.
    """
    if value_range is None:
        return None
    if isinstance(value_range, (list, tuple)) and len(value_range) == 2:
        low, high = value_range
        numbers = not any(isinstance(x, (bool, str)) or not isinstance(x, (int, float)) for x in value_range)
        if numbers and -1e300 < low < high < 1e300:
            return float(low), float(high)
    raise ConfigError(
        "value_range must be two numbers, the value that becomes black and the larger one that becomes white "
        f"(such as --value-range 0 4095), got {value_range!r:.80}."
    )


def to_bytes(array: np.ndarray[Any, Any], value_range: ValueRange) -> np.ndarray[Any, Any]:
    """Return numbers of any type as uint8: LOW becomes 0, HIGH 255, and what lies outside is cut."""
    low, high = value_range

    def scaled(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return np.rint((values.astype(np.float64).clip(low, high) - low) / (high - low) * 255).astype(
            np.uint8
        )

    if array.dtype == np.uint8:
        return scaled(np.arange(256))[array]
    out = np.empty(array.shape, np.uint8)
    for i, part in enumerate(array):  # bounds the memory of the numbers
        out[i] = scaled(part)
    return out


def uses_little(low: float, high: float, top: int) -> bool:
    """Tell whether values from `low` to `high` use a small part of 0 to `top`; one value alone does not."""
    return 0 < high - low < (top + 1) / SMALL_PART


def shown(value: float) -> str:
    """Return a number as a user types it.

    >>> shown(4095.0), shown(0.25)
    ('4095', '0.25')
    """
    return f"{value:.6g}" if abs(value) < 1e6 else repr(float(value))


def flag(low: float, high: float) -> str:
    """Return the flag that sets a range."""
    return f"--value-range {shown(low)} {shown(high)}"


def note_bytes(low: float, high: float, where: str) -> None:
    """Warn that 8-bit values use a small part of 0 to 255, if they do; they stay as they are."""
    if uses_little(low, high, 255):
        warnings.warn(
            f"The values of {where} reach from {shown(low)} to {shown(high)} of 255, so they look alike. "
            f"They stay as they are; {flag(low, high)} (value_range) spreads them from black to white, and "
            f"{flag(0, 255)} keeps them without this note.",
            UserWarning,
            stacklevel=2,
        )


def note_cut(low: float, high: float, value_range: ValueRange, where: str) -> None:
    """Warn that values lie outside of the range, if they do."""
    if low < value_range[0] or high > value_range[1]:
        warnings.warn(
            f"The values of {where} reach from {shown(low)} to {shown(high)}: what lies outside of "
            f"{flag(*value_range)} is cut to black or white.",
            UserWarning,
            stacklevel=2,
        )


def in_range(array: np.ndarray[Any, Any], value_range: ValueRange | None, where: str) -> np.ndarray[Any, Any]:
    """Return the images of a set as uint8.

    Args:
        array: numbers; the images of the whole set.
        value_range: values that become black and white; None for uint8 as it is.
        where: what the array is, for messages.

    Raises:
        DataError: it holds no numbers, NaN or infinite ones, or is not uint8 and has no range.
    """
    if array.dtype.kind not in "uifb":
        raise DataError(f"{where} must be uint8, got {array.dtype}. Save numbers.")
    if not array.size:
        return array if array.dtype == np.uint8 else array.astype(np.uint8)
    low, high = float(array.min()), float(array.max())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise DataError(f"{where} hold NaN or infinite values. Replace them.")
    if value_range is not None:
        note_cut(low, high, value_range, where)
        return to_bytes(array, value_range)
    if array.dtype != np.uint8:
        advice = (
            "Scale to 0..255 and convert to uint8 first" if array.dtype.kind == "f" else "Convert to uint8"
        )
        raise DataError(
            f"{where} must be uint8, got {array.dtype}. {advice}, or say which values become black and white "
            f"(value_range); the set reaches from {shown(low)} to {shown(high)}: {flag(low, high)}."
        )
    note_bytes(low, high, where)
    return array
