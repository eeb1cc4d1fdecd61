"""How a meta-trained run learns the classes that were kept from it: a section of its report.

The run is adapted, by its own recipe, to 1, 3, 5, 10 and 30 images of each novel class. Its draws are read
by a classifier of real images that knows nothing of the model.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from fewgen.evaluation.statistics import Share, wilson_interval
from fewgen.report import plots
from fewgen.report.adaptation import look_table, shots_name
from fewgen.report.page import listed, share_text
from fewgen.runs.adaptation import N_NEW, SHOWN
from fewgen.runs.new_classes import GROUPS, PER_CLASS, NewClasses, was_meta_trained

if TYPE_CHECKING:
    from PIL.Image import Image

    from fewgen.report.evidence import Table
    from fewgen.runs.findings import Findings

REAL_ROW_SHOTS = 5


@dataclass(frozen=True)
class NewClassesView:
    """What the templates say and draw of new classes."""

    findings: Findings
    groups: ClassVar = GROUPS
    n_draws: ClassVar = N_NEW

    @property
    def found(self) -> NewClasses | None:
        """What was measured, or None."""
        return self.findings.new_classes

    @property
    def was_meta_trained(self) -> bool:
        """Whether there is anything to say."""
        return was_meta_trained(self.findings.run)

    def keeps_none(self) -> bool:
        """Return whether no class was kept from the run."""
        return not self.findings.run.class_groups()["novel"]

    def picture(self, found: NewClasses) -> Image:
        """Return the figure, see `shots_picture`."""
        return shots_picture(found)

    def table(self, found: NewClasses) -> Table:
        """Return how draws are read after more and more images, and how other real images are."""
        names, read = found.support.class_names, found.judge.shown
        more = []
        if read:
            shares = [read.get(name) for name in names]
            pooled = _together([share for share in shares if share is not None])
            more = ["other real images", *([share_text(pooled)] if len(names) > 1 else [])]
            more += ["-" if share is None else share_text(share) for share in shares]
            more += ["-"] * (1 + (found.looks[-1].query_loss is not None))
        return look_table(found.looks, names, True, [more] if more else [])

    def curves(self) -> Curves | None:
        """Return the last adaptation curves that the training has logged; None without any."""
        return last_curves(self.findings.lines)

    def curves_picture(self, curves: Curves) -> bytes:
        """Return the plot of the curves."""
        return plots.adaptation_curves({GROUPS[group]: points for group, points in curves.losses.items()})

    def curves_table(self, curves: Curves) -> Table:
        """Return the points of the curves."""
        rows = [
            (GROUPS[group], *(f"{loss:.4g}" for _, loss in points), _spread(curves.spreads.get(group)))
            for group, points in curves.losses.items()
        ]
        updates = next(iter(curves.losses.values()))
        return ("loss after", *(str(k) for k, _ in updates), "spread over tasks"), rows

    def kept_step(self, curves: Curves) -> int | None:
        """Return the step whose weights were kept, if it is another than that of the curves."""
        stages = [stage for stage in self.findings.stages if stage.get("name") == curves.stage]
        kept = stages[-1].get("best_step") if stages else None
        return None if kept == curves.step else kept

    def card_line(self) -> str:
        """Return what the card says, as text; "" for nothing."""
        found, fault = self.found, self.findings.faults.get("new_classes")
        if fault:
            return f"not measured. {fault}"
        if found is None:
            return ""
        algorithm = self.findings.run.info.extra["meta"].get("algorithm", "unknown")
        look = [look for look in found.looks if look.shots <= REAL_ROW_SHOTS][-1]
        before = f"; by the words alone {share_text(found.looks[0].overall())}" if found.has_meaning else ""
        return (
            f"meta-training {algorithm}. After {shots_name(look.shots)} of each of "
            f"{listed(found.support.class_names)} and {found.recipe.steps} updates, "
            f"{share_text(look.overall())} of {look.overall().n} draws are read as their class by a "
            f"classifier of real images{before}."
        )


def _together(shares: Sequence[Share]) -> Share:
    return wilson_interval(sum(share.successes for share in shares), sum(share.n for share in shares))


def _spread(spread: tuple[int, float] | None) -> str:
    return "-" if spread is None else f"{spread[1]:.3g} after {spread[0]}"


# ------------------------------------------------------------------------------------------ the figure


def shots_picture(found: NewClasses) -> Image:
    """Return the figure: real images, then a row per look; the classes side by side, named above."""
    from fewgen.generation.pictures import MIN_CELL_PIXELS, grid

    support, n = found.support, found.support.n_classes
    real = []
    for label in range(n):
        of_class = support.images[support.labels == label][:REAL_ROW_SHOTS]
        blank = torch.full((PER_CLASS - len(of_class), *of_class.shape[1:]), 255, dtype=torch.uint8)
        real += [of_class, blank]
    rows, labels = [torch.cat(real)], [f"real, of {shots_name(min(REAL_ROW_SHOTS, len(support) // n))}"]
    for look in found.looks:
        rows.append(look.drawn.unflatten(0, (n, SHOWN))[:, :PER_CLASS].flatten(0, 1))
        labels.append(shots_name(look.shots))
    scale = max(1, -(-MIN_CELL_PIXELS // min(support.size)))
    picture = grid(torch.cat(rows), n * PER_CLASS, labels, scale)
    return _titled(picture, support.class_names, support.size[1], scale)


def _titled(picture: Image, names: Sequence[str], width: int, scale: int) -> Image:
    """Return a picture of blocks of `PER_CLASS` columns with a name above each and a line between them."""
    from PIL import Image as PillowImage
    from PIL import ImageDraw

    from fewgen.generation.pictures import BACKGROUND, GAP, INK, _Text

    # The columns end at the right edge; what is left of them belongs to the names of the rows.
    cell = scale * width + GAP
    top = 20
    canvas = PillowImage.new("RGB", (picture.width, picture.height + top), BACKGROUND)
    canvas.paste(picture, (0, top))
    draw = ImageDraw.Draw(canvas)
    for block, name in enumerate(names):
        x = picture.width - (len(names) - block) * PER_CLASS * cell
        _Text(name, 40).draw(canvas, x, 0, top)
        if block:
            draw.rectangle((x - GAP, 0, x - 1, canvas.height - 1), fill=INK)
    return canvas


# ------------------------------------------------------------------------------------------ the curve


@dataclass(frozen=True)
class Curves:
    """The adaptation curves that a training logged last.

    Attributes:
        stage: name of the stage.
        step: of the stage, at which they were measured.
        losses: "val" or "novel" -> (updates, mean loss over tasks), in rising order.
        spreads: "val" or "novel" -> (updates, standard deviation of the loss over tasks).
    """

    stage: str
    step: int
    losses: dict[str, list[tuple[int, float]]]
    spreads: dict[str, tuple[int, float]]


def last_curves(lines: Sequence[Mapping[str, Any]]) -> Curves | None:
    """Return the last adaptation curves among the lines of metrics.jsonl; None without any."""
    for line in reversed(lines):
        if line.get("kind") != "held_out":
            continue
        losses: dict[str, list[tuple[int, float]]] = {}
        spreads: dict[str, tuple[int, float]] = {}
        for key, value in line.items():
            match = re.fullmatch(r"(val|novel)_(loss|spread)_after_(\d+)", key)
            if match is None or not isinstance(value, (int, float)) or not math.isfinite(value):
                continue
            group, what, k = match[1], match[2], int(match[3])
            if what == "loss":
                losses.setdefault(group, []).append((k, float(value)))
            else:
                spreads[group] = (k, float(value))
        if losses:
            ordered = {group: sorted(losses[group]) for group in GROUPS if group in losses}
            return Curves(str(line.get("stage", "")), int(line.get("step", 0)), ordered, spreads)
    return None
