"""Figures that say whether generated images are real-looking, diverse, new, useful and of the wanted class.

This package knows images, labels and features; it does not know who made the images.
"""

# ruff: noqa: F401 - these imports are the public names; everything else is imported from its module.
from __future__ import annotations

from fewgen.encoders.base import ImageEncoder
from fewgen.encoders.classifier import ClassifierFeatures, ClassifierSettings
from fewgen.encoders.named import make_image_encoder
from fewgen.encoders.pixels import PixelFeatures
from fewgen.encoders.probe import class_predictor
from fewgen.evaluation.agreement import alignment_test, label_agreement
from fewgen.evaluation.arms import UsefulnessSettings
from fewgen.evaluation.copying import Aligner, Nearest, authenticity, c_t, clear_copies, tail_test
from fewgen.evaluation.distances import (
    frechet_distance,
    kernel_distance,
    kernel_distance_interval,
    kernel_test,
    nearest_distances,
    neighbour_scores,
    per_class,
)
from fewgen.evaluation.diversity import (
    collapse_share,
    nearest_within,
    vendi_ratio,
    vendi_score,
    within_class_distance,
)
from fewgen.evaluation.evaluation import Evaluation, evaluate_images
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
from fewgen.evaluation.real_side import RealSide
from fewgen.evaluation.retention import class_retention
from fewgen.evaluation.retrieval import image_to_text_accuracy, text_to_image_accuracy
from fewgen.evaluation.smoothness import interpolation_smoothness
from fewgen.evaluation.statistics import wilson_interval
from fewgen.evaluation.usefulness import UsefulnessResult, measure_usefulness
from fewgen.evaluation.verdicts import Verdict

# The names of the last release.
FeatureExtractor, make_extractor = ImageEncoder, make_image_encoder
