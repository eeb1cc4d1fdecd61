"""The real side of an evaluation: everything about real images that does not depend on the generator."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fewgen.data.identity import content_order, mixed_content_order
from fewgen.data.imageset import ImageSet, evenly
from fewgen.encoders.base import ImageEncoder
from fewgen.encoders.classifier import ClassifierFeatures
from fewgen.encoders.efficientnet import EfficientNetFeatures
from fewgen.encoders.probe import class_predictor
from fewgen.errors import ConfigError, DataError, ShapeError
from fewgen.evaluation.controls import halves, make_controls, spread_over_classes
from fewgen.evaluation.copying import Aligner, Nearest, feature_scores
from fewgen.evaluation.failed import failed_images
from fewgen.evaluation.figures import Comparison, compute_figures
from fewgen.evaluation.gains import Gain
from fewgen.evaluation.judge import without_generating
from fewgen.evaluation.looks_failed import N_COMPARED, looks_failed
from fewgen.evaluation.outcome import Outcome, VerdictTest
from fewgen.evaluation.side import Side
from fewgen.evaluation.verdict_tests import standard_tests
from fewgen.evaluation.verdicts import OFFER, run_controls
from fewgen.progress import Progress

N_TESTED = 1000
"""Held-out images that the tests and their controls use at most."""

N_CONTROL = 1000
"""Images of each control at most."""


N_PROBED = 3000
"""Images that a linear probe learns the classes from at most; a pool may hold many more."""


class RealSide:
    """Training and held-out images with everything about them that does not depend on the generator.

    Make one and pass it to several `evaluate_images` calls to save time.

    Args:
        train: images the generator learned from.
        held_out: real images it has not seen, or None.
        extractor: the judge; None: the small classifier, trained on `pool`, or else on `train`.
        pool: further labelled real images.
        seed: of controls, subsets and permutations.

    Raises:
        DataError: empty sets or other classes; a single class without `extractor`.
        ShapeError: other image shapes.
    """

    def __init__(
        self,
        train: ImageSet,
        held_out: ImageSet | None,
        extractor: ImageEncoder | None = None,
        pool: ImageSet | None = None,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> None:
        held_out = None if held_out is not None and len(held_out) == 0 else held_out
        check_sets({"training": train, "held-out": held_out, "pool": pool})
        self.seed, self.pool = seed, pool
        # From here on the order in which images came has no influence on anything.
        self.order = content_order(train)
        self.train = train.subset(self.order)
        self.held_out_images = None if held_out is None else held_out.subset(content_order(held_out))
        known = self.train if pool is None else pool
        n_classes = len(known.labels.unique())
        if extractor is None:
            check_judge(known)
            extractor = ClassifierFeatures.of(
                known,
                progress=None if progress is None else lambda i, n, _: progress("training a judge", i / n),
            )
        self.judged_by_training = pool is None and isinstance(extractor, ClassifierFeatures)
        self.extractor = extractor
        own_classes = extractor.class_names if isinstance(extractor, ClassifierFeatures) else None
        knows_classes = own_classes == known.class_names
        if not knows_classes and len(known) > N_PROBED:
            known = known.subset(mixed_content_order(known))
            known = known.subset(evenly(known.labels.tolist(), N_PROBED))
        if (
            held_out is not None
            and isinstance(extractor, ClassifierFeatures)
            and extractor.class_names == held_out.class_names
        ):
            extractor.measure(held_out)
        if progress is not None:
            progress("describing real images", 0.0)
        self.aligner = Aligner(self.train.images)
        self.train_features = extractor.features(self.train)
        own = self.train_features if known is self.train else None
        # Of a single class there is nothing to predict; all that needs no classes is still judged.
        self._predict: Callable[[Tensor], Tensor | None] = (
            class_predictor(extractor, known, own) if n_classes > 1 else lambda features: None
        )
        self._controls: dict[tuple[int, ...], Controls] = {}
        self.useful_controls: dict[Any, dict[str, Gain]] = {}
        self._nearest_train: dict[int, float] = {}
        self.held_out: Side | None = None
        self.held_features: Tensor | None = None
        if self.held_out_images is not None:
            held = self.held_out_images
            self.held_features = extractor.features(held)
            chosen = spread_over_classes(held.labels, N_TESTED, self.rng())
            self.held_out = self.side(held.subset(chosen), self.held_features[chosen])
        self.linear_probe: dict[str, Any] = {}
        """How good the classes are that a linear probe reads, where one does."""
        if n_classes > 1 and not knows_classes and self.held_out is not None:
            predicted, labels = self.held_out.predictions, self.held_out.labels
            assert predicted is not None
            self.linear_probe = {
                "trained_on": "the training images" if pool is None else "other real images",
                "n_train": len(known),
                "n_test": len(labels),
                "test_accuracy": float((predicted == labels).double().mean()),
            }

    def side(self, images: ImageSet, features: Tensor | None = None) -> Side:
        """Describe images: features, classes, nearest training images."""
        features = self.extractor.features(images) if features is None else features
        return Side(
            images,
            features,
            self._predict(features),
            self.aligner.nearest(images.images),
            feature_scores(features, self.train_features),
        )

    def without_generating(self, encoder: ImageEncoder | None) -> dict[str, Any]:
        """Return the figure of a linear probe on the training images alone; nothing where there is none.

        Args:
            encoder: in whose features; None: the judge's, if it is an EfficientNet.
        """
        held, n_classes = self.held_out, len(self.train.labels.unique())
        encoder = self.extractor if encoder is None else encoder
        if held is None or n_classes < 2 or not isinstance(encoder, EfficientNetFeatures):
            return {}
        chosen = torch.tensor(evenly(self.train.labels.tolist(), N_PROBED))
        if encoder is self.extractor:
            features, of_held_out = self.train_features[chosen], held.features
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that images are small: how good it is is what is asked
                features = encoder.features(self.train.subset(chosen))
                of_held_out = encoder.features(held.images)
        return without_generating(encoder.name, features, self.train.labels[chosen], of_held_out, held.labels)

    def seen(self, images: ImageSet) -> Side:
        """Describe images by what they look like alone: features, and no search for copies."""
        unknown = Nearest.unknown(len(images))
        return Side(images, self.extractor.features(images), None, unknown, unknown.distance)

    @functools.cached_property
    def failed(self) -> dict[str, Side]:
        """Images of failed generators, made from training images."""
        return self._failed(self.train)

    @functools.cached_property
    def failed_of_held_out(self) -> dict[str, Side]:
        """Images of failed generators, made from held-out images: what the test of "real" must catch."""
        return {} if self.held_out is None else self._failed(self.held_out.images)

    def _failed(self, source: ImageSet) -> dict[str, Side]:
        some = source.subset(spread_over_classes(source.labels, N_COMPARED, self.rng()))
        return {name: self.seen(images) for name, images in failed_images(some, self.seed).items()}

    def nearest_of_train(self, indices: Tensor) -> Tensor:
        """Return the distance of training images to their nearest other training image, (n,)."""
        new = torch.tensor(
            [i for i in indices.unique().tolist() if i not in self._nearest_train], dtype=torch.int64
        )
        if len(new):
            found = self.aligner.nearest(self.train.images[new], exclude=new)
            self._nearest_train |= dict(zip(new.tolist(), found.distance.tolist(), strict=True))
        return torch.tensor([self._nearest_train[int(i)] for i in indices], dtype=torch.float64)

    def rng(self) -> torch.Generator:
        """Return a random stream from its start."""
        return torch.Generator().manual_seed(self.seed)

    def comparison(
        self, side: Side, held_out: Side, every: Tensor, counted: tuple[Tensor, Tensor] | None = None
    ) -> Comparison:
        """Return what the figures of some images are computed from, beside held-out images."""
        counted = counted or (side.features, every)
        return Comparison(side, held_out, every, counted, self.nearest_of_train, len(self.train), self.seed)

    def controls(self, labels: Tensor) -> Controls:
        """Return the controls in the classes of `labels`, made once for each count of classes.

        Raises: DataError without held-out images.
        """
        if self.held_out_images is None or self.held_out is None or self.held_features is None:
            raise DataError(OFFER)
        counts = torch.bincount(labels[labels >= 0], minlength=self.train.n_classes).tolist()
        key = (*counts, int((labels < 0).sum()))
        if key not in self._controls:
            held = (self.held_out_images, self.held_out, self.held_features)
            self._controls[key] = Controls(self, *held, counts, labels)
        return self._controls[key]


@dataclass(frozen=True, eq=False)
class Controls:
    """The controls for images of some classes: what is known of them, each computed at its first use.

    real: the real side.
    held: the held-out images.
    tested: those that the tests use.
    features: of the held-out images, (M, D).
    counts: images of each class.
    labels: classes of the images, int64 (N,); -1: none.
    """

    real: RealSide
    held: ImageSet
    tested: Side
    features: Tensor
    counts: Sequence[int]
    labels: Tensor

    @functools.cached_property
    def sides(self) -> dict[str, tuple[Side, Side]]:
        """Control -> its images, the held-out images it is judged by."""
        real, rng = self.real, self.real.rng()
        wanted = self.labels
        if sum(self.counts):
            wanted = torch.arange(real.train.n_classes).repeat_interleave(torch.tensor(self.counts))
        wanted = wanted[spread_over_classes(wanted.clamp_min(0), N_CONTROL, rng)]
        first, second = halves(self.tested.images, rng)
        made = make_controls(real.train, self.tested.images, wanted, real.seed)
        return {
            "held_out": (self.tested.at(first), self.tested.at(second)),
            **{name: (real.side(images), self.tested) for name, images in made.items()},
        }

    @functools.cached_property
    def counted(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Control -> its features, those of the real images, at the counts of the generated images.

        Frechet distance, precision, recall, density and coverage depend on how many images are compared. So
        the controls have as many images as were generated, or for held-out images, which must not meet
        themselves, as many as half of them allow.
        """
        n, held, real = len(self.labels), self.held, self.real
        made = make_controls(real.train, held, self.labels, real.seed)
        found = {
            name: (real.extractor.features(made[name]), self.features)
            for name in ("copies", "augmented_copies", "noise")
        }
        chosen = spread_over_classes(held.labels, min(n, len(held) // 2), real.rng())
        rest = torch.ones(len(held), dtype=torch.bool)
        rest[chosen] = False
        found["held_out"] = (self.features[chosen], self.features[rest])
        return found

    @functools.cached_property
    def figures(self) -> dict[str, dict[str, dict[str, Any]]]:
        """Control -> its figures."""
        return {
            name: compute_figures(
                self.real.comparison(images, reference, reference.features, self.counted.get(name))
            )[0]
            for name, (images, reference) in self.sides.items()
        }

    @functools.cached_property
    def tests(self) -> list[VerdictTest]:
        """The tests of real, diverse, new and aligned."""
        augmented, seed = lambda: self.sides["augmented_copies"][0], self.real.seed  # noqa: E731
        failed = looks_failed(self.real.train, lambda: self.real.failed, augmented, seed)
        return standard_tests(self.tested, augmented, seed, failed)

    @functools.cached_property
    def outcomes(self) -> dict[str, dict[str, Outcome]]:
        """Test name -> control -> outcome."""
        made = self.real.failed_of_held_out
        return run_controls(self.tests, {**self.sides, **{n: (s, self.tested) for n, s in made.items()}})


def check_judge(known: ImageSet) -> None:
    """Raise unless the small classifier can learn from these images."""
    n_classes = len(known.labels.unique())
    if n_classes < 2:
        raise DataError(
            f"the small classifier that judges the images needs two classes with images, but there "
            f"is {n_classes}. Choose features that know no classes, such as --features pixels."
        )


def check_sets(sets: Mapping[str, ImageSet | None]) -> None:
    """Raise for an empty set, and for sets of other shapes or classes than the first."""
    first_name, first = next(iter(sets.items()))
    assert first is not None
    for name, images in sets.items():
        if images is None:
            continue
        if len(images) == 0:
            raise DataError(f"the set of {name} images is empty.")
        if images.images.shape[1:] != first.images.shape[1:]:
            raise ShapeError(
                f"{first_name} images have the shape (channels, height, width) "
                f"{tuple(first.images.shape[1:])}, {name} images {tuple(images.images.shape[1:])}. "
                "Load all with the same size and channels."
            )
        if images.class_names != first.class_names:
            raise DataError(
                f"{first_name} images have the classes {list(first.class_names)}, {name} images "
                f"{list(images.class_names)}. Use the same class names in the same order."
            )


def check_real_side(real: RealSide, train: ImageSet, held_out: ImageSet | None) -> None:
    """Raise unless a real side was made of these images; what it says of others would be believed."""
    held_out = held_out if held_out is not None and len(held_out) else None
    for name, own, given in (
        ("training", real.train, train),
        ("held-out", real.held_out_images, held_out),
    ):
        if not _same_images(own, given):
            raise ConfigError(
                f"real_side was made of other {name} images than those given. Make one of the same images."
            )


def _same_images(ordered: ImageSet | None, given: ImageSet | None) -> bool:
    if ordered is None or given is None:
        return ordered is given
    own = given.subset(content_order(given))
    return torch.equal(ordered.images, own.images) and torch.equal(ordered.labels, own.labels)
