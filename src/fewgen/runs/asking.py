"""What only a run can be asked: are its walks smooth, and do its words and images find each other?"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from fewgen.errors import DataError

if TYPE_CHECKING:
    from fewgen.data import ImageSet
    from fewgen.encoders.base import ImageEncoder
    from fewgen.evaluation.evaluation import Evaluation
    from fewgen.runs.run import Run

MAX_WALKS = 20
N_STEPS = 9
"""Images of a walk from one class to the next, both ends included."""


def ask_run(run: Run, evaluation: Evaluation, held_out: ImageSet | None, extractor: ImageEncoder) -> None:
    """Add the figures of what a run's method can do to an evaluation of its images, under "aligned".

    What cannot be measured is named in `evaluation.omitted` with the reason.

    Args:
        run: drew the images.
        evaluation: of these images.
        held_out: real images, for comparison, or None.
        extractor: in whose features the steps of a walk are measured.
    """
    questions = []
    if {"text", "interpolate"} <= run.method.capabilities:
        questions.append(("interpolation_smoothness", lambda: _walks(run, evaluation, extractor)))
    if "retrieve" in run.method.capabilities:
        questions.append(("text_to_image_accuracy", lambda: _retrieval(run, evaluation, held_out)))
    for name, ask in questions:
        try:
            ask()
        except DataError as reason:
            evaluation.omitted[name] = str(reason)


def _walks(run: Run, evaluation: Evaluation, extractor: ImageEncoder) -> None:
    """Measure how evenly images change on straight walks from each class to the next."""
    import torch

    from fewgen.data import ImageSet
    from fewgen.evaluation.smoothness import interpolation_smoothness
    from fewgen.methods.abilities import class_latents, walk

    n = len(run.class_names)
    if n < 2:
        raise DataError("there is one class, so there is no walk from one to another.")
    starts = sorted({i * n // min(n, MAX_WALKS) for i in range(min(n, MAX_WALKS))})
    images = []
    for a in starts:
        ends = class_latents(run.method, torch.tensor([a, (a + 1) % n]))
        images.append(walk(run.method, ends[:1], ends[1:], torch.zeros(N_STEPS, dtype=torch.int64)))
    pixels = torch.cat(images)
    walked = ImageSet(pixels, torch.zeros(len(pixels), dtype=torch.int64), run.class_names, name="walks")
    features = extractor.features(walked)
    found = interpolation_smoothness(features.view(len(starts), N_STEPS, -1))
    summary = found.summary()
    if "evenness" not in summary:
        raise DataError("no image changes on a walk from one class to the next.")
    evaluation.figures["interpolation_smoothness"] = {
        "question": "aligned",
        "value": summary["evenness"]["mean"],
        "summary": summary,
        "n_walks": len(starts),
        "n_steps": found.n_steps,
        "note": (
            f"how even the steps of {len(starts)} walks between classes are; 1 is even, 0 one jump. On "
            f"{sum(found.jump)} of them one step holds more than half of the change"
        ),
    }


def _retrieval(run: Run, evaluation: Evaluation, held_out: ImageSet | None) -> None:
    """Measure whether the model's own encoders find the word of an image, and images for a word."""
    from fewgen.evaluation.retrieval import image_to_text_accuracy, text_to_image_accuracy
    from fewgen.methods.abilities import class_scores

    generated, names = evaluation.generated, run.class_names
    scores = class_scores(run.method, generated.images)
    to_image = text_to_image_accuracy(scores, generated.labels, names)
    to_text = image_to_text_accuracy(scores, generated.labels, names)
    own = "by the model's own encoders, which saw the training images"
    evaluation.figures["text_to_image_accuracy"] = {
        "question": "aligned",
        **dataclasses.asdict(to_image.overall),
        "chance": to_image.chance,
        "per_class": {name: share.value for name, share in to_image.per_class.items()},
        "note": f"images whose nearest class name is the one they were drawn for, {own}",
    }
    evaluation.figures["image_to_text_accuracy"] = {
        "question": "aligned",
        **dataclasses.asdict(to_text.first),
        "chance": to_text.chance,
        "recall": {str(k): value for k, value in to_text.recall.items()},
        "mean_recall": to_text.mean_recall,
        "per_class": {name: share.value for name, share in to_text.precision.items()},
        "note": (
            f"class names whose nearest image is of that class, {own}; per class: share of its images among "
            "as many nearest ones"
        ),
    }
    if held_out is not None:
        usual = text_to_image_accuracy(class_scores(run.method, held_out.images), held_out.labels, names)
        evaluation.controls.setdefault("held_out", {})["text_to_image_accuracy"] = {
            "question": "aligned",
            **dataclasses.asdict(usual.overall),
        }
