"""Tables of finished cells, and the sentences that say where the numbers come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.ablation import Column, figure_texts, known, made_by, markdown, shown_columns
from benchmarks.tint import cost, images, inversion, memory, students, theorem1
from benchmarks.tint.cells import Key, cell_name
from benchmarks.tint.questions import Table
from benchmarks.tint.settings import DEFAULT, PART_NAMES, WAYS, WEAK, Row, Settings, of_row, repeats_of
from fewgen.distillation.settings import PrepareConfig
from fewgen.distillation.summary import interval, paired

COLUMNS: dict[str, tuple[Column, ...]] = {
    "inversion": inversion.COLUMNS,
    "images": images.COLUMNS,
    "students": students.COLUMNS,
    "theorem1": theorem1.COLUMNS,
    "cost": cost.COLUMNS,
    "memory": memory.COLUMNS,
}
"""Figures of each kind of work that are shown."""


Cells = Mapping[Key, dict[str, Any]]


def cells_of(
    cells: Cells, data: str, table: Table, row: Row, settings: Settings
) -> dict[int, dict[str, Any]]:
    """Return task -> cell of a row."""
    name = cell_name(data, table.work, row, settings)
    return {seed: cell for (of, own, seed), cell in cells.items() if (of, own) == (data, name)}


def render(table: Table, data: str, cells: Cells, settings: Settings) -> str:
    """Return the Markdown of one question on one data set; rows without a finished cell show a dash."""
    found = [(row, cells_of(cells, data, table, row, settings)) for row in table.rows]
    about = "" if data == "simulation" else f": {data}, {PART_NAMES[settings.part]}"
    task = next((cell for _, own in found for cell in own.values() if "classes" in cell), None)
    if task is not None:
        about += f", {len(task['classes'])} classes, {task['queries']} queries"
    lines = [f"### {table.asks}{about}", "", table.shows, ""]
    if table.group == "students":
        default = cells_of(cells, data, table, DEFAULT, settings)
        return "\n".join(lines + _student_table(found, default))
    columns = shown_columns((own for _, own in found), COLUMNS[table.work])
    rows = [[row.name, str(len(own)), *figure_texts(own, columns)] for row, own in found]
    count = "simulations" if table.group == "theorem1" else "tasks"
    return "\n".join(lines + markdown(["", count, *(column[0] for column in columns)], rows))


def _student_table(
    found: Sequence[tuple[Row, dict[int, dict[str, Any]]]], default: dict[int, dict[str, Any]]
) -> list[str]:
    """Return accuracies with 95 % Student intervals, and paired differences to the default or a named row."""
    by_name = {row.name: own for row, own in found}
    named = any(row.against for row, _ in found)
    rows = []
    for row, own in found:
        other = by_name.get(row.against, {}) if row.against else default
        values, reference = known(own, "accuracy"), known(other, "accuracy")
        both = sorted(values.keys() & reference.keys())
        difference = paired([values[s] for s in both], [reference[s] for s in both]) if both else None
        same = bool(both) and own.keys() == other.keys() and all(own[s] is other[s] for s in both)
        accuracy = interval([values[s] for s in sorted(values)]) if values else None
        rows.append(
            [
                row.name,
                str(len(own)),
                _points(accuracy),
                ("reference" if row.against else "default") if same else _points(difference, sign=True),
                *figure_texts(own, COLUMNS["students"]),
            ]
        )
    to = "" if named else f" to {DEFAULT.name}"
    headings = ["", "tasks", "accuracy %", f"paired difference{to}, points"]
    return markdown([*headings, *(column[0] for column in COLUMNS["students"])], rows)


def _points(found: Mapping[str, Any] | None, sign: bool = False) -> str:
    """Return mean and half width of an interval in points.

    >>> _points({"mean": 0.5, "half_width": 0.0123}), _points({"mean": 0.02, "half_width": None}, sign=True)
    ('50.0 ± 1.2', '+2.0')
    """
    if found is None:
        return "-"
    mean = 100 * found["mean"]
    text = f"{mean:+.1f}" if sign else f"{mean:.1f}"
    return text if found["half_width"] is None else f"{text} ± {100 * found['half_width']:.1f}"


def provenance(cells: Cells, settings: Settings) -> str:
    """Return the sentences that say where the numbers come from."""
    judges: dict[str, str] = {}
    bases: dict[str, str] = {}
    tasks: dict[str, set[int]] = {}
    for (data, _, seed), cell in cells.items():
        if data == "simulation":
            continue
        tasks.setdefault(cell["asked"]["question"], set()).add(seed)
        if "base" in cell["asked"]:
            bases[data] = cell["asked"]["base"]
        if (judge := cell.get("judge")) is not None:
            accuracy = judge.get("test_accuracy")
            right = (
                "" if accuracy is None else f", right for {100 * float(accuracy):.1f} % of their test images"
            )
            judges[data] = f"{data}: trained on {judge['n_train']} images of all other classes{right}"
    first = []
    if tasks:
        counts = ", ".join(
            f"{name} {', '.join(map(str, _ranges(sorted(seeds))))}" for name, seeds in sorted(tasks.items())
        )
        first.append(
            f"Tasks of {PART_NAMES[settings.part]}, {settings.shots} supports of each of up to {WAYS} "
            f"classes, drawn by number (seed 0): {counts}. Figures are mean ± standard deviation over tasks"
            + (
                "; accuracies and differences mean ± half width of the 95 % Student interval."
                if "students" in tasks
                else "."
            )
        )
    if "images" in tasks:
        first.append(
            "Class agreement is by a linear probe on the real images in the judge's features; Fréchet "
            "distances of few images are biased upwards, compare them only within a table."
        )
    if tasks.keys() - {"inversion", "memory"}:
        data = next(of for of, _, _ in cells if of != "simulation")
        first.append(usual_sizes(of_row(data, DEFAULT, settings), "students" in tasks))
    if judges:
        first.append(f"Judges: {'. '.join(judges[data] for data in sorted(judges))}.")
    if bases:
        first.append(
            "Diffusion models, trained on base classes: "
            + ", ".join(f"{data} {bases[data]}" for data in sorted(bases))
            + "."
        )
    if any(data == "simulation" for data, _, _ in cells):
        first.append(f"Theorem 1: {repeats_of(settings)} repeats, seed 0.")
    made_of = [cell["environment"] for cell in cells.values()]
    return "\n".join(
        [" ".join(first), "", made_by(made_of, [cell["cpu_seconds"] for cell in cells.values()], "took")]
    )


def usual_sizes(own: Mapping[str, Any], students: bool) -> str:
    """Return the sentence on numbers of images, and on students and teachers, from the default's settings."""
    training, models = own["training"], own["prepare"]
    found = f"Unless a row says otherwise: {own['per_class']} synthetic images of each class"
    if students:
        first = f"a classifier for {n} steps, then " if (n := models["teacher_pretrain_steps"]) else ""
        episodes = models["teacher_episodes"]
        usual = PrepareConfig().filled(few=False).teacher_episodes
        tasks = f"{usual} tasks (none with few base classes)" if episodes is None else f"{episodes} tasks"
        found += (
            f"; students {models['student']} of {models['student_channels']} channels, {training['steps']} "
            f"steps of {training['batch_size']} images; teacher {models['teacher']} of "
            f"{models['teacher_channels']} channels, {first}{tasks} (weak: "
            f"{WEAK['teacher']} of {WEAK['teacher_channels']} channels, {WEAK['teacher_episodes']} tasks)"
        )
    return found + "."


def _ranges(numbers: Sequence[int]) -> list[str]:
    """Return runs of numbers.

    >>> _ranges([0, 1, 2, 5])
    ['0-2', '5']
    """
    found: list[list[int]] = []
    for number in numbers:
        if found and found[-1][-1] == number - 1:
            found[-1].append(number)
        else:
            found.append([number])
    return [f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in found]
