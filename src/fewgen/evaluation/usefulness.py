"""Usefulness: does a small classifier get better when generated images join the real ones?

Three arms are trained with equal steps, batch sizes and augmentation and judged on the same real test
images: real images only, generated only, and both. A paired draw is one seed (first weights, order of the
batches) with one pair of training and generated images; the gain of "both" over "real" is taken draw by
draw, so that the noise they share cancels. The real arm uses the standard augmentation that
cross-validation inside the training images prefers, because a gain over a weak baseline is worth nothing.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from fewgen.data.augment import shift_images
from fewgen.data.imageset import ImageSet
from fewgen.encoders.classifier import SmallConvNet, fit_classifier
from fewgen.errors import ConfigError, DataError, suggest
from fewgen.evaluation.curve import LearningCurve, Worth, worth
from fewgen.evaluation.planner import smallest_gain
from fewgen.evaluation.statistics import student_factor
from fewgen.fitting.fit import Shuffled

ARMS = ("real", "generated", "both")
MOST_TEST_IMAGES = 10_000

# Raise when training changes in a way that settings do not show: kept real arms are then ignored.
_FORMAT = 1


# --------------------------------------------------------------------------------------- augmentation


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


# ------------------------------------------------------------------------------------ one classifier


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


def _hits(sources: Sequence[ImageSet], test: ImageSet, settings: UsefulnessSettings, seed: int) -> Tensor:
    """Train one classifier; which test images it gets right, bool (N,)."""
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

    fit_classifier(
        network,
        batches,
        steps=settings.steps,
        lr=settings.lr,
        weight_decay=settings.weight_decay,
    )
    right = torch.empty(len(test), dtype=torch.bool)
    with torch.no_grad():
        # Small blocks stay in the processor's cache: three times as fast as blocks of 500.
        for chosen in torch.arange(len(test)).split(100):
            right[chosen] = network(test.floats(chosen))[1].argmax(dim=1) == test.labels[chosen]
    return right


def _check_sets(arm: str, sources: Sequence[ImageSet], test: ImageSet, settings: UsefulnessSettings) -> None:
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


# --------------------------------------------------------------------------------------- paired gains


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
    """Mean paired difference of two arms over draws, with its interval (None for one draw)."""

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
    """Mean difference of accuracy, paired by seed, with a Student interval over seeds.

    The interval speaks about the seeds with these test images and sets, not about other test images.

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
    half = student_factor(confidence, n - 1) * deviation / math.sqrt(n)
    return Gain(mean, mean - half, mean + half, n)


def crossed_gain(differences: Tensor, confidence: float = 0.95) -> Gain:
    """Mean of a table of draws by test images, with an interval for other draws and other test images.

    Args:
        differences: (n_draws, N): new arm right minus old arm right, in {-1, 0, 1}, or means of that.
        confidence: of the interval.

    Returns:
        `Gain`; without interval for one draw or one image.

    Raises:
        DataError: an empty table.

    Source: variance components of a crossed random-effects layout, Searle, Casella & McCulloch 1992,
        Variance Components, Ch. 4: Var = rows / n + columns / N - residual / (n N); degrees of freedom by
        Satterthwaite 1946, Biometrics Bulletin 2(6).
    Differs: never smaller than one of the two parts alone.
    """
    mean, variance, degrees = _crossed_variance(differences)
    n = differences.shape[0]
    if variance is None:
        return Gain(mean, None, None, n)
    half = student_factor(confidence, degrees) * math.sqrt(variance) if variance > 0 else 0.0
    return Gain(mean, mean - half, mean + half, n)


def _crossed_variance(differences: Tensor) -> tuple[float, float | None, float]:
    """Mean of a table, variance of that mean (None for one row or column), degrees of freedom."""
    table = differences.to(torch.float64)
    n, count = table.shape
    if n == 0 or count == 0:
        raise DataError("a gain needs at least one draw and one test image.")
    mean = table.mean()
    if n < 2 or count < 2:
        return float(mean), None, 0.0
    rows, columns = table.mean(dim=1), table.mean(dim=0)
    residual = (table - rows[:, None] - columns[None, :] + mean).square().sum() / ((n - 1) * (count - 1))
    by_row, by_column = float(rows.var()) / n, float(columns.var()) / count
    variance = max(by_row + by_column - float(residual) / (n * count), by_row, by_column)
    if variance == 0:
        return float(mean), 0.0, float(n - 1)
    degrees = (by_row + by_column) ** 2 / (by_row**2 / (n - 1) + by_column**2 / (count - 1))
    return float(mean), variance, degrees


def _arm_result(arm: str, seeds: Sequence[int], hits: Tensor, test: ImageSet) -> ArmResult:
    right = hits.to(torch.float64)
    per_class = {
        name: float(right[:, test.labels == c].mean())
        for c, name in enumerate(test.class_names)
        if bool((test.labels == c).any())
    }
    return ArmResult(arm, tuple(seeds), tuple(right.mean(dim=1).tolist()), per_class)


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
    _check_sets(arm, sources, test, settings)
    hits = torch.stack([_hits(sources, test, settings, seed) for seed in seeds])
    return _arm_result(arm, seeds, hits, test)


# ------------------------------------------------------------------------- trainings, kept by content


def _digests(images: ImageSet) -> list[bytes]:
    """One hash of the pixels per image."""
    rows = images.images.flatten(1).contiguous().numpy()
    return [hashlib.blake2b(row.data, digest_size=16).digest() for row in rows]


@dataclass(frozen=True)
class _Set:
    """Images in an order that depends on their content alone, with their hashes."""

    images: ImageSet
    digests: tuple[bytes, ...]
    key: str

    @classmethod
    def of(cls, images: ImageSet) -> _Set:
        labels, digests = images.labels.tolist(), _digests(images)
        order = sorted(range(len(images)), key=lambda i: (labels[i], digests[i]))
        plain = ImageSet(images.images[order], images.labels[order], images.class_names, name=images.name)
        return cls._keyed(plain, tuple(digests[i] for i in order))

    @classmethod
    def _keyed(cls, images: ImageSet, digests: tuple[bytes, ...]) -> _Set:
        header = json.dumps([list(images.images.shape), list(images.class_names)]).encode()
        whole = hashlib.sha256(header + b"".join(digests) + images.labels.numpy().tobytes())
        return cls(images, digests, whole.hexdigest()[:32])

    def part(self, indices: Tensor) -> _Set:
        """The images at increasing indices: a part keeps the order."""
        return self._keyed(self.images.subset(indices), tuple(self.digests[i] for i in indices.tolist()))

    def with_images_of(self, other: _Set, indices: Tensor) -> _Set:
        """The union with some images of another set."""
        added = other.images.subset(indices)
        both = ImageSet(
            torch.cat([self.images.images, added.images]),
            torch.cat([self.images.labels, added.labels]),
            self.images.class_names,
            name=self.images.name,
        )
        return _Set.of(both)

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True)
class _Training:
    """One classifier to be trained; `real` marks those that no generator has a part in."""

    sources: tuple[_Set, ...]
    test: _Set
    settings: UsefulnessSettings
    seed: int
    real: bool

    @property
    def key(self) -> str:
        parts = [
            _FORMAT,
            torch.__version__,
            [s.key for s in self.sources],
            self.test.key,
            dataclasses.asdict(self.settings),
            self.seed,
        ]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]

    def payload(self) -> tuple[Any, ...]:
        """What a worker needs, as arrays, which joblib shares between processes instead of copying."""
        arrays = [(s.images.images.numpy(), s.images.labels.numpy()) for s in (*self.sources, self.test)]
        return arrays, self.test.images.class_names, self.settings, self.seed


def _train_payload(
    arrays: list[tuple[np.ndarray, np.ndarray]],
    class_names: tuple[str, ...],
    settings: UsefulnessSettings,
    seed: int,
) -> np.ndarray:
    """Train in one thread, so that the result is the same however many processes share the work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        # Shared arrays are read-only, which torch does not know; a copy costs little beside training.
        sets = [
            ImageSet(torch.from_numpy(np.array(images)), torch.from_numpy(np.array(labels)), class_names)
            for images, labels in arrays
        ]
        return _hits(sets[:-1], sets[-1], settings, seed).numpy()
    finally:
        torch.set_num_threads(threads)


_KEPT: dict[str, Tensor] = {}
_MOST_KEPT = 20_000


class _Kept:
    """Results of trainings on real images alone: in memory, and on disk where a file is named."""

    FORMAT = "fewgen-real-arms"

    def __init__(self, path: str | Path | None) -> None:
        self.path = None if path is None else Path(path)
        if self.path is not None and self.path.exists():
            for key, value in self._read().items():
                _KEPT.setdefault(key, value)

    def _read(self) -> dict[str, Tensor]:
        from fewgen.files import read_json

        assert self.path is not None
        found = read_json(self.path)
        if not (isinstance(found, dict) and found.get("format") == self.FORMAT):
            raise DataError(
                f'"{self.path}" is not a file of kept real arms. Name another file, or delete this one.'
            )
        try:
            return {key: self._unpack(*value) for key, value in found["hits"].items()}
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(f'"{self.path}" is damaged: {error}. Delete it; it is made again.') from error

    @staticmethod
    def _unpack(n: int, text: str) -> Tensor:
        bits = np.unpackbits(np.frombuffer(base64.b64decode(text), dtype=np.uint8))
        if len(bits) < n:
            raise ValueError(f"{len(bits)} bits for {n} images")
        return torch.from_numpy(bits[:n].astype(bool))

    def get(self, training: _Training) -> Tensor | None:
        found = _KEPT.get(training.key)
        return found if found is not None and len(found) == len(training.test) else None

    def put(self, training: _Training, hits: Tensor) -> None:
        if not training.real:
            return
        _KEPT[training.key] = hits
        while len(_KEPT) > _MOST_KEPT:
            del _KEPT[next(iter(_KEPT))]
        if self.path is None:
            return
        from fewgen.files import write_json

        # Others may write into the same file meanwhile; whoever is last loses at most one training.
        known = self._read() if self.path.exists() else {}
        known[training.key] = hits
        packed = {
            key: [len(value), base64.b64encode(np.packbits(value.numpy()).tobytes()).decode()]
            for key, value in sorted(known.items())
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.path, {"format": self.FORMAT, "hits": packed})


def _run(
    trainings: Sequence[_Training], kept: _Kept, jobs: int, progress: Callable[[], None]
) -> list[Tensor]:
    """Results of trainings, in order; those that are kept or asked for twice are not trained again."""
    from joblib import Parallel, delayed

    found: dict[str, Tensor] = {}
    missing: dict[str, _Training] = {}
    for training in trainings:
        hits = kept.get(training)
        if hits is None:
            missing.setdefault(training.key, training)
        else:
            found[training.key] = hits
    todo = list(missing.values())
    results: Iterator[np.ndarray] = iter(
        Parallel(n_jobs=jobs, return_as="generator")(
            delayed(_train_payload)(*training.payload()) for training in todo
        )
        if todo
        else ()
    )
    for training, array in zip(todo, results, strict=True):
        hits = torch.from_numpy(np.array(array, dtype=bool))
        found[training.key] = hits
        kept.put(training, hits)
        progress()
    return [found[training.key] for training in trainings]


# ------------------------------------------------------------------------------------- augmentation tuned


@dataclass(frozen=True)
class TunedAugmentation:
    """Which standard augmentation all arms use, and why.

    name: key of `AUGMENTATIONS`.
    scores: mean validation accuracy of each candidate; empty if it was not tuned.
    folds: number of folds.
    note: how it was chosen.
    """

    name: str
    scores: dict[str, float] = field(default_factory=dict)
    folds: int = 0
    note: str = "chosen by the caller"


def _folds(train: ImageSet, n_folds: int, seed: int) -> Tensor:
    """Return the fold of each image, (N,): every class spread evenly over the folds."""
    rng = torch.Generator().manual_seed(seed)
    fold = torch.empty(len(train), dtype=torch.int64)
    for c in range(train.n_classes):
        members = (train.labels == c).nonzero().flatten()
        fold[members[torch.randperm(len(members), generator=rng)]] = torch.arange(len(members)) % n_folds
    return fold


def _tuning(trains: Sequence[_Set], settings: UsefulnessSettings, seed: int) -> tuple[int, list[_Training]]:
    """The trainings of the cross-validation: candidates by folds, none if a class has a single image."""
    least = min(int(t.images.counts().min()) for t in trains)
    n_folds = min(4, least)
    if n_folds < 2:
        return 0, []
    trainings = []
    for name in AUGMENTATIONS:
        # As many steps as in the arms: with fewer, weak augmentation looks better than it is.
        chosen = dataclasses.replace(settings, augmentation=name)
        for i in range(n_folds):
            # With several training sets, the folds take them in turn.
            train = trains[i % len(trains)]
            fold = _folds(train.images, n_folds, seed)
            inside = train.part((fold != i).nonzero().flatten())
            outside = train.part((fold == i).nonzero().flatten())
            trainings.append(_Training((inside,), outside, chosen, seed + i, True))
    return n_folds, trainings


def _best_augmentation(n_folds: int, hits: Sequence[Tensor]) -> TunedAugmentation:
    if not n_folds:
        note = "not tuned: a class has a single training image, and cross-validation needs two"
        return TunedAugmentation(UsefulnessSettings.augmentation, note=note)
    right = {
        name: torch.cat(list(hits[i * n_folds : (i + 1) * n_folds])).to(torch.float64)
        for i, name in enumerate(AUGMENTATIONS)
    }
    scores = {name: float(found.mean()) for name, found in right.items()}
    best = max(scores, key=lambda name: scores[name])
    usual = UsefulnessSettings.augmentation
    lead = right[best] - right[usual]
    error = float(lead.std()) / math.sqrt(len(lead))
    note = f"best of {len(scores)} by {n_folds}-fold cross-validation inside the training images"
    if best != usual and float(lead.mean()) <= error:
        best = usual
        note += f"; {usual}, as none is better by more than one standard error"
    return TunedAugmentation(best, scores, n_folds, note)


# --------------------------------------------------------------------------------------- learning curve


def _curve_sets(train: _Set, pool: _Set, test: _Set, multiples: Sequence[float], seed: int) -> list[_Set]:
    """Nested sets of real images with these multiples of the training images of each class."""
    rng = torch.Generator().manual_seed(seed)
    known = set(train.digests) | set(test.digests)
    fresh = torch.tensor([digest not in known for digest in pool.digests], dtype=torch.bool)
    own_order: dict[int, Tensor] = {}
    pool_order: dict[int, Tensor] = {}
    for c in range(train.images.n_classes):
        for order, candidates in (
            (own_order, train.images.labels == c),
            (pool_order, fresh & (pool.images.labels == c)),
        ):
            members = candidates.nonzero().flatten()
            order[c] = members[torch.randperm(len(members), generator=rng)]
    sets = []
    for multiple in multiples:
        own, more = [], []
        for c, members in own_order.items():
            n = max(1, round(multiple * len(members)))
            own.append(members[:n])
            more.append(pool_order[c][: max(0, n - len(members))])
        kept = train.part(torch.cat(own).sort().values)
        sets.append(kept.with_images_of(pool, torch.cat(more)) if multiple > 1 else kept)
    return sets


def _reach(train: _Set, pool: _Set, test: _Set) -> float:
    """Largest multiple of the training images of every class that training images and pool can give."""
    known = set(train.digests) | set(test.digests)
    fresh = torch.tensor([digest not in known for digest in pool.digests], dtype=torch.bool)
    counts = train.images.counts().to(torch.float64)
    extra = torch.bincount(pool.images.labels[fresh], minlength=train.images.n_classes)
    return float(((counts + extra) / counts).min())


def _multiples(curve: Sequence[float], reach: float) -> list[float]:
    """The points of the curve that the pool reaches, and its end if that is well beyond the last of them."""
    points = sorted({1.0, *(float(m) for m in curve if m <= reach)})
    if any(m > reach for m in curve) and reach >= 1.25 * points[-1]:
        points.append(reach)
    return points


# ------------------------------------------------------------------------------------------- the result


@dataclass(frozen=True)
class UsefulnessResult:
    """What generated images do for a classifier. Accuracies and gains are shares: 0.01 is one point.

    settings: of the classifier, with the augmentation that was used.
    tuning: how the augmentation was chosen.
    k: training images per class; the mean where classes differ.
    n_draws: paired draws.
    n_support_draws: different pairs of training and generated images among them.
    n_test: test images.
    n_seen: test images that are, pixel by pixel, among the training or generated images; they should be 0.
    arms: "real", "generated", "both".
    gain: of both over real; its interval covers other draws and other test images.
    gain_these_images: the same, its interval for these test images alone (Student, paired by draw).
    gain_training_sets: the same over the means of each pair of sets, so that its interval speaks of other
        training images; None for a single pair.
    gain_generated: of generated only over real.
    gain_per_class: of both over real, for each class with test images.
    losing_classes: classes whose interval lies below 0, at 95 % for all classes together (Bonferroni), so
        that none is named by chance in 39 of 40 evaluations.
    sd: standard deviation of the paired gain over draws; None for one draw.
    smallest_gain: smallest true gain that n_draws and n_test see with 80 % power; None for one draw.
    speaks_of: what the interval of `gain` covers, in words.
    curve: accuracy with more and fewer real images; None without a pool.
    worth: what "both" is worth in real images; None without a pool.
    worth_generated: what "generated" alone is worth; None without a pool.
    omitted: what is missing, with the reason.
    """

    settings: UsefulnessSettings
    tuning: TunedAugmentation
    k: float
    n_draws: int
    n_support_draws: int
    n_test: int
    n_seen: int
    arms: dict[str, ArmResult]
    gain: Gain
    gain_these_images: Gain
    gain_training_sets: Gain | None
    gain_generated: Gain
    gain_per_class: dict[str, Gain]
    losing_classes: tuple[str, ...]
    sd: float | None
    smallest_gain: float | None
    speaks_of: str
    curve: LearningCurve | None = None
    worth: Worth | None = None
    worth_generated: Worth | None = None
    omitted: dict[str, str] = field(default_factory=dict)

    def power(self) -> str:
        """Say how small a gain these draws could have seen."""
        if self.smallest_gain is None:
            return "one draw gives no interval; at least two are needed, ten by default"
        return (
            f"{self.n_draws} draws and {self.n_test} test images see a gain of "
            f"{100 * self.smallest_gain:.1f} points with 80 % power"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON-ready values."""
        found = dataclasses.asdict(self)
        found["classifier"] = self.settings.name
        found["power"] = self.power()
        for name, arm in self.arms.items():
            found["arms"][name] |= {"mean": arm.mean, "spread": arm.spread}
        return found

    def figures(self) -> dict[str, dict[str, Any]]:
        """Return the figures `usefulness`, `usefulness_generated_only` and, with a pool, `worth_images`."""

        def entry(gain: Gain, **more: Any) -> dict[str, Any]:
            ends = {} if gain.low is None else {"low": gain.low, "high": gain.high}
            return {"value": gain.mean, **ends, **more, "question": "useful"}

        means = {name: arm.mean for name, arm in self.arms.items()}
        figures = {
            "usefulness": entry(
                self.gain,
                per_class={name: gain.mean for name, gain in self.gain_per_class.items()},
                losing_classes=list(self.losing_classes),
                accuracy=means,
                augmentation=self.settings.augmentation,
                n_draws=self.n_draws,
                n_support_draws=self.n_support_draws,
                smallest_gain=self.smallest_gain,
                note=f"gain of {self.settings.name} by generated images; {self.power()}; the interval "
                f"speaks of {self.speaks_of}",
            ),
            "usefulness_generated_only": entry(
                self.gain_generated,
                accuracy=means["generated"],
                note="accuracy with generated images alone minus accuracy with the training images",
            ),
        }
        if self.worth is not None:
            found = self.worth
            value = found.images
            if value is None:
                value = found.curve_from if "fewer" in found.text.split("(")[0] else found.curve_to
            ends = {name: end for name, end in (("low", found.low), ("high", found.high)) if end is not None}
            figures["worth_images"] = {
                "value": value,
                **ends,
                "k": found.k,
                "outside_curve": found.images is None,
                "note": found.text,
                "question": "useful",
            }
        return figures


def _check_class_counts(images: ImageSet, what: str) -> None:
    empty = [name for name, n in zip(images.class_names, images.counts().tolist(), strict=True) if n == 0]
    if empty:
        raise DataError(
            f"usefulness needs {what} images of every class, but there are none of "
            f"{', '.join(repr(name) for name in empty[:10])}{' and more' if len(empty) > 10 else ''}."
        )


def _at_most(test: _Set, n: int) -> _Set:
    """At most n test images, chosen by their content."""
    if len(test) <= n:
        return test
    order = sorted(range(len(test)), key=lambda i: (test.digests[i], i))
    return test.part(torch.tensor(sorted(order[:n])))


def _speaks_of(n_draws: int, n_pairs: int) -> str:
    classifier = "the classifier's first weights and batches and the choice of test images"
    if n_pairs == 1:
        return f"{classifier}, with these training and generated images alone"
    if n_pairs == n_draws:
        return f"{classifier}, and other draws of the training images"
    return f"{classifier}, with these {n_pairs} draws of the training images"


def _pool_set(pool: ImageSet, test: ImageSet) -> _Set:
    if pool.class_names != test.class_names or pool.images.shape[1:] != test.images.shape[1:]:
        raise DataError(
            f"the pool has classes {list(pool.class_names)} and shape {tuple(pool.images.shape[1:])}, the "
            f"test images {list(test.class_names)} and {tuple(test.images.shape[1:])}. Both must be equal."
        )
    return _Set.of(pool)


def measure_usefulness(
    draws: Sequence[tuple[ImageSet, ImageSet]],
    test: ImageSet,
    *,
    n_draws: int = 10,
    pool: ImageSet | None = None,
    settings: UsefulnessSettings | None = None,
    augmentation: str = "tuned",
    curve: Sequence[float] = (0.5, 1, 2, 4, 10),
    seed: int = 0,
    jobs: int = 1,
    real_cache: str | Path | None = None,
    progress: Callable[[str, float], None] | None = None,
) -> UsefulnessResult:
    """Compare a classifier trained on real images with one that sees generated ones too, draw by draw.

    Args:
        draws: pairs of training images and the labelled images generated from them. Several pairs, from
            different draws of the training images, are used in turn; a single pair serves all draws.
        test: real images in none of these sets; at most 10,000 are used, chosen by content.
        n_draws: paired draws, each with its own seed; two or more give intervals.
        pool: further labelled real images of the same classes, for the learning curve. Those that are
            equal to training or test images are left out.
        settings: of the classifier; None for the defaults.
        augmentation: "tuned", or a key of `AUGMENTATIONS`.
        curve: multiples of the training images per class, as far as the pool reaches.
        seed: another one gives other draws.
        jobs: processes; they change the time, not the result.
        real_cache: JSON file that keeps the trainings on real images, for other generators and runs.
        progress: called with what was done and the share of the work done.

    Returns:
        `UsefulnessResult`. The order of the images in their sets does not matter.

    Raises:
        DataError: an empty set, a class without training or generated images, other classes or shapes, or
            a `real_cache` that cannot be read.
        ConfigError: settings out of range.

    Source: as `train_arm`; gains as `crossed_gain`; worth as `fewgen.evaluation.curve.worth`.
    """
    settings = settings or UsefulnessSettings()
    draws = list(draws)
    if not draws:
        raise DataError("usefulness needs at least one pair of training and generated images.")
    if isinstance(n_draws, bool) or int(n_draws) != n_draws or n_draws < 1:
        raise ConfigError(f"n_draws must be a whole number of 1 or more, got {n_draws!r}.")
    if jobs == 0:
        raise ConfigError("jobs must be a number of processes, or -1 for all processors; got 0.")
    if any(not (math.isfinite(m) and m > 0) for m in curve):
        raise ConfigError(f"the multiples of the learning curve must be above 0, got {list(curve)}.")
    if augmentation != "tuned":
        settings = dataclasses.replace(settings, augmentation=augmentation)
    for train, generated in draws:
        _check_sets("both", [train, generated], test, settings)
        _check_class_counts(train, "training")
        _check_class_counts(generated, "generated")

    def say(part: str, share: float) -> None:
        if progress is not None:
            progress(part, share)

    say("usefulness", 0.0)
    held = _at_most(_Set.of(test), MOST_TEST_IMAGES)
    pairs = [(_Set.of(train), _Set.of(generated)) for train, generated in draws[:n_draws]]
    chosen = [pairs[i % len(pairs)] for i in range(n_draws)]
    seeds = [seed * 1_000_000 + i for i in range(n_draws)]
    kept = _Kept(real_cache)

    omitted: dict[str, str] = {}
    more = None if pool is None else _pool_set(pool, test)
    multiples = [1.0]
    if more is None:
        omitted["worth_images"] = "the learning curve needs further labelled real images (pool)"
    else:
        multiples = _multiples(curve, min(_reach(train, more, held) for train, _ in pairs))
        if len(multiples) < 2:
            omitted["worth_images"] = (
                "the pool holds too few further images of some class to extend the training images by a "
                "quarter, and no smaller part of them was asked for"
            )

    n_folds, tuning_runs = (
        _tuning([t for t, _ in pairs], settings, seed * 1_000_000) if augmentation == "tuned" else (0, [])
    )
    total = len(tuning_runs) + n_draws * (3 + len(multiples) - 1)
    done = 0

    def one_more() -> None:
        nonlocal done
        done += 1
        say("usefulness", min(done / total, 0.99))

    tuning = TunedAugmentation(settings.augmentation)
    if augmentation == "tuned":
        tuning = _best_augmentation(n_folds, _run(tuning_runs, kept, jobs, one_more))
        settings = dataclasses.replace(settings, augmentation=tuning.name)

    real_sets = [
        {1.0: train}
        if len(multiples) < 2 or more is None
        else dict(zip(multiples, _curve_sets(train, more, held, multiples, s), strict=True))
        for (train, _), s in zip(chosen, seeds, strict=True)
    ]
    trainings = [
        _Training((real_sets[i][m],), held, settings, s, True) for m in multiples for i, s in enumerate(seeds)
    ]
    trainings += [_Training((g,), held, settings, s, False) for (_, g), s in zip(chosen, seeds, strict=True)]
    trainings += [_Training(pair, held, settings, s, False) for pair, s in zip(chosen, seeds, strict=True)]
    hits = torch.stack(_run(trainings, kept, jobs, one_more)).reshape(-1, n_draws, len(held))
    by_multiple = dict(zip(multiples, hits, strict=False))
    arms = {"real": by_multiple[1.0], "generated": hits[-2], "both": hits[-1]}

    difference = arms["both"].to(torch.float64) - arms["real"].to(torch.float64)
    results = {name: _arm_result(name, seeds, table, held.images) for name, table in arms.items()}
    _, variance, _ = _crossed_variance(difference)
    by_pair = torch.stack([difference[i :: len(pairs)].mean(dim=0) for i in range(len(pairs))])
    per_class = {
        name: crossed_gain(difference[:, held.images.labels == c])
        for c, name in enumerate(held.images.class_names)
        if bool((held.images.labels == c).any())
    }
    together = 1 - 0.05 / len(per_class)
    losing = []
    for c, name in enumerate(held.images.class_names):
        if name in per_class:
            high = crossed_gain(difference[:, held.images.labels == c], together).high
            losing += [name] if high is not None and high < 0 else []
    mean_k = len(pairs[0][0]) / test.n_classes
    found_curve = found_worth = found_generated = None
    if more is not None and len(multiples) > 1:
        points = [len(real_sets[0][m]) / test.n_classes for m in multiples]
        # Rounding may give two multiples the same images.
        distinct = [i for i, n in enumerate(points) if i == 0 or n > points[i - 1]]
        if len(distinct) > 1:
            tables = [by_multiple[multiples[i]] for i in distinct]
            numbers = [points[i] for i in distinct]
            found_curve, found_worth = worth(tables, numbers, arms["both"], k=mean_k, seed=seed)
            _, found_generated = worth(tables, numbers, arms["generated"], k=mean_k, seed=seed)
    seen = set().union(*(set(s.digests) for pair in pairs for s in pair))
    say("usefulness", 1.0)
    return UsefulnessResult(
        settings=settings,
        tuning=tuning,
        k=mean_k,
        n_draws=n_draws,
        n_support_draws=len(pairs),
        n_test=len(held),
        n_seen=sum(digest in seen for digest in held.digests),
        arms=results,
        gain=crossed_gain(difference),
        gain_these_images=paired_gain(results["both"], results["real"]),
        gain_training_sets=crossed_gain(by_pair) if len(pairs) > 1 else None,
        gain_generated=crossed_gain(arms["generated"].to(torch.float64) - arms["real"].to(torch.float64)),
        gain_per_class=per_class,
        losing_classes=tuple(losing),
        sd=_deviation(
            [a - b for a, b in zip(results["both"].accuracy, results["real"].accuracy, strict=True)]
        ),
        smallest_gain=None if variance is None else smallest_gain(n_draws, math.sqrt(variance * n_draws)),
        speaks_of=_speaks_of(n_draws, len(pairs)),
        curve=found_curve,
        worth=found_worth,
        worth_generated=found_generated,
        omitted=omitted,
    )


def usefulness_controls(
    train: ImageSet,
    test: ImageSet,
    *,
    n_draws: int = 5,
    settings: UsefulnessSettings | None = None,
    seed: int = 0,
    jobs: int = 1,
    real_cache: str | Path | None = None,
    progress: Callable[[str, float], None] | None = None,
) -> dict[str, Gain]:
    """Gains whose answers are known, from the data at hand: what the measurement must see, and must not.

    Args:
        train: real training images; the trainings on all of them are those of `measure_usefulness`.
        test: real images in none of the sets.
        n_draws: paired draws.
        settings: those of the result to be judged, with its augmentation; None for the defaults.
        seed: as in `measure_usefulness`.
        jobs: processes.
        real_cache: JSON file that keeps the trainings.
        progress: called with what was done and the share of the work done.

    Returns:
        "more_real_images": the gain of all training images over half of each class, which should be above
        0 (left out where a class has a single image); "copies": the gain of the training images as
        their own generated images, which should not be. Intervals as in `UsefulnessResult.gain`.

    Raises:
        DataError, ConfigError: as `measure_usefulness`.
    """
    settings = settings or UsefulnessSettings()
    _check_sets("copies", [train, train], test, settings)
    _check_class_counts(train, "training")
    if isinstance(n_draws, bool) or int(n_draws) != n_draws or n_draws < 1:
        raise ConfigError(f"n_draws must be a whole number of 1 or more, got {n_draws!r}.")
    own, held = _Set.of(train), _at_most(_Set.of(test), MOST_TEST_IMAGES)
    seeds = [seed * 1_000_000 + i for i in range(n_draws)]
    arms: dict[str, list[tuple[_Set, ...]]] = {
        "all": [(own,)] * n_draws,
        "copies": [(own, own)] * n_draws,
    }
    if int(train.counts().min()) >= 2:
        arms["half"] = [tuple(_curve_sets(own, own, held, [0.5], s)) for s in seeds]
    trainings = [
        _Training(sources, held, settings, s, True)
        for arm in arms.values()
        for sources, s in zip(arm, seeds, strict=True)
    ]
    done = 0

    def one_more() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress("usefulness of controls", done / len(trainings))

    tables = torch.stack(_run(trainings, _Kept(real_cache), jobs, one_more)).reshape(-1, n_draws, len(held))
    hits = dict(zip(arms, tables.to(torch.float64), strict=True))
    gains = {"copies": crossed_gain(hits["copies"] - hits["all"])}
    if "half" in hits:
        gains["more_real_images"] = crossed_gain(hits["all"] - hits["half"])
    return gains
