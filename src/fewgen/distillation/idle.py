"""Keywords of `distill` that have no effect beside the others: refused by name, never ignored."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fewgen.config.keywords import refuse_ignored
from fewgen.data.imageset import ImageSet
from fewgen.distillation.competitors import KIND_OF, NEED_POOL
from fewgen.distillation.generated import GENERATED
from fewgen.distillation.request import DistillRequest
from fewgen.runs.run import Run

Idle = tuple[str, Sequence[str]]
"""Why keywords have no effect, and which."""

OF_TRAINED_TEACHER = ("teacher_net", "teacher_channels", "teacher_pretrain_steps", "teacher_episodes")
OF_BASE = (*OF_TRAINED_TEACHER, "pretrain_steps", "turns", "base_images")

USED_BY: Mapping[str, Sequence[str]] = {
    "generator": (*KIND_OF, GENERATED),
    "save_images": tuple(name for name, kind in KIND_OF.items() if kind == "tint"),
    "mixtures": ("mixtures", GENERATED, *NEED_POOL),
}
"""Keyword -> the competitors of which one has to be there for it to have an effect. What a comparison notes
as its settings counts for competitors that join it later."""


def idle_for_student(request: DistillRequest) -> Iterator[Idle]:
    """Yield what has no effect on a student for the user's classes, as far as the keywords say."""
    if request.generator is None:
        images = ("per_class", "alpha", "tint", "generator_minutes", "training.hard_labels")
        yield "without --generator", images
    if request.data is None:
        yield "without --data, images of other classes", (*OF_BASE, "class_split")
    yield from _idle_beside_teacher(request)


def idle_for_comparison(request: DistillRequest, names: Sequence[str]) -> Iterator[Idle]:
    """Yield what has no effect on a comparison of these competitors."""
    if request.competitors is not None:
        yield "with --competitors", ("compare",)
    for keyword, users in USED_BY.items():
        if not set(users) & set(names):
            yield f"without one of {', '.join(users)} among the competitors", (keyword,)
    if request.class_split == "none":
        yield "with --class-split none: there are no base classes", OF_BASE
    yield from _idle_beside_teacher(request)


def idle_beside(generator: object) -> Iterator[Idle]:
    """Yield what has no effect on given images, or those of a run that draws the user's classes by name."""
    if isinstance(generator, (Run, ImageSet)):
        yield "with this --generator: it is specialised already", ("tint",)
        if isinstance(generator, ImageSet) or generator.info.method != "tint":
            yield "with this --generator: its images do not start from yours", ("alpha",)


def _idle_beside_teacher(request: DistillRequest) -> Iterator[Idle]:
    if request.teacher is not None:
        yield f"with --teacher {request.teacher}, which is trained already", OF_TRAINED_TEACHER
        if not request.pretrain_steps:
            yield "with --teacher and --pretrain-steps 0: nothing is prepared on base images", ("turns",)


def refuse_idle(request: DistillRequest, usual: Mapping[str, Any], idle: Iterator[Idle], parts: Path) -> None:
    """Refuse keywords that were chosen and have no effect.

    Args:
        request: all keywords.
        usual: their defaults.
        idle: which of them have no effect, and why.
        parts: folder of what is made on the way. Where it is there, nothing is refused: an earlier release
            may have ignored what it was started with, and to go on takes the same keywords.

    Raises:
        ConfigError: names those of the first reason.
    """
    if parts.is_dir():
        return
    given = {**vars(request), "tint": request.tint or None, "training": request.training or None}
    given |= {f"training.{key}": value for key, value in (request.training or {}).items()}
    usual = {"training.hard_labels": False, **usual}
    for why, names in idle:
        refuse_ignored(why, given, usual, *(name for name in names if name in given))
