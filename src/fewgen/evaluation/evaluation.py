"""`evaluate_images`: everything that can be said of a set of generated images, with controls and verdicts."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from fewgen.data.identity import content_order, image_digests
from fewgen.data.imageset import ImageSet
from fewgen.encoders.base import FeatureExtractor
from fewgen.encoders.classifier import ClassifierFeatures
from fewgen.encoders.probe import class_predictor
from fewgen.errors import ConfigError, DataError, ShapeError
from fewgen.evaluation.agreement import label_agreement
from fewgen.evaluation.controls import (
    DESCRIPTIONS,
    halves,
    make_controls,
    spread_over_classes,
)
from fewgen.evaluation.copying import Aligner, Nearest, authenticity, c_t, feature_scores, worst
from fewgen.evaluation.distances import (
    frechet_distance,
    kernel_distance,
    kernel_distance_interval,
    neighbour_scores,
    per_class,
)
from fewgen.evaluation.diversity import collapse_share, vendi_ratio, within_class_distance
from fewgen.evaluation.usefulness import Gain, UsefulnessResult, measure_usefulness, usefulness_controls
from fewgen.evaluation.verdicts import (
    OFFER,
    QUESTIONS,
    Outcome,
    Side,
    Verdict,
    VerdictTest,
    attempt,
    decide,
    matched,
    run_controls,
    sentence,
    standard_tests,
    useful_verdict,
    verdict_lines,
)

FORMAT = "fewgen-evaluation"
FORMAT_VERSION = 1

N_REFERENCE = 5000
"""Held-out images that precision, recall, density and coverage use at most; they depend on this number."""

N_TESTED = 1000
"""Held-out images that the tests and their controls use at most."""

N_CONTROL = 1000
"""Images of each control at most."""

N_WORST = 10

MAX_SEEN = 0.01
"""Share of generated images that may be held-out images; beyond it nothing can be told from them."""

SEEN = 0.01
"""Share of held-out images that a classifier may have learned from before its accuracy says nothing."""

Progress = Callable[[str, float], None]
T = TypeVar("T")


@dataclass
class WorstPair:
    """A generated image and the one training image that it stands nearest to.

    generated: index of the generated image; train: index of the training image.
    score: its distance over that of the next training images; 0 is an exact copy.
    distance: root mean squared difference of the standardised images.
    transform: mirror, rotation and shift under which the two were compared.
    class_name: class the generated image was made for.
    suspicious: nearer than held-out images ever come.
    """

    generated: int
    train: int
    score: float
    distance: float
    transform: str
    class_name: str
    suspicious: bool


@dataclass
class Evaluation:
    """Figures, controls and verdicts of one set of generated images.

    Attributes:
        protocol: what a reader must know to compare figures: judge, counts, seed, resizing.
        figures: name -> {"value", "question", ...}; shares in [0, 1].
        controls: control -> name -> the same figure of that control.
        verdicts: question -> `Verdict`.
        omitted: what could not be computed -> why.
        worst: the generated images that stand nearest to one training image, most suspicious first.
        copy_scores: score of every generated image, (N,); lower is nearer to a copy.
        generated: the images, for pictures; not in the file.
        train: the training images, likewise.
    """

    protocol: dict[str, Any]
    figures: dict[str, dict[str, Any]]
    controls: dict[str, dict[str, dict[str, Any]]]
    verdicts: dict[str, Verdict]
    omitted: dict[str, str]
    worst: list[WorstPair]
    copy_scores: Tensor
    generated: ImageSet
    train: ImageSet

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the images, JSON-ready."""
        from fewgen.version import __version__

        return {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "fewgen": __version__,
            "subject": self.generated.name,
            "protocol": self.protocol,
            "figures": self.figures,
            "controls": self.controls,
            "verdicts": {name: verdict.to_dict() for name, verdict in self.verdicts.items()},
            "omitted": self.omitted,
            "worst_pairs": [dataclasses.asdict(pair) for pair in self.worst],
            "copy_scores": [round(float(score), 6) for score in self.copy_scores],
        }

    def lines(self) -> list[str]:
        """Return one line per question, for a terminal."""
        return verdict_lines(self.verdicts)

    def save(self, path: str | Path) -> None:
        """Write `to_dict()` as JSON, atomically."""
        from fewgen.files import write_json

        # A figure must never become NaN, which is no JSON either.
        json.dumps(self.to_dict(), allow_nan=False)
        write_json(path, self.to_dict())


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
        extractor: FeatureExtractor | None = None,
        pool: ImageSet | None = None,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> None:
        held_out = None if held_out is not None and len(held_out) == 0 else held_out
        _check_sets({"training": train, "held-out": held_out, "pool": pool})
        self.seed, self.pool = seed, pool
        # From here on the order in which images came has no influence on anything.
        self.order = content_order(train)
        self.train = train.subset(self.order)
        self.held_out_images = None if held_out is None else held_out.subset(content_order(held_out))
        known = self.train if pool is None else pool
        n_classes = len(known.labels.unique())
        if extractor is None:
            if n_classes < 2:
                raise DataError(
                    f"the small classifier that judges the images needs two classes with images, but there "
                    f"is {n_classes}. Choose features that know no classes, such as --features pixels."
                )
            extractor = ClassifierFeatures.of(
                known,
                progress=None if progress is None else lambda i, n, _: progress("judge", i / n),
            )
        self.judged_by_training = pool is None and isinstance(extractor, ClassifierFeatures)
        self.extractor = extractor
        # Of a single class there is nothing to predict; all that needs no classes is still judged.
        self._predict: Callable[[Tensor], Tensor | None] = (
            class_predictor(extractor, known) if n_classes > 1 else lambda features: None
        )
        if (
            held_out is not None
            and isinstance(extractor, ClassifierFeatures)
            and extractor.class_names == held_out.class_names
        ):
            extractor.measure(held_out)
        self.aligner = Aligner(self.train.images)
        self.train_features = extractor.features(self.train)
        self._sides: dict[tuple[int, ...], dict[str, tuple[Side, Side]]] = {}
        self._outcomes: dict[tuple[int, ...], dict[str, dict[str, Outcome]]] = {}
        self._tests: dict[tuple[int, ...], list[VerdictTest]] = {}
        self._figures: dict[tuple[int, ...], dict[str, dict[str, dict[str, Any]]]] = {}
        self.useful_controls: dict[Any, dict[str, Gain]] = {}
        self._nearest_train: dict[int, float] = {}
        self.held_out: Side | None = None
        self.held_features: Tensor | None = None
        self.held_predictions: Tensor | None = None
        if self.held_out_images is not None:
            held = self.held_out_images
            self.held_features = extractor.features(held)
            self.held_predictions = self._predict(self.held_features)
            rng = torch.Generator().manual_seed(seed)
            chosen = spread_over_classes(held, N_TESTED, rng)
            self.held_out = self.side(held.subset(chosen), self.held_features[chosen])

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

    def nearest_of_train(self, indices: Tensor) -> Tensor:
        """Return the distance of training images to their nearest other training image, (n,)."""
        new = torch.tensor(
            [i for i in indices.unique().tolist() if i not in self._nearest_train], dtype=torch.int64
        )
        if len(new):
            found = self.aligner.nearest(self.train.images[new], exclude=new)
            self._nearest_train |= dict(zip(new.tolist(), found.distance.tolist(), strict=True))
        return torch.tensor([self._nearest_train[int(i)] for i in indices], dtype=torch.float64)

    def _key(self, labels: Tensor) -> tuple[int, ...]:
        """Return the images of each class, and last those without a class."""
        counts = torch.bincount(labels[labels >= 0], minlength=self.train.n_classes).tolist()
        return (*counts, int((labels < 0).sum()))

    def controls(self, labels: Tensor) -> dict[str, tuple[Side, Side]]:
        """Return control -> (its images, the held-out images it is judged by), in the classes of `labels`."""
        if self.held_out is None:
            return {}
        key = self._key(labels)
        if key not in self._sides:
            rng = torch.Generator().manual_seed(self.seed)
            counts = torch.tensor(key[:-1])
            wanted = torch.arange(self.train.n_classes).repeat_interleave(counts) if sum(key[:-1]) else labels
            if len(wanted) > N_CONTROL:
                stand_in = ImageSet(
                    torch.zeros(len(wanted), 1, 1, 1, dtype=torch.uint8),
                    wanted.clamp_min(0),
                    self.train.class_names,
                )
                wanted = wanted[spread_over_classes(stand_in, N_CONTROL, rng)]
            made = make_controls(self.train, self.held_out.images, wanted, self.seed)
            first, second = halves(self.held_out.images, rng)
            sides = {"held_out": (self.held_out.at(first), self.held_out.at(second))}
            for name, images in made.items():
                sides[name] = (self.side(images), self.held_out)
            self._sides[key] = sides
        return self._sides[key]

    def counted(self, labels: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """Return control -> (its features, those of the real images), at the counts of the generated images.

        Frechet distance, precision, recall, density and coverage depend on how many images are compared. So
        the controls have as many images as were generated, or for held-out images, which must not meet
        themselves, as many as half of them allow.
        """
        assert self.held_out_images is not None
        assert self.held_features is not None
        rng = torch.Generator().manual_seed(self.seed)
        n, held = len(labels), self.held_out_images
        wanted = torch.where(labels < 0, torch.arange(n) % self.train.n_classes, labels)
        made = make_controls(self.train, held, wanted, self.seed)
        found = {
            name: (self.extractor.features(made[name]), self.held_features)
            for name in ("copies", "augmented_copies", "noise")
        }
        chosen = spread_over_classes(held, min(n, len(held) // 2), rng)
        rest = torch.ones(len(held), dtype=torch.bool)
        rest[chosen] = False
        found["held_out"] = (self.held_features[chosen], self.held_features[rest])
        return found

    def control_figures(self, labels: Tensor) -> dict[str, dict[str, dict[str, Any]]]:
        """Return control -> figure, computed once for each count of classes."""
        key = self._key(labels)
        if key not in self._figures:
            self._figures[key] = {}
            counted = self.counted(labels)
            for name, (images, reference) in self.controls(labels).items():
                self._figures[key][name] = {}
                _measure(
                    images,
                    self,
                    reference,
                    reference.features,
                    reference.predictions,
                    self._figures[key][name],
                    {},
                    counted.get(name),
                )
        return self._figures[key]

    def tests(self, labels: Tensor) -> list[VerdictTest]:
        """Return the tests of real, diverse, new and aligned for images with these labels."""
        key = self._key(labels)
        if key not in self._tests:
            self._tests[key] = standard_tests(
                _known(self.held_out), lambda: self.controls(labels)["augmented_copies"][0], self.seed
            )
        return self._tests[key]

    def control_outcomes(self, labels: Tensor) -> dict[str, dict[str, Outcome]]:
        """Return test name -> control -> outcome, computed once for each count of classes."""
        key = self._key(labels)
        if key not in self._outcomes:
            self._outcomes[key] = run_controls(self.tests(labels), self.controls(labels))
        return self._outcomes[key]


def _check_sets(sets: Mapping[str, ImageSet | None]) -> None:
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


def evaluate_images(
    generated: ImageSet,
    train: ImageSet,
    held_out: ImageSet | None = None,
    *,
    extractor: FeatureExtractor | None = None,
    pool: ImageSet | None = None,
    useful_draws: int = 10,
    draws: Sequence[tuple[ImageSet, ImageSet]] = (),
    seed: int = 0,
    progress: Progress | None = None,
    real_side: RealSide | None = None,
    labelled: bool = True,
    usefulness_options: Mapping[str, Any] | None = None,
) -> Evaluation:
    """Judge generated images: real, diverse, new, useful, aligned; each answer proved on controls first.

    The order of the images in any set, and the sizes of internal batches, change no figure.

    Args:
        generated: the images; labels are the classes they were made for.
        train: the real images the generator learned from.
        held_out: real images it has not seen; without them every verdict is "cannot tell".
        extractor: the judge in whose features images are compared; None: the small classifier, trained on
            `pool` or else on `train`.
        pool: further labelled real images, for the judge and the learning curve.
        useful_draws: paired trainings of the small classifier; 0 leaves usefulness out.
        draws: (train, generated) of the same generator on other draws of the training images, for usefulness.
        seed: of controls, subsets, permutations and the small classifier.
        progress: called with the name of a part and the share of it that is done.
        real_side: `RealSide` of the same train, held_out, extractor, pool and seed, if at hand.
        labelled: False if the labels of `generated` mean nothing.
        usefulness_options: further keywords of `measure_usefulness`.

    Returns:
        `Evaluation`. What could not be computed is named in `omitted` with the reason; no figure is NaN.

    Raises:
        DataError: an empty set, or other classes.
        ShapeError: other sizes or channels.
        ConfigError: a negative number of draws.
    """
    if useful_draws < 0:
        raise ConfigError(f"useful_draws must be 0 or more, got {useful_draws}.")
    _check_sets({"training": train, "generated": generated, "held-out": held_out, "pool": pool})
    tell = progress or (lambda name, share: None)
    tell("real images", 0.0)
    if real_side is not None:
        _check_real_side(real_side, train, held_out)
    real = real_side or RealSide(train, held_out, extractor, pool, seed, progress)
    order = content_order(generated)
    ordered = generated.subset(order)
    if not labelled:
        ordered = _without_labels(ordered)
    tell("generated images", 0.0)
    side = real.side(ordered)

    found: dict[str, dict[str, Any]] = {}
    omitted: dict[str, str] = {}
    tell("figures", 0.0)
    _measure(side, real, real.held_out, real.held_features, real.held_predictions, found, omitted)
    controls: dict[str, dict[str, dict[str, Any]]] = {}
    if real.held_out is None:
        verdicts = {name: Verdict(name, "cannot tell", sentence(OFFER)) for name in QUESTIONS}
        exact = int((side.nearest.distance == 0).sum())
        if exact:
            verdicts["new"].why += (
                f". This much is plain: {exact} of {len(generated)} images equal a training image in every "
                "pixel compared, as it is, mirrored or shifted."
            )
    else:
        tell("controls", 0.0)
        labels = side.labels
        controls = real.control_figures(labels)
        tell("verdicts", 0.0)
        tests = real.tests(labels)
        outcomes = {test.name: attempt(test, side, real.held_out) for test in tests}
        verdicts = decide(tests, outcomes, real.control_outcomes(labels), len(real.held_out.labels))
        known = _seen(ordered, _known(real.held_out_images), real.train)
        found["held_out_share"] = {
            "question": "new",
            "value": known / len(ordered),
            "note": "generated images that are held-out images, pixel by pixel; should be 0",
        }
        if known > MAX_SEEN * len(ordered):
            why = (
                f"{known} of the {len(ordered)} images are held-out images, pixel by pixel: comparing with "
                "held-out images means nothing then. Hold out others."
            )
            verdicts = {name: Verdict(name, "cannot tell", why, v.tests) for name, v in verdicts.items()}
        _from_tests(outcomes, found)
    _usefulness(
        verdicts, found, omitted, generated, real, draws, useful_draws, tell, labelled, usefulness_options
    )
    verdicts = {name: verdicts[name] for name in QUESTIONS if name in verdicts}

    scores = torch.empty(len(generated), dtype=torch.float64)
    scores[order] = side.nearest.score
    return Evaluation(
        protocol=_protocol(generated, real, useful_draws, labelled),
        figures=found,
        controls=controls,
        verdicts=verdicts,
        omitted=omitted,
        worst=_worst_pairs(side, order, real),
        copy_scores=scores,
        generated=generated,
        train=train,
    )


def _check_real_side(real: RealSide, train: ImageSet, held_out: ImageSet | None) -> None:
    """Raise unless a real side was made of these images; what it says of others would be believed."""
    if held_out is not None and len(held_out) == 0:
        held_out = None
    for name, own, given in (
        ("training", real.train, train),
        ("held-out", real.held_out_images, held_out),
    ):
        if own is given:
            continue
        same = own is not None and given is not None and len(own) == len(given)
        if same and own is not None and given is not None:
            order = content_order(given)
            same = torch.equal(own.images, given.images[order]) and torch.equal(
                own.labels, given.labels[order]
            )
        if not same:
            raise ConfigError(
                f"real_side was made of other {name} images than those given. Make one of the same images."
            )


def _without_labels(images: ImageSet) -> ImageSet:
    """Return the images with labels -1, which `ImageSet` does not allow and the tests understand."""
    blank = ImageSet(images.images, images.labels, images.class_names, name=images.name)
    object.__setattr__(blank, "labels", torch.full_like(images.labels, -1))
    return blank


def _seen(images: ImageSet, held_out: ImageSet, train: ImageSet) -> int:
    """Return how many images equal a held-out image that is no training image, in every pixel."""
    kept = set(image_digests(held_out)) - set(image_digests(train))
    return sum(digest in kept for digest in image_digests(images))


# ---------------------------------------------------------------------------------------------- figures


def _measure(
    side: Side,
    real: RealSide,
    tested: Side | None,
    truth: Tensor | None,
    truth_predictions: Tensor | None,
    found: dict[str, dict[str, Any]],
    omitted: dict[str, str],
    counted: tuple[Tensor, Tensor] | None = None,
) -> None:
    """Compute every figure of a set of images into `found`, or say in `omitted` why not.

    `counted` are features of the set and of real images for the figures that depend on how many there are.
    """
    names = real.train.class_names
    labelled = not bool((side.labels < 0).any())
    fake = side.features

    def put(name: str, question: str, compute: Callable[[], dict[str, Any]]) -> None:
        if truth is None or tested is None:
            omitted[name] = "needs held-out real images"
            return
        try:
            found[name] = {"question": question, **compute()}
        except DataError as reason:
            omitted[name] = str(reason)

    def with_labels(compute: Callable[[], dict[str, Any]]) -> Callable[[], dict[str, Any]]:
        def run() -> dict[str, Any]:
            if not labelled:
                raise DataError("the images have no class labels")
            return compute()

        return run

    def kernel() -> dict[str, Any]:
        assert truth is not None
        assert tested is not None
        value = kernel_distance(truth, fake)
        interval = kernel_distance_interval(
            truth, fake, torch.Generator().manual_seed(real.seed), n_blocks=50
        )
        classes: dict[str, float | None] = {}
        if labelled:
            classes = per_class(
                kernel_distance, tested.features, tested.labels, fake, side.labels, names
            ).values
        return {
            "value": value,
            "low": value - (interval.high - interval.low) / 2,
            "high": value + (interval.high - interval.low) / 2,
            "per_class": classes,
            "note": "unbiased; may be negative",
        }

    def frechet(made: Tensor, reference: Tensor) -> dict[str, Any]:
        return {
            "value": frechet_distance(reference, made),
            "n": len(made),
            "n_reference": len(reference),
            "note": f"biased upwards for few images; compare only with others of {len(made)} images",
        }

    def neighbours(field: str) -> Callable[[], dict[str, Any]]:
        def run() -> dict[str, Any]:
            if "scores" not in memo:
                made, reference = counted or (fake, _known(truth))
                # Both are in an order that depends on the seed and the images alone.
                memo["scores"] = (
                    neighbour_scores(_at_most(reference, N_REFERENCE), made),
                    len(made),
                    min(len(reference), N_REFERENCE),
                )
            scores, n, n_reference = memo["scores"]
            return {"value": getattr(scores, field), "k": scores.k, "n": n, "n_reference": n_reference}

        return run

    def vendi() -> dict[str, Any]:
        assert tested is not None
        ratio = vendi_ratio(
            fake,
            tested.features,
            side.labels,
            tested.labels,
            rng=torch.Generator().manual_seed(real.seed),
            max_per_class=100,
            n_classes=len(names),
        )
        return {
            "value": ratio.generated,
            "ratio": ratio.mean,
            "per_class": dict(zip(names, ratio.per_class, strict=True)),
            "note": "effective images per class; ratio and classes: over that of as many held-out images",
        }

    def within() -> dict[str, Any]:
        assert tested is not None
        own = within_class_distance(fake, side.labels, len(names))
        usual = within_class_distance(tested.features, tested.labels, len(names))
        return {
            "value": own.mean,
            "ratio": own.mean / usual.mean if usual.mean > 0 else None,
            "per_class": dict(zip(names, own.per_class, strict=True)),
        }

    def collapse() -> dict[str, Any]:
        assert tested is not None
        share = collapse_share(
            fake, side.labels, tested.features, tested.labels, n_classes=len(names), max_real_per_class=200
        )
        return {"value": share.share, "per_class": dict(zip(names, share.per_class, strict=True))}

    def agreement() -> dict[str, Any]:
        if side.predictions is None or truth_predictions is None or tested is None:
            raise DataError("the judge knows no classes")
        own = label_agreement(side.predictions, side.labels, names)
        assert tested.predictions is not None
        usual = label_agreement(tested.predictions, tested.labels, names)
        return {
            **dataclasses.asdict(own.overall),
            "on_held_out": usual.overall.value,
            "per_class": {name: share.value for name, share in own.per_class.items()},
            "confusion": [list(row) for row in own.confusion],
        }

    def copies(scores: str) -> Callable[[], dict[str, Any]]:
        def run() -> dict[str, Any]:
            from fewgen.evaluation.copying import tail_test

            assert tested is not None
            own, other = matched(side.labels, tested.labels)
            pick = (lambda s: s.nearest.score) if scores == "pixels" else (lambda s: s.feature_scores)
            held = pick(tested)[other]
            test = tail_test(pick(side)[own], held[held > 0])
            flagged = pick(side) < test.threshold
            return {
                "value": test.share,
                "low": test.low,
                "high": test.high,
                "expected": test.expected,
                "threshold": test.threshold,
                "p_value": test.p_value,
                "detectable": test.detectable,
                "n_used": len(own),
                "per_class": {
                    name: float(flagged[side.labels == c].double().mean())
                    for c, name in enumerate(names)
                    if bool((side.labels == c).any())
                },
                "note": "nearer to one training image, relative to the next ones, than held-out images are",
            }

        return run

    def ranks() -> dict[str, Any]:
        assert tested is not None
        own, other = matched(side.labels, tested.labels)
        on_distance = c_t(side.nearest.distance[own], tested.nearest.distance[other])
        on_score = c_t(side.nearest.score[own], tested.nearest.score[other])
        return {
            "value": on_distance.z,
            "p_value": on_distance.p_value,
            "area": on_distance.area,
            "z_of_scores": on_score.z,
            "p_value_of_scores": on_score.p_value,
            "note": "far below 0: nearer to the training images; blurred images are, too",
        }

    def authentic() -> dict[str, Any]:
        assert tested is not None
        own, other = side.nearest, tested.nearest
        if len(own.index) > N_CONTROL:
            chosen = torch.randperm(len(own.index), generator=torch.Generator().manual_seed(real.seed))
            own = Nearest(*(getattr(own, f.name)[chosen[:N_CONTROL]] for f in dataclasses.fields(Nearest)))
        used = torch.cat([own.index, other.index]).unique()
        usual = torch.zeros(len(real.train), dtype=torch.float64)
        usual[used] = real.nearest_of_train(used)
        share = authenticity(own, other, usual)
        return {
            "value": share.share,
            "on_held_out": share.null,
            "p_value": share.p_value,
            "note": "farther from the nearest training image than that one is from the others",
        }

    memo: dict[str, Any] = {}
    put(
        "frechet_distance",
        "real",
        lambda: frechet(*(counted or (fake, _known(truth)))),
    )
    put("kernel_distance", "real", kernel)
    for field, question in (
        ("precision", "real"),
        ("density", "real"),
        ("recall", "diverse"),
        ("coverage", "diverse"),
    ):
        put(field, question, neighbours(field))
    put("vendi", "diverse", with_labels(vendi))
    put("within_class_distance", "diverse", with_labels(within))
    put("collapse_share", "diverse", with_labels(collapse))
    put("class_agreement", "aligned", with_labels(agreement))
    put("copy_share", "new", copies("pixels"))
    put("copy_share_features", "new", copies("features"))
    put("c_t", "new", ranks)
    put("authenticity", "new", authentic)


def _at_most(features: Tensor, n: int) -> Tensor:
    """Return every so-manieth row, n at most; classes stay in proportion where rows are sorted."""
    if len(features) <= n:
        return features
    return features[torch.arange(n) * len(features) // n]


def _known(value: T | None) -> T:
    assert value is not None
    return value


def _from_tests(outcomes: Mapping[str, Outcome], found: dict[str, dict[str, Any]]) -> None:
    """Add the figures that only the tests compute."""
    numbers = outcomes["kernel distance"].numbers
    if "p_value" in numbers:
        found["kernel_p_value"] = {"question": "real", "value": numbers["p_value"]}
    if "copy_share" in found:
        found["copy_test_p_value"] = {"question": "new", "value": found["copy_share"]["p_value"]}


def _worst_pairs(side: Side, order: Tensor, real: RealSide) -> list[WorstPair]:
    scores = side.nearest.score
    threshold = 0.0
    if real.held_out is not None:
        usual = real.held_out.nearest.score
        usual = usual[usual > 0]
        threshold = float(usual.min()) if len(usual) else 0.0
    pairs = []
    for i in worst(scores, N_WORST):
        label = int(side.labels[i])
        pairs.append(
            WorstPair(
                generated=int(order[i]),
                train=int(real.order[side.nearest.index[i]]),
                score=float(scores[i]),
                distance=float(side.nearest.distance[i]),
                transform=real.aligner.transforms[int(side.nearest.transform[i])],
                class_name=real.train.class_names[label] if label >= 0 else "",
                suspicious=bool(scores[i] < threshold or scores[i] == 0),
            )
        )
    return pairs


def _protocol(generated: ImageSet, real: RealSide, useful_draws: int, labelled: bool) -> dict[str, Any]:
    from fewgen.evaluation.copying import MAX_SIDE, ROTATIONS

    held = real.held_out_images
    return {
        "extractor": real.extractor.record(),
        "judge_trained_on": "the training images" if real.judged_by_training else "other real images",
        "n_generated": len(generated),
        "n_train": len(real.train),
        "n_held_out": 0 if held is None else len(held),
        "n_held_out_in_tests": 0 if real.held_out is None else len(real.held_out.images),
        "n_pool": 0 if real.pool is None else len(real.pool),
        "generated": generated.name,
        "train": real.train.name,
        "held_out": "" if held is None else held.name,
        "image_shape": [int(v) for v in generated.images.shape[1:]],
        "labelled": labelled,
        "copying": {
            "largest_side": MAX_SIDE,
            "largest_shift": real.aligner.margin,
            "rotations": list(ROTATIONS),
            "mirrored": True,
            "window": list(real.aligner.window),
        },
        "controls": DESCRIPTIONS,
        "useful_draws": useful_draws,
        "seed": real.seed,
        "n_threads": torch.get_num_threads(),
    }


# ------------------------------------------------------------------------------------------- usefulness


def _usefulness(
    verdicts: dict[str, Verdict],
    found: dict[str, dict[str, Any]],
    omitted: dict[str, str],
    generated: ImageSet,
    real: RealSide,
    draws: Sequence[tuple[ImageSet, ImageSet]],
    n_draws: int,
    tell: Progress,
    labelled: bool,
    options: Mapping[str, Any] | None,
) -> None:
    """Measure usefulness and add its verdict; the control is that real images are seen to be useful."""
    reason = None
    if real.held_out_images is None:
        reason = OFFER
    elif n_draws == 0:
        reason = "it was not measured here (it takes minutes); fewgen evaluate measures it"
    elif not labelled:
        reason = "the images have no class labels, so no classifier can learn from them"
    if reason is not None:
        omitted["usefulness"] = reason
        verdicts["useful"] = Verdict("useful", "cannot tell", sentence(reason) + ".")
        return
    held = real.held_out_images
    assert held is not None
    try:
        result = measure_usefulness(
            [(real.train, generated), *draws],
            held,
            n_draws=n_draws,
            pool=real.pool,
            seed=real.seed,
            progress=tell,
            **dict(options or {}),
        )
        controls = _useful_controls(real, result, n_draws, dict(options or {}))
    except DataError as missing:
        omitted["usefulness"] = str(missing)
        verdicts["useful"] = Verdict("useful", "cannot tell", sentence(str(missing)))
        return
    found |= result.figures()
    omitted |= result.omitted
    if result.curve is not None and "worth_images" in found:
        found["worth_images"]["curve"] = [
            {"images_per_class": n, "accuracy": value}
            for n, value in zip(result.curve.images, result.curve.accuracy, strict=True)
        ]
        found["worth_images"]["accuracy"] = result.arms["both"].mean
        if result.worth_generated is not None:
            found["worth_images"]["generated_only"] = result.worth_generated.text
    found["usefulness"]["n_seen"] = result.n_seen
    verdicts["useful"] = useful_verdict(result, controls)
    if result.n_seen > SEEN * result.n_test:
        # A classifier that learned from its test images says nothing of others.
        verdicts["useful"].answer = "cannot tell"
        verdicts["useful"].why = (
            f"{result.n_seen} of {result.n_test} held-out images are, pixel by pixel, among the generated or "
            "the training images, so the classifier was tested on what it had learned. Name other held-out "
            "images."
        )


def _useful_controls(
    real: RealSide, result: UsefulnessResult, n_draws: int, options: Mapping[str, Any]
) -> dict[str, Gain]:
    """Return the gain of twice as many real images, and of copies as generated images; kept per real side."""
    held = real.held_out_images
    assert held is not None
    n = max(2, min(5, n_draws))
    key = (n, result.settings)
    if key not in real.useful_controls:
        kept = {name: options[name] for name in ("jobs", "real_cache") if name in options}
        real.useful_controls[key] = usefulness_controls(
            real.train, held, n_draws=n, settings=result.settings, seed=real.seed, **kept
        )
    return real.useful_controls[key]
