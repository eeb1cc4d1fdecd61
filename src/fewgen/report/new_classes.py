"""How a meta-trained run learns the classes that were kept from it: a section of its report.

The run is adapted, by its own recipe, to 1, 3, 5, 10 and 30 images of each novel class. Its draws are read
by a classifier of real images that knows nothing of the model.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

import torch

from fewgen.evaluation.statistics import Share, wilson_interval
from fewgen.report import plots
from fewgen.report.adaptation import NO_MEANING, look_table, share_text, shots_name
from fewgen.report.page import figure, png, section, table, warning
from fewgen.runs.adaptation import N_NEW, SHOWN
from fewgen.runs.new_classes import GROUPS, PER_CLASS, NewClasses, was_meta_trained

if TYPE_CHECKING:
    from PIL.Image import Image

    from fewgen.runs.adapting import Recipe
    from fewgen.runs.findings import Findings


REAL_ROW_SHOTS = 5


# ------------------------------------------------------------------------------------------ measuring


# ------------------------------------------------------------------------------------------ the section


def new_classes_section(findings: Findings) -> str:
    """Return the section as HTML; nothing for a run without meta-training."""
    run, found = findings.run, findings.new_classes
    if not was_meta_trained(run):
        return ""
    if findings.new_classes_fault:
        body = warning(f"The new classes could not be measured: {findings.new_classes_fault}")
    elif found is not None:
        body = _figure(found) + _table(found)
    elif not run.class_groups()["novel"]:
        body = (
            "<p>No class was kept from this run, so how it learns new ones is not shown. "
            "<code>--class-split auto</code> sets novel classes aside.</p>\n"
        )
    else:
        body = ""
    return body + section("Updates and loss", lambda: _curves(findings), 3)


def _figure(found: NewClasses) -> str:
    caption = (
        "Real images that are learned from, then draws, each row with the same seeds and from the trained "
        f"run anew: {_listed(found.support.class_names)}, learned together in {_recipe_text(found.recipe)}."
    )
    if found.n_novel > found.support.n_classes:
        caption += f" {found.support.n_classes} of {found.n_novel} novel classes."
    html = figure(png(shots_picture(found)), "new classes after more and more images", caption, pixels=True)
    return html + (NO_MEANING if found.has_meaning is False else "")


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


def _table(found: NewClasses) -> str:
    names, judge, last = found.support.class_names, found.judge, found.looks[-1]
    more = []
    if judge.shown:
        pooled = [share for name in names if (share := judge.shown.get(name))]
        row = ["other real images"]
        if len(names) > 1:
            row.append(share_text(_together(pooled)))
        row += [share_text(judge.shown[name]) if name in judge.shown else "-" for name in names]
        more.append([*row, *(["-"] if last.query_loss is not None else []), "-"])
    believed = (
        "there were no other images to try it on"
        if judge.overall is None
        else f"it reads {share_text(judge.overall)} of {judge.overall.n} other real images right"
    )
    loss = (
        f"Loss: the objective on {found.n_query} other images of each class. "
        if found.n_query
        else "Every image was learned from, so the loss on others is not known. "
    )
    note = (
        f"Read as: share of {N_NEW} draws of each class that are read as the class, with its 95 % interval, "
        f"by a small classifier that learned from {judge.n_train} real images of {judge.n_classes} classes "
        f"and knows nothing of the model; {believed}. {loss}Each row is adapted from the trained run."
    )
    return look_table(found.looks, names, True, more) + f'<p class="soft">{escape(note)}</p>\n'


def _together(shares: Sequence[Share]) -> Share:
    return wilson_interval(sum(share.successes for share in shares), sum(share.n for share in shares))


def _recipe_text(recipe: Recipe) -> str:
    return f"{recipe.steps} updates, learning rate {recipe.optimizer.lr:g}, parameters: {recipe.part}"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f'"{name}"' for name in names)


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


def _curves(findings: Findings) -> str:
    found = last_curves(findings.lines)
    if found is None:
        return ""
    meta = findings.run.info.extra["meta"]
    picture = plots.adaptation_curves({GROUPS[group]: points for group, points in found.losses.items()})
    n_tasks = meta.get("validation_tasks", "some")
    caption = (
        f"Mean loss over {n_tasks} tasks of up to {meta.get('n_way', '?')} classes with "
        f"{meta.get('n_shot', '?')} images each to learn from, on other images of the same classes, after "
        f"some numbers of updates. Measured at step {found.step} of the stage {found.stage}."
    )
    stages = [stage for stage in findings.stages if stage.get("name") == found.stage]
    kept = stages[-1].get("best_step") if stages else None
    if kept is not None and kept != found.step:
        caption += f" The weights of step {kept} were kept."
    rows = []
    for group, points in found.losses.items():
        row = [GROUPS[group], *(f"{loss:.4g}" for _, loss in points)]
        spread = found.spreads.get(group)
        rows.append([*row, "-" if spread is None else f"{spread[1]:.3g} after {spread[0]}"])
    head = ["loss after", *(str(k) for k, _ in next(iter(found.losses.values()))), "spread over tasks"]
    words = [
        f"Over the tasks of the {GROUPS[group]} the loss after {k} updates differs by {spread:.3g} "
        "(one standard deviation)."
        for group, (k, spread) in found.spreads.items()
    ]
    html = figure(picture, "loss over the number of updates", caption) + table(head, rows)
    return html + (f"<p>{escape(' '.join(words))}</p>\n" if words else "")


# ------------------------------------------------------------------------------------------ the card


def card_lines(findings: Findings) -> list[str]:
    """Return what the card says of new classes, at most one line; as text."""
    found = findings.new_classes
    if findings.new_classes_fault:
        return [f"not measured. {findings.new_classes_fault}"]
    if found is None:
        return []
    algorithm = findings.run.info.extra["meta"].get("algorithm", "unknown")
    few = [look for look in found.looks if look.shots <= REAL_ROW_SHOTS]
    first, look = found.looks[0], few[-1]
    before = f"; by the words alone {share_text(first.overall())}" if found.has_meaning else ""
    return [
        f"meta-training {algorithm}. After {shots_name(look.shots)} of each of "
        f"{_listed(found.support.class_names)} and {found.recipe.steps} updates, "
        f"{share_text(look.overall())} of {look.overall().n} draws are read as their class by a classifier "
        f"of real images{before}."
    ]
