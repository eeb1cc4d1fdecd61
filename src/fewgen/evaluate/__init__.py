"""Figures that say whether generated images are real-looking, diverse, new, useful and of the wanted class.

This package knows images, labels and features; it does not know who made the images.
"""

from __future__ import annotations

import sys
import types
from typing import TYPE_CHECKING, Any

from fewgen.evaluate.agreement import Agreement, Share, label_agreement, wilson_interval
from fewgen.evaluate.distances import (
    NeighbourScores,
    frechet_distance,
    kernel_distance,
    kernel_distance_blocks,
    nearest_distances,
    neighbour_scores,
)
from fewgen.evaluate.features import (
    ClassifierFeatures,
    ClassifierSettings,
    FeatureExtractor,
    PixelFeatures,
    make_extractor,
)
from fewgen.evaluate.protocol import FIGURES, RealSide, measure_generated
from fewgen.evaluate.quality import copy_share, mean_squared_error, psnr, ssim, within_class_distance
from fewgen.evaluate.usefulness import UsefulnessSettings, usefulness

if TYPE_CHECKING:
    from fewgen.evaluate.evaluation import Evaluation

__all__ = [
    "FIGURES",
    "Agreement",
    "ClassifierFeatures",
    "ClassifierSettings",
    "FeatureExtractor",
    "NeighbourScores",
    "PixelFeatures",
    "RealSide",
    "Share",
    "UsefulnessSettings",
    "copy_share",
    "frechet_distance",
    "kernel_distance",
    "kernel_distance_blocks",
    "label_agreement",
    "make_extractor",
    "mean_squared_error",
    "measure_generated",
    "nearest_distances",
    "neighbour_scores",
    "psnr",
    "ssim",
    "usefulness",
    "wilson_interval",
    "within_class_distance",
]


class _CallableModule(types.ModuleType):
    """`fewgen.evaluate` is this package and, as with `fewgen.generate`, the function of the same name."""

    def __call__(self, *args: Any, **keywords: Any) -> Evaluation:
        """Evaluate a run or any images; see `fewgen.api.evaluate`."""
        from fewgen.api import evaluate

        return evaluate(*args, **keywords)


# Python sets the attribute `fewgen.evaluate` to this package whenever any part of it is imported, which
# would hide a plain function of that name.
sys.modules[__name__].__class__ = _CallableModule
