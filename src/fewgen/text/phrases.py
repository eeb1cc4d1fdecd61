"""Class names as people write them, taken apart into phrases that an encoder understands."""

from __future__ import annotations

import re

from fewgen.errors import TextError


def split_phrases(text: str) -> list[str]:
    """Phrases that a class name lists, in lower case.

    Slash, comma, semicolon and bar separate phrases; an underscore counts as a space. A hyphen stays.

    Args:
        text: a class name or a description.

    Raises:
        TextError: if nothing is left.

    >>> split_phrases("T-shirt/top")
    ['t-shirt', 'top']
    >>> split_phrases("Ankle boot")
    ['ankle boot']
    >>> split_phrases("goldfish, Carassius auratus")
    ['goldfish', 'carassius auratus']
    """
    parts = (" ".join(part.replace("_", " ").split()).lower() for part in re.split(r"[/,;|]", text))
    phrases = list(dict.fromkeys(part for part in parts if part))
    if not phrases:
        raise TextError(f'The text "{text}" contains no word. Give a word or a phrase.')
    return phrases
