"""The figures of an evaluation, one entry each: name, title, question, and how it is computed."""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fewgen.errors import DataError
from fewgen.evaluation.agreement import label_agreement
from fewgen.evaluation.copying import authenticity, c_t, tail_test
from fewgen.evaluation.distances import (
    NeighbourScores,
    frechet_distance,
    kernel_distance,
    kernel_distance_interval,
    neighbour_scores,
    per_class,
)
from fewgen.evaluation.diversity import collapse_share, vendi_ratio, within_class_distance
from fewgen.evaluation.side import Side, matched

N_REFERENCE = 5000
"""Held-out images that precision, recall, density and coverage use at most; they depend on this number."""

N_AUTHENTICITY = 1000
"""Images whose authenticity is computed at most."""


@dataclass(frozen=True)
class Comparison:
    """A set of images beside held-out real ones: all that a figure is computed from.

    side: the images.
    held_out: the held-out images that tests and figures of nearness use.
    every_held_out: features of all held-out images, (M, D).
    counted: features of the set and of real images for the figures that depend on how many there are.
    nearest_of_train: indices of training images -> distance to their nearest other training image, (n,).
    n_train: number of training images.
    seed: of subsets.
    """

    side: Side
    held_out: Side
    every_held_out: Tensor
    counted: tuple[Tensor, Tensor]
    nearest_of_train: Callable[[Tensor], Tensor]
    n_train: int
    seed: int

    @property
    def names(self) -> tuple[str, ...]:
        """Class names."""
        return self.side.images.class_names

    @property
    def labels(self) -> Tensor:
        """Classes of the images; DataError if they have none."""
        if not self.side.labelled:
            raise DataError("the images have no class labels")
        return self.side.labels

    def rng(self) -> torch.Generator:
        """Return a random stream from its start."""
        return torch.Generator().manual_seed(self.seed)

    def by_name(self, values: Sequence[Any]) -> dict[str, Any]:
        """Return class name -> value of the class."""
        return dict(zip(self.names, values, strict=True))

    @functools.cached_property
    def neighbours(self) -> tuple[NeighbourScores, dict[str, int]]:
        """Precision, recall, density and coverage, and the counts behind them."""
        made, reference = self.counted
        # Both are in an order that depends on the seed and the images alone: classes stay in proportion.
        n = min(len(reference), N_REFERENCE)
        scores = neighbour_scores(reference[torch.arange(n) * len(reference) // n], made)
        return scores, {"k": scores.k, "n": len(made), "n_reference": n}


def _frechet(c: Comparison) -> dict[str, Any]:
    made, reference = c.counted
    return {
        "value": frechet_distance(reference, made),
        "n": len(made),
        "n_reference": len(reference),
        "note": f"biased upwards for few images; compare only with others of {len(made)} images",
    }


def _kernel(c: Comparison) -> dict[str, Any]:
    value = kernel_distance(c.every_held_out, c.side.features)
    interval = kernel_distance_interval(c.every_held_out, c.side.features, c.rng(), n_blocks=50)
    half = (interval.high - interval.low) / 2
    classes: dict[str, float | None] = {}
    if c.side.labelled:
        sides = (c.held_out.features, c.held_out.labels, c.side.features, c.side.labels)
        classes = per_class(kernel_distance, *sides, c.names).values
    return {
        "value": value,
        "low": value - half,
        "high": value + half,
        "per_class": classes,
        "note": "unbiased; may be negative",
    }


def _neighbours(name: str) -> Callable[[Comparison], dict[str, Any]]:
    def compute(c: Comparison) -> dict[str, Any]:
        scores, counts = c.neighbours
        return {"value": getattr(scores, name), **counts}

    return compute


def _vendi(c: Comparison) -> dict[str, Any]:
    sides = (c.side.features, c.held_out.features, c.labels, c.held_out.labels)
    ratio = vendi_ratio(*sides, rng=c.rng(), max_per_class=100, n_classes=len(c.names))
    return {
        "value": ratio.generated,
        "ratio": ratio.mean,
        "per_class": c.by_name(ratio.per_class),
        "note": "effective images per class; ratio and classes: over that of as many held-out images",
    }


def _within_class(c: Comparison) -> dict[str, Any]:
    own = within_class_distance(c.side.features, c.labels, len(c.names))
    usual = within_class_distance(c.held_out.features, c.held_out.labels, len(c.names))
    return {
        "value": own.mean,
        "ratio": own.mean / usual.mean if usual.mean > 0 else None,
        "per_class": c.by_name(own.per_class),
    }


def _collapse(c: Comparison) -> dict[str, Any]:
    sides = (c.side.features, c.labels, c.held_out.features, c.held_out.labels)
    share = collapse_share(*sides, n_classes=len(c.names), max_real_per_class=200)
    return {"value": share.share, "per_class": c.by_name(share.per_class)}


def _agreement(c: Comparison) -> dict[str, Any]:
    labels = c.labels
    if c.side.predictions is None or c.held_out.predictions is None:
        raise DataError("the judge knows no classes")
    own = label_agreement(c.side.predictions, labels, c.names)
    usual = label_agreement(c.held_out.predictions, c.held_out.labels, c.names)
    return {
        **dataclasses.asdict(own.overall),
        "on_held_out": usual.overall.value,
        "per_class": {name: share.value for name, share in own.per_class.items()},
        "confusion": [list(row) for row in own.confusion],
    }


def _copies(scores: str) -> Callable[[Comparison], dict[str, Any]]:
    scores_of = operator.attrgetter(scores)

    def compute(c: Comparison) -> dict[str, Any]:
        own, other = matched(c.side.labels, c.held_out.labels)
        made, held = scores_of(c.side), scores_of(c.held_out)[other]
        test = tail_test(made[own], held[held > 0])
        flagged = made < test.threshold
        fields = ("low", "high", "expected", "threshold", "p_value", "detectable")
        return {
            "value": test.share,
            **{field: getattr(test, field) for field in fields},
            "n_used": len(own),
            "per_class": {
                name: float(flagged[c.side.labels == k].double().mean())
                for k, name in enumerate(c.names)
                if bool((c.side.labels == k).any())
            },
            "note": "nearer to one training image, relative to the next ones, than held-out images are",
        }

    return compute


def _ranks(c: Comparison) -> dict[str, Any]:
    own, other = matched(c.side.labels, c.held_out.labels)
    near, usual = c.side.nearest, c.held_out.nearest
    on_distance = c_t(near.distance[own], usual.distance[other])
    on_score = c_t(near.score[own], usual.score[other])
    return {
        "value": on_distance.z,
        "p_value": on_distance.p_value,
        "area": on_distance.area,
        "z_of_scores": on_score.z,
        "p_value_of_scores": on_score.p_value,
        "note": "far below 0: nearer to the training images; blurred images are, too",
    }


def _authenticity(c: Comparison) -> dict[str, Any]:
    own, other = c.side.nearest, c.held_out.nearest
    if len(own.index) > N_AUTHENTICITY:
        own = own.at(torch.randperm(len(own.index), generator=c.rng())[:N_AUTHENTICITY])
    used = torch.cat([own.index, other.index]).unique()
    usual = torch.zeros(c.n_train, dtype=torch.float64)
    usual[used] = c.nearest_of_train(used)
    share = authenticity(own, other, usual)
    return {
        "value": share.share,
        "on_held_out": share.null,
        "p_value": share.p_value,
        "note": "farther from the nearest training image than that one is from the others",
    }


@dataclass(frozen=True)
class Figure:
    """A figure: its name in evaluation.json, its title for readers, and the question it belongs to.

    compute: gives `value` and more, JSON-ready, or raises DataError where it cannot be computed; None: it
        comes from a test, or from the measurement of usefulness.
    """

    name: str
    title: str
    question: str
    compute: Callable[[Comparison], dict[str, Any]] | None = None


FIGURES = (
    Figure("frechet_distance", "Frechet distance", "real", _frechet),
    Figure("kernel_distance", "kernel distance (KID)", "real", _kernel),
    Figure("precision", "precision", "real", _neighbours("precision")),
    Figure("density", "density", "real", _neighbours("density")),
    Figure("recall", "recall", "diverse", _neighbours("recall")),
    Figure("coverage", "coverage", "diverse", _neighbours("coverage")),
    Figure("vendi", "Vendi score", "diverse", _vendi),
    Figure("within_class_distance", "distance within a class", "diverse", _within_class),
    Figure("collapse_share", "share of collapsed pairs", "diverse", _collapse),
    Figure("class_agreement", "class agreement", "aligned", _agreement),
    Figure("copy_share", "share of near-copies in pixels", "new", _copies("nearest.score")),
    Figure("copy_share_features", "share of near-copies in features", "new", _copies("feature_scores")),
    Figure("c_t", "C_T (below 0: nearer to the training images than real images are)", "new", _ranks),
    Figure("authenticity", "authenticity", "new", _authenticity),
    Figure("held_out_share", "held out share", "new"),
    Figure("kernel_p_value", "kernel distance, p", "real"),
    Figure("copy_test_p_value", "near-copies, p", "new"),
    Figure("usefulness", "gain of a classifier by generated images", "useful"),
    Figure("usefulness_generated_only", "the same by generated images in place of real ones", "useful"),
    Figure("worth_images", "worth of the images, in real images per class", "useful"),
    Figure("linear_probe", "a linear probe without any generated image", "useful"),
)
"""All figures of `evaluate_images`, in the order of evaluation.json. A new figure is one entry."""

_BY_NAME = {figure.name: figure for figure in FIGURES}


def figure_title(name: str) -> str:
    """Return a figure's name for readers.

    >>> figure_title("vendi"), figure_title("copy_share"), figure_title("precision")
    ('Vendi score', 'share of near-copies in pixels', 'precision')
    """
    return _BY_NAME[name].title if name in _BY_NAME else name.replace("_", " ")


def entry(name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entry of a figure in evaluation.json: its question and values."""
    return {"question": _BY_NAME[name].question, **values}


def compute_figures(comparison: Comparison | None) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """Return name -> entry of each figure that can be computed, and name -> reason of the others.

    Args:
        comparison: None without held-out images, without which there are no figures.
    """
    found: dict[str, dict[str, Any]] = {}
    omitted: dict[str, str] = {}
    for figure in FIGURES:
        if figure.compute is None:
            continue
        if comparison is None:
            omitted[figure.name] = "needs held-out real images"
            continue
        try:
            found[figure.name] = entry(figure.name, figure.compute(comparison))
        except DataError as reason:
            omitted[figure.name] = str(reason)
    return found, omitted
