"""The evidence as a page: five verdicts, what each test says of its controls, figures, nearest pairs.

Works from any `fewgen.evaluation.evaluation.Evaluation`; the same pieces end the report of a training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fewgen.evaluation import verdicts
from fewgen.evaluation.figures import figure_title
from fewgen.evaluation.judge import judged
from fewgen.evaluation.sources import compared
from fewgen.report.page import render, span, versions

if TYPE_CHECKING:
    from PIL.Image import Image

    from fewgen.data import ImageSet
    from fewgen.evaluation.evaluation import Evaluation

CONTROLS = {
    "held_out": "held-out real images",
    "copies": "exact copies",
    "augmented_copies": "augmented copies",
    "noise": "noise",
}
"""Controls between which every figure stands -> how the pages call them."""

_ALL_CONTROLS = {**CONTROLS, "one_per_class": "one image per class"}

N_PAIRS = 10
MAX_CLASS_ROWS = 300

Table = tuple[tuple[str, ...], Sequence[tuple[str, ...]]]
"""Heads of the columns, and rows."""


def render_evaluation(evaluation: Evaluation) -> str:
    """Return the page of an evaluation."""
    subject = str(evaluation.protocol.get("subject") or evaluation.generated.name or "generated images")
    view = EvidenceView(evaluation)
    return render("evaluation.html.jinja", title=subject, view=view, versions=versions())


@dataclass(frozen=True)
class EvidenceView:
    """What the templates draw of an evaluation, each part made when its section asks for it."""

    evaluation: Evaluation

    def summary(self) -> str:
        """Return all answers in one line."""
        return verdicts.summary(self.evaluation.verdicts)

    def headline(self) -> str:
        """Return what must be known before any verdict, or nothing."""
        return verdicts.headline(self.evaluation.protocol)

    def judged(self) -> list[str]:
        """Return who judged and why, and what to know of it."""
        return judged(self.evaluation.protocol)

    def compared(self) -> list[str]:
        """Return what was compared, and what differs by the image files alone."""
        return compared(self.evaluation.protocol)

    def set(self, images: ImageSet) -> str:
        """Return what a set of images is, in words."""
        name = f"{images.name}: " if images.name else ""
        per_class = span(images.counts().tolist())
        return f"{name}{len(images)} images, {images.n_classes} classes, {per_class} per class"

    def verdicts(self) -> list[verdicts.Verdict]:
        """Return the verdicts in the order of the questions."""
        found = self.evaluation.verdicts
        return [found[question] for question in verdicts.QUESTIONS if question in found]

    def tests(self, tests: Sequence[Mapping[str, Any]]) -> Table:
        """Return what each test of a verdict says, and what it says of its controls."""
        used = [dict(test.get("controls") or {}) for test in tests]
        names = [
            name
            for name in dict.fromkeys([*CONTROLS, *(c for own in used for c in own)])
            if any(name in own for own in used)
        ]
        rows = [
            (
                figure_title(str(test.get("name", ""))),
                str(test.get("answer", "")),
                *(str(own.get(name, "-")) for name in names),
                str(test.get("why", "")),
            )
            for test, own in zip(tests, used, strict=True)
        ]
        return ("test", "generated", *(_ALL_CONTROLS.get(name, _words(name)) for name in names), "why"), rows

    def pairs(self) -> list[tuple[str, ...]]:
        """Return a row for each of the nearest pairs."""
        return [
            (
                str(place),
                pair.class_name,
                number(pair.score),
                pair.transform,
                "yes" if pair.suspicious else "no",
                f"{pair.generated} / {pair.train}",
            )
            for place, pair in enumerate(self.evaluation.worst[:N_PAIRS], start=1)
        ]

    def pairs_picture(self) -> Image:
        """Return the nearest pairs, generated images above."""
        from fewgen.generation.pictures import pairs

        worst = self.evaluation.worst[:N_PAIRS]
        generated, train = self.evaluation.generated, self.evaluation.train
        return pairs(
            generated.images[[pair.generated for pair in worst]],
            train.images[[pair.train for pair in worst]],
            columns=N_PAIRS,
            labels=("generated", "training"),
            scale=max(1, round(64 / max(generated.size))),
        )

    def learning_curve(self) -> list[tuple[float, float]]:
        """Return (real images per class, accuracy), in rising order; nothing for fewer than two points."""
        curve = self.evaluation.figures.get("worth_images", {}).get("curve") or []
        points = sorted((float(p["images_per_class"]), float(p["accuracy"])) for p in curve)
        return points if len(points) > 1 else []

    def learning_curve_picture(self) -> bytes:
        """Return the plot of the learning curve."""
        from fewgen.report import plots

        level = self.evaluation.figures["worth_images"].get("accuracy")
        return plots.learning_curve(self.learning_curve(), None if level is None else float(level))

    def figures(self) -> Table:
        """Return every figure beside those of its controls."""
        known = self.evaluation.controls
        controls = [name for name in CONTROLS if known.get(name)]
        order = {question: place for place, question in enumerate(verdicts.QUESTIONS)}
        rows = [
            (
                str(own.get("question", "")),
                figure_title(name),
                _cell(own),
                *(_cell(known[control].get(name)) for control in controls),
                str(own.get("note", "")),
            )
            for name, own in self.evaluation.figures.items()
        ]
        rows.sort(key=lambda row: order.get(row[0], len(order)))
        return ("question", "figure", "generated", *(CONTROLS[name] for name in controls), ""), rows

    def classes(self) -> Table:
        """Return the figures of each class, of the first `MAX_CLASS_ROWS` classes."""
        figures, generated = self.evaluation.figures, self.evaluation.generated
        columns = {name: own["per_class"] for name, own in figures.items() if own.get("per_class")}
        counted = list(zip(generated.class_names, generated.counts().tolist(), strict=True))
        rows = [
            (name, str(count), *(_cell(column.get(name)) for column in columns.values()))
            for name, count in counted[: MAX_CLASS_ROWS if columns else 0]
        ]
        return ("class", "generated", *map(figure_title, columns)), rows

    def omitted(self) -> list[tuple[str, str]]:
        """Return the figures that are missing, and why."""
        return [(figure_title(name), reason) for name, reason in self.evaluation.omitted.items()]


def _words(name: str) -> str:
    return name.replace("_", " ")


def _cell(own: Any) -> str:
    """Return a figure as text: its value, and its interval if it has one."""
    if not isinstance(own, Mapping):
        return number(own)
    text = number(own.get("value"))
    if own.get("low") is not None and own.get("high") is not None:
        text += f" ({number(own['low'])} to {number(own['high'])})"
    return text


def number(value: Any) -> str:
    """Return a number with three digits.

    >>> number(0.12345), number(1234.5), number(0), number(None)
    ('0.123', '1,234', '0', '-')
    """
    if value is None:
        return "-"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    if abs(value) < 1e-9:  # what rounding leaves of a limit at 0
        return "0"
    return f"{value:.3g}"
