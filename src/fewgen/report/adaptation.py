"""What an adaptation to new classes won and lost, as one page.

New classes are read by the adapted model's own reader (`retrieve`), old ones by that of the run it was
adapted from; or both by a classifier that the model has nothing to do with. The page says which: a model's
own reader shares its faults.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from fewgen.report.citations import bibtex
from fewgen.report.page import counted, render, share_text, versions
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

    from PIL.Image import Image

    from fewgen.report.evidence import Table


def lines(figures: Mapping[str, Any]) -> list[str]:
    """Return what the figures of an adaptation say, a line per question.

    Args:
        figures: of `Adaptation.figures`.
    """
    said = []
    first, last = figures["looks"][0], figures["looks"][-1]
    judged = figures["judge"] == CLASSIFIER
    classifier = "a classifier of the training images and the new ones"
    by_itself = "the model itself, which flatters it; --judge asks a classifier"
    for name, share in last["read"].items():
        said.append(
            f'"{name}": {share["successes"]} of {share["n"]} draws are read as it '
            f"({first['read'][name]['successes']} before the first image), by "
            f"{classifier if judged else by_itself}"
        )
    retention = figures["retention"]
    if retention is not None:
        overall = retention["overall"]
        unknown = figures["cannot_tell"]
        named = [f"{what} {', '.join(retention[what])}" for what in ("lost", "won") if retention.get(what)]
        named += [f"cannot tell for {', '.join(unknown)} (never read right before)"] if unknown else []
        change = (
            f"old classes: {overall['before']['value']:.0%} -> {overall['after']['value']:.0%} of "
            f"{overall['before']['n']} draws are read right by {classifier if judged else figures['judge']}"
        )
        said.append("; ".join([change, *named]))
    if figures["variety"] is not None:
        found = Variety(**figures["variety"])
        worst = found.worst()
        least = "" if worst is None else f' (least: "{worst}", {found.per_class[worst]:.0%})'
        said.append(f"variety of old classes: {found.overall:.0%} of the variance within a class{least}")
    return said


def render_adaptation(
    found: Adaptation,
    record: Mapping[str, Any],
    out: Path,
    notes: Sequence[str] = (),
    citations: Sequence[str] = (),
) -> str:
    """Return the page.

    Args:
        found: what was measured.
        record: what was done; `extra["adapted"]` of the model file.
        out: the folder of the adapted run, as it was given.
        notes: what a reader should know.
        citations: what was used; names that `citations.bib` may know.
    """
    return render(
        "adaptation.html.jinja",
        title=out.name,
        found=found,
        record=record,
        view=AdaptationView(found),
        path=shlex.quote(str(out)),
        notes=notes,
        n_draws=N_NEW,
        own_reader=OWN_READER,
        bibtex=bibtex(citations),
        versions=versions(),
    )


@dataclass(frozen=True)
class AdaptationView:
    """What the template draws of an adaptation."""

    found: Adaptation

    def pictures(self) -> list[tuple[str, Image]]:
        """Return for each new class images that were learned from, over draws after more and more of them."""
        from fewgen.generation.pictures import grid

        used, looks = self.found.used, self.found.looks
        labels = ["learned from", *(shots_name(look.shots, look.fewest) for look in looks)]
        pictures = []
        for row, name in enumerate(used.class_names):
            real = used.images[used.labels == row][:SHOWN]
            blank = torch.full((SHOWN - len(real), *real.shape[1:]), 255, dtype=torch.uint8)
            drawn = [look.drawn[row * SHOWN : (row + 1) * SHOWN] for look in looks]
            pictures.append((name, grid(torch.cat([real, blank, *drawn]), SHOWN, labels)))
        return pictures

    def looks(self) -> Table:
        """Return a row per look, see `look_table`."""
        return look_table(self.found.looks, self.found.used.class_names)

    def old_picture(self) -> Image:
        """Return draws of old classes, below them the same seeds after the adaptation."""
        from fewgen.generation.pictures import grid

        found = self.found
        n = len(found.before) // len(found.old_shown)
        pairs = zip(found.before.split(n), found.after.split(n), strict=True)
        labels = [label for name in found.old_shown for label in (name, "  after")]
        return grid(torch.cat([draws for pair in pairs for draws in pair]), n, labels)

    def change(self) -> list[str]:
        """Return which old classes lost and won, a sentence each; nothing without a reader."""
        retention = self.found.retention
        if retention is None:
            return []
        named = (("Lost", retention.lost), ("Won", retention.won))
        said = [f"{what}: {', '.join(classes)}" for what, classes in named if classes]
        said = said or ["No class lost or won more than chance explains"]
        if unknown := cannot_tell(retention):
            said.append(f"Cannot tell for {', '.join(unknown)}: their draws were never read right before")
        return said

    def retention(self) -> Table:
        """Return what each old class lost and won."""
        retention = self.found.retention
        assert retention is not None
        unknown = cannot_tell(retention)
        rows = [
            (
                name,
                share_text(r.before),
                share_text(r.after),
                str(r.n_lost),
                str(r.n_won),
                "cannot tell" if name in unknown else f"{r.p_adjusted:.2g}",
            )
            for name, r in retention.per_class.items()
        ]
        return ("class", "before", "after", "draws lost", "draws won", "p, all classes together"), rows

    def omitted(self) -> list[tuple[str, str]]:
        """Return what is not known, and why."""
        return [(name.replace("_", " "), reason) for name, reason in self.found.omitted.items()]


def shots_name(k: int, fewest: int | None = None) -> str:
    """Return what a model has seen of each new class, in words; `fewest` where classes differ."""
    if fewest is not None and fewest < k:
        return f"{fewest} to {k} images"
    return "the word alone" if k == 0 else counted(k, "image")


def look_table(
    looks: Sequence[Look], names: Sequence[str], together: bool = False, more: Sequence[Sequence[str]] = ()
) -> Table:
    """Return a row per look: shares of the draws that are read right, loss, seconds.

    Args:
        looks: of `shot_curve`.
        names: of the new classes.
        together: with a column for all new classes at once.
        more: further rows, each with a cell per column.
    """
    read = [name for name in names if name in looks[-1].read]
    together = together and len(read) > 1
    head = ["after", *(["read right"] if together else []), *(f"read as {name}" for name in read)]
    head += [] if looks[-1].query_loss is None else ["loss on other images"]
    rows = []
    for look in looks:
        row = [shots_name(look.shots, look.fewest), *([share_text(look.overall())] if together else [])]
        row += [share_text(look.read[name]) for name in read]
        row += [] if look.query_loss is None else [f"{look.query_loss:.4g}"]
        rows.append((*row, f"{look.seconds:.1f}"))
    return (*head, "seconds"), [*rows, *map(tuple, more)]
