"""Figures that say whether generated images are real-looking, diverse, new, useful and of the wanted class.

This package knows images, labels and features; it does not know who made the images.
"""

from __future__ import annotations

from fewgen.encoders.base import Described, FeatureExtractor
from fewgen.encoders.classifier import ClassifierFeatures, ClassifierSettings
from fewgen.encoders.image import make_extractor
from fewgen.encoders.image_transformer import TransformerFeatures
from fewgen.encoders.inception import InceptionFeatures
from fewgen.encoders.lpips import LpipsTrunk
from fewgen.encoders.pixels import PixelFeatures
from fewgen.encoders.probe import class_predictor
from fewgen.evaluation.agreement import Agreement, Share, label_agreement, wilson_interval
from fewgen.evaluation.aligned import (
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
from fewgen.evaluation.copying import (
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
from fewgen.evaluation.distances import (
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
from fewgen.evaluation.diversity import (
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
from fewgen.evaluation.evaluation import Evaluation, RealSide, WorstPair, evaluate_images
from fewgen.evaluation.matching import match_images
from fewgen.evaluation.perceptual import FeaturePyramid, lpips_distance, read_lpips_weights
from fewgen.evaluation.planner import (
    between_episode_variance,
    half_width,
    required_draws,
    required_episodes,
    required_queries,
    smallest_gain,
)
from fewgen.evaluation.quality import mean_squared_error, psnr, ssim
from fewgen.evaluation.usefulness import (
    UsefulnessResult,
    UsefulnessSettings,
    measure_usefulness,
    usefulness_controls,
)
from fewgen.evaluation.verdicts import Verdict

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
