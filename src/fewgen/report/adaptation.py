"""What an adaptation to new classes won and lost: measured on draws, shown as one page.

New classes are read by the adapted model's own reader (`retrieve`), old ones by that of the run it was
adapted from; or both by a classifier that the model has nothing to do with. The page says which: a model's
own reader shares its faults.
"""

from __future__ import annotations

import platform
import shlex
from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import torch

from fewgen.evaluation.statistics import Share
from fewgen.report.citations import bibtex
from fewgen.report.page import figure, page, png, section, table, warning
from fewgen.runs.adaptation import (
    CLASSIFIER,
    N_NEW,
    OWN_READER,
    SHOWN,
    Adaptation,
    Look,
    Variety,
    cannot_tell,
)

if TYPE_CHECKING:
    from pathlib import Path


# ------------------------------------------------------------------------------------------------ lines


def lines(figures: Mapping[str, Any]) -> list[str]:
    """Return what the figures of an adaptation say, a line per question.

    Args:
        figures: of `Adaptation.figures`.
    """
    said = []
    first, last = figures["looks"][0], figures["looks"][-1]
    for name, share in last["read"].items():
        then = first["read"][name]
        who = (
            "by a classifier of the training images and the new ones"
            if figures["judge"] == CLASSIFIER
            else "by the model itself, which flatters it; --judge asks a classifier"
        )
        said.append(
            f'"{name}": {share["successes"]} of {share["n"]} draws are read as it '
            f"({then['successes']} before the first image), {who}"
        )
    retention = figures["retention"]
    if retention is not None:
        overall = retention["overall"]
        change = (
            f"old classes: {overall['before']['value']:.0%} -> {overall['after']['value']:.0%} of "
            f"{overall['before']['n']} draws are read right by {_judge_name(figures['judge'])}"
        )
        unknown = figures["cannot_tell"]
        named = [f"{what} {', '.join(retention[what])}" for what in ("lost", "won") if retention.get(what)]
        named += [f"cannot tell for {', '.join(unknown)} (never read right before)"] if unknown else []
        said.append(change + (f"; {'; '.join(named)}" if named else ""))
    variety = figures["variety"]
    if variety is not None:
        found = Variety(**variety)
        worst = found.worst()
        least = "" if worst is None else f' (least: "{worst}", {found.per_class[worst]:.0%})'
        said.append(f"variety of old classes: {found.overall:.0%} of the variance within a class{least}")
    return said


def _judge_name(judge: str) -> str:
    return "a classifier of the training images and the new ones" if judge == CLASSIFIER else judge


# ------------------------------------------------------------------------------------------------ the page


def render_adaptation(
    found: Adaptation,
    record: Mapping[str, Any],
    out: Path,
    notes: Sequence[str] = (),
    citations: Sequence[str] = (),
) -> str:
    """Return the page: one file, no scripts, nothing from outside, all text escaped.

    Args:
        found: what was measured.
        record: what was done; `extra["adapted"]` of the model file.
        out: the folder of the adapted run, as it was given.
        notes: what a reader should know.
        citations: what was used; names that `citations.bib` may know.
    """
    from fewgen.version import __version__

    sections = [
        ("The new class" if found.used.n_classes == 1 else "The new classes", lambda: _pictures(found)),
        ("In figures", lambda: _curve(found)),
        ("The old classes", lambda: _old(found)),
        ("Left out", lambda: _omitted(found)),
        ("Use it", lambda: _commands(found, out)),
        ("Cite", lambda: f"<pre>{escape(bibtex(citations))}</pre>\n" if citations else ""),
    ]
    head = _head(found, record) + "".join(warning(note) for note in notes)
    body = head + "".join(section(title, make) for title, make in sections)
    versions = f"fewgen {__version__}, torch {torch.__version__}, Python {platform.python_version()}"
    return page(out.name, f"<h1>{escape(out.name)}</h1>\n{body}", versions)


def _head(found: Adaptation, record: Mapping[str, Any]) -> str:
    counts = found.used.counts().tolist()
    learned = ", ".join(
        f"{name} ({count} image{'s' if count > 1 else ''})"
        for name, count in zip(found.used.class_names, counts, strict=True)
    )
    replay = f"{record['replay']} draws of old classes beside the new images" if record["replay"] else "none"
    facts = [
        ("adapted from", found.original_name),
        ("new", learned),
        ("updates", f"{record['steps']}, learning rate {record['lr']:g}, parameters: {record['part']}"),
        ("replay", replay),
        ("time", f"{record['seconds']:.1f} s"),
    ]
    items = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in facts)
    return f"<dl>{items}</dl>\n"


def _pictures(found: Adaptation) -> str:
    from fewgen.generation.pictures import grid

    parts = []
    for row, name in enumerate(found.used.class_names):
        real = found.used.images[found.used.labels == row][:SHOWN]
        blank = torch.full((SHOWN - len(real), *real.shape[1:]), 255, dtype=torch.uint8)
        rows, labels = [real, blank], ["learned from"]
        for look in found.looks:
            rows.append(look.drawn[row * SHOWN : (row + 1) * SHOWN])
            labels.append(shots_name(look.shots, look.fewest))
        picture = grid(torch.cat(rows), SHOWN, labels)
        caption = f'"{name}": images that were learned from, then draws, each row with the same seeds.'
        parts.append(figure(png(picture), f"images and draws of {name}", caption, pixels=True))
    if not found.has_meaning:
        parts.append(NO_MEANING)
    return "".join(parts)


NO_MEANING = (
    '<p class="soft">The class vectors carry no meaning (onehot): the draws before the first image '
    "come from an arbitrary vector and say nothing about the class.</p>\n"
)


def shots_name(k: int, fewest: int | None = None) -> str:
    """Return what a model has seen of each new class, in words; `fewest` where classes differ."""
    if fewest is not None and fewest < k:
        return f"{fewest} to {k} images"
    return "the word alone" if k == 0 else f"{k} image{'s' if k > 1 else ''}"


def _curve(found: Adaptation) -> str:
    who = (
        f"share of {N_NEW} draws that a small classifier reads as the class, with its 95 % interval. It was "
        "trained on the run's training images and on the given ones of the new classes, and knows nothing of "
        "the model. "
        if found.independent
        else f"share of {N_NEW} draws that the adapted model itself reads as the class, with its 95 % "
        "interval. It is the model's own reader, not an independent judge (--judge asks a classifier): it "
        "flatters the model, and may take for the class what no person would. "
    )
    note = f'<p class="soft">Read as: {who}'
    if found.n_query:
        note += f"Loss: the objective on {found.n_query} images that were not learned from. "
    for name, ratio in found.new_variety.items():
        note += escape(f"Draws of {name} have {ratio:.0%} of the pixel variance of the images given. ")
    note += "Each row starts from the run that was adapted.</p>\n"
    return look_table(found.looks, found.used.class_names) + note


def look_table(
    looks: Sequence[Look], names: Sequence[str], together: bool = False, more: Sequence[Sequence[str]] = ()
) -> str:
    """Return a row per look: shares of the draws that are read right, loss, seconds.

    Args:
        looks: of `shot_curve`.
        names: of the new classes.
        together: with a column for all new classes at once.
        more: further rows, each with a cell per column.
    """
    read = [name for name in names if name in looks[-1].read]
    together = together and len(read) > 1
    with_loss = looks[-1].query_loss is not None
    head = ["after", *(["read right"] if together else []), *(f"read as {name}" for name in read)]
    head += ["loss on other images"] if with_loss else []
    rows = []
    for look in looks:
        row = [shots_name(look.shots, look.fewest), *([share_text(look.overall())] if together else [])]
        row += [share_text(look.read[name]) for name in read]
        row += [f"{look.query_loss:.4g}"] if look.query_loss is not None else []
        rows.append([*row, f"{look.seconds:.1f}"])
    return table([*head, "seconds"], [*rows, *more])


def share_text(share: Share) -> str:
    """Return a share with its interval, in words."""
    return f"{share.value:.0%} ({share.low:.0%} to {share.high:.0%})"


def _old(found: Adaptation) -> str:
    from fewgen.generation.pictures import grid

    n = len(found.before) // len(found.old_shown)
    rows, labels = [], []
    for i, name in enumerate(found.old_shown):
        rows += [found.before[i * n : (i + 1) * n], found.after[i * n : (i + 1) * n]]
        labels += [name, "  after"]
    picture = grid(torch.cat(rows), n, labels)
    caption = "Draws of old classes before, and below them the same seeds after the adaptation."
    html = figure(png(picture), "old classes before and after", caption, pixels=True) + _variety(found)
    if found.retention is None:
        return html
    overall = found.retention.overall
    who = (
        "a small classifier that was trained on the run's training images and on the given ones of the new "
        "classes, and knows nothing of the model"
        if found.independent
        else f"{OWN_READER}, which is not an independent judge (--judge asks a classifier)"
    )
    named = [
        f"{what}: {', '.join(classes)}"
        for what, classes in (("Lost", found.retention.lost), ("Won", found.retention.won))
        if classes
    ]
    unknown = cannot_tell(found.retention)
    verdict = ". ".join(named) or "No class lost or won more than chance explains"
    if unknown:
        verdict += f". Cannot tell for {', '.join(unknown)}: their draws were never read right before"
    text = (
        f"Read right before {share_text(overall.before)}, after {share_text(overall.after)}; change "
        f"{100 * overall.change.value:+.0f} points ({100 * overall.change.low:+.0f} to "
        f"{100 * overall.change.high:+.0f}). {verdict}. Judged by {who}. 95 % intervals."
    )
    per_class = [
        (
            name,
            share_text(r.before),
            share_text(r.after),
            str(r.n_lost),
            str(r.n_won),
            "cannot tell" if name in unknown else f"{r.p_adjusted:.2g}",
        )
        for name, r in found.retention.per_class.items()
    ]
    head = ("class", "before", "after", "draws lost", "draws won", "p, all classes together")
    return f"<p>{escape(text)}</p>\n" + html + table(head, per_class)


def _variety(found: Adaptation) -> str:
    if found.variety is None:
        return ""
    text = (
        f"Variety: after the adaptation, {found.variety.overall:.0%} of the pixel variance within a class is "
        "left (draws of the same seeds)"
    )
    each = [f"{name} {ratio:.0%}" for name, ratio in found.variety.per_class.items()]
    return f"<p>{escape(text + (': ' + ', '.join(each) if each else ''))}.</p>\n"


def _omitted(found: Adaptation) -> str:
    rows = [(name.replace("_", " "), reason) for name, reason in found.omitted.items()]
    return table(("figure", "why it is left out"), rows) if rows else ""


def _commands(found: Adaptation, out: Path) -> str:
    run, name = shlex.quote(str(out)), shlex.quote(found.used.class_names[0])
    commands = (
        f"fewgen generate {run} --class-name {name} -n 64 --out images.npz\n"
        f"fewgen adapt {run} --images DIR --class-name ANOTHER --out NEW_RUN"
    )
    return f"<pre>{escape(commands)}</pre>\n"
