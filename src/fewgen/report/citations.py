"""BibTeX of what a run used; the entries stand in `citations.bib`."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from importlib import resources


@functools.cache
def entries() -> dict[str, str]:
    """Return citation key -> BibTeX, one entry or several."""
    text = resources.files("fewgen.report").joinpath("citations.bib").read_text(encoding="utf-8")
    _, *parts = re.split(r"^% (\S+)\n", text, flags=re.MULTILINE)
    return {key: entry.strip() for key, entry in zip(parts[::2], parts[1::2], strict=True)}


def bibtex(keys: Iterable[str]) -> str:
    """Return the BibTeX of `keys`, ready to paste; a key without an entry is left out.

    Methods of other packages give BibTeX itself in place of a key.
    """
    from fewgen.version import __version__

    known = entries()
    found = [
        known.get(key, key).replace("VERSION", __version__) for key in keys if key in known or key[:1] == "@"
    ]
    return "\n\n".join(found) + "\n"
