"""Settings that act only together with others: one that cannot act is refused by name, never ignored.

A dataclass of settings says in `effects` when its fields have an effect; `check_effects` reads that of all
sections of a command. A setting that equals its usual value, of the preset or the default, is never refused.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from fewgen.config.keywords import flag
from fewgen.errors import ConfigError, ProblemList


@dataclasses.dataclass(frozen=True)
class Must:
    """What the value of a setting must be.

    Attributes:
        shown: the same in words, after the name of its flag.
        fits: whether a value is so.
    """

    shown: str
    fits: Callable[[Any], bool]


ABOVE_0 = Must("above 0", lambda value: not isinstance(value, (int, float)) or value > 0)
"""A number above 0, or a word such as "auto"."""
ON = Must("true", bool)
GIVEN = Must("{}", lambda value: value is not None)
"""A section that is not null."""
NULL = Must("null", lambda value: value is None)
CHOSEN = Must("of your own", lambda value: False)
"""Another value than the usual one."""


def holds(part: str) -> Must:
    """Return what a list of words with commas between must hold."""
    return Must(part, lambda value: part in str(value))


def other_than(wrong: Any, shown: str) -> Must:
    """Return what any other value than one fits."""
    return Must(shown, lambda value: value != wrong)


Way = Mapping[str, Any]
"""Setting -> what it must be: a `Must`, a value, or a tuple of values. Names count from the dataclass that
says so; a flag of the command ("--meta", "--tasks.pretrain") counts from the top."""


@dataclasses.dataclass(frozen=True)
class Acts:
    """When some settings have an effect.

    Attributes:
        names: of the settings or sections, from the dataclass that says so, or flags.
        ways: of which one must be so as a whole; none: these never have an effect.
    """

    names: tuple[str, ...]
    ways: tuple[Way, ...]


def acts(names: str, *ways: Way) -> Acts:
    """Return when settings, their names with spaces between, have an effect.

    >>> acts("width hidden", {"backbone": "conv"}).names
    ('width', 'hidden')
    """
    return Acts(tuple(names.split()), ways)


def check_effects(settings: Mapping[str, Any], usual: Mapping[str, Any]) -> None:
    """Refuse settings that were chosen and cannot have an effect.

    Args:
        settings: of a command by the names of their keywords; sections are dataclasses. What a way asks of a
            keyword that is not among them counts as so.
        usual: what they would be had nobody chosen.

    Raises:
        ConfigError: all of them at once, each with what it needs.
    """
    problems = ProblemList("These settings would be ignored", ConfigError)
    for section, rule in rules_of(settings):
        here = f"{section}." if section else ""

        def place(name: str, here: str = here) -> str:
            return name[2:].replace("-", "_") if name.startswith("--") else here + name

        ways = [{place(name): needed for name, needed in way.items()} for way in rule.ways]
        if any(all(_fits(settings, usual, name, needed) for name, needed in way.items()) for way in ways):
            continue
        for name in rule.names:
            for leaf, value in _leaves(place(name), _at(settings, place(name))):
                if value != _at(usual, leaf, of=settings):
                    problems.add(_refusal(leaf, value, ways))
    problems.raise_if_any()


def _refusal(name: str, value: Any, ways: list[dict[str, Any]]) -> str:
    shown = f"{flag(name)} {_shown(value)}"
    if not ways:
        return f"{shown} has no effect with this method. Leave it out."
    needs = [" and ".join(f"{flag(key)} {_needed(value)}" for key, value in way.items()) for way in ways[:2]]
    return f"{shown} has no effect without {', or '.join(needs)}. Set that, or leave out {flag(name)}."


def _needed(needed: Any) -> str:
    if isinstance(needed, Must):
        return needed.shown
    values = needed if isinstance(needed, tuple) else (needed,)
    return " or ".join(_shown(value) for value in values if value is not None)


def _shown(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return "(its settings)" if dataclasses.is_dataclass(value) else str(value)


def _fits(settings: Mapping[str, Any], usual: Mapping[str, Any], name: str, needed: Any) -> bool:
    value = _at(settings, name)
    if value is _MISSING:
        # A keyword that this command lacks asks nothing; a setting of a section that is off is not so.
        return name.split(".")[0] not in settings
    if needed is CHOSEN:
        return bool(value != _at(usual, name))
    if isinstance(needed, Must):
        return needed.fits(value)
    return value in needed if isinstance(needed, tuple) else bool(value == needed)


_MISSING: Any = object()


def _at(settings: Mapping[str, Any], name: str, of: Mapping[str, Any] | None = None) -> Any:
    """Return a setting by its path; with `of`, a section that is off here has the defaults of that one."""
    value: Any = settings
    path = name.split(".")
    for i, part in enumerate(path):
        if value is None and of is not None:
            value = type(_at(of, ".".join(path[:i])))()
        value = value.get(part, _MISSING) if isinstance(value, Mapping) else getattr(value, part, _MISSING)
        if value is _MISSING:
            return value
    return value


def rules_of(value: Any, where: str = "") -> Iterator[tuple[str, Acts]]:
    """Yield the rules of all sections, each with the path of its section."""
    if dataclasses.is_dataclass(value):
        for rule in getattr(value, "effects", ()):
            yield where, rule
        parts = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    else:
        parts = dict(value) if isinstance(value, Mapping) and not where else {}
    for name, part in parts.items():
        yield from rules_of(part, f"{where}.{name}" if where else name)


def _leaves(where: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yield a setting, or all settings of a section that is not off, by their paths."""
    if dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from _leaves(f"{where}.{field.name}", getattr(value, field.name))
    elif value is not _MISSING:
        yield where, value
