"""What each part of TINT contributes: inversion, images, and accuracy of the students that learn from them.

Examples:
    python -m benchmarks tint_ablation --base fashion_mnist=runs/fm omniglot=runs/om --jobs 2
    python -m benchmarks tint_ablation --only students --data omniglot --episodes 20 --docs ""
    python -m benchmarks tint_ablation --part novel --only inversion images students
    python -m benchmarks tint_ablation --table-only

A task is an episode: classes that the diffusion model has never seen, five supports of each, and other real
images of these classes. Task s is the same for every row and question, so differences are paired. Settings
are chosen on validation classes (--part val, the default); --part novel is for final numbers.

Every cell (data set, row and task) is one JSON file under --out; a cell that is there is not computed again,
so a stopped benchmark continues with the same command. What is learned of a task's classes, and images that
several rows share, are kept under --out as well. The tables are also written into --docs, between two
markers; text outside them stays.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.ablation import Grid, add_places, add_rows, command_parser, publish, refuse, spread
from benchmarks.tint.cells import TIMED, Cell, asked, run_cells, wanted_cells
from benchmarks.tint.models import check_base, prepare, train_base
from benchmarks.tint.questions import GROUPS, TABLES, Table
from benchmarks.tint.settings import BASE, IMAGES, PART_NAMES, Settings
from benchmarks.tint.tables import Cells, provenance, render
from benchmarks.tint.tasks import images_of, judge_of, n_way_of
from fewgen.distillation.competitors import KIND_OF
from fewgen.errors import FewgenError

PAGE = "docs/results/tint.md"
MARKERS = ("<!-- tint ablation: begin -->", "<!-- tint ablation: end -->")


def _arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = command_parser("tint_ablation", __doc__)
    add = parser.add_argument
    keys = [*GROUPS, *(table.key for table in TABLES if table.key not in GROUPS)]
    add("--data", nargs="+", default=None, choices=IMAGES, help="by default all but digits")
    add_rows(parser, keys, "these groups of tables, or tables, only")
    add(
        "--part",
        choices=tuple(PART_NAMES),
        default="val",
        help="classes of the tasks; val to choose settings",
    )
    add(
        "--base",
        nargs="+",
        default=[],
        metavar="DATA=RUN",
        help="finished runs of diffusion; RUN for one data set",
    )
    add("--base-minutes", type=float, default=None, help="limit on the training of a missing one")
    add("--seeds", type=int, default=3, help="tasks of inversion, images and cost")
    add("--episodes", type=int, default=10, help="tasks of students")
    add("--per-class", type=int, default=None, help=f"synthetic images, {BASE['per_class']} by default")
    add("--student-steps", type=int, default=None, help=f"{BASE['training']['steps']} by default")
    add(
        "--student-channels", type=int, default=None, help=f"{BASE['prepare']['student_channels']} by default"
    )
    add("--teacher-episodes", type=int, default=None, help="as the number of base classes wants by default")
    add("--jobs", type=int, default=2, help="tasks at a time, one thread each; costs are measured alone")
    add_places(
        parser,
        "runs/tint_ablation",
        None,
        kept="folder of the cells and of what they share",
        page=f'page that gets the tables, {PAGE} by default; "" for none',
    )
    add("--quick", action="store_true", help="digits, few steps, few rows: tries the benchmark")
    options = parser.parse_args(arguments)
    counts = (
        "seeds",
        "episodes",
        "per_class",
        "student_steps",
        "student_channels",
        "teacher_episodes",
        "jobs",
    )
    for name in counts:
        value = getattr(options, name)
        if value is not None and value < (2 if name == "per_class" else 1):
            parser.error(f"--{name.replace('_', '-')} is too small: {value}")
    if options.quick:
        options.data = options.data or ["digits"]
        options.seeds, options.episodes = 1, 2
        options.docs = options.docs or ""
    options.docs = PAGE if options.docs is None else options.docs
    options.data = options.data or [name for name in IMAGES if name != "digits"]
    options.base = _bases(parser, options.base, options.data)
    return options


def _bases(parser: argparse.ArgumentParser, given: Sequence[str], data: Sequence[str]) -> dict[str, str]:
    """Return data set -> run."""
    found = {}
    for text in given:
        name, sign, path = text.partition("=")
        if sign and name in IMAGES:
            found[name] = path
        elif len(data) == 1 and len(given) == 1:
            found[data[0]] = text
        else:
            parser.error(f"--base takes DATA=RUN, and several data sets need it so: got {text}")
    return found


def chosen_tables(options: argparse.Namespace) -> list[Table]:
    """Return the tables that are asked for, each with the data sets that were asked for."""
    found = []
    for table in TABLES:
        data = tuple(name for name in options.data if name in table.data)
        data = ("simulation",) if table.group == "theorem1" else data
        names = {table.key} if table.by_name else {table.key, table.group}
        named = not table.by_name if options.only is None else bool(names & set(options.only))
        if data and named:
            rows = table.rows[:1] + table.rows[-2:] if options.quick and len(table.rows) > 3 else table.rows
            found.append(replace(table, data=data, rows=rows))
    return found


def without_tasks(tables: Sequence[Table], settings: Settings) -> tuple[list[Table], list[str]]:
    """Return the tables without students where a single class leaves nothing to tell apart, and notes."""
    notes, found = [], []
    for table in tables:
        data = []
        for name in table.data:
            if table.group == "students" and n_way_of(images_of(name, settings).part) < 2:
                notes.append(
                    f"{name} has one {PART_NAMES[settings.part][:-2]}: no students; see --part novel."
                )
            else:
                data.append(name)
        if data:
            found.append(replace(table, data=tuple(data)))
    return found, list(dict.fromkeys(notes))


def _changes(options: argparse.Namespace) -> str:
    """Return what the command changes of `BASE`, as JSON."""
    found: dict[str, Any] = {}
    if options.per_class is not None:
        found["per_class"] = options.per_class
    if options.student_steps is not None:
        found["training"] = {"steps": options.student_steps}
    prepare = {
        key: value
        for key, value in (
            ("student_channels", options.student_channels),
            ("teacher_episodes", options.teacher_episodes),
        )
        if value is not None
    }
    if prepare:
        found["prepare"] = prepare
    return json.dumps(found, sort_keys=True)


def _needs_base(cell: Cell) -> bool:
    return cell.group != "theorem1" and (cell.group != "students" or cell.row.what in KIND_OF)


def get_ready(cells: Sequence[Cell], settings: Settings, minutes: float | None) -> None:
    """Train once what several cells need: diffusion models, judges, teachers and students."""
    for data in dict.fromkeys(cell.data for cell in cells if cell.data != "simulation"):
        own = [cell for cell in cells if cell.data == data]
        print(f"{data}: models ...", flush=True)
        if any(_needs_base(cell) for cell in own):
            train_base(data, settings, minutes)
            check_base(data, settings)
        if any(cell.group == "images" for cell in own):
            judge_of(data, settings)
        if any(cell.group == "students" for cell in own):
            prepare(data, settings)


def together(
    cells: Sequence[tuple[Cell, Path]],
) -> tuple[list[list[tuple[Cell, Path]]], list[list[tuple[Cell, Path]]]]:
    """Return cells task by task, as they share what is learned of its classes: most; those timed alone."""
    found: dict[bool, dict[tuple[int, str], list[tuple[Cell, Path]]]] = {False: {}, True: {}}
    for cell, path in cells:
        found[cell.group in TIMED].setdefault((cell.seed, cell.data), []).append((cell, path))
    return list(found[False].values()), list(found[True].values())


def main(arguments: list[str] | None = None) -> int:
    """Compute the missing cells, print the tables and write them into the page."""
    options = _arguments(arguments)
    settings = Settings(
        out=options.out,
        part=options.part,
        base=tuple(sorted(options.base.items())),
        changes=_changes(options),
        quick=options.quick,
        data_dir=options.data_dir,
    )
    try:
        tables, notes = without_tasks(chosen_tables(options), settings)
        for note in notes:
            print(f"note: {note}", flush=True)
        if not tables:
            return refuse("none of these tables is about these data sets.")
        wanted = wanted_cells(tables, options.seeds, options.episodes, settings)
        grid = Grid(
            {key: cell.row.name for key, cell in wanted.items()},
            {key: Path(options.out) / "cells" / key[1] / f"task{key[2]}.json" for key in wanted},
            lambda key: asked(wanted[key].data, wanted[key].group, wanted[key].row, settings),
        )
        grid.check()
        todo = [] if options.table_only else grid.missing(options.rows)
        get_ready([wanted[key] for key in todo], settings, options.base_minutes)
        grid.check()  # again, now that every model is there
    except FewgenError as error:
        return refuse(error)
    failed: list[str | None] = []
    if todo:
        print(f"{len(todo)} of {len(wanted)} cells to compute, {options.jobs} tasks at a time", flush=True)
        shared, alone = together([(wanted[key], grid.paths[key]) for key in todo])
        for jobs, tasks in ((options.jobs, shared), (1, alone)):
            for problems in spread(run_cells, [(cells, settings) for cells in tasks], jobs):
                failed += problems

    def section(cells: Cells) -> str:
        shown = [render(table, data, cells, settings) for table in tables for data in table.data]
        return "\n\n".join([*shown, provenance(cells, settings)])

    status = publish(grid, section, options.docs, MARKERS, "TINT: results")
    return 2 if any(failed) else status


if __name__ == "__main__":
    sys.exit(main())
