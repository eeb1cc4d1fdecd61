"""Typed errors: each says what was found, what was needed, and the next step.

Every error that a user can cause derives from `FewgenError` and from the built-in exception that a
programmer would expect; the command line prints its message without a traceback and exits with 2.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable


class FewgenError(Exception):
    """Something the user can mend; the message says how."""


class DataError(FewgenError, ValueError):
    """Images, labels or class names that cannot be used."""


class ConfigError(FewgenError, ValueError):
    """A setting, preset or method that does not exist or does not fit."""


class TextError(FewgenError, ValueError):
    """A word or text that has no vector, or vectors that cannot tell classes apart."""


class ShapeError(FewgenError, ValueError):
    """A tensor whose shape differs from what the called part was built for."""


class CheckpointError(FewgenError, RuntimeError):
    """A model or training state that cannot be read."""


class OutputError(FewgenError, OSError):
    """A place that cannot be written, or must not be overwritten."""


class TrainingError(FewgenError, RuntimeError):
    """Training that had to stop: a loss became NaN, or diverged."""


class MissingDependencyError(FewgenError, ImportError):
    """An optional library is needed; the message names the extra to install."""


class RenamedWarning(FutureWarning):
    """A keyword, flag or setting that has another name now; the former one works for one release."""


_OUT_OF_MEMORY = re.compile(
    "out of memory|not enough memory|can't allocate memory|bad_alloc|ALLOC_FAILED"
    "|[Ss]torage size calculation overflowed|integer multiplication overflow|[Aa]rray is too big"
)
"""What torch and numpy say where there is no room, most of it as a RuntimeError."""


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error of Python, torch or numpy says that there is not enough memory.

    >>> is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to ..."))
    True
    """
    known = isinstance(error, (RuntimeError, ValueError)) and not isinstance(error, FewgenError)
    return isinstance(error, MemoryError) or (known and bool(_OUT_OF_MEMORY.search(str(error))))


def in_words(error: Exception) -> str:
    """Return what an error says, for a record beside which work goes on; ours are sentences already."""
    if is_out_of_memory(error):
        return "There was not enough memory."
    return str(error) if isinstance(error, FewgenError) else f"{type(error).__name__}: {error}"


def suggest(name: str, options: Iterable[str]) -> str:
    """Return ``' Did you mean "sneaker"?'`` for the closest of `options`, or ``''``.

    >>> suggest("sneeker", ["sneaker", "sandal"])
    ' Did you mean "sneaker"?'
    >>> suggest("violin", ["sneaker", "sandal"])
    ''
    """
    by_lower = {option.lower(): option for option in options}
    close = difflib.get_close_matches(name.lower(), list(by_lower), n=1, cutoff=0.6)
    return f' Did you mean "{by_lower[close[0]]}"?' if close else ""


class ProblemList:
    """Collect every problem of an input, then raise one error that lists them all."""

    def __init__(self, headline: str, error: type[FewgenError] = DataError, limit: int = 20) -> None:
        self.headline = headline
        self.error = error
        self.limit = limit
        self.problems: list[str] = []

    def add(self, problem: str) -> None:
        """Remember one problem."""
        self.problems.append(problem)

    def raise_if_any(self) -> None:
        """Raise `error` with all problems (the first `limit` in full), if there are any."""
        if not self.problems:
            return
        if len(self.problems) == 1:
            raise self.error(f"{self.headline}: {self.problems[0]}")
        shown = "\n".join(f"  - {problem}" for problem in self.problems[: self.limit])
        rest = len(self.problems) - self.limit
        more = f"\n  - and {rest} more" if rest > 0 else ""
        raise self.error(f"{self.headline} ({len(self.problems)} problems):\n{shown}{more}")
