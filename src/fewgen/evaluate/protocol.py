"""One protocol that judges any set of generated images against the training images and real test images.

`measure_generated` knows images, labels and features, not generators. What it returns is JSON-ready and
records what a reader must know to compare figures: extractor, counts, neighbour count, seeds.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fewgen.data.imageset import ImageSet
from fewgen.errors import ConfigError, DataError, suggest
from fewgen.evaluate.agreement import label_agreement
from fewgen.evaluate.distances import frechet_distance, kernel_distance, neighbour_scores
from fewgen.evaluate.features import ClassifierFeatures, Described, PixelFeatures
from fewgen.evaluate.quality import copy_share, within_class_distance
from fewgen.evaluate.usefulness import ArmResult, UsefulnessSettings, usefulness

FIGURES = (
    "class_agreement",
    "frechet_distance",
    "kernel_distance",
    "precision",
    "recall",
    "density",
    "coverage",
    "within_class_distance",
    "copy_share",
    "copy_share_pixels",
    "usefulness",
    "usefulness_unaugmented",
)
"""Names of all figures, in the order in which they are shown."""


N_REFERENCE = 5000
"""Test images that precision, recall, density and coverage use at most; the figures depend on this number."""


def reference_subset(images: ImageSet, n: int) -> Tensor:
    """Return the indices of n images, chosen by their content, so that their order in the set is irrelevant.

    Args:
        images: to choose from.
        n: how many; all of them if there are no more.

    Returns:
        int64 (min(n, N),), ascending.
    """
    if n >= len(images):
        return torch.arange(len(images))
    keys = [hashlib.sha256(image.numpy().tobytes()).digest() for image in images.images]
    return torch.tensor(sorted(sorted(range(len(keys)), key=keys.__getitem__)[:n]))


@dataclass(frozen=True)
class RealSide:
    """The real images of a comparison, with their features; computed once and used for many generators."""

    train: ImageSet
    test: ImageSet
    extractor: ClassifierFeatures
    train_described: Described
    test_described: Described

    @classmethod
    def of(cls, train: ImageSet, test: ImageSet, extractor: ClassifierFeatures) -> RealSide:
        """Describe training and test images, and measure the extractor on the test images.

        Raises: DataError if classes differ or a set is empty; ShapeError for other image shapes.
        """
        _check_sets({"training": train, "test": test}, extractor)
        extractor.measure(test)
        return cls(train, test, extractor, extractor.describe(train), extractor.describe(test))


def _check_sets(sets: dict[str, ImageSet], extractor: ClassifierFeatures) -> None:
    for name, images in sets.items():
        if len(images) == 0:
            raise DataError(f"the set of {name} images is empty.")
        if images.class_names != extractor.class_names:
            raise DataError(
                f"the {name} images have the classes {list(images.class_names)}, but the extractor knows "
                f"{list(extractor.class_names)}. Use the same class names in the same order."
            )


def measure_generated(
    generated: ImageSet,
    train: ImageSet,
    test: ImageSet,
    extractor: ClassifierFeatures,
    *,
    figures: Sequence[str] = FIGURES,
    k: int | None = None,
    n_reference: int = N_REFERENCE,
    usefulness_seeds: Sequence[int] = (0, 1, 2),
    usefulness_settings: UsefulnessSettings | None = None,
    real_side: RealSide | None = None,
    real_arms: Mapping[str, ArmResult] | None = None,
) -> dict[str, object]:
    """Measure generated images: real, diverse, new, useful, and of the wanted class.

    Args:
        generated: labelled generated images; labels are the classes they were made for.
        train: the real images the generator learned from.
        test: real images it has not seen; they are the reference of every distance.
        extractor: gives features and an independent opinion on the class.
        figures: which of `FIGURES` to compute.
        k: neighbour of precision to coverage; None for `default_k`.
        n_reference: test images used for precision to coverage.
        usefulness_seeds: seeds of the classifier that shows usefulness.
        usefulness_settings: its settings; None for the defaults. "usefulness_unaugmented" is the same
            without shifts of the training images.
        real_side: `RealSide.of(train, test, extractor)`, if at hand.
        real_arms: the arms "real" by name of the usefulness figure, if at hand.

    Returns:
        `{"protocol": {...}, "figures": {name: {"value": ..., ...}}, "omitted": {name: reason}}`. Shares are
        in [0, 1]. A figure for which there are too few samples is in "omitted" with the reason.

    Raises:
        DataError: empty sets or other classes.
        ShapeError: other image sizes or channels.
        ConfigError: unknown name in `figures`.
    """
    for name in figures:
        if name not in FIGURES:
            raise ConfigError(f'there is no figure "{name}".{suggest(name, FIGURES)}')
    _check_sets({"generated": generated}, extractor)
    real = real_side or RealSide.of(train, test, extractor)
    made = extractor.describe(generated)
    fake, truth = made.features, real.test_described.features

    def agreement() -> dict[str, object]:
        found = label_agreement(extractor.classes_of(fake), generated.labels, generated.class_names)
        reference = label_agreement(extractor.classes_of(truth), test.labels, test.class_names)
        return {
            **_share(found.overall),
            "per_class": {name: _share(share) for name, share in found.per_class.items()},
            "on_test_images": reference.overall.value,
            "confusion": [list(row) for row in found.confusion],
        }

    neighbours: dict[str, dict[str, object]] = {}

    def neighbour(name: str) -> Callable[[], dict[str, object]]:
        def compute() -> dict[str, object]:
            if not neighbours:
                chosen = reference_subset(test, n_reference)
                scores = neighbour_scores(truth[chosen], fake, k=k)
                for field in ("precision", "recall", "density", "coverage"):
                    neighbours[field] = {
                        "value": getattr(scores, field),
                        "k": scores.k,
                        "n_reference": len(chosen),
                    }
            return neighbours[name]

        return compute

    def diversity() -> dict[str, object]:
        found = within_class_distance(fake, generated.labels, generated.n_classes)
        natural = within_class_distance(truth, test.labels, test.n_classes)
        return {
            "value": found.mean,
            "on_test_images": natural.mean,
            "ratio": found.mean / natural.mean if natural.mean > 0 else None,
            "per_class": dict(zip(generated.class_names, found.per_class, strict=True)),
            "per_class_on_test_images": dict(zip(test.class_names, natural.per_class, strict=True)),
        }

    def copies(space: str) -> Callable[[], dict[str, object]]:
        def compute() -> dict[str, object]:
            if space == "features":
                sets = fake, real.train_described.features, truth
            else:
                pixels = PixelFeatures(*(int(v) for v in train.images.shape[1:]))
                sets = pixels.features(generated), pixels.features(train), pixels.features(test)
            found = copy_share(*sets)
            return {
                "value": found.share,
                "expected_of_real_images": found.quantile,
                "threshold": found.threshold,
                "median_ratio": found.median_ratio,
                "space": space,
            }

        return compute

    def useful(name: str, settings: UsefulnessSettings) -> Callable[[], dict[str, object]]:
        def compute() -> dict[str, object]:
            result = usefulness(
                train,
                generated,
                test,
                seeds=usefulness_seeds,
                settings=settings,
                generated_only=name == "usefulness",
                real=(real_arms or {}).get(name),
            )
            return {"value": result.both.mean, **result.to_dict()}

        return compute

    augmented = usefulness_settings or UsefulnessSettings()
    plain = dataclasses.replace(augmented, augmentation="none")
    computers: dict[str, Callable[[], dict[str, object]]] = {
        "class_agreement": agreement,
        "frechet_distance": lambda: {
            "value": frechet_distance(truth, fake),
            "note": "biased upwards for few samples; compare equal counts only",
        },
        "kernel_distance": lambda: {
            "value": kernel_distance(truth, fake),
            "note": "unbiased; may be negative",
        },
        **{name: neighbour(name) for name in ("precision", "recall", "density", "coverage")},
        "within_class_distance": diversity,
        "copy_share": copies("features"),
        "copy_share_pixels": copies("pixels"),
        "usefulness": useful("usefulness", augmented),
        "usefulness_unaugmented": useful("usefulness_unaugmented", plain),
    }
    found: dict[str, dict[str, object]] = {}
    omitted: dict[str, str] = {}
    for name in FIGURES:
        if name not in figures:
            continue
        try:
            found[name] = computers[name]()
        except DataError as reason:
            omitted[name] = str(reason)
    return {
        "protocol": {
            "extractor": extractor.record(),
            "n_generated": len(generated),
            "n_train": len(train),
            "n_test": len(test),
            "generated": generated.name,
            "train": train.name,
            "test": test.name,
            "image_shape": [int(v) for v in generated.images.shape[1:]],
            "resize": "none",
            "usefulness_seeds": list(usefulness_seeds),
            "n_threads": torch.get_num_threads(),
        },
        "figures": found,
        "omitted": omitted,
    }


def _share(share: object) -> dict[str, object]:
    """Return a `Share` as JSON-ready values."""
    return dataclasses.asdict(share)  # type: ignore[call-overload]
