"""From cells to a table: means and spreads over seeds, verdicts, and usefulness in the last column."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fewgen.evaluation.statistics import mean_and_spread, student_interval
from fewgen.report.page import plain

HELD_OUT = "held-out real images"
"""Name of the row with the figures of real images that nobody learned from: what perfection would get."""

Figures = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Column:
    """A figure of the table.

    key: name in `benchmark.json`.
    heading: in the table, with its unit.
    factor: between value and what is shown.
    decimals: shown.
    source: name of the figure in a cell.
    entry: of that figure.
    """

    key: str
    heading: str
    factor: float
    decimals: int
    source: str
    entry: str = "value"

    def read(self, figures: Figures) -> float | None:
        """Return the value among the figures of a cell; None if it was omitted."""
        value = figures.get(self.source, {}).get(self.entry)
        return None if value is None else float(value)


COLUMNS = (
    Column("class_agreement", "class agreement %", 100, 1, "class_agreement"),
    Column("frechet_distance", "Frechet", 1, 2, "frechet_distance"),
    Column("kernel_distance", "KID x1000", 1000, 2, "kernel_distance"),
    Column("coverage", "coverage", 1, 3, "coverage"),
    Column("vendi_ratio", "Vendi ratio", 1, 2, "vendi", "ratio"),
    Column("copy_share", "near copies %", 100, 1, "copy_share"),
)

VERDICTS = ("new", "diverse")


def summarise(cells: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return generator -> what the table says of it, JSON-ready; failed cells are left out.

    With several seeds every seed is one draw of the training images, and usefulness is paired over them:
    its interval is Student's over the gains of the seeds. With one seed it is the interval of the cell.

    Args:
        cells: records of cells, as `run_cell` returns them.
    """
    finished = [cell for cell in cells if "evaluation" in cell]
    summary: dict[str, dict[str, Any]] = {}
    for name in dict.fromkeys(cell["generator"] for cell in finished):
        rows = sorted((cell for cell in finished if cell["generator"] == name), key=lambda c: int(c["seed"]))
        figures = [row["evaluation"]["figures"] for row in rows]
        summary[name] = {
            "seeds": [row["seed"] for row in rows],
            "figures": _figures(figures),
            "verdicts": _verdicts(rows),
            "train_minutes": _spread([row["made"]["train_seconds"] / 60 for row in rows]),
            "usefulness": _usefulness(figures),
            "worth_images": _worth(figures),
        }
    controls = {cell["seed"]: cell["evaluation"].get("controls", {}).get("held_out", {}) for cell in finished}
    if held_out := _figures(list(controls.values())):
        summary[HELD_OUT] = {"seeds": sorted(controls), "figures": held_out}
    return summary


def _spread(values: Sequence[float]) -> dict[str, Any]:
    mean, spread = mean_and_spread(values)
    return {"mean": mean, "spread": spread, "values": list(values)}


def _figures(figures: Sequence[Figures]) -> dict[str, dict[str, Any]]:
    found = {}
    for column in COLUMNS:
        values = [value for own in figures if (value := column.read(own)) is not None]
        if values:
            found[column.key] = _spread(values)
    return found


def _verdicts(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, int]]:
    """Return question -> answer -> number of seeds."""
    found: dict[str, Counter[str]] = {}
    for row in rows:
        for question, verdict in row["evaluation"].get("verdicts", {}).items():
            found.setdefault(question, Counter())[str(verdict["answer"])] += 1
    return {question: dict(answers) for question, answers in found.items()}


def _usefulness(figures: Sequence[Figures]) -> dict[str, Any] | None:
    """Return the gain of a classifier by the generated images, as a share, with its interval."""
    own = [figure["usefulness"] for figure in figures if "usefulness" in figure]
    if not own:
        return None
    interval = student_interval([float(figure["value"]) for figure in own])
    low, high = interval.low, interval.high
    speaks_of = "other training images (Student over the seeds)"
    if len(own) < 2:
        low, high = _own_interval(own[0])
        speaks_of = "this one draw of training images"
    gains = _spread([float(figure["value"]) for figure in own])
    return gains | {"low": low, "high": high, "speaks_of": speaks_of}


def _own_interval(figure: Mapping[str, Any]) -> tuple[float | None, float | None]:
    """Return the interval of a single cell, as far as it has both ends."""
    low, high = figure.get("low"), figure.get("high")
    return (None, None) if low is None or high is None else (low, high)


def _worth(figures: Sequence[Figures]) -> dict[str, Any] | None:
    """Return how many real images per class the classifier's accuracy is worth.

    Numbers of images are compared by ratio, so the mean is geometric and the interval Student's in log n.
    """
    own = [figure["worth_images"] for figure in figures if "worth_images" in figure]
    own = [figure for figure in own if figure["value"] > 0]
    if not own:
        return None
    interval = student_interval([math.log(float(figure["value"])) for figure in own])
    low, high = own[0].get("low"), own[0].get("high")
    if interval.low is not None and interval.high is not None:
        low, high = math.exp(interval.low), math.exp(interval.high)
    return {
        "mean": math.exp(interval.mean),
        "low": low,
        "high": high,
        "values": [float(figure["value"]) for figure in own],
        "k": own[0].get("k"),
        # Beyond an end of the learning curve the number is a bound, not a value.
        "outside_curve": sum(bool(figure.get("outside_curve")) for figure in own),
    }


# ---------------------------------------------------------------------------------------------- the table

HEADINGS = (
    "generator",
    "seeds",
    *(column.heading for column in COLUMNS),
    *(f"{question}?" for question in VERDICTS),
    "train minutes",
    "usefulness: gain in points",
)


def table_rows(summary: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """Return the cells of the table as text, one row per generator, in the order of `HEADINGS`."""
    rows = []
    for name, own in summary.items():
        row = [name, str(len(own["seeds"]))]
        for column in COLUMNS:
            row.append(_shown(own["figures"].get(column.key), column.factor, column.decimals))
        row += [_verdict(own.get("verdicts", {}).get(question)) for question in VERDICTS]
        row.append(_shown(own.get("train_minutes"), 1, 1))
        row.append(_useful(own.get("usefulness"), own.get("worth_images")))
        rows.append(row)
    return rows


def _shown(figure: Mapping[str, Any] | None, factor: float, decimals: int) -> str:
    if figure is None:
        return "-"
    text = f"{factor * figure['mean']:.{decimals}f}"
    if figure["spread"] is not None:
        text += f" ± {factor * figure['spread']:.{decimals}f}"
    return text


def _verdict(answers: Mapping[str, int] | None) -> str:
    """Return "no" if all seeds say so, else "yes 2, partly 1"."""
    if not answers:
        return "-"
    if len(answers) == 1:
        return next(iter(answers))
    return ", ".join(f"{answer} {count}" for answer, count in sorted(answers.items(), key=lambda i: -i[1]))


def _useful(gain: Mapping[str, Any] | None, worth: Mapping[str, Any] | None) -> str:
    if gain is None:
        return "-"
    text = f"{100 * gain['mean']:+.1f}"
    if gain["low"] is not None:
        text += f" ({100 * gain['low']:+.1f} to {100 * gain['high']:+.1f})"
    if worth is None:
        return text
    bound = " or so, beyond the curve" if worth["outside_curve"] else ""
    interval = (
        f" ({worth['low']:.0f}-{worth['high']:.0f})"
        if worth["low"] is not None and worth["high"] is not None and not bound
        else ""
    )
    return f"{text}; works like {worth['mean']:.0f} images{interval}{bound}"


def markdown(summary: Mapping[str, Mapping[str, Any]], notes: Sequence[str] = ()) -> str:
    """Return the table and the notes below it as Markdown."""
    lines = ["| " + " | ".join(HEADINGS) + " |", "|" + "---|" * len(HEADINGS)]
    for row in table_rows(summary):
        lines.append("| " + " | ".join(map(plain, row)) + " |")
    return "\n".join([*lines, *(f"\n{plain(note)}" for note in notes)])


def notes(cells: Sequence[Mapping[str, Any]], shots: int) -> list[str]:
    """Return what a reader of the table must know, from the protocol of the cells."""
    finished = [cell for cell in cells if "evaluation" in cell]
    if not finished:
        return []
    protocol = finished[0]["evaluation"].get("protocol", {})
    judge = protocol.get("extractor", {})
    text = f"Judge: {judge.get('name', 'unknown')}, {judge.get('dim', '?')} features"
    reader = protocol.get("linear_probe") or judge
    accuracy = reader.get("test_accuracy")
    if accuracy is not None:
        whose = ", with a linear probe" if reader is not judge else ","
        text += f"{whose} {100 * accuracy:.1f} % right on {reader.get('n_test', '?')} held-out images"
    if why := (protocol.get("judge") or {}).get("why"):
        text += f", since {why}"
    n = finished[0]["made"].get("n_images", "?")
    found = [
        f"{text}; {shots} training images per class; {n} generated images; mean ± standard deviation over "
        "seeds. Frechet distances of few images are biased upwards: compare them only within this table.",
        '"new" and "diverse" are verdicts of tests that proved themselves on copies, noise and held-out '
        'images of these data; "yes" for new means: no copies found by these tests.',
    ]
    useful = [c["evaluation"]["figures"].get("usefulness") for c in finished]
    alone = {
        c["seed"]: f["accuracy"]["real"]
        for c, f in zip(finished, useful, strict=True)
        if f and "real" in f.get("accuracy", {})
    }
    for cell in finished:
        about = cell["evaluation"].get("protocol", {}).get("judge") or {}
        if relative := about.get("relative"):
            found.append(f"{cell['generator']}, seed {cell['seed']}: {relative}")
    if plain := finished[0]["evaluation"]["figures"].get("linear_probe", {}).get("note"):
        found.append(plain)
    if alone:
        mean, spread = mean_and_spread([100 * value for value in alone.values()])
        found.append(
            f"Usefulness: gain in accuracy of a small classifier over training images alone, "
            f"{mean:.1f}{'' if spread is None else f' ± {spread:.1f}'} %, with the standard augmentation "
            "that suits it best; equal steps."
        )
    return found
