"""What every page of ours is made of: one style, one frame, sections, figures and tables.

A page is one file: no scripts, nothing from outside, all text escaped, readable on a phone, in light and
dark.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Image

STYLE = """
:root { color-scheme: light dark; --ink: #1c1c1e; --soft: #60646c; --paper: #ffffff; --card: #f5f5f4;
  --line: #dddddb; --warn: #fff3d6; --warn-ink: #6b4a00; }
@media (prefers-color-scheme: dark) { :root { --ink: #ececec; --soft: #a5a9b0; --paper: #17181a;
  --card: #222427; --line: #383b40; --warn: #43370f; --warn-ink: #ffe3a0; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 60rem; padding: 1rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: break-word; }
h1 { font-size: 1.6rem; margin: .5rem 0 0; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .4rem; }
p { margin: .4rem 0; } .soft { color: var(--soft); font-size: .9rem; }
figure { margin: .6rem 0; padding: .5rem; background: #fff; border: 1px solid var(--line);
  border-radius: .4rem; overflow-x: auto; }
figure img { display: block; max-width: 100%; height: auto; margin: 0 auto; }
figure img.pixels { image-rendering: pixelated; }
figcaption { color: var(--soft); font-size: .85rem; margin: 0 0 .6rem; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; }
td, th { text-align: left; vertical-align: top; padding: .25rem .6rem .25rem 0;
  border-bottom: 1px solid var(--line); }
.wide { overflow-x: auto; } .warn { background: var(--warn); color: var(--warn-ink);
  padding: .5rem .8rem; border-radius: .4rem; margin: .6rem 0; }
pre { background: var(--card); padding: .6rem; border-radius: .4rem; overflow-x: auto; font-size: .82rem; }
details { margin: .4rem 0; } summary { cursor: pointer; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem .9rem; margin: .8rem 0; }
dt { color: var(--soft); } dd { margin: 0; }
h3 { font-size: 1rem; margin: 1.4rem 0 .3rem; }
.card { background: var(--card); padding: .6rem .9rem; border-radius: .4rem; margin: .6rem 0;
  border-left: .4rem solid var(--soft); }
.card.yes { border-color: #3a8f4d; } .card.partly { border-color: #c98a00; }
.card.no { border-color: #c03a2b; }
.answer { font-weight: 600; margin-left: .6rem; }
"""

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
"""The page needs nothing from outside, and says so to the browser."""


def page(title: str, body: str, made_by: str) -> str:
    """Return a whole page.

    Args:
        title: as text; it is escaped here.
        body: as HTML.
        made_by: versions, as text, for the last line.
    """
    return (
        "<!DOCTYPE html>\n"
        '<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        f"<title>{escape(title)} - fewgen</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        + body
        + f'<p class="soft">Made by {escape(made_by)}.</p>\n</body>\n</html>\n'
    )


def section(title: str, make: Callable[[], str], level: int = 2) -> str:
    """Return a section with its heading, or nothing if there is nothing to show.

    A fault in one section must not cost the others, least of all after hours of training.

    Args:
        title: as text.
        make: returns the section as HTML.
        level: of the heading, 2 or 3.
    """
    try:
        body = make()
    except Exception as error:
        body = warning(f"This section could not be made: {type(error).__name__}: {error}")
    return f"<h{level}>{escape(title)}</h{level}>\n{body}" if body else ""


def warning(text: str) -> str:
    """Return a paragraph that stands out; the text is escaped here."""
    return f'<p class="warn">{escape(text)}</p>\n'


def png(picture: Image) -> bytes:
    """Return a picture as the bytes of a PNG file."""
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def figure(picture: bytes, alt: str, caption: str, pixels: bool = False) -> str:
    """Return a PNG inside the page, with a caption below it.

    Args:
        picture: bytes of a PNG file.
        alt: what it shows, for those who cannot see it.
        caption: as text.
        pixels: whether the picture is made of pixels that must not be smoothed.
    """
    data = base64.b64encode(picture).decode("ascii")
    kind = ' class="pixels"' if pixels else ""
    text = f"<figcaption>{escape(caption)}</figcaption>\n" if caption else ""
    image = f'<img{kind} alt="{escape(alt, quote=True)}" src="data:image/png;base64,{data}">'
    return f"<figure>{image}</figure>\n{text}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table; all cells are text."""
    cells = "".join(f"<th>{escape(name)}</th>" for name in head)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table><tr>{cells}</tr>{body}</table></div>\n'


def folded(summary: str, body: str) -> str:
    """Return something to open with a click: a line of text, and HTML below it."""
    return f"<details><summary>{escape(summary)}</summary>{body}</details>\n"


def flat(values: Mapping[str, Any], where: str = "") -> list[tuple[str, Any]]:
    """Return nested settings as (name with dots, value)."""
    rows: list[tuple[str, Any]] = []
    for key, value in values.items():
        name = f"{where}{key}"
        if isinstance(value, Mapping) and value:
            rows += flat(value, f"{name}.")
        else:
            rows.append((name, value))
    return rows


def shown(value: Any) -> str:
    """Return a setting as a reader would write it."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(shown(item) for item in value)
    return str(value)
