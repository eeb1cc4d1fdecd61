"""Who competes on an episode: a table of names and functions, each of which gives an accuracy."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fewgen.data.imageset import ImageSet
from fewgen.distillation.generated import GENERATED
from fewgen.distillation.knowledge import DistillConfig, accuracy, distill
from fewgen.distillation.students import Student
from fewgen.distillation.teacher import Teacher


@dataclass(frozen=True)
class Task:
    """One episode, and everything that its competitors share.

    Attributes:
        supports: images to learn from.
        queries: other images of the same classes, only looked at to measure.
        base: images of base classes; None without.
        teacher: of the soft labels.
        fresh: gives a student with random weights and a new head, always the same.
        prepared: gives a student that was trained on base classes, with the same new head; one with random
            weights without base classes.
        synthetic: kind -> synthetic images of the supports' classes.
        mixtures: gives mixtures of the supports.
        pool: gives unlabelled images, none of them a support or a query.
        retrieved: gives those of the pool that a joint encoder finds for the class names, as labels.
        weigh: whether images of `GENERATED` count as much as the teacher believes that they show their class.
        config: of every training, so that all take the same number of steps.
        seed: of batches and augmentation.
        progress: told the share of a training that is done.
    """

    supports: ImageSet
    queries: ImageSet
    base: ImageSet | None
    teacher: Teacher
    fresh: Callable[[], Student]
    prepared: Callable[[], Student]
    synthetic: Callable[[str], ImageSet]
    mixtures: Callable[[], ImageSet]
    pool: Callable[[], ImageSet]
    retrieved: Callable[[], ImageSet]
    weigh: bool
    config: DistillConfig
    seed: int
    progress: Callable[[int, int, float], None] | None = None


@dataclass(frozen=True)
class Outcome:
    """What a competitor reached.

    Attributes:
        accuracy: share of the queries that it gets right.
        seconds: of its training; 0 without one.
        about: rows of a batch by source, last losses, and what the teacher says; JSON-ready.
    """

    accuracy: float
    seconds: float
    about: dict[str, Any]


def _trained(
    task: Task,
    student: Student,
    *,
    synthetic: ImageSet | None = None,
    base: bool = True,
    hard_labels: bool | None = None,
    weigh: bool | None = None,
    mixtures: bool = False,
    pool: bool = False,
) -> Outcome:
    """Train a student on the supports, and on further images as wanted."""
    config = task.config if hard_labels is None else dataclasses.replace(task.config, hard_labels=hard_labels)
    if weigh is not None:
        config = dataclasses.replace(config, weigh=weigh)
    if config.hard_labels or synthetic is None:  # nothing to weigh
        config = dataclasses.replace(config, weigh=False)
    started = time.perf_counter()
    history = distill(
        student,
        task.supports,
        synthetic,
        task.base if base else None,
        task.teacher,
        config,
        mixtures=task.mixtures() if mixtures else None,
        pool=task.pool() if pool else None,
        seed=task.seed,
        progress=task.progress,
    )
    seconds = time.perf_counter() - started
    about = {"parts": history.parts, "last": history.rows[-1], "teacher": history.teacher}
    return Outcome(accuracy(student, task.queries), seconds, about)


def _tint(task: Task) -> Outcome:
    """The method: TINT images and base images with soft labels of the teacher, and the supports."""
    return _trained(task, task.prepared(), synthetic=task.synthetic(KIND_OF["tint"]))


def _none(task: Task) -> Outcome:
    """The same without synthetic images."""
    return _trained(task, task.prepared())


def _augmentation(task: Task) -> Outcome:
    """The supports alone with augmentation, from random weights: no base class, no teacher."""
    return _trained(task, task.fresh(), base=False)


def _augmentation_pretrained(task: Task) -> Outcome:
    """The supports alone with augmentation, from a backbone prepared on base classes."""
    return _trained(task, task.prepared(), base=False)


def _textual_inversion(task: Task) -> Outcome:
    """Synthetic images by the learned word alone."""
    return _trained(task, task.prepared(), synthetic=task.synthetic(KIND_OF["textual_inversion"]))


def _da_fusion(task: Task) -> Outcome:
    """Synthetic images by noising supports to random times and denoising them with the learned word."""
    return _trained(task, task.prepared(), synthetic=task.synthetic(KIND_OF["da_fusion"]))


def _hard_labels(task: Task) -> Outcome:
    """TINT images with their class as label, instead of what the teacher says."""
    return _trained(task, task.prepared(), synthetic=task.synthetic(KIND_OF["hard_labels"]), hard_labels=True)


def _mixtures(task: Task) -> Outcome:
    """Mixtures of the supports with soft labels of the teacher, and the supports; base images, if any."""
    return _trained(task, task.prepared(), mixtures=True)


def _pool(task: Task) -> Outcome:
    """The same, and unlabelled real images with soft labels of the teacher."""
    return _trained(task, task.prepared(), mixtures=True, pool=True)


def _generated(task: Task) -> Outcome:
    """Mixtures, and images of --generator: of a folder, a run, or a method that learned the supports.

    The teacher labels them softly; with a pretrained one, each counts as much as it is believed.
    """
    return _trained(
        task, task.prepared(), synthetic=task.synthetic(GENERATED), mixtures=True, weigh=task.weigh
    )


def _retrieved(task: Task) -> Outcome:
    """Mixtures, and real images of the pool that a joint encoder finds by class name, as synthetic ones.

    The teacher labels them softly; with --training.hard_labels true they get the class that was looked for.
    """
    return _trained(task, task.prepared(), synthetic=task.retrieved(), mixtures=True)


def _teacher(task: Task) -> Outcome:
    """The teacher itself, after a look at the supports."""
    learned = task.teacher.fit(task.supports)
    right = task.teacher.predict(task.queries, learned) == task.queries.labels
    return Outcome(float(right.double().mean()), 0.0, {})


COMPETITORS: dict[str, Callable[[Task], Outcome]] = {
    "tint": _tint,
    "none": _none,
    "augmentation": _augmentation,
    "augmentation_pretrained": _augmentation_pretrained,
    "textual_inversion": _textual_inversion,
    "da_fusion": _da_fusion,
    "hard_labels": _hard_labels,
    "mixtures": _mixtures,
    "generated": _generated,
    "pool": _pool,
    "retrieved": _retrieved,
    "teacher": _teacher,
}
"""Competitors by name, in the order in which they run and are shown."""


KIND_OF = {
    "tint": "tint",
    "textual_inversion": "textual_inversion",
    "da_fusion": "da_fusion",
    "hard_labels": "tint",
}
"""Competitor -> the synthetic images that it learns from; those that need a text-to-image model."""


NEED_POOL = ("pool", "retrieved")
"""Competitors that learn from unlabelled images."""


NEED_BASE = ("none", "augmentation_pretrained", *KIND_OF)
"""Competitors that learn from base classes."""


def about_competitors() -> dict[str, str]:
    """Return what each competitor is, in a sentence or two."""
    return {name: " ".join((function.__doc__ or "").split()) for name, function in COMPETITORS.items()}
