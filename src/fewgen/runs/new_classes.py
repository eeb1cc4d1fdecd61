"""How a meta-trained run learns the classes that were kept from it.

The run is adapted, by its own recipe, to 1, 3, 5, 10 and 30 images of each novel class. Its draws are read
by a classifier of real images that knows nothing of the model.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from fewgen.data.imageset import ImageSet, joined
from fewgen.errors import DataError
from fewgen.evaluation.statistics import Share, wilson_interval
from fewgen.progress import Progress
from fewgen.runs.adaptation import SHOTS, Look, Reader, read_by_classifier, shot_curve
from fewgen.runs.source import encoder_path

if TYPE_CHECKING:
    from pathlib import Path

    from fewgen.methods.base import Method
    from fewgen.runs.adapting import Recipe
    from fewgen.runs.run import Run


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


def measure_new_classes(
    run: Run,
    train: ImageSet,
    held_out: ImageSet | None,
    others: Mapping[str, ImageSet] | Callable[[], Mapping[str, ImageSet]],
    data_dir: str | Path | None = None,
    progress: Progress | None = None,
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
    from fewgen.runs.adapting import Given, adapted, extended, recipe_of, replayed

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
        base = train if held_out is None else joined([train, held_out])
    judge = make_judge(joined([base, novel]), shown, start.spec.class_names)

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
    table = run.method.spec.text
    if table is None or not table.has_meaning:
        return None
    return encoder_path(table.encoder_name, table.encoder_path, data_dir)


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
    from fewgen.encoders.classifier import ClassifierFeatures, ClassifierSettings

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

    read_all = read_by_classifier(classifier)
    right = read_all(tried.images) == tried.labels
    of_shown = {}
    for name in shown:
        of_class = right[tried.labels == images.class_names.index(name)]
        if len(of_class):
            of_shown[name] = wilson_interval(int(of_class.sum()), len(of_class))
    overall = wilson_interval(int(right.sum()), len(right)) if len(right) else None
    return Judge(lambda pixels: label_of[read_all(pixels)], images.n_classes, len(learned), overall, of_shown)


def judge_images(images: ImageSet) -> tuple[ImageSet, ImageSet]:
    """Return what a judge learns from and what it is tried on, of each class a fifth but at most 100.

    Classes are drawn from at random, as a data set may be sorted; the draw is always the same.
    """
    from fewgen.fitting.seeds import make_rng

    rng = make_rng("cpu", 0, "judge of new classes")
    learned, tried = [], []
    for label in range(images.n_classes):
        rows = (images.labels == label).nonzero().flatten()
        rows = rows[torch.randperm(len(rows), generator=rng)]
        n_tried = min(JUDGE_TEST, len(rows) // 5)
        tried.append(rows[:n_tried])
        learned.append(rows[n_tried : n_tried + JUDGE_TRAIN])
    return images.subset(torch.cat(learned)), images.subset(torch.cat(tried))
