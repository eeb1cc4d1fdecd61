"""What pages and cards are rendered with: templates, faults that stay in their section, values as text.

A page is one file: no scripts, nothing from outside, all text escaped, readable on a phone, in light and
dark. Style, frame and pieces stand in `templates/`.
"""

from __future__ import annotations

import base64
import functools
import io
import platform
import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from fewgen.errors import in_words
from fewgen.version import __version__

if TYPE_CHECKING:
    from jinja2 import Environment
    from PIL.Image import Image

    from fewgen.evaluation.statistics import Share


@functools.cache
def environment(markdown: bool = False) -> Environment:
    """Return what renders the templates: what a template prints is text, unless it says `safe`.

    Args:
        markdown: escape for Markdown instead of HTML.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    made = Environment(
        loader=PackageLoader("fewgen.report"),
        autoescape=not markdown,
        finalize=(lambda x: x if isinstance(x, Markup) else plain(str(x))) if markdown else None,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.globals["attempt"] = attempt
    made.filters.update(
        counted=counted,
        image=data_url,
        listed=listed,
        line=lambda text: Markup(one_line(text)),
        percent=lambda share: f"{share:.0%}",
        plain=lambda text: Markup(plain(text)),
        quote=lambda word: shlex.quote(str(word)),
        settings=settings,
        share=share_text,
        span=span,
    )
    return made


def render(template: str, **values: Any) -> str:
    """Return a page or a card.

    Args:
        template: file in `templates/`; one that ends in `.md.jinja` is Markdown, any other HTML.
        values: what it shows.
    """
    return environment(template.endswith(".md.jinja")).get_template(template).render(**values)


def attempt(make: Callable[[], str]) -> tuple[str, str]:
    """Return what is made and no fault, or nothing and the fault.

    A fault in one section must not cost the others, least of all after hours of training.
    """
    try:
        return make(), ""
    except Exception as error:
        return "", in_words(error)


def versions() -> str:
    """Return what makes a page, with versions."""
    return f"fewgen {__version__}, torch {torch.__version__}, Python {platform.python_version()}"


# ---------------------------------------------------------------------------------------- values as text


def data_url(picture: Image | bytes) -> str:
    """Return a picture, or the bytes of a PNG file, as an address that holds the PNG itself."""
    if not isinstance(picture, bytes):
        buffer = io.BytesIO()
        picture.save(buffer, format="PNG", optimize=True)
        picture = buffer.getvalue()
    return "data:image/png;base64," + base64.b64encode(picture).decode("ascii")


def settings(values: Mapping[str, Any], where: str = "") -> list[tuple[str, str]]:
    """Return nested settings as (name with dots, value as a reader would write it).

    >>> settings({"a": {"b": True, "c": [1, None]}, "d": {}})
    [('a.b', 'yes'), ('a.c', '1, -'), ('d', '{}')]
    """
    rows: list[tuple[str, str]] = []
    for key, value in values.items():
        name = f"{where}{key}"
        if isinstance(value, Mapping) and value:
            rows += settings(value, f"{name}.")
        else:
            rows.append((name, _shown(value)))
    return rows


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(_shown(item) for item in value)
    return str(value)


def counted(n: int, what: str) -> str:
    """Return a number of things.

    >>> counted(1, "image"), counted(3, "image")
    ('1 image', '3 images')
    """
    return f"{n} {what}" + ("" if n == 1 else "s")


def listed(names: Iterable[str]) -> str:
    """Return names in quotation marks.

    >>> listed(["cat", "dog"])
    '"cat", "dog"'
    """
    return ", ".join(f'"{name}"' for name in names)


def share_text(share: Share) -> str:
    """Return a share with its interval, in words."""
    return f"{share.value:.0%} ({share.low:.0%} to {share.high:.0%})"


def span(counts: Sequence[int]) -> str:
    """Return the smallest and the largest of some counts.

    >>> span([3, 3]), span([5, 2])
    ('3', '2 to 5')
    """
    low, high = min(counts), max(counts)
    return str(low) if low == high else f"{low} to {high}"


def plain(text: str) -> str:
    r"""Return text that Markdown shows as it is, also in a cell of a table.

    >>> print(plain("cada_vqvae | <b> _x_"))
    cada_vqvae \| \<b\> \_x\_
    """
    # An underscore within a word means nothing, and names are full of them.
    return re.sub(r"[\\`*{}\[\]<>#|]|(?<![^\W_])_|_(?![^\W_])", r"\\\g<0>", " ".join(text.split()))


def one_line(command: str) -> str:
    """Return a command on one line, so that nothing in it can end the block of code around it."""
    return " ".join(command.splitlines())
