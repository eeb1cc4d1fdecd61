"""Are images told from real ones as easily as the images of failed generators are?

A two-sample test that is strong enough tells every generator from real images. So the question is how far
a set is from held-out real images beside what failed generators (`failed.py`) draw of the same data. It is
asked in three views: the judge's features, the appearance (`appearance.py`), and reduced pixels. The
distance in each is the energy distance; "told apart" means a permutation test at level `ALPHA`. The answers:

- **no**, if the images are told apart in some view, and in every view they are no better than those of one
  failed generator: at least `AS_FAR` as far from the held-out images (where the generator's are told apart),
  or nearer to the generator's images than to the held-out ones. Also no, if in a single view they are told
  apart and at least as far as the middle one of all failed generators.
- **yes**, if in appearance and pixels they are not told apart, or no farther than augmented training images.
- **partly** otherwise: they can be told apart, but every failed generator is worse in some view. Soft images
  with the right shapes get this answer.

Halves of the held-out images calibrate it: half of them, judged by the other half, must get "yes" before bad
news counts; the images of failed generators made from held-out images, judged by those made from training
images, must get "no" before good news counts.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fewgen.data.imageset import ImageSet
from fewgen.errors import DataError
from fewgen.evaluation.appearance import appearance
from fewgen.evaluation.controls import spread_over_classes
from fewgen.evaluation.copying import reduced
from fewgen.evaluation.distances import distance_kernel, energy_distance, kernel_test
from fewgen.evaluation.failed import FAILED
from fewgen.evaluation.outcome import ALPHA, Outcome
from fewgen.evaluation.side import Side, matched

AS_FAR = 2 / 3
"""Share of a failed generator's distance from which images count as no better; distances vary by chance."""

N_COMPARED = 300
"""Images of each side at most."""

REAL = "They look like real images."

DECIDING = ("appearance", "pixels")
"""Views that decide between yes and partly; on features, the test of the kernel distance does."""

Distances = dict[str, tuple[float, bool]]
"""View -> energy distance from held-out images, and whether a test tells the two apart."""


@dataclass(frozen=True)
class _Seen:
    """Labels of some images, or None, and view -> vectors, (N, D)."""

    labels: Tensor | None
    views: dict[str, Tensor]


@dataclass(frozen=True)
class _Scale:
    """Held-out images, failed generators' images of the same classes, and how far these and others are."""

    real: _Seen
    failed: dict[str, _Seen]
    distances: dict[str, Distances]
    augmented: Distances | None


def looks_failed(
    train: ImageSet,
    failed: Callable[[], Mapping[str, Side]],
    augmented: Callable[[], Side] | None,
    seed: int = 0,
) -> Callable[[Side, Side], Outcome]:
    """Return the second test of "real"; the rule stands at the head of this file.

    Args:
        train: the training images.
        failed: gives the images of failed generators, by name.
        augmented: gives augmented training images, or None.
        seed: of subsets and permutations.
    """
    numbers_of = appearance(train.images)
    # A `RealSide` keeps its sides and tests together, so an id stands for the same images all the time.
    known: dict[tuple[int, bytes], _Scale] = {}

    def seen(side: Side, chosen: Tensor) -> _Seen:
        if len(chosen) < 2:
            raise DataError(f"{len(chosen)} images do not show how images of their kind look.")
        rng = torch.Generator().manual_seed(seed)
        rows = chosen[spread_over_classes(side.labels[chosen], N_COMPARED, rng)]
        pixels = side.images.images[rows]
        views = {"features": side.features[rows], "appearance": numbers_of(pixels)}
        views["pixels"] = reduced(pixels).flatten(1)
        return _Seen(
            side.labels[rows] if side.labelled else None, {name: v.double() for name, v in views.items()}
        )

    def distances(images: _Seen, real: _Seen) -> Distances:
        labels: dict[str, Any] = {}
        if images.labels is not None and real.labels is not None:
            labels = {"labels_x": images.labels, "labels_y": real.labels}
        found = {}
        for view in real.views:
            test = kernel_test(
                images.views[view],
                real.views[view],
                rng=torch.Generator().manual_seed(seed),
                n_permutations=250,
                kernel=distance_kernel,
                **labels,
            )
            found[view] = test.value, test.p_value < ALPHA
        return found

    def scale(held_out: Side, chosen: Tensor) -> _Scale:
        key = id(held_out), chosen.numpy().tobytes()
        if key not in known:
            real, labels = seen(held_out, chosen), held_out.labels[chosen]
            made = {name: seen(side, matched(side.labels, labels)[0]) for name, side in failed().items()}
            near = None
            if augmented is not None:
                side = augmented()
                near = distances(seen(side, matched(side.labels, labels)[0]), real)
            known[key] = _Scale(real, made, {n: distances(own, real) for n, own in made.items()}, near)
        return known[key]

    def run(side: Side, held_out: Side) -> Outcome:
        own, chosen = matched(side.labels, held_out.labels)
        known_of = scale(held_out, chosen)
        images = seen(side, own)
        found = distances(images, known_of.real)
        told = [view for view, (_, apart) in found.items() if apart]
        numbers: dict[str, Any] = {
            "distances": _values(found),
            "told_apart": told,
            "distances_of_failed": {name: _values(own) for name, own in known_of.distances.items()},
        }
        if not told:
            why = "in features, appearance and pixels they are not told apart from held-out real images."
            return Outcome("yes", why, numbers, REAL)

        @functools.cache
        def between(view: str, name: str) -> float:
            return energy_distance(images.views[view], known_of.failed[name].views[view])

        def no_better(view: str, name: str) -> bool:
            value, (theirs, apart) = found[view][0], known_of.distances[name][view]
            return (apart and value >= AS_FAR * theirs) or between(view, name) < value

        like = [name for name in known_of.failed if all(no_better(view, name) for view in found)]
        like.sort(key=lambda name: between("appearance", name))
        beyond = []
        for view in told:
            values = sorted(own[view][0] for own in known_of.distances.values())
            if found[view][0] >= values[len(values) // 2]:
                beyond.append(view)
        numbers |= {"no_better_than": like, "beyond_the_middle_in": beyond}
        if like or beyond:
            what = FAILED[like[0]][0] if like else "the images of most failed generators"
            where = "features, appearance and pixels" if like else " and ".join(beyond)
            return Outcome(
                "no",
                f"in {where} they are told from held-out real images as easily as {what}.",
                numbers,
                f"They look no more like real images than {what}.",
            )
        near = known_of.augmented
        farther = [v for v in told if v in DECIDING and (near is None or found[v][0] > near[v][0])]
        if farther:
            return Outcome(
                "partly",
                f"in {' and '.join(farther)} they are told from held-out real images, and farther from them "
                "than augmented training images are, but nearer than what failed generators draw.",
                numbers,
                "They come near real images, but their sharpness, texture or colours differ.",
            )
        why = "in appearance and pixels they are as near to held-out real images as augmented copies are."
        return Outcome("yes", why, numbers, REAL)

    return run


def _values(found: Distances) -> dict[str, float]:
    return {view: value for view, (value, _) in found.items()}
