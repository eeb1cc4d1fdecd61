"""`README.md` of a run: a model card in plain words."""

from __future__ import annotations

import platform
import shlex
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from fewgen.report.adaptation import lines as adaptation_lines
from fewgen.report.citations import bibtex
from fewgen.report.new_classes import card_lines
from fewgen.runs.findings import Findings

if TYPE_CHECKING:
    from pathlib import Path

    from fewgen.methods.base import Method

A_NAME_IS_NO_GUARANTEE = (
    "A class name is no guarantee: some images will show another class, or none. Check before use, also "
    "before training a classifier on them."
)
HOLDS_IMAGES = (
    "`model.safetensors` holds the training images themselves, and gives them back (alpha 0). Whoever gets "
    "the file gets the images."
)


def render_card(findings: Findings) -> str:
    """Return the model card as Markdown."""
    run = findings.run
    held = 0 if findings.held_out is None else len(findings.held_out)
    first = findings.method.spec.class_names[0]
    preset = findings.config.get("preset")
    lines = [
        f"# {_plain(findings.title)}",
        "",
        _drawn(findings.method),
        "",
        "## Use",
        "",
        "```",
        f"fewgen generate {_line(findings.shown_path)} --class-name {_line(shlex.quote(first))} -n 64 "
        "--out images.npz",
        "```",
        "",
        "`model.safetensors` alone is enough to generate. `report.html` shows what the model can and",
        "cannot do.",
        "",
        "## Made from",
        "",
        f"- Method: {run.info.method}" + (f", preset {preset}" if preset else "") + ".",
        f"- Data: {_plain(findings.data_name)}; {findings.images_per_class} real images per class in all, "
        f"{len(findings.train)} trained on and {held} held out"
        f"{' for early stopping and' if _stops_by_images(findings) else ' for'} the figures below.",
        f"- Words: {_words(findings.method)}",
        f"- Training: {_training(findings)}",
        *(f"- New classes: {_plain(line)}" for line in card_lines(findings)),
        f"- Versions: {findings.versions}.",
        "",
    ]
    if findings.command:
        lines += ["```", _line(findings.command), "```", ""]
        lines += [
            "Every setting, also those without a flag: `fewgen train --config config.yaml --out NEW_RUN`.",
            "",
        ]
    if findings.figures:
        lines += [
            "## Figures",
            "",
            f"On the {held} held-out images, so rough.",
            "",
            "| figure | value | |",
            "|---|---|---|",
        ]
        lines += [
            f"| {_plain(name)} | {_plain(value)} | {_plain(note)} |" for name, value, note in findings.figures
        ]
        lines.append("")
    if findings.warnings:
        lines += ["## Warnings", "", *(f"- {_plain(text)}" for text in findings.warnings), ""]
    lines += ["## Limits", "", *(f"- {text}" for text in _limits(findings)), ""]
    if findings.citations:
        lines += ["## Cite", "", "```bibtex", bibtex(findings.citations).rstrip("\n"), "```", ""]
    lines += _verdicts(findings)
    return "\n".join(lines)


def render_adapted_card(
    method: Method,
    record: Mapping[str, Any],
    out: Path,
    notes: Sequence[str] = (),
    citations: Sequence[str] = (),
) -> str:
    """Return the model card of an adapted run as Markdown.

    Args:
        method: the adapted model.
        record: what was done; `extra["adapted"]` of the model file.
        out: the folder of the adapted run, as it was given.
        notes: what a reader should know.
        citations: what was used; names that `citations.bib` may know.
    """
    from fewgen.version import __version__

    new, figures = record["classes"], record.get("figures")
    learned = ", ".join(f"{_plain(x)} ({_images(n)})" for x, n in zip(new, record["n_images"], strict=True))
    replay = (
        f"{record['replay']} images beside them that the model drew of its old classes"
        if record["replay"]
        else "no images of old classes beside them"
    )
    lines = [
        f"# {_plain(out.name)}",
        "",
        _drawn(method),
        "",
        "## Use",
        "",
        "```",
        f"fewgen generate {_line(shlex.quote(str(out)))} --class-name {_line(shlex.quote(new[0]))} -n 64 "
        "--out images.npz",
        "```",
        "",
        "`model.safetensors` alone is enough to generate."
        + (" `report.html` shows what was won and lost." if figures else ""),
        "",
        "## Made from",
        "",
        f"- Adapted from the run {_plain(str(record['from']))}, whose card says what it learned from.",
        f"- Method: {_plain(method.name)}.",
        f"- New classes: {learned}.",
        f"- Updates: {record['steps']}, learning rate {record['lr']:g}, parameters: "
        f"{_plain(record['part'])}; {replay}.",
        *(
            f"- Adapted before: {_plain(', '.join(one['classes']))}, from the run {_plain(str(one['from']))}."
            for one in record["earlier"]
        ),
        f"- Words: {_words(method)}",
        f"- Versions: fewgen {__version__}, torch {torch.__version__}, Python {platform.python_version()}.",
        "",
    ]
    if figures:
        lines += ["## Figures", "", *(f"- {_plain(line)}." for line in adaptation_lines(figures)), ""]
    if notes:
        lines += ["## Warnings", "", *(f"- {_plain(text)}" for text in notes), ""]
    fewest = min(record["n_images"])
    limits = [
        f"Learned from {_images(fewest)} of its smallest new class. What those do not show, the model has "
        "not seen; their backgrounds, poses and mistakes come back in what it draws.",
        "Draws of old classes may have changed, and may vary less than before.",
        A_NAME_IS_NO_GUARANTEE,
    ]
    lines += ["## Limits", "", *(f"- {text}" for text in limits), ""]
    if citations:
        lines += ["## Cite", "", "```bibtex", bibtex(citations).rstrip("\n"), "```", ""]
    return "\n".join(lines)


def _images(n: int) -> str:
    return f"{n} image{'s' if n > 1 else ''}"


def _drawn(method: Method) -> str:
    spec = method.spec
    kind = "grey" if spec.channels == 1 else "colour"
    names = ", ".join(_plain(name) for name in spec.class_names[:40])
    names += ", ..." if spec.n_classes > 40 else ""
    return f"Draws {spec.height} x {spec.width} {kind} images of {spec.n_classes} classes: {names}."


def _words(method: Method) -> str:
    text = method.spec.text
    if text is None:
        return "none."
    if not text.has_meaning:
        return f"{text.encoder_name}, which carries no meaning: only the classes above can be drawn."
    return f"{text.encoder_name}, {text.dim} numbers per word."


def _training(findings: Findings) -> str:
    steps = sum(int(stage.get("steps", 0)) for stage in findings.stages)
    seconds = sum(float(stage.get("seconds", 0)) for stage in findings.stages)
    return f"{steps} steps in {seconds / 60:.1f} minutes; {findings.parameters:,} numbers in the model."


def _limits(findings: Findings) -> list[str]:
    counts = findings.train.counts()
    return [
        f"Learned from {int(counts.min())} images of its smallest class. What those few images do not show, "
        "the model has not seen; their backgrounds, poses and mistakes come back in what it draws.",
        "An image can be close to a training image. The report shows the nearest pairs; it does not prove "
        "that there are no copies. Do not publish images if the training images must stay with you.",
        *([HOLDS_IMAGES] if "blend" in findings.method.capabilities else []),
        A_NAME_IS_NO_GUARANTEE,
        "Figures from so few held-out images are rough"
        + (", and those images decided when training stopped." if _stops_by_images(findings) else "."),
    ]


def _stops_by_images(findings: Findings) -> bool:
    """Whether held-out images decided which weights were kept; those of a GAN do not."""
    return any(stage.get("best_step") is not None for stage in findings.stages)


def _verdicts(findings: Findings) -> list[str]:
    """Return what the evidence says, as the last words of the card."""
    evaluation = findings.evaluation
    if evaluation is None:
        return []
    lines = [
        "## Verdicts",
        "",
        f"On {len(evaluation.generated)} new images, each test tried on control images first; see "
        "`report.html` and `evaluation.json`.",
        "",
        "| question | answer | why |",
        "|---|---|---|",
    ]
    lines += [
        f"| {_plain(question.capitalize())}? | {_plain(verdict.answer)} | {_plain(verdict.why)} |"
        for question, verdict in evaluation.verdicts.items()
    ]
    return [*lines, ""]


def _plain(text: str) -> str:
    """Return text that Markdown shows as it is."""
    escaped = " ".join(text.split())
    for character in "\\`*_{}[]<>#|":
        escaped = escaped.replace(character, "\\" + character)
    return escaped


def _line(command: str) -> str:
    """Return a command on one line, so that nothing in it can end the block of code around it."""
    return " ".join(command.splitlines())
