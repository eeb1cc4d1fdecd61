"""What an adaptation to new classes won and lost, measured on draws.

New classes are read by the adapted model's own reader (`retrieve`), old ones by that of the run it was
adapted from; or both by a classifier that the model has nothing to do with: a model's own reader shares
its faults.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fewgen.data.imageset import ImageSet
from fewgen.errors import DataError
from fewgen.evaluation.retention import Retention, class_retention
from fewgen.evaluation.statistics import Share, wilson_interval
from fewgen.methods.abilities import class_scores
from fewgen.progress import Progress

if TYPE_CHECKING:
    from fewgen.encoders.classifier import ClassifierFeatures
    from fewgen.methods.base import Method
    from fewgen.runs.run import Run


Reader = Callable[[Tensor], Tensor]
"""uint8 images (N, C, H, W) -> classes, int64 (N,)."""


SHOTS = (1, 3, 5, 10, 30)


SHOWN = 8
"""Images in a row of a picture."""


N_NEW = 64
"""Draws of each new class that are read; one group of the method's rows."""


N_OLD = 192
"""Draws of the old classes together, before and after."""


MAX_PER_OLD = 24


LEAST_VARIETY = 0.5
"""Share of the pixel variance within an old class below which its loss is warned of."""


LEAST_NEW_VARIETY = 0.1
"""The same for draws of a new class, relative to the images that were given."""


ENOUGH_DRAWS, ENOUGH_IMAGES = 8, 3
"""Draws, and given images, of a class from which on its own variance is compared."""


MAX_PICTURED = 10


MAX_QUERY = 100
"""Images of each new class that the loss is measured on."""


DRAW_SEED = 0


CLASSIFIER = "classifier"


OWN_READER = "the own reader of the run it was adapted from"


@dataclasses.dataclass
class Look:
    """How a model draws the new classes after some images of each.

    Attributes:
        shots: images per new class it learned from, of the class with most; 0: the words alone.
        drawn: `SHOWN` images of each new class, uint8 (n_new * SHOWN, C, H, W), class after class.
        read: new class -> share of `N_NEW` draws that are read as the class; empty without a reader.
        query_loss: of images that were not learned from; None if there are none.
        seconds: of the adaptation.
        variance: new class -> `pixel_variance` of its `N_NEW` draws.
        fewest: images of the class with fewest; None: as many as of every other.
    """

    shots: int
    drawn: Tensor
    read: dict[str, Share]
    query_loss: float | None
    seconds: float
    variance: dict[str, float] = dataclasses.field(default_factory=dict)
    fewest: int | None = None

    def overall(self) -> Share:
        """Return the share over all new classes. Raises DataError without a reader."""
        shares = self.read.values()
        return wilson_interval(sum(s.successes for s in shares), sum(s.n for s in shares))


@dataclasses.dataclass(frozen=True)
class Variety:
    """Pixel variance within classes, after relative to before; below 1 draws became more alike.

    Attributes:
        overall: of the mean over classes.
        per_class: of each class with enough draws whose draws differed before.
    """

    overall: float
    per_class: dict[str, float]

    def worst(self) -> str | None:
        """Return the class that lost most; None without any."""
        return min(self.per_class, key=self.per_class.__getitem__, default=None)


@dataclasses.dataclass
class Adaptation:
    """What is known of an adaptation.

    Attributes:
        original_name: the run that was adapted from.
        has_meaning: whether the new classes' vectors come from their words.
        used: images that were learned from.
        n_query: images that the loss was measured on.
        looks: before any image first, after all images last.
        retention: of the old classes; None if it is in `omitted`.
        independent: whether a judge that is not the model read the draws.
        old_shown: names of the old classes in the picture.
        before: their draws before, uint8 (len(old_shown) * SHOWN, C, H, W).
        after: the same draws after.
        variety: of the old classes; None if it is in `omitted`.
        new_variety: new class -> pixel variance of its draws relative to that of the given images.
        omitted: what is not known -> why.
    """

    original_name: str
    has_meaning: bool
    used: ImageSet
    n_query: int
    looks: list[Look]
    retention: Retention | None
    independent: bool
    old_shown: tuple[str, ...]
    before: Tensor
    after: Tensor
    variety: Variety | None
    new_variety: dict[str, float]
    omitted: dict[str, str]

    def figures(self) -> dict[str, Any]:
        """Return the figures as JSON-ready values."""
        looks = [
            {
                "shots": look.shots,
                "fewest": look.shots if look.fewest is None else look.fewest,
                "read": {name: dataclasses.asdict(share) for name, share in look.read.items()},
                "query_loss": look.query_loss,
                "seconds": round(look.seconds, 3),
            }
            for look in self.looks
        ]
        return {
            "looks": looks,
            "n_query": self.n_query,
            "retention": None if self.retention is None else self.retention.to_dict(),
            "cannot_tell": [] if self.retention is None else cannot_tell(self.retention),
            "judge": CLASSIFIER if self.independent else OWN_READER,
            "variety": None if self.variety is None else dataclasses.asdict(self.variety),
            "new_variety": dict(self.new_variety),
            "omitted": dict(self.omitted),
        }

    def warnings(self) -> list[str]:
        """Return what a user should look at, a sentence each."""
        found = []
        worst = None if self.variety is None else self.variety.worst()
        if self.variety is not None and worst is not None:
            least = self.variety.per_class[worst]
            if min(least, self.variety.overall) < LEAST_VARIETY:
                found.append(
                    f"draws of old classes became alike: they keep {self.variety.overall:.0%} of the pixel "
                    f'variance within a class, "{worst}" {least:.0%}. Lower --lr, or take fewer --steps.'
                )
        for name, ratio in self.new_variety.items():
            if ratio < LEAST_NEW_VARIETY:
                found.append(
                    f'draws hardly differ: those of "{name}" have {ratio:.0%} of the pixel variance of the '
                    "images that were given."
                )
        return found


def measure(
    original: Run,
    start: Method,
    method: Method,
    used: ImageSet,
    rest: ImageSet,
    *,
    seconds: float,
    again: Callable[[ImageSet], Method] | None = None,
    judge: Reader | None = None,
    progress: Progress | None = None,
) -> Adaptation:
    """Draw and read what a model gained and lost.

    Args:
        original: the run that was adapted from.
        start: its model with the new classes, before any image.
        method: after all of `used`.
        used: images that were learned from.
        rest: further images of the new classes, perhaps none; the loss is measured on them.
        seconds: that the adaptation took.
        again: adapts `start` to some of `used`, for the curve over shots; None: no curve.
        judge: reads classes, new ones after the old; None: the models' own readers do.
        progress: told the name of the part and the share that is done.
    """
    query = _at_most(rest, MAX_QUERY)
    fewest = int(used.counts().min())
    shots = [k for k in SHOTS if k < fewest]
    looks = shot_curve(start, used, query, shots, again, judge, progress)
    if progress is not None:
        progress("comparing", 0.0)
    n_used = int(used.counts().max())
    looks.append(_look(method, used.class_names, query, n_used, seconds, judge or read_by(method)))
    looks[-1].fewest = None if fewest == n_used else fewest
    omitted: dict[str, str] = {}
    if not looks[-1].read:
        omitted["read"] = (
            f'the method "{method.name}" does not read images as words; --judge trains a classifier'
        )
    if not len(query):
        omitted["query_loss"] = (
            "every image was learned from, so the loss on others is not known (--shots sets some aside)"
        )
    retention, old_shown, before, after, variety = _compare_old(original.method, method, judge, omitted)
    text = start.spec.text
    return Adaptation(
        original.path.name,
        text is not None and text.has_meaning,
        used,
        len(query),
        looks,
        retention,
        judge is not None,
        old_shown,
        before,
        after,
        variety,
        _new_variety(looks[-1], used, rest),
        omitted,
    )


def pixel_variance(images: Tensor) -> float:
    """Return the unbiased variance of each pixel over images, averaged over pixels; pixels in [0, 1].

    Args:
        images: uint8 (N, C, H, W).

    Raises:
        DataError: fewer than two images.

    >>> pixel_variance(torch.tensor([0, 255], dtype=torch.uint8).reshape(2, 1, 1, 1))
    0.5
    """
    if len(images) < 2:
        raise DataError(f"The variance of images needs at least 2 of them, got {len(images)}.")
    return float(images.to(torch.float64).div(255.0).var(0).mean())


def class_variety(before: Tensor, after: Tensor, labels: Tensor, names: Sequence[str]) -> Variety:
    """Return how much of the pixel variance within classes is left.

    Args:
        before: uint8 (N, C, H, W), draws before.
        after: the same, after; row i is the same seed.
        labels: int64 (N,), classes of both.
        names: of all classes.

    Raises:
        DataError: no class has two draws that differ before.
    """
    each: dict[str, tuple[float, float]] = {}
    enough = {}
    for label, n in zip(*(x.tolist() for x in labels.unique(return_counts=True)), strict=True):
        if n < 2:
            continue
        rows = labels == label
        pair = each[names[label]] = pixel_variance(before[rows]), pixel_variance(after[rows])
        if n >= ENOUGH_DRAWS and pair[0] > 0:
            enough[names[label]] = pair[1] / pair[0]
    total = math.fsum(first for first, _ in each.values())
    if not total > 0:
        raise DataError("no old class has two draws that differ before, so there is no variety to keep")
    return Variety(math.fsum(then for _, then in each.values()) / total, enough)


def _new_variety(look: Look, used: ImageSet, rest: ImageSet) -> dict[str, float]:
    found = {}
    for label, name in enumerate(used.class_names):
        given = torch.cat([used.images[used.labels == label], rest.images[rest.labels == label]])
        variance = pixel_variance(given) if len(given) >= ENOUGH_IMAGES else 0.0
        if variance > 0:
            found[name] = look.variance[name] / variance
    return found


def cannot_tell(retention: Retention) -> list[str]:
    """Return the old classes whose draws the judge never read right before, so that none could be lost."""
    return [
        name
        for name, r in retention.per_class.items()
        if r.before.successes == 0 and name not in retention.won
    ]


def shot_curve(
    start: Method,
    support: ImageSet,
    query: ImageSet,
    shots: Sequence[int],
    again: Callable[[ImageSet], Method] | None,
    reader: Reader | None = None,
    progress: Progress | None = None,
) -> list[Look]:
    """Return how a model draws new classes before the first image, and after some numbers of images.

    Args:
        start: the model with the new classes, before any image; stays as it is.
        support: images of the new classes to learn from; fewer shots are among more.
        query: further images of them, to measure the loss on; perhaps none.
        shots: images per class.
        again: adapts `start` to some of `support`; None: no curve.
        reader: images -> classes of the model; None: what was adapted reads its own draws.
        progress: told the name of the part and the share that is done.
    """
    names = support.class_names
    looks = [_look(start, names, query, 0, 0.0, reader or read_by(start))]
    for done, k in enumerate(shots if again is not None else ()):
        if progress is not None:
            progress(f"adapting to {k} image{'s' if k > 1 else ''}", done / len(shots))
        began = time.perf_counter()
        assert again is not None
        method = again(_at_most(support, k))
        seconds = time.perf_counter() - began
        looks.append(_look(method, names, query, k, seconds, reader or read_by(method)))
    return looks


def _at_most(images: ImageSet, n: int) -> ImageSet:
    """Return the first n images of each class, so that fewer are among more."""
    rows = [(images.labels == label).nonzero().flatten()[:n] for label in range(images.n_classes)]
    return images.subset(torch.cat(rows))


def read_by(method: Method) -> Reader | None:
    """Return the reader of a method; None if it has none."""
    if "retrieve" not in method.capabilities:
        return None
    return lambda images: class_scores(method, images).argmax(1)


def read_by_classifier(classifier: ClassifierFeatures) -> Reader:
    """Return the reader of a classifier, whose classes are those it was trained on."""

    def read(images: Tensor) -> Tensor:
        labels = torch.zeros(len(images), dtype=torch.int64)
        return classifier.predict(ImageSet(images, labels, classifier.class_names))

    return read


def _look(
    method: Method,
    names: Sequence[str],
    query: ImageSet,
    shots: int,
    seconds: float,
    reader: Reader | None,
) -> Look:
    from fewgen.generation import GenerationRequest

    n_old = method.spec.n_classes - len(names)
    labels = range(n_old, method.spec.n_classes)
    drawn = method.generate(GenerationRequest.per_class(labels, N_NEW, seed=DRAW_SEED))
    read = {}
    if reader is not None:
        right = reader(drawn.images) == drawn.labels
        for label, name in zip(labels, names, strict=True):
            of_class = right[drawn.labels == label]
            read[name] = wilson_interval(int(of_class.sum()), len(of_class))
    rows = drawn.images.unflatten(0, (len(names), N_NEW))
    shown = rows[:, :SHOWN].flatten(0, 1)
    variance = {name: pixel_variance(row) for name, row in zip(names, rows, strict=True)}
    return Look(shots, shown, read, _query_loss(method, query, n_old), seconds, variance)


@torch.no_grad()
def _query_loss(method: Method, query: ImageSet, n_old: int) -> float | None:
    from fewgen.fitting.seeds import make_rng

    if not len(query):
        return None
    rng = make_rng(method.device, DRAW_SEED, "query loss")
    x = query.floats().to(method.device)
    total = method.task_terms(x, (query.labels + n_old).to(method.device), None, rng).total()
    return float(total)


def _compare_old(
    original: Method, method: Method, judge: Reader | None, omitted: dict[str, str]
) -> tuple[Retention | None, tuple[str, ...], Tensor, Tensor, Variety | None]:
    from fewgen.data.imageset import evenly
    from fewgen.generation import GenerationRequest

    names = original.spec.class_names
    chosen = sorted(evenly(list(range(len(names))), N_OLD))
    per_class = max(1, min(MAX_PER_OLD, N_OLD // len(chosen)))
    request = GenerationRequest.per_class(chosen, per_class, seed=DRAW_SEED)
    before, after = original.generate(request), method.generate(request)
    reader = judge if judge is not None else read_by(original)
    retention = None
    if reader is None:
        omitted["retention"] = (
            f'the method "{original.name}" does not read images as words; --judge trains a classifier'
        )
    else:
        try:
            retention = class_retention(reader(before.images), reader(after.images), before.labels, names)
        except DataError as error:
            omitted["retention"] = str(error)
    variety = None
    try:
        variety = class_variety(before.images, after.images, before.labels, names)
    except DataError as error:
        omitted["variety"] = str(error)
    pictured = [chosen[i] for i in range(min(MAX_PICTURED, len(chosen)))]
    per_row = min(SHOWN, per_class)

    def rows(images: Tensor) -> Tensor:
        return images.unflatten(0, (len(chosen), per_class))[: len(pictured), :per_row].flatten(0, 1)

    return retention, tuple(names[i] for i in pictured), rows(before.images), rows(after.images), variety
