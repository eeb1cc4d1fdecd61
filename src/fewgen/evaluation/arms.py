"""Arms of the measurement of usefulness: a small classifier, trained on some images with an augmentation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from fewgen.data.augment import shift_images
from fewgen.data.imageset import ImageSet
from fewgen.encoders.classifier import SmallConvNet, fit_classifier
from fewgen.errors import ConfigError, DataError, suggest
from fewgen.fitting.fit import Shuffled


@dataclass(frozen=True)
class Augmentation:
    """Random moves of a training image, real or generated.

    shift: largest move in pixels of a 32-pixel image; twice that at 64 pixels.
    mirror: half of the images are turned left to right.
    degrees: largest rotation.
    scale: largest relative change of size.
    """

    shift: int = 0
    mirror: bool = False
    degrees: float = 0.0
    scale: float = 0.0


AUGMENTATIONS = {
    "none": Augmentation(),
    "shift1": Augmentation(shift=1),
    "shift2": Augmentation(shift=2),
    "shift1+mirror": Augmentation(shift=1, mirror=True),
    "shift2+affine": Augmentation(shift=2, degrees=10.0, scale=0.1),
}
"""Candidates for the standard augmentation, from weak to strong."""


def augment(x: Tensor, how: Augmentation, rng: torch.Generator) -> Tensor:
    """Move each image at random, continuing it by its edge pixels.

    Args:
        x: images (B, C, H, W), float.
        how: which moves, and how far.
        rng: random stream.

    Returns:
        Images of the same shape; `x` itself where there is nothing to do.
    """
    if how.degrees or how.scale:
        angle, size = torch.rand(2, len(x), generator=rng) * 2 - 1
        angle, size = angle * math.radians(how.degrees), 1 + size * how.scale
        zero = torch.zeros(len(x))
        first = torch.stack([angle.cos() * size, -angle.sin() * size, zero], dim=1)
        second = torch.stack([angle.sin() * size, angle.cos() * size, zero], dim=1)
        grid = functional.affine_grid(torch.stack([first, second], dim=1), list(x.shape), align_corners=False)
        x = functional.grid_sample(x, grid, padding_mode="border", align_corners=False)
    if how.mirror:
        turned = torch.rand(len(x), generator=rng) < 0.5
        x = torch.where(turned[:, None, None, None], x.flip(3), x)
    return shift_images(x, how.shift * max(1, round(min(x.shape[2:]) / 32)), rng)


@dataclass(frozen=True)
class UsefulnessSettings:
    """The named classifier "small-conv-32" and its training, equal for every arm.

    width: channels of the later convolutions; the first has half of them.
    dim: length of the layer before the last.
    steps: optimiser steps.
    batch_size: images per step; the arm "both" takes half of them from the generated images.
    lr: highest learning rate of the one-cycle schedule.
    weight_decay: of AdamW.
    augmentation: of every training image, real or generated: a key of `AUGMENTATIONS`.
    """

    width: int = 32
    dim: int = 64
    steps: int = 300
    batch_size: int = 64
    lr: float = 3e-3
    weight_decay: float = 0.05
    augmentation: str = "shift1"

    def __post_init__(self) -> None:
        if self.augmentation not in AUGMENTATIONS:
            raise ConfigError(
                f'there is no augmentation "{self.augmentation}".'
                f"{suggest(self.augmentation, AUGMENTATIONS)} Known: {', '.join(AUGMENTATIONS)}."
            )
        for name in ("width", "dim", "steps", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} of the usefulness classifier must be at least 1.")

    @property
    def name(self) -> str:
        """Name of the classifier, for tables."""
        return f"small-conv-{self.width}"


def train_arm(sources: Sequence[ImageSet], test: ImageSet, settings: UsefulnessSettings, seed: int) -> Tensor:
    """Train the small classifier on one or more sets in equal parts of each batch.

    Args:
        sources: sets with the same classes; each fills an equal part of every batch, whatever its size.
        test: real images of the same classes.
        settings: of the classifier.
        seed: of the first weights and the batches.

    Returns:
        Which test images it gets right, bool (N,).

    Source: Ravuri & Vinyals 2019, arXiv:1905.10887 (train on generated, test on real); Trabucco et al.
    2023, arXiv:2302.07944, Sec. 4 (real and generated at 0.5 each in a batch).
    Differs: a small convolutional classifier made for a few hundred images.
    """
    channels, height, width = (int(v) for v in test.images.shape[1:])
    # The seed alone decides the first weights: all arms start from the same ones.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = SmallConvNet(
            channels, height, width, test.n_classes, width=settings.width, dim=settings.dim
        )
    rng = torch.Generator().manual_seed(seed)
    streams = [Shuffled(len(images), rng) for images in sources]
    how = AUGMENTATIONS[settings.augmentation]

    def batches() -> tuple[Tensor, Tensor]:
        parts, labels = [], []
        for i, (images, stream) in enumerate(zip(sources, streams, strict=True)):
            # A batch is always full, by repetition where there are few images, as batch norm needs.
            share = settings.batch_size // len(sources) + (i < settings.batch_size % len(sources))
            chosen = stream.draw(share)
            parts.append(images.floats(chosen))
            labels.append(images.labels[chosen])
        return augment(torch.cat(parts), how, rng), torch.cat(labels)

    steps, lr, weight_decay = settings.steps, settings.lr, settings.weight_decay
    fit_classifier(network, batches, steps=steps, lr=lr, weight_decay=weight_decay)
    right = torch.empty(len(test), dtype=torch.bool)
    with torch.no_grad():
        # Small blocks stay in the processor's cache: three times as fast as blocks of 500.
        for chosen in torch.arange(len(test)).split(100):
            right[chosen] = network(test.floats(chosen))[1].argmax(dim=1) == test.labels[chosen]
    return right


def check_arm(arm: str, sources: Sequence[ImageSet], test: ImageSet, settings: UsefulnessSettings) -> None:
    """Raise for an empty set, sets of other classes or shapes than the test images, or too small batches."""
    for images in sources:
        if len(images) == 0 or len(test) == 0:
            raise DataError(f'arm "{arm}": every set, and the test set, needs at least one image.')
        check_alike(f'arm "{arm}": training images have', images, test)
    if settings.batch_size < 2 * len(sources):
        raise ConfigError(f"batch_size is {settings.batch_size}, but at least {2 * len(sources)} is needed.")


def check_alike(what: str, images: ImageSet, test: ImageSet) -> None:
    """Raise DataError unless images have the classes and the shape of the test images."""
    found, wanted = (
        f"{list(some.class_names)} and shape {tuple(some.images.shape[1:])}" for some in (images, test)
    )
    if found != wanted:
        raise DataError(f"{what} classes {found}, the test images {wanted}. Both must be equal.")
