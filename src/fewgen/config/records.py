"""Records that commands keep as JSON: read, and checked against the shape that their reader relies on.

People edit such files, and other programs write them. A reader that names what it needs, as a `TypedDict`,
gets just that, or one error that names the file and the places in it that are wrong.
"""

from __future__ import annotations

import os
from typing import TypeVar, cast

from fewgen.config.schema import problems_of
from fewgen.errors import DataError, FewgenError, ProblemList
from fewgen.files import parse_json, read_json

T = TypeVar("T")


def checked(
    value: object, shape: type[T], what: str, error: type[FewgenError] = DataError, advice: str = ""
) -> T:
    """Return a value as it is, if it has the shape that a type says.

    Args:
        value: of JSON or YAML.
        shape: a type such as ``dict[str, list[float]]``, or a `TypedDict`; keys that it does not name pass.
        what: it is, for the message.
        error: what to raise.
        advice: the next step, a sentence.

    Raises:
        FewgenError: of the type `error`; lists what is wrong.
    """
    problems = ProblemList(f"{what} is damaged", error, limit=5)
    for problem in problems_of(value, shape):
        problems.add(f"{problem} {advice}".strip())
    problems.raise_if_any()
    return cast(T, value)


def read_record(
    path: str | os.PathLike[str], shape: type[T], error: type[FewgenError] = DataError, advice: str = ""
) -> T:
    """Return what a JSON file holds, if it has the shape that a type says; see `checked`.

    Raises:
        FewgenError: of the type `error`; the file is missing, no JSON, or of another shape.
    """
    return checked(read_json(path, error, advice), shape, f'"{path}"', error, advice)


def parse_record(text: str, shape: type[T], what: str = "the whole") -> T:
    """Return what a JSON text holds, if it has the shape that a type says.

    Raises:
        ValueError: what is wrong with it, in one line.
    """
    value = parse_json(text)
    if problems := problems_of(value, shape):
        raise ValueError(f"{what}: {'; '.join(problems[:3])}")
    return cast(T, value)
