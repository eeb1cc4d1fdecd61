"""What a distillation will take, from a few real steps that are taken in memory and thrown away."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import time
from collections.abc import Iterator

import torch
from torch import Tensor

from fewgen.data.imageset import ImageSet
from fewgen.diffusion.pipeline import TextToImage
from fewgen.diffusion.settings import SpecialiseConfig
from fewgen.diffusion.specialisation import generate, specialise
from fewgen.distillation.knowledge import DistillConfig, distill
from fewgen.distillation.students import Student
from fewgen.distillation.synthesis import PartClock
from fewgen.fitting.seeds import make_rng

TRIAL_STEPS = 2
"""Steps of a trial that are timed."""

_BUSIER = 1.2
"""A long work is slower by this than a short trial: caches, other programs."""


@contextlib.contextmanager
def one_thread(wanted: bool) -> Iterator[None]:
    """Compute with one thread of torch, as the processes of a spread work do, if wanted."""
    before = torch.get_num_threads()
    if wanted:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def training_seconds(student: Student, images: ImageSet, config: DistillConfig) -> float:
    """Return the seconds of a training, without those of the teacher's labels.

    Args:
        student: stays as it is.
        images: of the student's shape; any classes.
        config: of the training.
    """
    trial = copy.deepcopy(student)
    labels = torch.zeros(len(images), dtype=torch.int64)
    one_class = ImageSet(images.images, labels, ("images",))
    trial.new_head(1)
    seconds = 0.0
    for steps in (1, TRIAL_STEPS):  # the first call pays for warming up
        started = time.perf_counter()
        distill(trial, one_class, config=dataclasses.replace(config, steps=steps))
        seconds = time.perf_counter() - started
    return _BUSIER * seconds / TRIAL_STEPS * config.steps


@dataclasses.dataclass(frozen=True)
class MakingSeconds:
    """Seconds to specialise a model to a task and to draw from it.

    Attributes:
        words: of textual inversion.
        null_texts: of both inversions, at most: images whose path is met stop early.
        image: of one image.
    """

    words: float
    null_texts: float
    image: float


def making_seconds(pipe: TextToImage, images: list[Tensor], config: SpecialiseConfig) -> MakingSeconds:
    """Return what making images of a task will take.

    Args:
        pipe: the model.
        images: supports of each class, (K, C, H, W) in [-1, 1].
        config: how it is specialised and sampled.
    """
    names = [str(i) for i in range(len(images))]
    steps, inner = min(TRIAL_STEPS, config.steps), config.null_text.inner_steps
    trial = dataclasses.replace(
        config,
        steps=steps,
        dequant_t=0,
        textual=dataclasses.replace(config.textual, steps=TRIAL_STEPS),
        # No image stops early.
        null_text=dataclasses.replace(config.null_text, inner_steps=min(inner, 1), tol=0.0),
    )
    seconds: dict[str, float] = {}
    drawing = 0.0
    for _ in range(2):  # the first round pays for warming up
        clock = PartClock(None, time.perf_counter)
        found = specialise(pipe, images, names, trial, rng=make_rng("cpu", 0, "estimate"), progress=clock)
        seconds = clock.seconds
        started = time.perf_counter()
        generate(pipe, found[0], config.batch, 0.5, batch=config.batch)
        drawing = time.perf_counter() - started
    more = _BUSIER * config.steps / steps
    return MakingSeconds(
        words=_BUSIER * seconds["textual inversion"] / TRIAL_STEPS * config.textual.steps,
        null_texts=more
        * (seconds["DDIM inversion"] + max(inner, 1) * seconds.get("null-text inversion", 0.0)),
        image=more * drawing / config.batch,
    )
