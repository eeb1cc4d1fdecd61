"""Tests of generated images: each gives an answer, a sentence, and the numbers behind it."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fewgen.errors import DataError
from fewgen.evaluation.agreement import alignment_test
from fewgen.evaluation.copying import MAX_SHIFT, ROTATIONS, SCALES, c_t, clear_copies, reduced, tail_test
from fewgen.evaluation.distances import kernel_test, neighbour_scores
from fewgen.evaluation.diversity import collapse_share, vendi_ratio, within_class_distance
from fewgen.evaluation.failed import FAILED
from fewgen.evaluation.looks_failed import REAL
from fewgen.evaluation.outcome import ALPHA, Outcome, VerdictTest, percent
from fewgen.evaluation.side import Side, matched, n_distinct, split


def named(names: Sequence[str]) -> str:
    """Return the first five names in quotes, and how many more there are."""
    shown = ", ".join(f'"{name}"' for name in names[:5])
    return shown + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _within(limit: float, share: float) -> str:
    return "no" if share > max(0.5, limit) else "partly" if share > limit else "yes"


def _pixels(side: Side, chosen: Tensor) -> Tensor:
    return reduced(side.images.images[chosen]).flatten(1)


FEWEST_TO_PASS = 20
"""Held-out images below which the test of "real" finds no difference in blobs either: these pass with six."""


def looks_real(augmented: Callable[[], Side] | None, seed: int = 0) -> Callable[[Side, Side], Outcome]:
    """Return the test of "real": can the images be told from held-out ones in the judge's features?

    Yes if a permutation test on the kernel distance does not tell them apart, or if they are at least as
    near to the held-out images as augmented training images are; partly if at least half as many of them
    lie among real images as of real images themselves; no otherwise.

    Args:
        augmented: gives the augmented training images, or None.
        seed: of the permutations.
    """

    def distance(side: Side, held_out: Side) -> Any:
        rng = torch.Generator().manual_seed(seed)
        labels: dict[str, Any] = {}
        if side.labelled:
            labels = {"labels_x": side.labels, "labels_y": held_out.labels}
        sides = (side.features, held_out.features)
        return kernel_test(*sides, rng=rng, n_permutations=500, max_per_set=500, **labels)

    known: dict[int, Any] = {}  # of the augmented copies; a `RealSide` keeps its sides and tests together

    def run(side: Side, held_out: Side) -> Outcome:
        found = distance(side, held_out)
        numbers: dict[str, Any] = {"kernel_distance": found.value, "p_value": found.p_value}
        if found.p_value >= ALPHA:
            return Outcome(
                "yes",
                f"in the judge's features they are not told apart from held-out real images "
                f"(kernel distance {found.value:.3g}, p = {found.p_value:.2g}).",
                numbers,
                REAL,
            )
        if augmented is not None:
            if id(held_out) not in known:
                known[id(held_out)] = distance(augmented(), held_out)
            near = known[id(held_out)].value
            numbers["kernel_distance_of_augmented_copies"] = near
            if found.value <= near:
                return Outcome(
                    "yes",
                    f"they are as near to held-out real images (kernel distance {found.value:.3g}) as "
                    f"augmented copies of the training images are ({near:.3g}).",
                    numbers,
                    REAL,
                )
        own, other = matched(side.labels, held_out.labels)
        shares = []
        # A judge trained on few images may take noise for a class; pixels do not.
        for of_side, of_held in (
            (side.features[own], held_out.features[other]),
            (_pixels(side, own), _pixels(held_out, other)),
        ):
            usual = neighbour_scores(of_held[0::2], of_held[1::2]).precision
            shares.append((neighbour_scores(of_held, of_side).precision, usual))
        inside, usual = min(shares, key=lambda pair: pair[0] / max(pair[1], 1e-9))
        numbers |= {"precision": shares[0][0], "precision_in_pixels": shares[1][0], "shares_of_real": shares}
        answer = "partly" if inside >= 0.5 * usual else "no"
        near = numbers.get("kernel_distance_of_augmented_copies")
        compared = "" if near is None else f", farther than augmented copies ({near:.3g})"
        return Outcome(
            answer,
            f"they are told apart from held-out real images (kernel distance {found.value:.3g}"
            f"{compared}, p = {found.p_value:.2g}); {percent(inside)} lie among real images, of real images "
            f"{percent(usual)}.",
            numbers,
            "They do not look like real images."
            if answer == "no"
            else "They look much, but not quite, like real images.",
        )

    return run


SPREAD_OF_REAL = 0.8
"""Diversity, as a share of that of held-out real images, from which it counts as real-like."""

COLLAPSED = 0.5
"""Diversity below which images count as collapsed."""


def is_diverse(every_held_out: Side, n_splits: int = 20, seed: int = 0) -> Callable[[Side, Side], Outcome]:
    """Return the test of "diverse": distances within a class and Vendi score, against held-out images.

    The error of the ratios comes from splitting the held-out images into halves many times and comparing
    these; it is scaled to the counts at hand. Where they are too few to be split, it comes from how much
    the classes differ among each other.

    Args:
        every_held_out: the held-out images to split.
        n_splits: number of splits.
        seed: of splits and subsets.
    """
    n_classes = every_held_out.images.n_classes

    def ratios(side: Side, held_out: Side, rng: torch.Generator) -> tuple[float, float, list[float | None]]:
        own = within_class_distance(side.features, side.labels, n_classes)
        real = within_class_distance(held_out.features, held_out.labels, n_classes)
        per_class = [
            a / b if a is not None and b else None for a, b in zip(own.per_class, real.per_class, strict=True)
        ]
        known = [value for value in per_class if value is not None]
        if not known:
            raise DataError("no class has two generated and two held-out images, so diversity is not known.")
        sides = (side.features, held_out.features, side.labels, held_out.labels)
        vendi = vendi_ratio(*sides, rng=rng, n_draws=5, max_per_class=100, n_classes=n_classes)
        return math.fsum(known) / len(known), vendi.mean, per_class

    @functools.cache
    def errors() -> tuple[float, float] | None:
        """Return the standard deviations of both log ratios for a single image per side, or None."""
        rng = torch.Generator().manual_seed(seed)
        logs = []
        for _ in range(n_splits):
            first, second = split(every_held_out, rng)
            try:
                pair, vendi, _ = ratios(first, second, rng)
            except DataError:
                continue
            logs.append([math.log(max(pair, 1e-6)), math.log(max(vendi, 1e-6))])
        if len(logs) < 2:
            return None
        # Halves of m images: the error of their log ratio is that of one image times sqrt(2 / m + 2 / m).
        scale = math.sqrt(len(every_held_out.labels) / 4)
        pair, vendi = torch.tensor(logs, dtype=torch.float64).std(dim=0).clamp_min(0.01).tolist()
        return pair * scale, vendi * scale

    def run(side: Side, held_out: Side) -> Outcome:
        if not side.labelled:
            raise DataError("the images have no class labels, so diversity within a class is not known.")
        pair, vendi, per_class = ratios(side, held_out, torch.Generator().manual_seed(seed))
        of_one = errors()
        if of_one is not None:
            scale = math.sqrt(1 / len(side.labels) + 1 / len(held_out.labels))
            slack = [_SLACK * error * scale for error in of_one]
        else:
            known = [value for value in per_class if value is not None]
            if len(known) < 3:
                raise DataError(
                    f"{len(held_out.labels)} held-out images of {len(known)} classes do not show how far "
                    "diversity varies by chance; hold out at least 4 of each class."
                )
            spread = float(torch.tensor(known, dtype=torch.float64).std()) / math.sqrt(len(known))
            slack = [_SLACK * max(0.05, spread)] * 2
        found = (pair, vendi)
        passes = all(v >= SPREAD_OF_REAL - s for v, s in zip(found, slack, strict=True))
        fails = any(v + s < COLLAPSED for v, s in zip(found, slack, strict=True))
        names = held_out.images.class_names
        low = [names[c] for c, v in enumerate(per_class) if v is not None and v < COLLAPSED / 2]
        answer = "no" if fails else "yes" if passes and not low else "partly"
        why = (
            f"images of a class lie {pair:.2f} times as far apart as held-out real ones, and their Vendi "
            f"score is {vendi:.2f} times that of as many real ones (uncertain by {slack[0]:.2f} and "
            f"{slack[1]:.2f})."
        )
        if low and len(low) < len(names):
            why += f" Hardly any variety in: {named(low)}."
        numbers = {"distance_ratio": pair, "vendi_ratio": vendi, "slack": slack}
        plain = {
            "yes": "Images of a class differ about as much as real ones.",
            "partly": "Images of a class differ less than real ones.",
            "no": "Images of a class are nearly all alike.",
        }[answer]
        return Outcome(answer, why, {**numbers, "per_class": per_class, "low": low}, plain)

    return run


_SLACK = 2.6
"""Standard deviations that chance is given: one-sided, about the level `ALPHA`."""


def repeats_itself(every_held_out: Side, seed: int = 0) -> Callable[[Side, Side], Outcome]:
    """Return the second test of "diverse": are many pairs of a class nearer than real pairs ever are?

    How high the share gets for real images is found by comparing halves of the held-out ones.
    """
    n_classes = every_held_out.images.n_classes

    def share(a: Side, b: Side) -> float:
        sides = (a.features, a.labels, b.features, b.labels)
        return collapse_share(*sides, n_classes=n_classes, max_real_per_class=200).share

    @functools.cache
    def limit() -> float:
        rng = torch.Generator().manual_seed(seed)
        usual = []
        for _ in range(20):
            try:
                usual.append(share(*split(every_held_out, rng)))
            except DataError:
                break
        return max(0.05, 2 * max(usual, default=0.05))

    def run(side: Side, held_out: Side) -> Outcome:
        if not side.labelled:
            raise DataError("the images have no class labels, so pairs within a class are not known.")
        found = share(side, held_out)
        return Outcome(
            _within(limit(), found),
            f"{percent(found)} of the pairs of a class are nearer than the nearest 1 % of real pairs; up to "
            f"{percent(limit())} would be usual.",
            {"collapse_share": found, "limit": limit()},
            "Many images of a class are nearly the same.",
        )

    return run


REPEATS = 0.05
"""Share of images that may repeat another one of the set; beyond it, and beyond half, images count as few."""


def no_repeats(side: Side, held_out: Side) -> Outcome:
    """Test of "diverse": images that equal another image of the set in every pixel."""
    if 0 in (len(side.images), len(held_out.images)):
        raise DataError("there are no held-out images to say how many repeats are usual.")
    own, usual = (1 - n_distinct(s.images) / len(s.images) for s in (side, held_out))
    limit = max(REPEATS, 2 * usual)
    return Outcome(
        _within(limit, own),
        f"{percent(own)} of the images repeat another one in every pixel (held-out real images: "
        f"{percent(usual)}).",
        {"repeated_share": own, "limit": limit},
        f"{own:.0%} of the images repeat another one.",
    )


def _copies_in(side: Side, held_out: Side, scores: Tensor, held: Tensor, space: str) -> Outcome:
    own, other = matched(side.labels, held_out.labels)
    held = held[other]
    held = held[held > 0]  # a held-out image that equals a training image says nothing of unseen ones
    if len(held) < 5:
        raise DataError(
            f"{len(held)} held-out images cannot show how near unseen images come; at least 5 are needed."
        )
    found = tail_test(scores[own], held, alpha=ALPHA)
    clear = clear_copies(scores, held)
    n, n_clear = len(scores), int(clear.which.sum())
    more = {"clear_copies": n_clear, "clear_copies_p_value": clear.p_value, "space": space}
    numbers = {**dataclasses.asdict(found), **more}
    what = (
        f"{percent(found.share)} of the images lie nearer to one training image, relative to the next ones, "
        f"than all but {percent(found.rank / found.n_held_out)} of {found.n_held_out} held-out images do "
        f"({percent(found.expected)} expected, p = {found.p_value:.2g})"
    )
    if found.p_value < ALPHA or clear.p_value < ALPHA:
        many = found.share - found.expected >= 0.01 and n_clear + found.share * n >= COPIED * n
        doubt = f" {n_clear} of {n} are copies beyond doubt." if n_clear else ""
        near = max(n_clear, round(found.share * n))
        plain = (
            f"About {near} of {n} images are near-copies of training images."
            if many
            else ("A few images may be near-copies of training images.")
        )
        return Outcome("no" if many else "partly", f"{space}: {what}.{doubt}", numbers, plain)
    unseen = percent(1.0 if found.detectable is None else found.detectable)
    blind = f" Fewer than {unseen} of copies among them could go unseen."
    plain = f"No copies found among {n} images; up to {unseen} could be missed."
    doubt = ""
    if found.detectable is None or found.detectable > MOST_UNSEEN:
        known = found.n_held_out
        advice = "hold out at least 24" if known < 24 else "judge at least 100 images"
        doubt = (
            f"no copies found among {n} images, but with {known} held-out images up to {unseen} could be "
            f"missed; {advice}."
        )
    return Outcome("yes", f"{space}: no copies found; {what}.{blind}", numbers, plain, doubt)


MOST_UNSEEN = 0.25
"""Share of copies that may go unseen; beyond it, that none was found is no good news."""


SEARCHED = (
    f"pixels, over mirrors, shifts of up to {MAX_SHIFT}, turns of up to {max(ROTATIONS):.0f} degrees or by "
    f"multiples of 90, and scales of {min(SCALES):g} to {max(SCALES):g}"
)
"""What the search for copies covers, in words: it says nothing of other changes."""


def no_copies_in_pixels(side: Side, held_out: Side) -> Outcome:
    """Test of "new": near-copies over mirrors, shifts and small rotations, by `tail_test`."""
    return _copies_in(side, held_out, side.nearest.score, held_out.nearest.score, SEARCHED)


def no_copies_in_features(side: Side, held_out: Side) -> Outcome:
    """Test of "new": near-copies in the judge's features."""
    return _copies_in(side, held_out, side.feature_scores, held_out.feature_scores, "features")


def not_nearer_on_average(side: Side, held_out: Side) -> Outcome:
    """Test of "new": rank test (C_T) on the scores; can only lower a verdict to "partly"."""
    own, other = matched(side.labels, held_out.labels)
    held = held_out.nearest.score[other]
    found = c_t(side.nearest.score[own], held[held > 0])
    numbers = dataclasses.asdict(found)
    if found.p_value < ALPHA:
        return Outcome(
            "partly",
            f"on average they lie nearer to single training images than held-out images do "
            f"(C_T {found.z:+.1f}, p = {found.p_value:.2g}).",
            numbers,
            "They lie nearer to the training images than other real images do, though no copy stands out.",
        )
    why = f"on average they lie no nearer to single training images (C_T {found.z:+.1f})."
    return Outcome("yes", why, numbers)


def shows_its_class(side: Side, held_out: Side) -> Outcome:
    """Test of "aligned": the judge sees the wanted class about as often as in held-out real images."""
    if side.predictions is None or held_out.predictions is None:
        raise DataError("the judge knows no classes.")
    if not side.labelled:
        raise DataError("the images have no class labels, so it is not known what they should show.")
    seen = (side.predictions, side.labels, held_out.predictions, held_out.labels)
    found = alignment_test(*seen, side.images.class_names)
    plain = {
        "yes": "They show the classes that were asked for, as often as real images do.",
        "partly": "They show the classes that were asked for, but less clearly than real images do.",
        "no": "They do not show the classes that were asked for.",
    }.get(found.answer, "")
    return Outcome(found.answer, found.why, {"figures": found.figures()}, plain, found.doubt)


COPIED = 0.02
"""Share of copies from which a set is not new; below it, it is partly new."""


def no_training_images(side: Side, held_out: Side | None = None) -> Outcome:
    """Test of "new": images that equal a training image, as it is, mirrored, shifted or turned by 90 degrees.

    A fact that needs no statistics and no held-out images.
    """
    n, equal = len(side.nearest.distance), int((side.nearest.distance == 0).sum())
    if not equal:
        return Outcome("yes", "no image equals a training image.", {"equal": 0, "n": n})
    are = "is a training image" if equal == 1 else "are training images"
    return Outcome(
        "no" if equal >= COPIED * n else "partly",
        f"{equal} of {n} images equal a training image in every pixel compared, as it is, mirrored, shifted "
        "or turned by a multiple of 90 degrees.",
        {"equal": equal, "n": n},
        f"{equal} of {n} images {are}.",
    )


def standard_tests(
    held_out: Side,
    augmented: Callable[[], Side] | None,
    seed: int = 0,
    failed: Callable[[Side, Side], Outcome] | None = None,
) -> list[VerdictTest]:
    """Return the tests of real, diverse, new and aligned.

    Args:
        held_out: the held-out images, which show how far figures vary by chance.
        augmented: gives the augmented training images, or None.
        seed: of subsets and permutations.
        failed: the test against failed generators, of `looks_failed`; None leaves it out.
    """
    noise, single, copies = ("noise",), ("one_per_class",), ("copies",)
    spread, collapsed = is_diverse(held_out, seed=seed), repeats_itself(held_out, seed)
    real = looks_real(augmented, seed)
    many = ("copies", "augmented_copies")
    tests = [
        VerdictTest("kernel distance", "real", real, noise, fewest_held_out=FEWEST_TO_PASS),
        VerdictTest("spread within classes", "diverse", spread, single),
        VerdictTest("collapsed pairs", "diverse", collapsed, single, primary=False),
        VerdictTest("training images", "new", no_training_images, copies, (), primary=False),
        VerdictTest("near-copies in pixels", "new", no_copies_in_pixels, many),
        VerdictTest("near-copies in features", "new", no_copies_in_features, copies, primary=False),
        VerdictTest("nearness on average", "new", not_nearer_on_average, copies, primary=False, alone=False),
        VerdictTest("repeated images", "diverse", no_repeats, single, primary=False),
        VerdictTest("class agreement", "aligned", shows_its_class, ("shuffled_labels",)),
    ]
    if failed is not None:
        tests.insert(1, VerdictTest("failed generators", "real", failed, (*noise, *FAILED), rates=True))
    return tests
