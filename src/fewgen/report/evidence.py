"""The evidence as a page: five verdicts, what each test says of its controls, figures, nearest pairs.

Works from any `fewgen.evaluation.evaluation.Evaluation`; the same pieces end the report of a training.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from html import escape
from typing import TYPE_CHECKING, Any

from fewgen.evaluation.verdicts import QUESTIONS, summary
from fewgen.report.page import figure, flat, folded, page, png, section, shown, table, warning

if TYPE_CHECKING:
    from fewgen.evaluation.evaluation import Evaluation

CONTROLS = {
    "held_out": "held-out real images",
    "copies": "exact copies",
    "augmented_copies": "augmented copies",
    "noise": "noise",
}
"""Controls between which every figure stands -> how the pages call them."""

_MORE_CONTROLS = {"one_per_class": "one image per class"}

ANSWERS = ("yes", "partly", "no", "cannot tell")

N_PAIRS = 10
MAX_CLASS_ROWS = 300

_FIGURES = {
    "frechet_distance": "Frechet distance",
    "kernel_distance": "kernel distance (KID)",
    "kernel_p_value": "kernel distance, p",
    "vendi": "Vendi score",
    "within_class_distance": "distance within a class",
    "collapse_share": "share of collapsed pairs",
    "copy_share": "share of near-copies in pixels",
    "copy_share_features": "share of near-copies in features",
    "copy_test_p_value": "near-copies, p",
    "c_t": "C_T (below 0: nearer to the training images than real images are)",
    "usefulness": "gain of a classifier by generated images",
    "usefulness_generated_only": "the same by generated images in place of real ones",
    "worth_images": "worth of the images, in real images per class",
}


def render_evaluation(evaluation: Evaluation) -> str:
    """Return the page of an evaluation: one file, no scripts, nothing from outside, all text escaped."""
    import torch

    from fewgen.version import __version__

    subject = str(evaluation.protocol.get("subject") or evaluation.generated.name or "generated images")
    body = f"<h1>{escape(subject)}</h1>\n" + _facts(evaluation) + _sections(evaluation, 2, True)
    versions = f"fewgen {__version__}, torch {torch.__version__}, Python {platform.python_version()}"
    return page(f"Evidence: {subject}", body, versions)


def evidence_section(evaluation: Evaluation, *, with_pairs: bool = True) -> str:
    """Return the part that another page embeds, below a heading of its own.

    Args:
        evaluation: what to show.
        with_pairs: whether to show the nearest pairs; False where the page has them elsewhere.
    """
    cards, *rest = _parts(evaluation, with_pairs)
    return cards[1]() + "".join(section(title, make, 3) for title, make in rest)


def pairs_figure(evaluation: Evaluation) -> str:
    """Return the generated images that are most suspicious of being copies, over their training images."""
    from fewgen.generation.pictures import pairs

    worst = list(evaluation.worst)[:N_PAIRS]
    if not worst:
        reason = evaluation.omitted.get("copy_share", "no pairs were computed")
        return f"<p>There is no picture of nearest pairs: {escape(reason)}</p>\n"
    generated, train = evaluation.generated, evaluation.train
    picture = pairs(
        generated.images[[pair.generated for pair in worst]],
        train.images[[pair.train for pair in worst]],
        columns=N_PAIRS,
        labels=("generated", "training"),
        scale=max(1, round(64 / max(generated.size))),
    )
    caption = (
        f"The {len(worst)} generated images that stand nearest to one training image, most suspicious first, "
        "each over that training image. The eye is the best judge of a copy."
    )
    rows = [
        (
            str(place),
            pair.class_name,
            _number(pair.score),
            pair.transform,
            "yes" if pair.suspicious else "no",
            f"{pair.generated} / {pair.train}",
        )
        for place, pair in enumerate(worst, start=1)
    ]
    head = ("", "class", "score", "found after", "suspicious", "generated / training image")
    note = (
        '<p class="soft">Score: distance to this training image over the distance to the next ones; 0 is an '
        "exact copy, near 1 means that no single training image stands out.</p>\n"
    )
    return (
        figure(png(picture), "generated images over the nearest training images", caption, pixels=True)
        + folded("Scores of these pairs", table(head, rows))
        + note
    )


# ------------------------------------------------------------------------------------------- sections


def _sections(evaluation: Evaluation, level: int, with_pairs: bool) -> str:
    return "".join(section(title, make, level) for title, make in _parts(evaluation, with_pairs))


def _parts(evaluation: Evaluation, with_pairs: bool) -> list[tuple[str, Callable[[], str]]]:
    parts: list[tuple[str, Callable[[Evaluation], str]]] = [("Verdicts", _verdicts)]
    if with_pairs:
        parts.append(("Nearest pairs", pairs_figure))
    parts += [
        ("What real images are worth", _curve),
        ("Figures between their controls", _figures),
        ("Classes", _classes),
        ("Left out", _omitted),
        ("Protocol", _protocol),
    ]
    return [(title, partial(make, evaluation)) for title, make in parts]


def _facts(evaluation: Evaluation) -> str:
    facts = [
        ("generated", _set(evaluation.generated)),
        ("learned from", _set(evaluation.train)),
        ("verdicts", summary(evaluation.verdicts)),
    ]
    items = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in facts)
    return f"<dl>{items}</dl>\n"


def _set(images: Any) -> str:
    counts = images.counts()
    low, high = int(counts.min()), int(counts.max())
    per_class = str(low) if low == high else f"{low} to {high}"
    name = f"{images.name}: " if images.name else ""
    return f"{name}{len(images)} images, {images.n_classes} classes, {per_class} per class"


def _verdicts(evaluation: Evaluation) -> str:
    cards = []
    for question in QUESTIONS:
        if question not in evaluation.verdicts:
            continue
        verdict = evaluation.verdicts[question]
        answer = str(verdict.answer)
        kind = answer if answer in ("yes", "partly", "no") else "unknown"
        tests = _tests(verdict.tests)
        cards.append(
            f'<div class="card {kind}"><p><strong>{question.capitalize()}?</strong> '
            f'<span class="answer">{escape(answer)}</span></p>\n<p>{escape(verdict.why)}</p>\n{tests}</div>\n'
        )
    return "".join(cards)


def _tests(tests: Sequence[Mapping[str, Any]]) -> str:
    if not tests:
        return ""
    names = [*CONTROLS, *dict.fromkeys(c for test in tests for c in test.get("controls", {}))]
    names = [
        name for name in dict.fromkeys(names) if any(name in (test.get("controls") or {}) for test in tests)
    ]
    rows = [
        (
            figure_name(str(test.get("name", ""))),
            str(test.get("answer", "")),
            *(str((test.get("controls") or {}).get(name, "-")) for name in names),
            str(test.get("why", "")),
        )
        for test in tests
    ]
    head = (
        "test",
        "generated",
        *({**CONTROLS, **_MORE_CONTROLS}.get(name, _words(name)) for name in names),
        "why",
    )
    title = "1 test" if len(tests) == 1 else f"{len(tests)} tests"
    said = ", and what each says of its controls" if names else ""
    return folded(f"{title}{said}", table(head, rows))


def _curve(evaluation: Evaluation) -> str:
    from fewgen.report import plots

    worth = evaluation.figures.get("worth_images", {})
    points = learning_curve(worth)
    if not points:
        return ""
    level = worth.get("accuracy")
    line = "" if level is None else " The line is its accuracy with the generated images added."
    caption = (
        "Accuracy of the same small classifier on real images alone, by their number per class."
        f"{line} {worth.get('note', '')}"
    )
    picture = plots.learning_curve(points, None if level is None else float(level))
    return figure(picture, "learning curve on real images", caption.strip())


def learning_curve(worth: Mapping[str, Any]) -> list[tuple[float, float]]:
    """Return the points (real images per class, accuracy) of the figure `worth_images`, in rising order.

    Returns:
        An empty list if there is no curve of two points or more.
    """
    points = sorted((float(p["images_per_class"]), float(p["accuracy"])) for p in worth.get("curve") or [])
    return points if len(points) > 1 else []


def _figures(evaluation: Evaluation) -> str:
    controls = [name for name in CONTROLS if evaluation.controls.get(name)]
    rows = []
    names = sorted(
        evaluation.figures,
        key=lambda name: _rank(str(evaluation.figures[name].get("question", ""))),
    )
    for name in names:
        own = evaluation.figures[name]
        rows.append(
            (
                str(own.get("question", "")),
                figure_name(name),
                _cell(own),
                *(_cell(evaluation.controls[control].get(name)) for control in controls),
                str(own.get("note", "")),
            )
        )
    if not rows:
        return ""
    head = ("question", "figure", "generated", *(CONTROLS[control] for control in controls), "")
    note = '<p class="soft">Shares are in [0, 1]. In brackets: 95 % intervals.</p>\n'
    return table(head, rows) + note


def _classes(evaluation: Evaluation) -> str:
    columns = [name for name, own in evaluation.figures.items() if own.get("per_class")]
    if not columns:
        return ""
    classes = list(evaluation.generated.class_names)
    counts = evaluation.generated.counts().tolist()
    rows = [
        (
            name,
            str(count),
            *(_cell(evaluation.figures[column]["per_class"].get(name)) for column in columns),
        )
        for name, count in list(zip(classes, counts, strict=True))[:MAX_CLASS_ROWS]
    ]
    head = ("class", "generated", *(figure_name(column) for column in columns))
    more = ""
    if len(classes) > MAX_CLASS_ROWS:
        more = f'<p class="soft">The first {MAX_CLASS_ROWS} of {len(classes)} classes.</p>\n'
    return folded(f"{len(rows)} classes", table(head, rows)) + more


def _omitted(evaluation: Evaluation) -> str:
    rows = [(figure_name(name), reason) for name, reason in evaluation.omitted.items()]
    return table(("figure", "why it is left out"), rows) if rows else ""


def _protocol(evaluation: Evaluation) -> str:
    rows = [(name, shown(value)) for name, value in flat(evaluation.protocol)]
    return folded(f"{len(rows)} settings and counts", table(("setting", "value"), rows)) if rows else ""


def fault_section(fault: str) -> str:
    """Return what stands where the evidence would, if it could not be measured."""
    return warning(f"The evidence could not be measured: {fault}")


# --------------------------------------------------------------------------------------------- pieces


def figure_name(name: str) -> str:
    """Return a figure's name for readers.

    >>> figure_name("vendi"), figure_name("copy_share"), figure_name("precision")
    ('Vendi score', 'share of near-copies in pixels', 'precision')
    """
    return _FIGURES.get(name, _words(name))


def _words(name: str) -> str:
    return name.replace("_", " ")


def _rank(question: str) -> int:
    return QUESTIONS.index(question) if question in QUESTIONS else len(QUESTIONS)


def _cell(own: Any) -> str:
    """Return a figure as text: its value, and its interval if it has one."""
    if not isinstance(own, Mapping):
        return _number(own)
    text = _number(own.get("value"))
    if own.get("low") is not None and own.get("high") is not None:
        text += f" ({_number(own['low'])} to {_number(own['high'])})"
    return text


def _number(value: Any) -> str:
    """Return a number with three digits.

    >>> _number(0.12345), _number(1234.5), _number(0), _number(None)
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
