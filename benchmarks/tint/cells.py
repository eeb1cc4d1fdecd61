"""Cells: what each is about, where it lies, and its figures."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.ablation import cell_folder, finish_cell, flat
from benchmarks.tint.cost import cost_figures
from benchmarks.tint.images import image_figures
from benchmarks.tint.inversion import inversion_figures
from benchmarks.tint.memory import memory_figures
from benchmarks.tint.models import base_id
from benchmarks.tint.questions import Table
from benchmarks.tint.settings import DATA, DEFAULT, Row, Settings, of_row, repeats_of
from benchmarks.tint.students import student_figures
from benchmarks.tint.tasks import Task, judge_of, task_of
from benchmarks.tint.theorem1 import theorem_figures
from fewgen.distillation.competitors import KIND_OF
from fewgen.runs.environment import environment

FIGURES: dict[str, Callable[[Task, Row], dict[str, Any]]] = {
    "inversion": inversion_figures,
    "images": image_figures,
    "students": student_figures,
    "cost": cost_figures,
    "memory": memory_figures,
}

TIMED = ("cost", "memory")
"""Groups whose cells are computed alone."""


Key = tuple[str, str, int]
"""Data set, cell name, task."""


NEEDS = {
    "inversion": ("tint",),
    "images": ("tint", "alpha", "per_class"),
    "students": ("tint", "alpha", "per_class", "training", "teacher", "prepare", "base_images", "shots"),
    "cost": ("tint", "per_class"),
    "memory": ("tint", "supports"),
}
"""Which settings the cells of a group depend on."""


@dataclass(frozen=True)
class Cell:
    """What is to be computed.

    Attributes:
        data: set.
        group: of `FIGURES`, or theorem1.
        row: of a table.
        seed: number of the task.
    """

    data: str
    group: str
    row: Row
    seed: int


def asked(data: str, group: str, row: Row, settings: Settings) -> dict[str, Any]:
    """Return what a cell is about, to compare with a finished one."""
    if group == "theorem1":
        return {"question": group, "repeats": repeats_of(settings), **row.settings}
    found = of_row(data, row, settings)
    about: dict[str, Any] = {
        "question": group,
        "data": data,
        "part": settings.part,
        "class_split": DATA[data]["class_split"],
        "shots": settings.shots,
        "queries": settings.queries,
        "what": row.what,
        **flat({key: found[key] for key in NEEDS[group] if key in found}),
    }
    if group != "students" or row.what in KIND_OF:
        pipe = base_id(data, settings)
        about |= {} if pipe is None else {"base": pipe}
    return about


def cell_name(data: str, group: str, row: Row, settings: Settings) -> str:
    """Return the folder of a cell. What all rows share is left out: other values are refused.

    Rows with equal settings are one cell, whatever they are called.
    """
    if group == "theorem1":
        return f"{data}/{cell_folder({'question': group, **row.settings}, {'question': group})}"
    own, shared = of_row(data, row, settings), of_row(data, DEFAULT, settings)
    kept = {key: value for key, value in flat(own).items() if key.split(".")[0] in NEEDS[group]}
    usual = flat(shared)
    changed = {key: value for key, value in kept.items() if usual.get(key) != value}
    about = {"question": group, "part": settings.part, "what": row.what, **changed}
    return f"{data}/{cell_folder(about, {'part': settings.part, 'what': ''})}"


def wanted_cells(tables: Sequence[Table], seeds: int, episodes: int, settings: Settings) -> dict[Key, Cell]:
    """Return what is to be there, task by task and table by table: every row once before any row twice."""
    found: dict[Key, Cell] = {}
    for seed in range(max(seeds, episodes)):
        for table in tables:
            most = {"students": episodes, "theorem1": 1}.get(table.group, seeds)
            if table.key == "memory":
                most = 1
            if seed >= most:
                continue
            for data in table.data:
                group = table.work
                for row in table.rows:
                    key = data, cell_name(data, group, row, settings), seed
                    found.setdefault(key, Cell(data, group, row, seed))
                if table.group == "students" and not all(row.against for row in table.rows):
                    # Differences are taken to it.
                    key = data, cell_name(data, group, DEFAULT, settings), seed
                    found.setdefault(key, Cell(data, group, DEFAULT, seed))
    return found


def compute(cell: Cell, settings: Settings) -> dict[str, Any]:
    """Return the content of a cell's file."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    started, cpu = time.perf_counter(), time.process_time()
    about: dict[str, Any] = {}
    try:
        if cell.group == "theorem1":
            figures = theorem_figures(cell.row, cell.seed, repeats_of(settings))
        else:
            own = of_row(cell.data, cell.row, settings)
            task = task_of(cell.data, cell.seed, settings, own.get("shots"))
            figures = FIGURES[cell.group](task, cell.row)
            about = {"classes": list(task.episode.class_names), "queries": len(task.episode.query)}
        if cell.group == "images":
            record = judge_of(cell.data, settings).record()
            about["judge"] = {key: record.get(key) for key in ("key", "test_accuracy", "n_train")}
        elsewhere = figures.pop("cpu_seconds", 0.0)  # of a process of its own
        # Here, because the number of threads is part of it.
        where = environment()
    finally:
        torch.set_num_threads(before)
    return {
        "row": cell.row.name,
        "seed": cell.seed,
        "asked": asked(cell.data, cell.group, cell.row, settings),
        **about,
        "figures": figures,
        "seconds": round(time.perf_counter() - started, 1),
        "cpu_seconds": round(time.process_time() - cpu + elsewhere, 1),
        "environment": where,
    }


def run_cells(
    cells: Sequence[tuple[Cell, Path]], settings: Settings, command: tuple[int, str]
) -> list[str | None]:
    """Compute cells of one task, one after the other: they share what is learned of its classes.

    A plain function of plain arguments, so that any joblib backend can run it anywhere.
    """
    return [
        finish_cell(
            functools.partial(compute, cell, settings),
            f"{cell.data}, {cell.group}, {cell.row.name}, task {cell.seed}",
            path,
            command,
        )
        for cell, path in cells
    ]
