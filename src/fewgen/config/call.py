"""Keywords of a function from a settings file: the same rule for Python and for the command line."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import operator
import os
import re
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar

from fewgen.config.io import read_config
from fewgen.config.schema import FORMER_SETTINGS, check_keys, fits, merge, problems_of, warn_renamed
from fewgen.config.surroundings import own_surroundings
from fewgen.errors import ConfigError, ProblemList

P = ParamSpec("P")
T = TypeVar("T")

SECTIONS = ("model", "training", "tasks", "tint", "encoders")
"""Keywords that are sections: the file's and the call's keys are merged, and the call's win. A path as
`model` stands for the setting `base`: the model that a method starts from."""


DECIDED = {"training": ("seed", "progress", "minutes", "clock", "checkpoint", "steps_scale")}
"""Keys of a section that keywords of the same names decide: given, they win over the file's section."""


def call_settings(
    function: Callable[..., Any], given: Mapping[str, Any], defaults: bool = True
) -> dict[str, Any]:
    """Return the keywords to call `function` with: its defaults, then the file, then what was given.

    Args:
        function: any function with a `config` keyword (a file or a dictionary).
        given: the keywords that the caller spelt out, `config` among them.
        defaults: whether to fill in the function's own defaults.

    Raises:
        ConfigError: unknown keys in the file (with suggestions), or a required keyword is missing.

    Warns:
        RenamedWarning: a keyword has its former name; see `renamed`.
    """
    parameters = inspect.signature(function).parameters
    known = [name for name in parameters if name != "config"]
    given = _with_new_names(function, given)
    source = given.get("config")
    where = "" if source is None or isinstance(source, Mapping) else str(source)
    file = _with_new_names(function, read_config(source), where)
    check_keys(file, known, where)
    if where:
        file = _typed(parameters, file, where)
    settings: dict[str, Any] = {}
    for name in known:
        if name in SECTIONS and (name in given or name in file):
            of_file = _section(file.get(name), name)
            for key in DECIDED.get(name, ()):
                if key in given:
                    of_file.pop(key, None)
            settings[name] = merge(of_file, _section(given.get(name), name))
        elif name in given:
            settings[name] = given[name]
        elif name in file:
            settings[name] = file[name]
        elif parameters[name].default is not inspect.Parameter.empty:
            if defaults:
                settings[name] = parameters[name].default
        else:
            raise ConfigError(
                f'"{name}" is missing. Give it as an argument, or as "{name}: ..." in the settings file.'
            )
    return settings


def _typed(
    parameters: Mapping[str, inspect.Parameter], file: Mapping[str, Any], where: str
) -> dict[str, Any]:
    """Return the keywords of a settings file as values of the types that a function annotates.

    Raises:
        ConfigError: lists all that have another type.
    """
    problems = ProblemList(f"The settings in {where} cannot be used", ConfigError)
    typed: dict[str, Any] = {}
    for name, value in file.items():
        words = parameters[name].annotation
        hint = plain_type(words) if isinstance(words, str) else object
        for problem in problems_of(value, hint, name):
            problems.add(problem)
        typed[name] = fits(value, hint)[0]
    problems.raise_if_any()
    return typed


_PLAIN = {"int": int, "float": float, "bool": bool, "str": str, "None": type(None), "Any": object}


def plain_type(words: str) -> Any:
    """Return what a file may hold for a parameter with this annotation; of other classes, their name or path.

    >>> plain_type("Sequence[str] | None"), plain_type("str | Path | ImageSet")
    (list[str] | None, <class 'str'>)
    """
    options: list[Any] = []
    for word in re.findall(r"[^\[| ]+(?:\[.*?\](?!\]))?", words):
        if word.startswith("Sequence["):
            options.append(types.GenericAlias(list, (plain_type(word[9:-1]),)))
        elif word.startswith("Mapping["):
            options.append(dict[str, Any])
        else:
            options.append(_PLAIN.get(word, str))
    return functools.reduce(operator.or_, dict.fromkeys(options))


def build(cls: type[T], settings: Mapping[str, Any], **others: Any) -> T:
    """Return a dataclass from those settings that are fields of it, and from further fields.

    >>> Point = dataclasses.make_dataclass("Point", ["x", "y"])
    >>> build(Point, {"x": 1, "colour": "red"}, y=2)
    Point(x=1, y=2)
    """
    names = [field.name for field in dataclasses.fields(typing.cast(Any, cls))]
    return cls(**{name: settings[name] for name in names if name in settings}, **others)


def accepts_config(function: Callable[P, T]) -> Callable[P, T]:
    """Let the keyword `config` (a YAML file or a dictionary) supply keywords that are not given.

    What the call spells out wins over the file, even where it equals the default. The function runs in its
    `own_surroundings`.
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def wrapper(*args: Any, **keywords: Any) -> T:
        try:
            given = dict(signature.bind_partial(*args, **keywords).arguments)
        except TypeError as error:
            # An unknown keyword is the programmer's mistake, but a suggestion helps them too.
            check_keys(keywords, signature.parameters)
            raise error
        checked: Callable[..., T] = function
        with own_surroundings():
            return checked(**call_settings(function, given))

    return wrapper


def renamed(**names: str) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Let a function take keywords by their former names for one release, with a warning.

    With `accepts_config` below it, the former names also count in settings files.

    Args:
        **names: former name = the name of today.

    >>> import warnings
    >>> @renamed(alpha="background")
    ... def paint(background="error"):
    ...     return background
    >>> with warnings.catch_warnings(record=True) as found:
    ...     paint(alpha="white"), str(found[0].message)
    ('white', 'alpha is called background now; the old name works until the next release.')
    """

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        _RENAMED[unwrapped(function)] = names

        @functools.wraps(function)
        def wrapper(*args: Any, **keywords: Any) -> T:
            renamed_keywords: Any = _with_new_names(function, keywords)
            return function(*args, **renamed_keywords)

        return wrapper

    return decorate


FORMER_NAMES = {"alpha": "background", "classes": "class_names"}
"""Former name -> name of today, of the settings that a run folder keeps: those of `train`."""


def current_names(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a run folder of any release by the names of today."""
    settings = {FORMER_NAMES.get(name, name): value for name, value in stored.items()}
    if isinstance(settings.get("model"), Mapping):
        settings["model"] = {FORMER_SETTINGS.get(key, key): v for key, v in settings["model"].items()}
    return settings


_RENAMED: dict[Callable[..., Any], Mapping[str, str]] = {}
"""Function below all decorators -> former name -> name of today."""


def _with_new_names(
    function: Callable[..., Any], values: Mapping[str, Any], where: str = ""
) -> dict[str, Any]:
    former = _RENAMED.get(unwrapped(function), {})
    result = dict(values)
    for old in [name for name in former if name in values]:
        place = f" in {where}" if where else ""
        if former[old] in values:
            raise ConfigError(f"{old} is the former name of {former[old]}{place}: give one of them.")
        warn_renamed(old, former[old], place)
        result[former[old]] = result.pop(old)
    return result


def _section(values: Any, name: str) -> dict[str, Any]:
    """Return a section with keys like "a.b" unfolded into nested sections."""
    if values is None:
        return {}
    if name == "model" and isinstance(values, (str, os.PathLike)):
        return {"base": os.fspath(values)}
    if not isinstance(values, Mapping):
        raise ConfigError(f'"{name}" must be a section of keys and values, got {values!r}.')
    unfolded: dict[str, Any] = {}
    for key, value in values.items():
        nested: Any = value
        for part in reversed(str(key).split(".")):
            nested = {part: nested}
        unfolded = merge(unfolded, nested)
    return unfolded


def defaults_of(function: Callable[..., Any]) -> dict[str, Any]:
    """Return the defaults of a function's keywords."""
    parameters = inspect.signature(unwrapped(function)).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}


def unwrapped(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function whose signature counts, below `accepts_config`."""
    return inspect.unwrap(function)
