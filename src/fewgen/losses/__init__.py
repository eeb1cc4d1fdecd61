"""Terms of objectives and how they are weighted. Summed over features, averaged over the batch."""

from fewgen.losses.adversarial import PathLength, discriminator_loss, generator_loss, r1_penalty
from fewgen.losses.consistency import (
    CONSISTENCIES,
    Consistency,
    discriminator_terms,
    generator_term,
    squared_gap,
)
from fewgen.losses.contrastive import supervised_contrastive
from fewgen.losses.divergence import kl_diagonal, kl_standard_normal, reparameterize
from fewgen.losses.mmd import RBF, Kernel, MedianRBF, MixtureRBF, mmd2, mmd2_per_class
from fewgen.losses.reconstruction import l1_error, squared_error, ssim_error
from fewgen.losses.terms import LossTerms
from fewgen.losses.transport import cosine_cost, marginal_error, sinkhorn, transport_loss, w2_diagonal
from fewgen.losses.uniformity import uniformity
from fewgen.losses.weighting import FixedWeights, GradNormWeights, UncertaintyWeights, Weighting

__all__ = [
    "CONSISTENCIES",
    "RBF",
    "Consistency",
    "FixedWeights",
    "GradNormWeights",
    "Kernel",
    "LossTerms",
    "MedianRBF",
    "MixtureRBF",
    "PathLength",
    "UncertaintyWeights",
    "Weighting",
    "cosine_cost",
    "discriminator_loss",
    "discriminator_terms",
    "generator_loss",
    "generator_term",
    "kl_diagonal",
    "kl_standard_normal",
    "l1_error",
    "marginal_error",
    "mmd2",
    "mmd2_per_class",
    "r1_penalty",
    "reparameterize",
    "sinkhorn",
    "squared_error",
    "squared_gap",
    "ssim_error",
    "supervised_contrastive",
    "transport_loss",
    "uniformity",
    "w2_diagonal",
]
