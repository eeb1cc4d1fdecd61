"""How a meta-trained run learns the classes that were kept from it: a section of its report.

The run is adapted, by its own recipe, to 1, 3, 5, 10 and 30 images of each novel class. Its draws are read
by a classifier of real images that knows nothing of the model.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fewgen.data.imageset import ImageSet
from fewgen.errors import DataError
from fewgen.evaluate.agreement import Share, wilson_interval
from fewgen.report import plots
from fewgen.report.adaptation import (
    N_NEW,
    NO_MEANING,
    SHOTS,
    SHOWN,
    Look,
    Reader,
    look_table,
    share_text,
    shot_curve,
    shots_name,
)
from fewgen.report.page import figure, png, section, table, warning

if TYPE_CHECKING:
    from pathlib import Path

    from PIL.Image import Image

    from fewgen.api.adapting import Recipe
    from fewgen.api.run import Run
    from fewgen.evaluate.features import ClassifierFeatures
    from fewgen.methods.base import Method
    from fewgen.report.findings import Findings

MAX_CLASSES = 5
"""Novel classes in the figure, adapted to together."""

PER_CLASS = 5
"""Columns of each class in the figure."""

N_QUERY = 20
"""Images of each novel class that are kept to measure the loss on."""

ENOUGH = N_QUERY + max(SHOTS)
"""Images with which a class allows the whole figure."""

JUDGE_TRAIN, JUDGE_TEST = 500, 100
"""Images of each class that the judge learns from, and that it is tried on."""

REAL_ROW_SHOTS = 5
GROUPS = {"val": "validation classes", "novel": "novel classes"}


@dataclass(frozen=True)
class Judge:
    """A classifier of real images, and how far it can be believed.

    Attributes:
        read: images -> classes of the adapted model, -1 for one that it does not have.
        n_classes: that it tells apart.
        n_train: images it learned from.
        overall: share of other real images, of all classes, that it reads right; None without any.
        shown: novel class of the figure -> the same share for its images, where there are any.
    """

    read: Reader
    n_classes: int
    n_train: int
    overall: Share | None
    shown: dict[str, Share]


@dataclass(frozen=True)
class NewClasses:
    """How a run learns its novel classes.

    Attributes:
        n_novel: novel classes with images; `support` holds those of the figure.
        support: images to learn from, grouped by class, in the order in which shots are taken.
        n_query: images of each class that the loss was measured on; 0: none.
        looks: before any image first.
        judge: who read the draws.
        recipe: how the run was adapted.
        has_meaning: whether class vectors come from words; None: the method has no class vectors.
    """

    n_novel: int
    support: ImageSet
    n_query: int
    looks: list[Look]
    judge: Judge
    recipe: Recipe
    has_meaning: bool | None


def was_meta_trained(run: Run) -> bool:
    """Return whether a run was trained with `meta`, be it as the control "none"."""
    return isinstance(run.info.extra.get("meta"), Mapping)


# ------------------------------------------------------------------------------------------ measuring


def measure_new_classes(
    run: Run,
    train: ImageSet,
    held_out: ImageSet | None,
    others: Mapping[str, ImageSet] | Callable[[], Mapping[str, ImageSet]],
    data_dir: str | Path | None = None,
    progress: Callable[[str, float], None] | None = None,
) -> NewClasses | None:
    """Adapt a run to its novel classes, again and again from the start with more images.

    Args:
        run: trained with `meta`; it stays as it is.
        train: images it learned from.
        held_out: images set aside, or None; with `train` for the judge if `others` has no "base".
        others: images of other classes, or how to get them, as `Run.other_images` returns them.
        data_dir: folder of the named data sets, where the words may lie too.
        progress: told the name of the part and the share that is done.

    Returns:
        What was found; None if the run has no novel classes.

    Raises:
        DataError: the images cannot be had, or no novel class has any.
    """
    from fewgen.api.adapting import Given, adapted, extended, recipe_of, replayed

    known = set(run.class_names)
    if not [name for name in run.class_groups()["novel"] if name not in known]:
        return None
    images = others() if callable(others) else others
    novel = images.get("novel")
    if novel is None:
        raise DataError("The images of the novel classes are not at hand.")
    novel = _with_images(novel, known)
    shown = choose_classes(novel)
    support, query = split_novel(novel.select_classes(shown), int(run.config.get("seed") or 0))

    phrases = {k: v for k, v in (run.config.get("phrases") or {}).items() if k in shown}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the training has warned of words without a vector
        start, _ = extended(run, shown, phrases or None, _text_path(run, data_dir), None)
    if progress is not None:
        progress("training a judge of the new classes", 0.0)
    base = images.get("base")
    if base is None:
        base = train if held_out is None else _joined([train, held_out])
    judge = make_judge(_joined([base, novel]), shown, start.spec.class_names)

    recipe = recipe_of(run, Given())
    old = replayed(run.method, recipe.seed)

    def again(some: ImageSet) -> Method:
        return adapted(start, some, old, recipe, None)

    shots = [k for k in SHOTS if k <= len(support) // len(shown)]
    looks = shot_curve(start, support, query, shots, again, judge.read, progress)
    text = start.spec.text
    return NewClasses(
        novel.n_classes,
        support,
        len(query) // len(shown),
        looks,
        judge,
        recipe,
        None if text is None else text.has_meaning,
    )


def _text_path(run: Run, data_dir: str | Path | None) -> str | None:
    from fewgen.api.prepare import _glove_path

    table = run.method.spec.text
    if table is None or not table.has_meaning:
        return None
    path = table.encoder_path
    return _glove_path(path, data_dir) if table.encoder_name == "glove" else path


def _with_images(images: ImageSet, known: set[str]) -> ImageSet:
    """Return the classes that have images and that a model does not know yet."""
    counted = zip(images.class_names, images.counts().tolist(), strict=True)
    names = [name for name, count in counted if count and name not in known]
    if not names:
        raise DataError("No novel class has an image.")
    return images.select_classes(names)


def choose_classes(images: ImageSet) -> list[str]:
    """Return the names of the classes to show: the first ones, but those with enough images before others.

    Args:
        images: of the novel classes, each with an image.
    """
    counts = images.counts().tolist()
    order = sorted(range(images.n_classes), key=lambda i: -min(counts[i], ENOUGH))[:MAX_CLASSES]
    return [images.class_names[i] for i in sorted(order)]


def split_novel(images: ImageSet, seed: int) -> tuple[ImageSet, ImageSet]:
    """Return images to learn from, the same number of each class, and `N_QUERY` others of each.

    A class of fewer than twice `N_QUERY` images keeps half of them to learn from, for the figure's sake.

    Args:
        images: of the novel classes, each with an image.
        seed: of the draw.
    """
    fewest = int(images.counts().min())
    n_query = min(N_QUERY, fewest // 2)
    most = max(k for k in SHOTS if k <= fewest - n_query)
    return images.split_shots(most, n_query, seed)


def make_judge(images: ImageSet, shown: Sequence[str], class_names: Sequence[str]) -> Judge:
    """Train a classifier of real images, or read it from the cache, and try it on others.

    Args:
        images: of the old and the novel classes.
        shown: names of the novel classes whose draws it will read.
        class_names: of the model that draws.
    """
    from fewgen.evaluate.features import ClassifierFeatures, ClassifierSettings

    learned, tried = judge_images(images)
    few = ClassifierSettings.for_images(len(learned), min(learned.size))
    # With many images a third of the usual work costs a point of accuracy, and 12 seconds for 10 classes.
    brief = ClassifierSettings(
        steps=min(1500, max(600, 30 * images.n_classes)), batch_size=64, max_shift=1, pool_first=True
    )
    with torch.random.fork_rng(devices=[]):  # a network read from the cache draws weights first
        classifier = ClassifierFeatures.of(learned, settings=few if len(learned) < 2000 else brief)
    place = {name: label for label, name in enumerate(class_names)}
    label_of = torch.tensor([place.get(name, -1) for name in images.class_names])

    def read(pixels: Tensor) -> Tensor:
        return label_of[_predicted(classifier, pixels, images.class_names)]

    right = _predicted(classifier, tried.images, images.class_names) == tried.labels
    of_shown = {}
    for name in shown:
        of_class = right[tried.labels == images.class_names.index(name)]
        if len(of_class):
            of_shown[name] = wilson_interval(int(of_class.sum()), len(of_class))
    overall = wilson_interval(int(right.sum()), len(right)) if len(right) else None
    return Judge(read, images.n_classes, len(learned), overall, of_shown)


def _predicted(classifier: ClassifierFeatures, pixels: Tensor, class_names: Sequence[str]) -> Tensor:
    labels = torch.zeros(len(pixels), dtype=torch.int64)
    return classifier.predict(ImageSet(pixels, labels, tuple(class_names)))


def judge_images(images: ImageSet) -> tuple[ImageSet, ImageSet]:
    """Return what a judge learns from and what it is tried on, of each class a fifth but at most 100.

    Classes are drawn from at random, as a data set may be sorted; the draw is always the same.
    """
    from fewgen.training.seeds import make_rng

    rng = make_rng("cpu", 0, "judge of new classes")
    learned, tried = [], []
    for label in range(images.n_classes):
        rows = (images.labels == label).nonzero().flatten()
        rows = rows[torch.randperm(len(rows), generator=rng)]
        n_tried = min(JUDGE_TEST, len(rows) // 5)
        tried.append(rows[:n_tried])
        learned.append(rows[n_tried : n_tried + JUDGE_TRAIN])
    return images.subset(torch.cat(learned)), images.subset(torch.cat(tried))


def _joined(parts: Sequence[ImageSet]) -> ImageSet:
    """Return several sets as one; classes of the same name are one class."""
    names = tuple(dict.fromkeys(name for part in parts for name in part.class_names))
    labels = [torch.tensor([names.index(n) for n in part.class_names])[part.labels] for part in parts]
    return ImageSet(torch.cat([p.images for p in parts]), torch.cat(labels), names, name=parts[0].name)


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
    from fewgen.generate.pictures import MIN_CELL_PIXELS, grid

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

    from fewgen.generate.pictures import BACKGROUND, GAP, INK, _Text

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
