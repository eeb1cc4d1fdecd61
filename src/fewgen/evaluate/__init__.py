"""Figures that say whether generated images are real-looking, diverse, new, useful and of the wanted class.

This package knows images, labels and features; it does not know who made the images.
"""

from __future__ import annotations

import sys
import types
from typing import Any

from fewgen.evaluate.agreement import Agreement, Share, label_agreement, wilson_interval
from fewgen.evaluate.aligned import (
    AlignmentTest,
    Retention,
    Smoothness,
    alignment_test,
    class_retention,
    cosine_scores,
    image_to_text_accuracy,
    interpolation_smoothness,
    prototype_scores,
    text_to_image_accuracy,
)
from fewgen.evaluate.copying import (
    Aligner,
    Authenticity,
    ClearCopies,
    Nearest,
    RankTest,
    TailTest,
    authenticity,
    c_t,
    clear_copies,
    feature_scores,
    tail_test,
)
from fewgen.evaluate.distances import (
    KernelInterval,
    KernelTest,
    NeighbourScores,
    PerClass,
    frechet_distance,
    kernel_distance,
    kernel_distance_blocks,
    kernel_distance_interval,
    kernel_test,
    nearest_distances,
    neighbour_scores,
    per_class,
)
from fewgen.evaluate.diversity import (
    ClassMean,
    CollapseShare,
    VendiRatio,
    class_vendi_score,
    collapse_share,
    nearest_within,
    vendi_ratio,
    vendi_score,
    within_class_distance,
)
from fewgen.evaluate.evaluation import Evaluation, RealSide, WorstPair, evaluate_images
from fewgen.evaluate.features import (
    ClassifierFeatures,
    ClassifierSettings,
    Described,
    FeatureExtractor,
    PixelFeatures,
    class_predictor,
    make_extractor,
)
from fewgen.evaluate.foundation import TransformerFeatures
from fewgen.evaluate.matching import match_images
from fewgen.evaluate.perceptual import FeaturePyramid, lpips_distance, read_lpips_weights
from fewgen.evaluate.planner import (
    between_episode_variance,
    half_width,
    required_draws,
    required_episodes,
    required_queries,
    smallest_gain,
)
from fewgen.evaluate.quality import mean_squared_error, psnr, ssim
from fewgen.evaluate.trunks import InceptionFeatures, LpipsTrunk
from fewgen.evaluate.usefulness import (
    UsefulnessResult,
    UsefulnessSettings,
    measure_usefulness,
    usefulness_controls,
)
from fewgen.evaluate.verdicts import Verdict

__all__ = [
    "usefulness_controls",
    "smallest_gain",
    "required_queries",
    "required_episodes",
    "required_draws",
    "half_width",
    "between_episode_variance",
    "Agreement",
    "Aligner",
    "AlignmentTest",
    "Authenticity",
    "ClassMean",
    "ClassifierFeatures",
    "ClassifierSettings",
    "ClearCopies",
    "CollapseShare",
    "Described",
    "Evaluation",
    "FeatureExtractor",
    "FeaturePyramid",
    "InceptionFeatures",
    "KernelInterval",
    "KernelTest",
    "LpipsTrunk",
    "Nearest",
    "NeighbourScores",
    "PerClass",
    "PixelFeatures",
    "RankTest",
    "RealSide",
    "Retention",
    "Share",
    "Smoothness",
    "TailTest",
    "TransformerFeatures",
    "UsefulnessResult",
    "UsefulnessSettings",
    "VendiRatio",
    "Verdict",
    "WorstPair",
    "alignment_test",
    "authenticity",
    "c_t",
    "class_predictor",
    "class_retention",
    "class_vendi_score",
    "clear_copies",
    "collapse_share",
    "cosine_scores",
    "evaluate_images",
    "feature_scores",
    "frechet_distance",
    "image_to_text_accuracy",
    "interpolation_smoothness",
    "kernel_distance",
    "kernel_distance_blocks",
    "kernel_distance_interval",
    "kernel_test",
    "label_agreement",
    "lpips_distance",
    "make_extractor",
    "match_images",
    "mean_squared_error",
    "measure_usefulness",
    "nearest_distances",
    "nearest_within",
    "neighbour_scores",
    "per_class",
    "prototype_scores",
    "psnr",
    "read_lpips_weights",
    "ssim",
    "tail_test",
    "text_to_image_accuracy",
    "vendi_ratio",
    "vendi_score",
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
