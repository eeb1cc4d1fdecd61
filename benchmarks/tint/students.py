"""Accuracy of the classifiers that learn from made images."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.ablation import Column
from benchmarks.tint.making import made
from benchmarks.tint.models import base_folder, prepared_folder
from benchmarks.tint.settings import Row, of_row
from benchmarks.tint.tasks import Task, images_of
from fewgen.config.schema import from_dict
from fewgen.diffusion.settings import SpecialiseConfig
from fewgen.distillation.competitors import KIND_OF
from fewgen.distillation.knowledge import DistillConfig
from fewgen.files import read_json

COLUMNS: tuple[Column, ...] = (
    ("teacher agrees with synthetic classes %", "teacher_agrees", 100, 1),
    ("training s", "train_seconds", 1, 0),
)


def student_figures(task: Task, row: Row) -> dict[str, Any]:
    """Return the accuracy of a competitor on a task, computed by the comparison of `fewgen distill`."""
    from fewgen.distillation.protocol import Job, Prepared, run_episode, some_base
    from fewgen.distillation.protocol import Question as Compared
    from fewgen.runs.pipeline import load_pipeline

    settings, data = task.settings, task.data
    own = of_row(data, row, settings)
    compared = Compared(
        n_way=task.n_way,
        n_shot=task.shots,
        n_query=task.n_query,
        per_class=own["per_class"],
        alpha=float(own["alpha"]),
        seed=0,
        tint=from_dict(SpecialiseConfig, own["tint"]),
        training=from_dict(DistillConfig, own["training"]),
    )
    prepared = prepared_folder(data, settings)
    kind = KIND_OF.get(row.what)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if kind is not None:
            _, _, where = made(task, kind, own)
            for file in (f"{kind}.npz", f"{kind}.images.json"):
                shutil.copyfile(where / file, folder / file)
        base = images_of(data, settings).base
        given = Prepared(
            some_base(base, own["base_images"], 0),
            base.subset([]),
            str(prepared / f"{own['teacher']}.safetensors"),
            str(prepared / "student.safetensors"),
            str(base_folder(data, settings)),
            load_pipeline,
        )
        job = Job(compared, task.episode, given, folder, (row.what,), progress=False)
        run_episode(job)
        found = read_json(folder / f"{row.what}.json")
    about = found["about"].get("teacher", {})
    return {
        "accuracy": found["accuracy"],
        "queries": found["queries"],
        "teacher_agrees": about.get("synthetic"),
        "train_seconds": found["seconds"] or None,
    }
