"""Verdicts: each question is answered by tests that first had to prove themselves on control images.

A test names the controls that it must pass (real images) and those that it must catch (copies, noise, one
image per class, shuffled labels). On the data at hand it is run on these first. Bad news ("no", "partly")
counts only from a test that let the real images pass; good news ("yes") only from one that caught what it
has to catch. Otherwise the test says "cannot tell", and which control it failed on.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fewgen.data.imageset import ImageSet
from fewgen.errors import DataError
from fewgen.evaluation.agreement import alignment_test
from fewgen.evaluation.controls import halves
from fewgen.evaluation.copying import MAX_SHIFT, ROTATIONS, Nearest, c_t, clear_copies, reduced, tail_test
from fewgen.evaluation.distances import kernel_test, neighbour_scores
from fewgen.evaluation.diversity import collapse_share, vendi_ratio, within_class_distance
from fewgen.evaluation.usefulness import Gain, UsefulnessResult

QUESTIONS = ("real", "diverse", "new", "useful", "aligned")
ANSWERS = ("no", "partly", "yes", "cannot tell")

ALPHA = 0.005
"""Level of each single test, so that all verdicts together accuse real images in under 5 % of cases."""

OFFER = (
    "there are no held-out real images to compare with. Set 6 to 10 of each class aside (fewgen train "
    "--holdout 8 respects them), or name some: fewgen evaluate --holdout FOLDER"
)


@dataclass(frozen=True)
class Side:
    """Images with what the tests need of them, computed once.

    images: the set.
    features: of the judge, (N, D).
    predictions: classes the judge sees, int64 (N,); None if it knows no classes.
    nearest: nearest training images over mirrors, shifts and rotations.
    feature_scores: nearest over next training image in features, (N,).
    """

    images: ImageSet
    features: Tensor
    predictions: Tensor | None
    nearest: Nearest
    feature_scores: Tensor

    @property
    def labels(self) -> Tensor:
        """Classes that the images stand for, int64 (N,)."""
        return self.images.labels

    def at(self, indices: Tensor) -> Side:
        """Return some of the images."""
        return Side(
            self.images.subset(indices),
            self.features[indices],
            None if self.predictions is None else self.predictions[indices],
            Nearest(*(getattr(self.nearest, f.name)[indices] for f in dataclasses.fields(Nearest))),
            self.feature_scores[indices],
        )


@dataclass(frozen=True)
class Outcome:
    """What one test says of one set of images: answer, sentence, and the numbers behind it."""

    answer: str
    why: str
    numbers: dict[str, Any] = field(default_factory=dict)


@dataclass
class Verdict:
    """Answer to one question: "yes", "partly", "no" or "cannot tell", and a sentence why.

    tests: what each test says of the generated images and of its controls; JSON-ready.
    """

    question: str
    answer: str
    why: str
    tests: list[dict[str, Any]] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return answer, why and tests."""
        return {"answer": self.answer, "why": self.why, "tests": self.tests}


@dataclass(frozen=True)
class VerdictTest:
    """One test of one question.

    name: in words.
    question: which verdict it belongs to.
    run: (images, held-out images to judge them by) -> Outcome.
    must_pass: controls for which the answer has to be "yes" before bad news counts.
    must_catch: controls for which it must not be "yes" before good news counts.
    primary: whether a verdict can be "yes" on its word; others can only lower a verdict.
    fewest_held_out: held-out images below which good news counts for nothing; controls are judged by half
        of them, so the limit is not the test's own.
    """

    name: str
    question: str
    run: Callable[[Side, Side], Outcome]
    must_pass: tuple[str, ...]
    must_catch: tuple[str, ...]
    primary: bool = True
    fewest_held_out: int = 0


# ------------------------------------------------------------------------------------------------ tests


def matched(labels: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """Return indices of both sides such that both have the same proportions of the classes both have.

    The reference keeps all its images of the shared classes; the other side as many as the scarcest class
    allows. Without a shared class, or without labels (-1), or with an empty side, everything is kept.

    Args:
        labels: int64 (N,).
        reference: int64 (M,).
    """
    every = torch.arange(len(labels)), torch.arange(len(reference))
    if bool((labels < 0).any()) or len(labels) == 0 or len(reference) == 0:
        return every
    n = max(int(labels.max()), int(reference.max())) + 1
    own, other = torch.bincount(labels, minlength=n), torch.bincount(reference, minlength=n)
    shared = (own > 0) & (other > 0)
    if not bool(shared.any()):
        return every
    scale = float((own[shared].double() / other[shared].double()).min())
    wanted = torch.where(shared, (other.double() * scale + 1e-9).floor().clamp_min(1).long(), 0)
    order = labels.argsort(stable=True)
    starts = own.cumsum(0) - own
    rank = torch.empty_like(labels)
    rank[order] = torch.arange(len(labels)) - starts[labels[order]]
    return (rank < wanted[labels]).nonzero().flatten(), shared[reference].nonzero().flatten()


def _percent(share: float) -> str:
    return f"{share:.0%}" if share == 0 or share >= 0.095 else f"{share:.1%}"


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
        labelled = not bool((side.labels < 0).any())
        return kernel_test(
            side.features,
            held_out.features,
            rng=torch.Generator().manual_seed(seed),
            n_permutations=500,
            max_per_set=500,
            labels_x=side.labels if labelled else None,
            labels_y=held_out.labels if labelled else None,
        )

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
            )
        if augmented is not None:
            if id(held_out) not in known:
                known[id(held_out)] = distance(augmented(), held_out)
            near = known[id(held_out)]
            numbers["kernel_distance_of_augmented_copies"] = near.value
            if found.value <= near.value:
                return Outcome(
                    "yes",
                    f"they are as near to held-out real images (kernel distance {found.value:.3g}) as "
                    f"augmented copies of the training images are ({near.value:.3g}).",
                    numbers,
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
        compared = (
            f", farther than augmented copies ({numbers['kernel_distance_of_augmented_copies']:.3g})"
            if augmented is not None
            else ""
        )
        return Outcome(
            answer,
            f"they are told apart from held-out real images (kernel distance {found.value:.3g}"
            f"{compared}, p = {found.p_value:.2g}); {_percent(inside)} lie among real images, of real images "
            f"{_percent(usual)}.",
            numbers,
        )

    return run


SMALL_GAIN = 0.02
"""Gain in accuracy; images whose interval of the gain reaches 0 and lies below this count as not useful."""

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
        vendi = vendi_ratio(
            side.features,
            held_out.features,
            side.labels,
            held_out.labels,
            rng=rng,
            n_draws=5,
            max_per_class=100,
            n_classes=n_classes,
        )
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
        pair, vendi = (
            max(0.01, float(v)) * scale for v in torch.tensor(logs, dtype=torch.float64).std(dim=0)
        )
        return pair, vendi

    def run(side: Side, held_out: Side) -> Outcome:
        if bool((side.labels < 0).any()):
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
            why += f" Hardly any variety in: {_named(low)}."
        return Outcome(
            answer,
            why,
            {
                "distance_ratio": pair,
                "vendi_ratio": vendi,
                "slack": slack,
                "per_class": per_class,
                "low": low,
            },
        )

    return run


_SLACK = 2.6
"""Standard deviations that chance is given: one-sided, about the level `ALPHA`."""


def split(side: Side, rng: torch.Generator) -> tuple[Side, Side]:
    """Return two random halves, each class split evenly."""
    first, second = halves(side.images, rng)
    return side.at(first), side.at(second)


def repeats_itself(every_held_out: Side, seed: int = 0) -> Callable[[Side, Side], Outcome]:
    """Return the second test of "diverse": are many pairs of a class nearer than real pairs ever are?

    How high the share gets for real images is found by comparing halves of the held-out ones.
    """
    n_classes = every_held_out.images.n_classes

    def share(a: Side, b: Side) -> float:
        return collapse_share(
            a.features, a.labels, b.features, b.labels, n_classes=n_classes, max_real_per_class=200
        ).share

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
        if bool((side.labels < 0).any()):
            raise DataError("the images have no class labels, so pairs within a class are not known.")
        found = share(side, held_out)
        answer = "no" if found > max(0.5, limit()) else "partly" if found > limit() else "yes"
        return Outcome(
            answer,
            f"{_percent(found)} of the pairs of a class are nearer than the nearest 1 % of real pairs; up to "
            f"{_percent(limit())} would be usual.",
            {"collapse_share": found, "limit": limit()},
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
    answer = "no" if own > max(0.5, limit) else "partly" if own > limit else "yes"
    return Outcome(
        answer,
        f"{_percent(own)} of the images repeat another one in every pixel (held-out real images: "
        f"{_percent(usual)}).",
        {"repeated_share": own, "limit": limit},
    )


def n_distinct(images: ImageSet) -> int:
    """Return how many different images a set holds."""
    return len(images.images.flatten(1).unique(dim=0))


def useful_verdict(result: UsefulnessResult, controls: Mapping[str, Gain]) -> Verdict:
    """Return the verdict "useful" from a measurement and its controls.

    Yes if the interval of the gain lies above 0, no if it lies below a gain of 2 points and reaches 0;
    otherwise it cannot be told. Classes that lose make a "yes" a "partly".

    Args:
        result: of `measure_usefulness`.
        controls: "more_real_images", the gain of twice as many real images, which must be seen; "copies", the
            gain of copies, which must not.
    """
    gain = result.gain
    numbers = f"{100 * gain.mean:+.1f} points"
    if gain.low is not None and gain.high is not None:
        numbers += f" ({100 * gain.low:+.1f} to {100 * gain.high:+.1f})"
    what = (
        f"generated images change a small classifier's accuracy by {numbers}, from "
        f"{result.arms['real'].mean:.1%} with the training images and tuned augmentation alone; "
        f"{result.power()}. The interval speaks of {result.speaks_of}."
    )
    if result.worth is not None:
        what += f" {result.worth.text}."
    heard = {
        name: "yes" if value.low is not None and value.low > 0 else "no" for name, value in controls.items()
    }
    if gain.low is None or gain.high is None:
        answer, why = "cannot tell", what
    elif gain.low > 0:
        answer, why = ("partly" if result.losing_classes else "yes"), what
        if result.losing_classes:
            why += f" It lowers the accuracy of: {_named(result.losing_classes)}."
        if heard.get("copies") == "yes":
            why = f"the test would say {answer}, but plain copies seem useful to it as well. {what}"
            answer = "cannot tell"
    elif gain.high < SMALL_GAIN:
        answer, why = "no", f"{what} A gain of {100 * SMALL_GAIN:.0f} points or more is ruled out."
    else:
        answer, why = "cannot tell", f"{what} More draws or more held-out images would tell."
    if answer == "no" and heard.get("more_real_images") != "yes":
        answer = "cannot tell"
        why = f"on this data not even twice as many real images are seen to help. {what}"
    record = {
        "name": "accuracy of a small classifier",
        "answer": answer,
        "why": why,
        "numbers": {name: dataclasses.asdict(value) for name, value in controls.items()},
        "controls": heard,
        "must_pass": ["more_real_images"],
        "must_catch": ["copies"],
    }
    return Verdict("useful", answer, sentence(why), [record])


def _named(names: Sequence[str]) -> str:
    shown = ", ".join(f'"{name}"' for name in names[:5])
    return shown + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _copies_in(
    scores: Tensor, labels: Tensor, held_scores: Tensor, held_labels: Tensor, space: str
) -> Outcome:
    own, other = matched(labels, held_labels)
    held = held_scores[other]
    held = held[held > 0]  # a held-out image that equals a training image says nothing of unseen ones
    if len(held) < 5:
        raise DataError(
            f"{len(held)} held-out images cannot show how near unseen images come; at least 5 are needed."
        )
    found = tail_test(scores[own], held, alpha=ALPHA)
    clear = clear_copies(scores, held)
    n, n_clear = len(scores), int(clear.which.sum())
    numbers = {
        **dataclasses.asdict(found),
        "clear_copies": n_clear,
        "clear_copies_p_value": clear.p_value,
        "space": space,
    }
    what = (
        f"{_percent(found.share)} of the images lie nearer to one training image, relative to the next ones, "
        f"than all but {_percent(found.rank / found.n_held_out)} of {found.n_held_out} held-out images do "
        f"({_percent(found.expected)} expected, p = {found.p_value:.2g})"
    )
    if found.p_value < ALPHA or clear.p_value < ALPHA:
        many = found.share - found.expected >= 0.01 and n_clear + found.share * n >= 0.02 * n
        doubt = f" {n_clear} of {n} are copies beyond doubt." if n_clear else ""
        return Outcome("no" if many else "partly", f"{space}: {what}.{doubt}", numbers)
    blind = (
        f" Fewer than {_percent(found.detectable)} of copies among them could go unseen."
        if found.detectable is not None
        else ""
    )
    return Outcome("yes", f"{space}: no copies found; {what}.{blind}", numbers)


SEARCHED = (
    f"pixels, over mirrors, shifts of up to {MAX_SHIFT} and turns of up to {max(ROTATIONS):.0f} degrees"
)
"""What the search for copies covers, in words: it says nothing of other changes."""


def no_copies_in_pixels(side: Side, held_out: Side) -> Outcome:
    """Test of "new": near-copies over mirrors, shifts and small rotations, by `tail_test`."""
    return _copies_in(side.nearest.score, side.labels, held_out.nearest.score, held_out.labels, SEARCHED)


def no_copies_in_features(side: Side, held_out: Side) -> Outcome:
    """Test of "new": near-copies in the judge's features."""
    return _copies_in(side.feature_scores, side.labels, held_out.feature_scores, held_out.labels, "features")


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
        )
    return Outcome(
        "yes", f"on average they lie no nearer to single training images (C_T {found.z:+.1f}).", numbers
    )


def shows_its_class(side: Side, held_out: Side) -> Outcome:
    """Test of "aligned": the judge sees the wanted class about as often as in held-out real images."""
    if side.predictions is None or held_out.predictions is None:
        raise DataError("the judge knows no classes.")
    if bool((side.labels < 0).any()):
        raise DataError("the images have no class labels, so it is not known what they should show.")
    found = alignment_test(
        side.predictions, side.labels, held_out.predictions, held_out.labels, side.images.class_names
    )
    return Outcome(found.answer, found.why, {"figures": found.figures()})


def standard_tests(held_out: Side, augmented: Callable[[], Side] | None, seed: int = 0) -> list[VerdictTest]:
    """Return the tests of real, diverse, new and aligned.

    Args:
        held_out: the held-out images, which show how far figures vary by chance.
        augmented: gives the augmented training images, or None.
        seed: of subsets and permutations.
    """
    return [
        VerdictTest(
            "kernel distance",
            "real",
            looks_real(augmented, seed),
            ("held_out",),
            ("noise",),
            fewest_held_out=FEWEST_TO_PASS,
        ),
        VerdictTest(
            "spread within classes",
            "diverse",
            is_diverse(held_out, seed=seed),
            ("held_out",),
            ("one_per_class",),
        ),
        VerdictTest(
            "collapsed pairs",
            "diverse",
            repeats_itself(held_out, seed),
            ("held_out",),
            ("one_per_class",),
            primary=False,
        ),
        VerdictTest(
            "near-copies in pixels", "new", no_copies_in_pixels, ("held_out",), ("copies", "augmented_copies")
        ),
        VerdictTest(
            "near-copies in features", "new", no_copies_in_features, ("held_out",), ("copies",), primary=False
        ),
        VerdictTest(
            "nearness on average", "new", not_nearer_on_average, ("held_out",), ("copies",), primary=False
        ),
        VerdictTest(
            "repeated images", "diverse", no_repeats, ("held_out",), ("one_per_class",), primary=False
        ),
        VerdictTest("class agreement", "aligned", shows_its_class, ("held_out",), ("shuffled_labels",)),
    ]


# --------------------------------------------------------------------------------------------- verdicts


def attempt(test: VerdictTest, side: Side, held_out: Side) -> Outcome:
    """Return what a test says, or "cannot tell" with the reason where it cannot be run."""
    try:
        return test.run(side, held_out)
    except DataError as reason:
        return Outcome("cannot tell", str(reason))


def run_controls(
    tests: Sequence[VerdictTest], controls: Mapping[str, tuple[Side, Side]]
) -> dict[str, dict[str, Outcome]]:
    """Return what each test says of the controls it is bound to: test name -> control -> outcome.

    Args:
        tests: to prove.
        controls: control -> (its images, the held-out images it is judged by).
    """
    return {
        test.name: {
            name: attempt(test, *controls[name])
            for name in dict.fromkeys((*test.must_pass, *test.must_catch))
            if name in controls
        }
        for test in tests
    }


def _weigh(
    test: VerdictTest, outcome: Outcome, controls: Mapping[str, Outcome], n_held_out: int
) -> tuple[str, str]:
    """Return answer and sentence of a test after its controls have been heard."""
    answers = {name: found.answer for name, found in controls.items()}
    if outcome.answer in ("no", "partly"):
        accused = [name for name in test.must_pass if answers.get(name) != "yes"]
        if accused:
            return "cannot tell", (
                f"the test would say {outcome.answer}, but it does not let {_control_names(accused)} pass on "
                "this data either."
            )
    if outcome.answer == "yes":
        missed = [name for name in test.must_catch if answers.get(name) not in ("no", "partly")]
        if missed:
            return "cannot tell", (
                f"the test found nothing wrong, but on this data it does not catch {_control_names(missed)} "
                "either."
            )
        if n_held_out < test.fewest_held_out:
            return "cannot tell", (
                f"the test found nothing wrong, but with {n_held_out} held-out images it would find little; "
                f"hold out at least {test.fewest_held_out}."
            )
    return outcome.answer, outcome.why


_NAMES = {
    "held_out": "held-out real images",
    "copies": "exact copies",
    "augmented_copies": "augmented copies",
    "noise": "noise",
    "one_per_class": "one image per class repeated",
    "shuffled_labels": "shuffled labels",
}


def _control_names(names: Sequence[str]) -> str:
    return " and ".join(_NAMES.get(name, name) for name in names)


def decide(
    tests: Sequence[VerdictTest],
    outcomes: Mapping[str, Outcome],
    controls: Mapping[str, Mapping[str, Outcome]],
    n_held_out: int,
) -> dict[str, Verdict]:
    """Return the verdict of each question that has tests.

    The worst answer that its tests can stand for; "yes" only if a primary test says so.

    Args:
        tests: all tests.
        outcomes: test name -> what it says of the generated images.
        controls: test name -> control -> what it says of that.
        n_held_out: images that the generated ones were judged by.
    """
    verdicts = {}
    for question in dict.fromkeys(test.question for test in tests):
        heard, records = [], []
        for test in tests:
            if test.question != question:
                continue
            outcome, own = outcomes[test.name], controls.get(test.name, {})
            answer, why = _weigh(test, outcome, own, n_held_out)
            heard.append((test, answer, why))
            records.append(
                {
                    "name": test.name,
                    "answer": answer,
                    "why": why,
                    "numbers": outcome.numbers,
                    "controls": {name: found.answer for name, found in own.items()},
                    "must_pass": list(test.must_pass),
                    "must_catch": list(test.must_catch),
                }
            )
        verdicts[question] = _combine(question, heard, records)
    return verdicts


def _combine(
    question: str, heard: Sequence[tuple[VerdictTest, str, str]], records: list[dict[str, Any]]
) -> Verdict:
    for bad in ("no", "partly"):
        reasons = [why for _, answer, why in heard if answer == bad]
        if reasons:
            return Verdict(question, bad, sentence(reasons[0]), records)
    for test, answer, why in heard:
        if test.primary and answer == "yes":
            return Verdict(question, "yes", sentence(why), records)
    primary = [why for test, _, why in heard if test.primary]
    return Verdict(question, "cannot tell", sentence((primary or ["no test could be run."])[0]), records)


def sentence(text: str) -> str:
    """Return the text with a capital at its start."""
    return text[:1].upper() + text[1:]


# ------------------------------------------------------------------------------------------- in words


def verdict_lines(verdicts: Mapping[str, Any]) -> list[str]:
    """Return a line per verdict, for a terminal.

    Args:
        verdicts: question -> `Verdict`, or its form in evaluation.json.

    >>> verdict_lines({"new": {"answer": "cannot tell", "why": "no held-out images."}})
    ['New?      cannot tell  no held-out images.']
    """
    return [
        f"{question.capitalize() + '?':<10}{_of(verdicts[question], 'answer'):<13}"
        f"{' '.join(str(_of(verdicts[question], 'why')).split())}"
        for question in (*QUESTIONS, *(name for name in verdicts if name not in QUESTIONS))
        if question in verdicts
    ]


def summary(verdicts: Mapping[str, Any]) -> str:
    """Return the answers in one line.

    >>> summary({"real": {"answer": "yes"}, "new": {"answer": "cannot tell"}})
    'real: yes, new: cannot tell'
    """
    return ", ".join(f"{name}: {_of(verdicts[name], 'answer')}" for name in QUESTIONS if name in verdicts)


def _of(verdict: Any, name: str) -> str:
    return str(verdict[name] if isinstance(verdict, Mapping) else getattr(verdict, name))
