"""The benchmark as one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fewgen.comparison.summary import HEADINGS, table_rows
from fewgen.report.page import render


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
    return render(
        "benchmark.html.jinja",
        title=f"Benchmark: {record['settings']['data']}, {record['settings']['shots']} images per class",
        record=record,
        table=lambda: (HEADINGS, table_rows(record["summary"])),
        notes=notes,
        plot=plot,
        pictures={name: path for name, path in pictures.items() if path.is_file()},
        versions=f"fewgen {record['fewgen']}, torch {record['environment']['versions']['torch']}",
    )
