"""Seconds of a task's images, split into the parts of the published table."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.ablation import Column
from benchmarks.tint.making import synthesis
from benchmarks.tint.models import pipe_of
from benchmarks.tint.settings import Row, of_row
from benchmarks.tint.tasks import Task
from fewgen.distillation.summary import PARTS, time_report

COLUMNS: tuple[Column, ...] = (
    ("images", "images", 1, 0),
    *((f"{part}, s", part, 1, 4) for part in (*PARTS, "total")),
    ("minutes for all images", "minutes", 1, 1),
)


def cost_figures(task: Task, row: Row) -> dict[str, Any]:
    """Return seconds per image of a task that nothing is known of yet."""
    own = of_row(task.data, row, task.settings)
    pipe_of(task.data, task.settings)
    with tempfile.TemporaryDirectory() as name:
        source = synthesis(task, own["tint"], Path(name), own["per_class"], 1.0)
        started = time.perf_counter()
        images = source.images("tint")
        took = time.perf_counter() - started
        report = time_report(
            [{"specialised": source.seconds(), "synthetic": source.generation, "distilled": {}}]
        )
    return {"images": len(images), **report["per_image"], "minutes": took / 60}
