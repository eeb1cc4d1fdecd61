"""Distillation: a student learns one task from its supports, and from soft labels of many other images."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional

from fewgen.config.checks import BelowOne, Checked, Count, Positive, Share, Weight, at_least
from fewgen.data.imageset import ImageSet
from fewgen.distillation.settings import Batch
from fewgen.distillation.students import Student
from fewgen.distillation.teacher import Teacher
from fewgen.distillation.views import padding_for, vary
from fewgen.encoders.base import in_batches
from fewgen.errors import ConfigError, DataError, ProblemList, ShapeError
from fewgen.fitting.fit import Shuffled, fit
from fewgen.fitting.optimizers import SGD
from fewgen.fitting.seeds import make_rng

SOURCES = ("support", "synthetic", "mixtures", "pool", "base")
"""Where the images of a batch come from, in the order of its rows."""

UNLABELLED = ("mixtures", "pool", "base")
"""Sources whose labels are not looked at: a teacher says what their images show."""


# ------------------------------------------------------------------------------------------- losses


def kd_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """T^2 KL(softmax(teacher / T) || softmax(student / T)) in nats, averaged over the batch.

    Args:
        student_logits: (B, n_classes).
        teacher_logits: same shape; a constant.
        temperature: T > 0. The factor T^2 keeps the size of the gradient as T grows.

    Returns:
        A scalar >= 0, 0 exactly where both give the same probabilities.

    Raises:
        ShapeError: shapes that differ, or an empty batch.
        ConfigError: a temperature that is not positive.

    Source: Hinton, Vinyals, Dean 2015, arXiv:1503.02531, Sec. 2 (the factor: its end).
    """
    return _kd_rows(student_logits, teacher_logits, temperature).mean()


def _kd_rows(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """Return `kd_loss` of each row, (B,)."""
    if student_logits.ndim != 2 or student_logits.shape != teacher_logits.shape or not len(student_logits):
        raise ShapeError(
            f"Logits of student and teacher must be (B, n_classes) with B >= 1, got "
            f"{tuple(student_logits.shape)} and {tuple(teacher_logits.shape)}."
        )
    if not 0 < temperature < math.inf:
        raise ConfigError(f"temperature must be a positive number, got {temperature}.")
    student = functional.log_softmax(student_logits / temperature, dim=1)
    teacher = functional.log_softmax(teacher_logits.detach() / temperature, dim=1)
    return temperature**2 * (teacher.exp() * (teacher - student)).sum(dim=1)


@dataclass(frozen=True)
class DistillLoss:
    """Parts of a batch's loss, scalars; None for a part without images.

    total: their sum.
    hard: cross-entropy of the supports.
    soft: of the other images.
    """

    total: Tensor
    hard: Tensor | None
    soft: Tensor | None


def distillation_loss(
    student_logits: Tensor,
    parts: Mapping[str, int],
    labels: Tensor,
    teacher_logits: Tensor,
    temperature: float,
    hard_labels: bool = False,
    trust: Tensor | None = None,
) -> DistillLoss:
    """Cross-entropy of the supports plus the mean over all other images of their distillation loss.

    Args:
        student_logits: (B, n_classes); rows in the order of `SOURCES`.
        parts: rows of each source, as `three_parts` gives them; their sum is B.
        labels: int64 (B,): classes of supports and synthetic images; the others are not looked at.
        teacher_logits: (B, n_classes); rows of supports are not looked at.
        temperature: T of the soft labels.
        hard_labels: synthetic images by cross-entropy with their class instead, with the same weight.
        trust: (B,), weight in [0, 1] of each row's loss; rows of supports are not looked at. None: all 1.

    Raises:
        ShapeError: rows that do not add up.
        ConfigError: a temperature that is not positive.

    Source: Landolsi & Kahl, "Tiny models from tiny data"; weights 1 and 1 as in Jian & Torresani 2022,
        arXiv:2112.03340 (LabelHalluc).
    """
    unknown = set(parts) - set(SOURCES)
    if unknown or sum(parts.values()) != len(student_logits):
        raise ShapeError(
            f"The parts of a batch must be among {SOURCES} and add up to its rows, got {dict(parts)} for "
            f"{len(student_logits)} rows."
        )
    if len(labels) != len(student_logits) or len(teacher_logits) != len(student_logits):
        raise ShapeError(
            f"{len(student_logits)} rows of student logits, but {len(labels)} labels and "
            f"{len(teacher_logits)} rows of teacher logits."
        )
    n_support, n_synthetic = parts.get("support", 0), parts.get("synthetic", 0)
    hard = functional.cross_entropy(student_logits[:n_support], labels[:n_support]) if n_support else None
    first_soft = n_support + n_synthetic if hard_labels else n_support
    rows = []
    if first_soft > n_support:
        made = slice(n_support, first_soft)
        rows.append(functional.cross_entropy(student_logits[made], labels[made], reduction="none"))
    if first_soft < len(student_logits):
        rows.append(_kd_rows(student_logits[first_soft:], teacher_logits[first_soft:], temperature))
    soft = None
    if rows:
        each = torch.cat(rows)
        soft = (each if trust is None else each * trust[n_support:]).mean()
    if hard is None and soft is None:
        raise ShapeError("A batch without images has no loss.")
    total = sum((part for part in (hard, soft) if part is not None), student_logits.new_zeros(()))
    return DistillLoss(total, hard, soft)


# ------------------------------------------------------------------------------------------ batches


def three_parts(batch_size: int, present: Mapping[str, object] | tuple[str, ...]) -> dict[str, int]:
    """Return how many rows of a batch each source gets: equal parts of the sources that are there.

    Args:
        batch_size: rows; what cannot be divided goes to the first sources.
        present: names of `SOURCES`, in any order.

    Raises:
        ConfigError: an unknown source, none, or fewer rows than sources.

    Source: Landolsi & Kahl, "Tiny models from tiny data": 150 = 50 + 50 + 50.

    >>> three_parts(150, ("support", "synthetic", "base"))
    {'support': 50, 'synthetic': 50, 'base': 50}
    >>> three_parts(151, ("support", "base"))
    {'support': 76, 'base': 75}
    """
    unknown = [source for source in present if source not in SOURCES]
    if unknown:
        raise ConfigError(f"Unknown sources {unknown}. Choose among: {', '.join(SOURCES)}.")
    chosen = [source for source in SOURCES if source in present]
    if not 0 < len(chosen) <= batch_size:
        raise ConfigError(
            f"A batch of {batch_size} images cannot hold {len(chosen)} sources. Raise batch_size, or give "
            "images."
        )
    each, rest = divmod(batch_size, len(chosen))
    return {source: each + (i < rest) for i, source in enumerate(chosen)}


# ----------------------------------------------------------------------------------------- training


def usual_precision(device: torch.device) -> Literal["float32", "bfloat16"]:
    """Return in what students are trained if nobody says: in bfloat16 where it takes half the time."""
    fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bfloat16" if fast and device.type == "cpu" else "float32"


@dataclass(frozen=True)
class DistillConfig(Checked):
    """How a student is trained.

    steps: optimiser steps; 10,000 published.
    batch_size: images per step, in equal parts of the sources.
    temperature: T of the soft labels.
    lr: of the backbone.
    head_lr: of the head, as a multiple of `lr`; less where it sees many numbers (`Student.head_rate`).
    momentum: of SGD.
    weight_decay: of SGD, added to the gradient.
    drop_at: share of the steps after which rates fall.
    drop: factor by which they fall.
    hard_labels: synthetic images with their class instead of the teacher's soft label.
    relabel: the teacher looks at each image as augmented, instead of once as it is; as slow as the teacher.
    weigh: each synthetic image counts as much as the teacher believes that it shows its class.
    padding: largest random move in pixels; -1 for 8 from 64 pixels on and 4 below.
    jitter: of brightness, contrast and saturation.
    flip: mirror images; off for characters.
    precision: bfloat16 takes half the time where the processor multiplies such numbers, and gives other
        weights than float32.

    Source: Landolsi & Kahl, "Tiny models from tiny data"; T, augmentation and momentum from Jian & Torresani
        2022, arXiv:2112.03340. `head_lr` is ours (LabelHalluc: 0.05 beside 0.025).
    """

    section: ClassVar[str] = "distill"

    steps: Count = 10_000
    batch_size: Batch = 150
    temperature: Positive = 4.0
    lr: Positive = 0.02
    head_lr: Positive = 2.0
    momentum: BelowOne = 0.9
    weight_decay: Weight = 5e-4
    drop_at: Share = 0.5
    drop: Share = 0.1
    hard_labels: bool = False
    relabel: bool = False
    weigh: bool = False
    padding: Annotated[int, partial(at_least, least=-1)] = -1
    jitter: Share = 0.4
    flip: bool = True
    precision: Literal["float32", "bfloat16"] = "float32"

    @property
    def looks(self) -> dict[str, Any]:
        """The augmentation, as keywords of `views.mixtures`, of `EncoderTeacher` and of other trainings."""
        return {"padding": self.padding, "jitter": self.jitter, "flip": self.flip}

    def rate(self, step: int) -> float:
        """Return the learning rate of the backbone at a step, counted from 0."""
        return self.lr * (self.drop if step >= self.drop_at * self.steps else 1.0)


@dataclass
class DistillHistory:
    """What happened in training.

    parts: rows of each source in a batch.
    rows: for each 50 steps (and the last): `step`, `lr`, and means over them of `loss` and, where present,
        `hard` and `soft`.
    teacher: what the teacher says: share right on its own `support` images, and of `synthetic` images the
        share that it gives their class.
    """

    parts: dict[str, int]
    rows: list[dict[str, float]] = field(default_factory=list)
    teacher: dict[str, float] = field(default_factory=dict)


def distill(
    student: Student,
    supports: ImageSet,
    synthetic: ImageSet | None = None,
    base: ImageSet | None = None,
    teacher: Teacher | None = None,
    config: DistillConfig | None = None,
    *,
    mixtures: ImageSet | None = None,
    pool: ImageSet | None = None,
    seed: int = 0,
    progress: Callable[[int, int, float], None] | None = None,
) -> DistillHistory:
    """Train a student for one task.

    Without synthetic and base images this is plain supervised training; so a student is prepared on base
    classes by ``distill(student, base)``, and gets its head for the task by `Student.new_head`.

    Args:
        student: changed in place, on its device; left in evaluation mode.
        supports: the labelled images of the task; every class has one at least.
        synthetic: generated images of the same classes, in the same order.
        base: images of other classes; their labels are not looked at.
        teacher: gives soft labels from prototypes of the supports. Not needed without `base` and with hard
            labels, or without both.
        config: None for the published settings.
        mixtures: of the supports (`views.mixtures`); their labels are not looked at.
        pool: unlabelled images of any kind; likewise.
        seed: of batches and augmentation.
        progress: called every 50 steps with steps so far, steps and mean loss.

    Returns:
        `DistillHistory`. The same student, data, settings and seed give the same weights on the same machine.

    Raises:
        DataError: images that do not fit each other or the student, all problems at once.
        ConfigError: a teacher is needed, or a batch too small for its sources.
        TrainingError: a loss that is not finite.
    """
    config = config or DistillConfig()
    sources = {
        "support": supports,
        "synthetic": synthetic,
        "mixtures": mixtures,
        "pool": pool,
        "base": base,
    }
    given = {name: images for name, images in sources.items() if images is not None and len(images)}
    _check_sets(student, supports, given)
    parts = three_parts(config.batch_size, given)
    soft = [name for name in given if name in UNLABELLED or (name == "synthetic" and not config.hard_labels)]
    if config.weigh and (config.hard_labels or "synthetic" not in given):
        raise ConfigError(
            "--training.weigh weighs synthetic images by what a teacher says of them, but "
            + ("--training.hard_labels is set." if config.hard_labels else "there are none.")
        )
    if soft and teacher is None:
        raise ConfigError(
            f"Soft labels of {' and '.join(soft)} images need a teacher. Give one"
            + (", or set hard_labels (--training.hard_labels true)." if soft == ["synthetic"] else ".")
        )
    history = DistillHistory(parts)
    learned, labelled = None, {}
    if soft and teacher is not None:
        learned = teacher.fit(supports)
        labelled = {name: teacher.logits(given[name], learned) for name in soft}
        history.teacher["support"] = _share_right(teacher.predict(supports, learned), supports)
        if "synthetic" in labelled:
            history.teacher["synthetic"] = _share_right(
                labelled["synthetic"].argmax(dim=1), given["synthetic"]
            )
    history.rows = _train(student, given, parts, labelled, teacher, learned, config, seed, progress)
    return history


def _check_sets(student: Student, supports: ImageSet, given: Mapping[str, ImageSet]) -> None:
    problems = ProblemList("These images cannot teach this student")
    empty = (supports.counts() == 0).nonzero().flatten().tolist()
    if empty:
        names = ", ".join(f'"{supports.class_names[c]}"' for c in empty[:10])
        problems.add(f"{len(empty)} of {supports.n_classes} classes have no support image: {names}")
    if student.n_classes != supports.n_classes:
        problems.add(
            f"the student has {student.n_classes} outputs, but the supports have {supports.n_classes} "
            "classes; call student.new_head"
        )
    for name, images in given.items():
        if tuple(images.images.shape[1:]) != student.image_shape:
            problems.add(
                f"{name} images have the shape {tuple(images.images.shape[1:])}, the student takes "
                f"{student.image_shape}"
            )
    if "synthetic" in given and given["synthetic"].class_names != supports.class_names:
        problems.add(
            f"synthetic images are of the classes {list(given['synthetic'].class_names)[:10]}, the supports "
            f"of {list(supports.class_names)[:10]}; both must be equal"
        )
    problems.raise_if_any()


def _train(
    student: Student,
    given: Mapping[str, ImageSet],
    parts: dict[str, int],
    labelled: Mapping[str, Tensor],
    teacher: Teacher | None,
    learned: Any,
    config: DistillConfig,
    seed: int,
    progress: Callable[[int, int, float], None] | None,
) -> list[dict[str, float]]:
    device = next(student.parameters()).device
    padding = padding_for(student.image_shape, config.padding)
    # One stream per source: another source, or more images in one, leaves the others' order as it is.
    draws = {
        name: Shuffled(len(images), make_rng("cpu", seed, "distill", "order", name))
        for name, images in given.items()
    }
    rng = make_rng("cpu", seed, "distill", "augment")
    # On processors, convolutions with few channels train almost twice as fast in this layout.
    student.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def figures(_: int) -> dict[str, Tensor]:
        x, labels, taught = _batch(given, parts, draws, labelled, student.n_classes)
        trust = _trust(parts, labels, taught).to(device) if config.weigh and "synthetic" in labelled else None
        x = vary(x, padding, config.jitter, config.flip, rng)
        if config.relabel and teacher is not None and learned is not None:
            taught[parts["support"] :] = teacher.logits(x[parts["support"] :], learned)
        x = x.contiguous(memory_format=torch.channels_last).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
            logits = student(x)
        loss = distillation_loss(
            logits.float(),
            parts,
            labels.to(device),
            taught.to(device),
            config.temperature,
            config.hard_labels,
            trust,
        )
        found = {"loss": loss.total, "hard": loss.hard, "soft": loss.soft}
        return {name: part for name, part in found.items() if part is not None}

    groups = [{"params": list(part.parameters())} for part in (student.body, student.head)]
    of_head = config.head_lr * student.head_rate
    rates = [(config.rate(step), config.rate(step) * of_head) for step in range(config.steps)]
    return fit(
        student,
        figures,
        SGD(groups, config.momentum, config.weight_decay),
        rates,
        failure=f"The student's loss became {{value}} at step {{step}}. "
        f"Lower lr (now {config.lr:g}; --training.lr).",
        report=None if progress is None else lambda step, loss: progress(step, config.steps, loss),
    )


def _trust(parts: Mapping[str, int], labels: Tensor, taught: Tensor) -> Tensor:
    """Return the probability that the teacher gives the class of each synthetic image, 1 for others, (B,)."""
    found = torch.ones(len(labels))
    start = parts.get("support", 0)
    made = slice(start, start + parts["synthetic"])
    found[made] = taught[made].softmax(dim=1).gather(1, labels[made, None])[:, 0]
    return found


def _batch(
    given: Mapping[str, ImageSet],
    parts: Mapping[str, int],
    draws: Mapping[str, Shuffled],
    labelled: Mapping[str, Tensor],
    n_classes: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return images (B, C, H, W) in [-1, 1], labels (B,) and the teacher's logits (B, n_classes)."""
    x, labels, taught = [], [], []
    for name, count in parts.items():
        chosen = draws[name].draw(count)
        x.append(given[name].floats(chosen))
        known = name not in UNLABELLED
        labels.append(given[name].labels[chosen] if known else torch.zeros(count, dtype=torch.int64))
        taught.append(labelled[name][chosen] if name in labelled else torch.zeros(count, n_classes))
    return torch.cat(x), torch.cat(labels), torch.cat(taught)


# ----------------------------------------------------------------------------------------- measuring


@torch.no_grad()
def predict_logits(student: Student, images: ImageSet, batch_size: int = 100) -> Tensor:
    """Return a student's logits, (N, n_classes) float32 on the processor, each from its image alone."""
    training, device = student.training, next(student.parameters()).device
    student.eval()

    def logits(batch: Tensor) -> Tensor:
        found: Tensor = student(batch.to(device, torch.float32).div(127.5).sub(1.0))
        return found.cpu()

    found = in_batches(images.images, batch_size, logits)
    student.train(training)
    return found


def accuracy(student: Student, images: ImageSet) -> float:
    """Return the share of images whose class the student gets right.

    Raises:
        DataError: no images, or logits that are not finite.
    """
    if len(images) == 0:
        raise DataError("Accuracy needs at least one image, got none.")
    logits = predict_logits(student, images)
    bad = int((~torch.isfinite(logits).all(dim=1)).sum())
    if bad:
        raise DataError(f"The student's logits of {bad} of {len(logits)} images hold NaN or infinity.")
    return _share_right(logits.argmax(dim=1), images)


def _share_right(predicted: Tensor, images: ImageSet) -> float:
    return float((predicted == images.labels).double().mean())
