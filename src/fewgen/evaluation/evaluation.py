"""`evaluate_images`: everything that can be said of a set of generated images, with controls and verdicts."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewgen.data.identity import content_order, image_digests
from fewgen.data.imageset import ImageSet
from fewgen.encoders.base import ImageEncoder
from fewgen.errors import ConfigError, DataError
from fewgen.evaluation.controls import DESCRIPTIONS
from fewgen.evaluation.copying import MAX_SIDE, QUARTER_TURNS, ROTATIONS, SCALES, worst
from fewgen.evaluation.figures import compute_figures, entry
from fewgen.evaluation.gains import Gain
from fewgen.evaluation.outcome import Outcome
from fewgen.evaluation.real_side import Progress, RealSide, check_real_side, check_sets
from fewgen.evaluation.side import Side
from fewgen.evaluation.sources import describe
from fewgen.evaluation.usefulness import UsefulnessResult, measure_usefulness, usefulness_controls
from fewgen.evaluation.verdict_tests import no_training_images
from fewgen.evaluation.verdicts import (
    OFFER,
    QUESTIONS,
    Verdict,
    attempt,
    decide,
    headline,
    sentence,
    useful_verdict,
    verdict_lines,
    without_meaning,
)
from fewgen.files import write_json
from fewgen.version import __version__

FORMAT = "fewgen-evaluation"
FORMAT_VERSION = 1

N_WORST = 10

MAX_SEEN = 0.01
"""Share of generated images that may be held-out images; beyond it nothing can be told from them."""

SEEN = 0.01
"""Share of held-out images that a classifier may have learned from before its accuracy says nothing."""


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
        """Return one line per question, for a terminal; before them, if so, that training was cut short."""
        return verdict_lines(self.verdicts, self.protocol)

    @property
    def headline(self) -> str:
        """What must be known before any verdict: that training was cut short; or nothing."""
        return headline(self.protocol)

    def save(self, path: str | Path) -> None:
        """Write `to_dict()` as JSON, atomically."""
        # A figure must never become NaN, which is no JSON either.
        json.dumps(self.to_dict(), allow_nan=False)
        write_json(path, self.to_dict())


def evaluate_images(
    generated: ImageSet,
    train: ImageSet,
    held_out: ImageSet | None = None,
    *,
    extractor: ImageEncoder | None = None,
    pool: ImageSet | None = None,
    useful_draws: int = 10,
    draws: Sequence[tuple[ImageSet, ImageSet]] = (),
    seed: int = 0,
    progress: Progress | None = None,
    real_side: RealSide | None = None,
    labelled: bool = True,
    usefulness_options: Mapping[str, Any] | None = None,
    steps: tuple[int, int] | None = None,
    probed: ImageEncoder | None = None,
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
        steps: training steps of the generator that were made, and those of its preset, if known.
        probed: EfficientNet, on whose features a linear probe shows what is to be had without generating;
            None: the judge, if it is one.

    Returns:
        `Evaluation`. What could not be computed is named in `omitted` with the reason; no figure is NaN.

    Raises:
        DataError: an empty set, or other classes.
        ShapeError: other sizes or channels.
        ConfigError: a negative number of draws.
    """
    if useful_draws < 0:
        raise ConfigError(f"useful_draws must be 0 or more, got {useful_draws}.")
    check_sets({"training": train, "generated": generated, "held-out": held_out, "pool": pool})
    tell = progress or (lambda name, share: None)
    if real_side is not None:
        check_real_side(real_side, train, held_out)
    real = real_side or RealSide(train, held_out, extractor, pool, seed, progress)
    order = content_order(generated)
    ordered = generated.subset(order)
    if not labelled:
        ordered = _without_labels(ordered)
    tell("describing new images", 0.0)
    side = real.side(ordered)

    tell("computing figures", 0.0)
    if real.held_out is None or real.held_features is None or real.held_out_images is None:
        found, omitted = compute_figures(None)
        controls: dict[str, dict[str, dict[str, Any]]] = {}
        verdicts = {name: Verdict(name, "cannot tell", sentence(OFFER)) for name in QUESTIONS}
        copied = no_training_images(side)
        if copied.answer != "yes":
            verdicts["new"] = Verdict("new", copied.answer, sentence(copied.why), plain=copied.plain)
    else:
        found, omitted = compute_figures(real.comparison(side, real.held_out, real.held_features))
        tell("trying tests on controls", 0.0)
        judged = real.controls(side.labels)
        controls = judged.figures
        tell("weighing verdicts", 0.0)
        outcomes = {test.name: attempt(test, side, real.held_out) for test in judged.tests}
        verdicts = decide(judged.tests, outcomes, judged.outcomes, len(real.held_out.labels))
        known = _seen(ordered, real.held_out_images, real.train)
        note = "generated images that are held-out images, pixel by pixel; should be 0"
        found["held_out_share"] = entry("held_out_share", {"value": known / len(ordered), "note": note})
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
    verdicts = without_meaning({name: verdicts[name] for name in QUESTIONS if name in verdicts}, steps)
    plain = real.without_generating(probed)
    if plain:
        found["linear_probe"] = entry("linear_probe", plain)
        useful = verdicts["useful"]
        verdicts["useful"] = dataclasses.replace(useful, plain=f"{useful.plain} {plain['note']}")

    scores = torch.empty(len(generated), dtype=torch.float64)
    scores[order] = side.nearest.score
    return Evaluation(
        protocol=_protocol(generated, real, useful_draws, labelled) | _steps(steps),
        figures=found,
        controls=controls,
        verdicts=verdicts,
        omitted=omitted,
        worst=_worst_pairs(side, order, real),
        copy_scores=scores,
        generated=generated,
        train=train,
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


def _from_tests(outcomes: Mapping[str, Outcome], found: dict[str, dict[str, Any]]) -> None:
    """Add the figures that only the tests compute."""
    numbers = outcomes["kernel distance"].numbers
    if "p_value" in numbers:
        found["kernel_p_value"] = entry("kernel_p_value", {"value": numbers["p_value"]})
    if "copy_share" in found:
        found["copy_test_p_value"] = entry("copy_test_p_value", {"value": found["copy_share"]["p_value"]})


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
    held = real.held_out_images
    return {
        "extractor": real.extractor.record(),
        "judge_trained_on": "the training images" if real.judged_by_training else "other real images",
        **({"linear_probe": real.linear_probe} if real.linear_probe else {}),
        "n_generated": len(generated),
        "n_train": len(real.train),
        "n_held_out": 0 if held is None else len(held),
        "n_held_out_in_tests": 0 if real.held_out is None else len(real.held_out.images),
        "n_pool": 0 if real.pool is None else len(real.pool),
        "generated": generated.name,
        "train": real.train.name,
        "held_out": "" if held is None else held.name,
        "image_shape": [int(v) for v in generated.images.shape[1:]],
        "images": {
            name: describe(images)
            for name, images in (
                ("training", real.train),
                ("generated", generated),
                ("held-out", held),
                ("pool", real.pool),
            )
            if images is not None
        },
        "labelled": labelled,
        "copying": {
            "largest_side": MAX_SIDE,
            "largest_shift": real.aligner.margin,
            "rotations": [*ROTATIONS, *QUARTER_TURNS],
            "scales": [1.0, *SCALES],
            "mirrored": True,
            "window": list(real.aligner.window),
        },
        "controls": DESCRIPTIONS,
        "useful_draws": useful_draws,
        "seed": real.seed,
        "n_threads": torch.get_num_threads(),
    }


def _steps(steps: tuple[int, int] | None) -> dict[str, Any]:
    return {} if steps is None else {"steps": {"made": steps[0], "of": steps[1]}}


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
    held, reason = real.held_out_images, OFFER
    if held is not None:
        reason = "it was not measured here (it takes minutes); fewgen evaluate measures it"
        if n_draws and not labelled:
            reason = "the images have no class labels, so no classifier can learn from them"
    if held is None or n_draws == 0 or not labelled:
        omitted["usefulness"] = reason
        answer = "not measured" if held is not None and labelled else "cannot tell"
        verdicts["useful"] = Verdict("useful", answer, sentence(reason) + ".")
        return
    pairs, more = [(real.train, generated), *draws], dict(options or {})
    settings = {"n_draws": n_draws, "pool": real.pool, "seed": real.seed, **more}
    try:
        result = measure_usefulness(pairs, held, progress=tell, **settings)
        controls = _useful_controls(real, held, result, n_draws, more)
    except DataError as missing:
        omitted["usefulness"] = str(missing)
        verdicts["useful"] = Verdict("useful", "cannot tell", sentence(str(missing)))
        return
    found |= result.figures()
    omitted |= result.omitted
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
    real: RealSide, held: ImageSet, result: UsefulnessResult, n_draws: int, options: Mapping[str, Any]
) -> dict[str, Gain]:
    """Return the gain of twice as many real images, and of copies as generated images; kept per real side."""
    n = max(2, min(5, n_draws))
    key = (n, result.settings)
    if key not in real.useful_controls:
        kept = {name: options[name] for name in ("jobs", "real_cache") if name in options}
        real.useful_controls[key] = usefulness_controls(
            real.train, held, n_draws=n, settings=result.settings, seed=real.seed, **kept
        )
    return real.useful_controls[key]
