"""Names of classes: which are the same, and which cannot be one."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from fewgen.errors import ProblemList


def name_key(name: str) -> str:
    """Return the form under which two class names count as the same: case and Unicode form ignored."""
    return unicodedata.normalize("NFC", name).casefold()


def name_labels(names: Sequence[str]) -> dict[str, int]:
    """Return `name_key` -> label, by which every name is looked up; of equal names the first counts."""
    return {name_key(name): label for label, name in reversed(list(enumerate(names)))}


def unprintable(text: str) -> bool:
    r"""Tell whether a text has control characters, line breaks, or bytes that are no UTF-8 (surrogates).

    >>> unprintable("big\ncat"), unprintable("caf\udce9"), unprintable("Ankle boot")
    (True, True, False)
    """
    return any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in text)


def check_class_names(
    class_names: Sequence[str], problems: ProblemList, places: Sequence[str] | None = None
) -> None:
    """Add a problem for each name that cannot be one, and each pair that differs at most by case.

    Args:
        class_names: the names.
        problems: where they go.
        places: what to call a name in a message that has control characters, such as its folder.
    """
    seen: dict[str, str] = {}
    for i, name in enumerate(class_names):
        if not isinstance(name, str):
            problems.add(f"class names must be text, got {name!r}; put it in quotes")
            continue
        if not name.strip():
            problems.add("a class name is empty")
            continue
        if unprintable(name):
            problems.add(
                f"the class name {(places[i] if places else name)!r} has control characters, such as a line "
                "break, or is not UTF-8 text; rename it"
            )
        key = name_key(name)
        if key not in seen:
            seen[key] = name
        elif seen[key] == name:
            problems.add(f'the class name "{name}" appears twice')
        else:
            accents = unicodedata.normalize("NFC", seen[key]) == unicodedata.normalize("NFC", name)
            how = "in how accents are encoded" if accents else "by case"
            problems.add(
                f'the class names "{seen[key]}" and "{name}" differ only {how}; rename or merge them'
            )
