"""The benchmark as one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from fewgen.comparison.summary import HEADINGS, table_rows
from fewgen.report import page as parts


def render_benchmark(
    record: Mapping[str, Any], notes: Sequence[str], plot: bytes | None, pictures: Mapping[str, Path]
) -> str:
    """Return the page.

    Args:
        record: what benchmark.json holds.
        notes: below the table.
        plot: PNG of quality against copying, if there is one.
        pictures: generator -> a grid of its images.
    """
    environment = record["environment"]

    def comparison() -> str:
        text = parts.table(HEADINGS, table_rows(record["summary"]))
        return text + "".join(f'<p class="soft">{escape(note)}</p>\n' for note in notes)

    def trade() -> str:
        caption = "Bars: standard deviation over seeds. Good generators are low and at the left."
        return "" if plot is None else parts.figure(plot, "quality against copying", caption)

    def failed() -> str:
        return "".join(
            parts.warning(f"{cell['generator']}, seed {cell['seed']}: {cell['error']}")
            for cell in record["failed"]
        )

    def images() -> str:
        return "".join(
            parts.figure(path.read_bytes(), f"images of {name}", f"{name}: ten images of each class", True)
            for name, path in pictures.items()
            if path.is_file()
        )

    def settings() -> str:
        rows = [(key, parts.shown(value)) for key, value in parts.flat(record["settings"])]
        rows += [(key, parts.shown(value)) for key, value in parts.flat(environment)]
        return parts.table(("setting", "value"), rows)

    title = f"Benchmark: {record['settings']['data']}, {record['settings']['shots']} images per class"
    body = f"<h1>{escape(title)}</h1>\n" + "".join(
        parts.section(heading, make)
        for heading, make in (
            ("Generators side by side", comparison),
            ("What failed", failed),
            ("Quality against copying", trade),
            ("Images", images),
            ("Settings and machine", settings),
        )
    )
    return parts.page(title, body, f"fewgen {record['fewgen']}, torch {environment['versions']['torch']}")
