"""`README.md` of a run: a model card in plain words."""

from __future__ import annotations

import shlex

from fewgen.report.citations import bibtex
from fewgen.report.findings import Findings
from fewgen.report.new_classes import card_lines


def render_card(findings: Findings) -> str:
    """Return the model card as Markdown."""
    spec, run = findings.method.spec, findings.run
    held = 0 if findings.held_out is None else len(findings.held_out)
    kind = "grey" if spec.channels == 1 else "colour"
    names = ", ".join(_plain(name) for name in spec.class_names[:40])
    names += ", ..." if spec.n_classes > 40 else ""
    first = spec.class_names[0]
    preset = findings.config.get("preset")
    lines = [
        f"# {_plain(findings.title)}",
        "",
        f"Draws {spec.height} x {spec.width} {kind} images of {spec.n_classes} classes: {names}.",
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
        f"{len(findings.train)} trained on and {held} held out for early stopping and the figures below.",
        f"- Words: {_words(findings)}",
        f"- Training: {_training(findings)}",
        *(f"- New classes: {_plain(line)}" for line in card_lines(findings)),
        f"- Versions: {findings.versions}.",
        "",
    ]
    if findings.command:
        lines += ["```", _line(findings.command), "```", ""]
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


def _words(findings: Findings) -> str:
    text = findings.method.spec.text
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
        "A class name is no guarantee: some images will show another class, or none. Check before use, "
        "also before training a classifier on them.",
        "Figures from so few held-out images are rough, and those images decided when training stopped.",
    ]


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
