"""What made images are like beside real ones."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from benchmarks.ablation import Column
from benchmarks.tint.making import made, of_word
from benchmarks.tint.settings import Row, Settings, of_row
from benchmarks.tint.tasks import Task, judge_of, task_of
from fewgen.data.imageset import ImageSet
from fewgen.encoders.probe import linear_probe
from fewgen.evaluation import frechet_distance, kernel_distance, label_agreement, within_class_distance

COLUMNS: tuple[Column, ...] = (
    ("Fréchet", "frechet", 1, 2),
    ("Fréchet within classes", "frechet_class", 1, 2),
    ("KID x1000", "kid", 1000, 1),
    ("class agreement %", "agreement", 100, 1),
    ("diversity (1 = real)", "diversity", 1, 2),
    ("distance to nearest support", "to_support", 1, 3),
    ("drawing, s per image", "seconds_per_image", 1, 3),
)


@functools.lru_cache(maxsize=4)
def _real_side(data: str, seed: int, settings: Settings, shots: int) -> tuple[Tensor, float, Any]:
    """Return features of a task's queries, their spread within classes, and a predictor of classes."""
    task, judge = task_of(data, seed, settings, shots), judge_of(data, settings)
    query = task.episode.query
    features = judge.features(query)
    spread = within_class_distance(features, query.labels, task.n_way).mean
    return features, spread, linear_probe(features, query.labels).predict if task.n_way > 1 else None


def image_figures(task: Task, row: Row) -> dict[str, Any]:
    """Return what images of a task's classes are like; nothing of real ones where there are no others."""
    own = of_row(task.data, row, task.settings)
    seconds: float | None = None
    if row.what == "real":
        fewest = int(task.rest.counts().min())
        if fewest < 2:
            return {"images": 0}
        images = task.rest.shots(min(own["per_class"], fewest), seed=task.seed)
    elif row.what == "object":
        images, seconds = of_word(task, own, "object")
    else:
        images, seconds, _ = made(task, row.what, own)
    real, spread, predict = _real_side(task.data, task.seed, task.settings, task.shots)
    features = judge_of(task.data, task.settings).features(images)
    labels, of_real = images.labels, task.episode.query.labels
    within = [frechet_distance(real[of_real == c], features[labels == c]) for c in range(task.n_way)]
    agreement = None
    if predict is not None:
        agreement = label_agreement(predict(features), labels, images.class_names).overall.value
    return {
        "images": len(images),
        "real": len(real),
        "frechet": frechet_distance(real, features),
        "frechet_class": sum(within) / len(within),
        "kid": kernel_distance(real, features),
        "agreement": agreement,
        "diversity": within_class_distance(features, labels, task.n_way).mean / spread,
        "to_support": to_supports(images, task.episode.support),
        "seconds_per_image": None if seconds is None else seconds / len(images),
    }


def to_supports(images: ImageSet, supports: ImageSet) -> float:
    """Return the mean distance of images to the nearest support of their class, root mean square of pixels.

    0 are copies; black and white are 2 apart.
    """
    nearest = []
    for c in range(supports.n_classes):
        own = images.floats((images.labels == c).nonzero().flatten()).flatten(1).double()
        theirs = supports.floats((supports.labels == c).nonzero().flatten()).flatten(1).double()
        distances = torch.cdist(own, theirs, compute_mode="donot_use_mm_for_euclid_dist")
        nearest.append(distances.amin(1) / own.shape[1] ** 0.5)
    return float(torch.cat(nearest).mean())
