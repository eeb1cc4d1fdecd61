"""Turn plain dictionaries into dataclasses and back; every key and every type is checked.

A setting that is misspelt and silently ignored costs an evening of training, so an unknown key is an
error with the closest known one, and a value of the wrong type names the key, what was found and what
was needed. All problems of a dictionary are reported at once.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import types
import typing
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from fewgen.config.checks import Checked
from fewgen.errors import ConfigError, ProblemList, RenamedWarning, suggest
from fewgen.files import MOST

T = TypeVar("T")


def to_dict(config: Any) -> Any:
    """Return a dataclass as plain dictionaries, lists, numbers and strings, ready for YAML or JSON.

    >>> import dataclasses
    >>> Point = dataclasses.make_dataclass("Point", [("x", float), ("tags", tuple)])
    >>> to_dict(Point(1.5, ("a", "b")))
    {'x': 1.5, 'tags': ['a', 'b']}
    """
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {field.name: to_dict(getattr(config, field.name)) for field in dataclasses.fields(config)}
    if isinstance(config, Mapping):
        return {str(key): to_dict(value) for key, value in config.items()}
    if isinstance(config, Path):
        return str(config)
    if isinstance(config, (list, tuple, set, frozenset)):
        return [to_dict(value) for value in config]
    if config is None or isinstance(config, (bool, int, float, str)):
        return config
    raise ConfigError(f"A setting of type {type(config).__name__} cannot be written to a file.")


def from_dict(cls: type[T], values: Mapping[str, Any], where: str = "") -> T:
    """Return `cls` built from `values`; missing keys take the defaults of `cls`.

    Args:
        cls: a dataclass; fields may be dataclasses themselves.
        values: setting name to value.
        where: name of the section, for messages, for example "model".

    Raises:
        ConfigError: all unknown keys, missing keys and values of a wrong type at once.
    """
    problems = ProblemList("The settings cannot be used", ConfigError)
    built = _build(cls, with_current_names(cls, values, where), where, problems)
    problems.raise_if_any()
    return typing.cast(T, built)


def merge(*layers: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return nested dictionaries laid over each other; a later layer wins, key by key.

    >>> merge({"model": {"a": 1, "b": 2}}, {"model": {"b": 3}})
    {'model': {'a': 1, 'b': 3}}
    """
    merged: dict[str, Any] = {}
    for layer in layers:
        for key, value in (layer or {}).items():
            if isinstance(value, Mapping):
                below = merged.get(key)
                merged[key] = merge(below if isinstance(below, Mapping) else None, value)
            else:
                merged[key] = value
    return merged


def resolve(cls: type[T], *layers: Mapping[str, Any] | None, where: str = "") -> T:
    """Return `cls` from layers of rising precedence (defaults, preset, file, flags).

    Each layer is checked on its own first, so that a preset's mistake is not hidden by a flag.
    """
    layers = tuple(with_current_names(cls, layer, where) if layer else None for layer in layers)
    for layer in layers:
        if layer:
            check_keys(layer, [field.name for field in dataclasses.fields(typing.cast(Any, cls))], where)
    return from_dict(cls, merge(*layers), where)


FORMER_SETTINGS = {"scale": "guidance_scale"}
"""Former name -> name of today, of settings of methods."""


def with_current_names(
    cls: type, values: Mapping[str, Any], where: str = "", warn: bool = True
) -> Mapping[str, Any]:
    """Return settings of a dataclass by the names of today, with a warning for each former one.

    Args:
        cls: the dataclass.
        values: setting name to value.
        where: name of the section, for the warning.
        warn: False for what an earlier release stored.

    Raises:
        ConfigError: a setting has both names.
    """
    known = [field.name for field in dataclasses.fields(cls)]
    for old, new in FORMER_SETTINGS.items():
        if not isinstance(values, Mapping) or old not in values or old in known or new not in known:
            continue
        if new in values:
            raise ConfigError(f"{_join(where, old)} is the former name of {new}: give one of them.")
        if warn:
            warn_renamed(_join(where, old), _join(where, new))
        values = {new if key == old else key: value for key, value in values.items()}
    return values


def warn_renamed(old: str, new: str, where: str = "") -> None:
    """Warn that a keyword, a flag or a setting was given by its former name."""
    message = f"{old}{where} is called {new} now; the old name works until the next release."
    warnings.warn(message, RenamedWarning, stacklevel=4)


def check_keys(values: Any, known: Iterable[str], where: str = "") -> None:
    """Raise `ConfigError` for keys of `values` that are not in `known`, with suggestions."""
    known = list(known)
    problems = ProblemList("The settings cannot be used", ConfigError)
    if _is_section(values, where, problems):
        for key in values:
            if key not in known:
                problems.add(_unknown(key, known, where))
    problems.raise_if_any()


def _is_section(values: Any, where: str, problems: ProblemList) -> bool:
    if isinstance(values, Mapping):
        return True
    problems.add(f"{where or 'the settings'} must be a section of keys and values, got {shown(values)}.")
    return False


def _unknown(key: Any, known: Sequence[str], where: str) -> str:
    name = shown(key, str)
    hint = suggest(name, known) or f" Known: {', '.join(sorted(known))}."
    return f'unknown key "{_join(where, name)}".{hint}'


def _join(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key


_hints = functools.cache(typing.get_type_hints)
"""Looking them up takes longer than checking a value against them."""


def _build(cls: type, values: Any, where: str, problems: ProblemList) -> Any:
    if not _is_section(values, where, problems):
        return None
    hints = _hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
    found_before = len(problems.problems)
    arguments = {}
    for key, value in values.items():
        if key not in fields:
            problems.add(_unknown(key, list(fields), where))
        else:
            hint = hints[key]
            if issubclass(cls, Checked) and typing.get_origin(hint) is typing.Literal:
                hint = type(typing.get_args(hint)[0])  # the class itself says which values there are
            arguments[key] = _convert(value, hint, _join(where, key), problems)
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in values:
            problems.add(f'"{_join(where, name)}" is missing.')
    if len(problems.problems) > found_before:
        return None
    try:
        return cls(**arguments)
    except (ValueError, TypeError) as error:  # a check in __post_init__
        problems.add(f"{where}: {error}" if where else str(error))
        return None


def _convert(value: Any, hint: Any, where: str, problems: ProblemList) -> Any:
    converted, ok = _try_convert(value, hint, where, problems)
    if not ok:
        place = f'"{where}"' if where else "the whole"
        problems.add(f"{place} must be {describe_type(hint)}, got {shown(value)}.")
    return converted


def _try_convert(value: Any, hint: Any, where: str, problems: ProblemList) -> tuple[Any, bool]:
    """Return (converted value, whether it fitted); deeper problems are added to `problems`."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any or isinstance(hint, TypeVar):
        return value, True
    if origin is typing.Annotated:
        return _try_annotated(value, hint, where, problems)
    if typing.is_typeddict(hint):
        return _check_record(hint, value, where, problems)
    if origin is typing.Literal:
        return value, any(value == option and type(value) is type(option) for option in arguments)
    if origin in (typing.Union, types.UnionType):
        return _convert_union(value, arguments, where, problems)
    if hint is None or hint is type(None):
        return value, value is None
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return (value, True) if isinstance(value, hint) else (_build(hint, value, where, problems), True)
    container = origin or hint
    if container in (list, tuple, set, frozenset, Sequence):
        return _convert_sequence(value, container, arguments, where, problems)
    if container in (dict, Mapping):
        if not isinstance(value, Mapping):
            return value, False
        key_hint, value_hint = arguments or (Any, Any)
        return {
            _convert(key, key_hint, where, problems): _convert(
                item, value_hint, _join(where, shown(key, str)), problems
            )
            for key, item in value.items()
        }, True
    return _convert_scalar(value, hint)


def _try_annotated(value: Any, hint: Any, where: str, problems: ProblemList) -> tuple[Any, bool]:
    """As `_try_convert`, with the checks of `config.checks`; fields of dataclasses come without them."""
    converted, ok = _try_convert(value, hint.__origin__, where, problems)
    try:
        for check in hint.__metadata__ if ok else ():
            check(where, converted)
    except ConfigError as error:
        problems.add(str(error))
    return converted, ok


def _check_record(shape: Any, value: Any, where: str, problems: ProblemList) -> tuple[Any, bool]:
    """Check a dictionary against a `TypedDict`; keys that it does not name pass."""
    if not isinstance(value, Mapping):
        return value, False
    for key, hint in _hints(shape, include_extras=True).items():
        if key in value:
            _convert(value[key], hint, _join(where, key), problems)
        elif key in shape.__required_keys__:
            problems.add(f'"{_join(where, key)}" is missing.')
    return value, True


def _convert_scalar(value: Any, hint: Any) -> tuple[Any, bool]:
    if hint is int and isinstance(value, float) and value.is_integer():
        return int(value), True  # 1e3 in a file is meant as a count
    if hint in (int, float) and isinstance(value, bool):
        return value, False
    if hint is float and isinstance(value, int):
        return (float(value), True) if abs(value) < MOST else (value, False)
    if hint is float and isinstance(value, float):
        return value, not math.isnan(value)
    if hint is Path:
        return (Path(value), True) if isinstance(value, (str, Path)) else (value, False)
    return value, isinstance(value, hint) if isinstance(hint, type) else True


def _convert_union(value: Any, options: Sequence[Any], where: str, problems: ProblemList) -> tuple[Any, bool]:
    if value is None and type(None) in options:
        return None, True
    # An exact match first: 3 in `float | int` stays a whole number, and "auto" in `int | str` a word.
    for option in sorted(options, key=lambda option: option is not type(value)):
        trial = ProblemList("", ConfigError)
        converted, ok = _try_convert(value, option, where, trial)
        if ok and not trial.problems:
            return converted, True
        if trial.problems and isinstance(value, Mapping):
            problems.problems.extend(trial.problems)
            return None, True  # a section with a mistake inside: say that, not "wrong type"
    return value, False


def _convert_sequence(
    value: Any, container: Any, arguments: Sequence[Any], where: str, problems: ProblemList
) -> tuple[Any, bool]:
    if isinstance(value, str) or not isinstance(value, (list, tuple, set, frozenset)):
        return value, False
    items = list(value)
    if container is tuple and arguments and arguments[-1] is not Ellipsis:
        if len(items) != len(arguments):
            return value, False
        hints = list(arguments)
    else:
        hints = [arguments[0] if arguments else Any] * len(items)
    converted = [
        _convert(item, hint, f"{where}[{i}]", problems)
        for i, (item, hint) in enumerate(zip(items, hints, strict=True))
    ]
    return (converted if container is Sequence else container(converted)), True


def problems_of(value: Any, hint: Any, where: str = "") -> list[str]:
    """Return what is wrong with a value that should be what a type hint asks for.

    >>> problems_of({"a": [1, 2.5]}, dict[str, list[int]])
    ['"a[1]" must be a whole number, got 2.5.']
    """
    problems = ProblemList("", ConfigError)
    _convert(value, hint, where, problems)
    return problems.problems


def fits(value: Any, hint: Any) -> tuple[Any, bool]:
    """Return a value as what a type hint asks for, and whether it fits.

    >>> fits(3, float), fits("three", int | None)
    ((3.0, True), ('three', False))
    """
    problems = ProblemList("", ConfigError)
    converted, ok = _try_convert(value, hint, "", problems)
    return converted, ok and not problems.problems


def describe_type(hint: Any) -> str:
    """Return what a type hint asks for, in plain words.

    >>> describe_type(int | None)
    'a whole number or null'
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return describe_type(arguments[0])
    if origin is typing.Literal:
        return "one of " + ", ".join(repr(option) for option in arguments)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(describe_type(option) for option in arguments)
    names = {
        bool: "true or false",
        int: "a whole number",
        float: "a number",
        str: "a text",
        type(None): "null",
        Path: "a path",
    }
    if hint in names:
        return names[hint]
    container = origin or hint
    if container in (list, tuple, set, frozenset, Sequence):
        if container is tuple and arguments and arguments[-1] is not Ellipsis:
            return f"a list of {len(arguments)} values"
        return f"a list of values, each {describe_type(arguments[0])}" if arguments else "a list"
    if container in (dict, Mapping) or typing.is_typeddict(hint):
        return "a section of keys and values"
    return getattr(hint, "__name__", str(hint))


def shown(value: Any, text_of: Callable[[Any], str] = repr, most: int = 60) -> str:
    """Return a value for a message, in at most `most` characters."""
    try:
        text = text_of(value)
    except ValueError:  # Python writes no whole number of thousands of digits
        text = "a number of thousands of digits"
    return text if len(text) <= most else text[: most - 3] + "..."
