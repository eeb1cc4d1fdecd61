"""Usefulness: does a small classifier get better when generated images join the real ones?

Three arms are trained with equal steps and batch sizes and judged on the same real test images: real
images only, generated only, and both. An arm is repeated over seeds (initialisation and batch order), and
the gain of "both" over "real" is taken seed by seed, so that the noise they share cancels.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from fewgen.data.imageset import ImageSet
from fewgen.errors import ConfigError, DataError
from fewgen.evaluate.features import SmallConvNet, fit_classifier

ARMS = ("real", "generated", "both")


@dataclass(frozen=True)
class UsefulnessSettings:
    """The named classifier "small-conv-32" and its training, equal for every arm.

    width: channels of the later convolutions; the first has half of them.
    dim: length of the layer before the last.
    steps: optimiser steps.
    batch_size: images per step; the arm "both" takes half of them from the generated images.
    lr: highest learning rate of the one-cycle schedule.
    weight_decay: of AdamW.
    max_shift: every training image, real or generated, is moved by up to so many pixels in each direction
        (standard augmentation); 0 for none.
    """

    width: int = 32
    dim: int = 64
    steps: int = 500
    batch_size: int = 64
    lr: float = 3e-3
    weight_decay: float = 0.05
    max_shift: int = 1

    @property
    def name(self) -> str:
        """Name of the classifier, for tables."""
        return f"small-conv-{self.width}"


@dataclass(frozen=True)
class ArmResult:
    """Accuracy of one arm on the test images, one entry per seed; shares in [0, 1].

    per_class: mean over seeds of the accuracy within each class that has test images.
    """

    arm: str
    seeds: tuple[int, ...]
    accuracy: tuple[float, ...]
    per_class: dict[str, float]

    @property
    def mean(self) -> float:
        """Mean accuracy over seeds."""
        return math.fsum(self.accuracy) / len(self.accuracy)

    @property
    def spread(self) -> float | None:
        """Standard deviation over seeds; None for a single seed."""
        return _deviation(self.accuracy)


@dataclass(frozen=True)
class Gain:
    """Mean paired difference of two arms over seeds, with its Student interval (None for one seed)."""

    mean: float
    low: float | None
    high: float | None
    n: int


def _deviation(values: Sequence[float]) -> float | None:
    if len(values) < 2:
        return None
    mean = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1))


def paired_gain(new: ArmResult, old: ArmResult, confidence: float = 0.95) -> Gain:
    """Mean difference of accuracy, paired by seed, with a Student interval.

    The interval speaks about the classifier's seeds with this one set of generated images, not about other
    draws of the training images.

    Args:
        new: arm under test.
        old: arm to compare with.
        confidence: of the interval.

    Returns:
        `Gain` in shares (0.01 is one point).

    Raises:
        DataError: the arms were run with different seeds.

    Source: Student 1908, Biometrika 6(1), for paired differences.
    """
    if new.seeds != old.seeds:
        raise DataError(f"arms must have the same seeds to be paired, got {new.seeds} and {old.seeds}.")
    differences = [a - b for a, b in zip(new.accuracy, old.accuracy, strict=True)]
    mean, n = math.fsum(differences) / len(differences), len(differences)
    deviation = _deviation(differences)
    if deviation is None:
        return Gain(mean, None, None, n)
    from scipy.stats import t as student

    half = float(student.ppf(0.5 + confidence / 2, n - 1)) * deviation / math.sqrt(n)
    return Gain(mean, mean - half, mean + half, n)


def _shifted(x: Tensor, max_shift: int, rng: torch.Generator) -> Tensor:
    """Move each image (B, C, H, W) by up to `max_shift` pixels, continuing it by its edge pixels."""
    if max_shift == 0:
        return x
    n, _, height, width = x.shape
    padded = functional.pad(x, (max_shift,) * 4, mode="replicate")
    dy, dx = torch.randint(0, 2 * max_shift + 1, (2, n), generator=rng)
    rows = dy[:, None] + torch.arange(height)
    columns = dx[:, None] + torch.arange(width)
    picked = padded[torch.arange(n)[:, None, None], :, rows[:, :, None], columns[:, None, :]]
    return picked.permute(0, 3, 1, 2)


class _Shuffled:
    """Endless draws without replacement from n indices, reshuffled when used up."""

    def __init__(self, n: int) -> None:
        self.n = n
        self.left = torch.empty(0, dtype=torch.int64)

    def draw(self, count: int, rng: torch.Generator) -> Tensor:
        while len(self.left) < count:
            self.left = torch.cat([self.left, torch.randperm(self.n, generator=rng)])
        chosen, self.left = self.left[:count], self.left[count:]
        return chosen


def _accuracy(network: SmallConvNet, test: ImageSet, batch_size: int = 500) -> Tensor:
    hits = torch.empty(len(test), dtype=torch.bool)
    with torch.no_grad():
        for start in range(0, len(test), batch_size):
            chosen = torch.arange(start, min(start + batch_size, len(test)))
            hits[chosen] = network(test.floats(chosen))[1].argmax(dim=1) == test.labels[chosen]
    return hits


def train_arm(
    arm: str,
    sources: Sequence[ImageSet],
    test: ImageSet,
    *,
    seeds: Sequence[int] = (0, 1, 2),
    settings: UsefulnessSettings | None = None,
) -> ArmResult:
    """Train the small classifier on one or more sets in equal parts of each batch; accuracy on the test set.

    Args:
        arm: name of the result.
        sources: sets with the same classes; each fills an equal part of every batch, whatever its size.
        test: real images of the same classes.
        seeds: one training each.
        settings: None for the defaults.

    Returns:
        `ArmResult`.

    Raises:
        DataError: an empty set, other classes, or other image shapes.

    Source: Ravuri & Vinyals 2019, arXiv:1905.10887 (train on generated, test on real); Trabucco et al.
    2023, arXiv:2302.07944, Sec. 4 (real and generated at 0.5 each in a batch).
    Differs: a small convolutional classifier made for a few hundred images.
    """
    settings = settings or UsefulnessSettings()
    for images in sources:
        if len(images) == 0 or len(test) == 0:
            raise DataError(f'arm "{arm}": every set, and the test set, needs at least one image.')
        if images.class_names != test.class_names or images.images.shape[1:] != test.images.shape[1:]:
            raise DataError(
                f'arm "{arm}": training images have classes {list(images.class_names)} and shape '
                f"{tuple(images.images.shape[1:])}, test images {list(test.class_names)} and "
                f"{tuple(test.images.shape[1:])}. Both must be equal."
            )
    if settings.batch_size < 2 * len(sources):
        raise ConfigError(f"batch_size is {settings.batch_size}, but at least {2 * len(sources)} is needed.")
    channels, height, width = (int(v) for v in test.images.shape[1:])
    hits = torch.zeros(len(test), dtype=torch.float64)
    accuracy = []
    for seed in seeds:
        # The seed alone decides the first weights: all arms start from the same ones.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = SmallConvNet(
                channels, height, width, test.n_classes, width=settings.width, dim=settings.dim
            )
        streams = [_Shuffled(len(images)) for images in sources]

        def batches(
            step: int, rng: torch.Generator, streams: list[_Shuffled] = streams
        ) -> tuple[Tensor, Tensor]:
            parts, labels = [], []
            for i, (images, stream) in enumerate(zip(sources, streams, strict=True)):
                share = settings.batch_size // len(sources) + (i < settings.batch_size % len(sources))
                chosen = stream.draw(share, rng)
                parts.append(images.floats(chosen))
                labels.append(images.labels[chosen])
            return _shifted(torch.cat(parts), settings.max_shift, rng), torch.cat(labels)

        fit_classifier(
            network,
            batches,
            steps=settings.steps,
            lr=settings.lr,
            weight_decay=settings.weight_decay,
            seed=seed,
        )
        right = _accuracy(network, test).double()
        accuracy.append(float(right.mean()))
        hits += right / len(seeds)
    per_class = {
        name: float(hits[test.labels == c].mean())
        for c, name in enumerate(test.class_names)
        if bool((test.labels == c).any())
    }
    return ArmResult(arm, tuple(seeds), tuple(accuracy), per_class)


@dataclass(frozen=True)
class Usefulness:
    """Accuracy of the arms and the paired gain of "both" over "real"; `settings` names the classifier."""

    real: ArmResult
    both: ArmResult
    generated: ArmResult | None
    gain: Gain
    settings: UsefulnessSettings

    def to_dict(self) -> dict[str, object]:
        """Return everything as JSON-ready values."""
        arms = {arm.arm: arm for arm in (self.real, self.both, self.generated) if arm is not None}
        return {
            "classifier": self.settings.name,
            "settings": dataclasses.asdict(self.settings),
            "n_draws_of_training_images": 1,
            "arms": {
                name: {
                    "mean": arm.mean,
                    "spread": arm.spread,
                    "accuracy": list(arm.accuracy),
                    "seeds": list(arm.seeds),
                    "per_class": arm.per_class,
                }
                for name, arm in arms.items()
            },
            "gain": dataclasses.asdict(self.gain),
            "gain_per_class": {
                name: self.both.per_class[name] - value for name, value in self.real.per_class.items()
            },
        }


def usefulness(
    train: ImageSet,
    generated: ImageSet,
    test: ImageSet,
    *,
    seeds: Sequence[int] = (0, 1, 2),
    settings: UsefulnessSettings | None = None,
    generated_only: bool = True,
    real: ArmResult | None = None,
) -> Usefulness:
    """Train the arms "real", "both" and (optionally) "generated" and compare them.

    Args:
        train: the real images the generator learned from.
        generated: labelled generated images of the same classes.
        test: real images in neither set.
        seeds: of the classifier; two or more give an interval.
        settings: None for the defaults.
        generated_only: also train on generated images alone.
        real: the arm "real" if it was trained before with the same settings and seeds (it does not depend
            on the generator).

    Returns:
        `Usefulness`.

    Raises:
        DataError: as `train_arm`, or `real` with other seeds.
    """
    settings = settings or UsefulnessSettings()
    seeds = tuple(seeds)
    if not seeds:
        raise ConfigError("usefulness needs at least one seed.")
    if real is None:
        real = train_arm("real", [train], test, seeds=seeds, settings=settings)
    both = train_arm("both", [train, generated], test, seeds=seeds, settings=settings)
    alone = None
    if generated_only:
        alone = train_arm("generated", [generated], test, seeds=seeds, settings=settings)
    return Usefulness(real, both, alone, paired_gain(both, real), settings)
