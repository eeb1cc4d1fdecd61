"""Terms of objectives and how they are weighted. Summed over features, averaged over the batch."""

from fewgen.losses.contrastive import supervised_contrastive
from fewgen.losses.divergence import kl_diagonal, kl_standard_normal, reparameterize
from fewgen.losses.mmd import RBF, Kernel, MedianRBF, MixtureRBF, mmd2, mmd2_per_class
from fewgen.losses.reconstruction import l1_error, squared_error, ssim_error
from fewgen.losses.terms import LossTerms
from fewgen.losses.transport import w2_diagonal
from fewgen.losses.weighting import FixedWeights, GradNormWeights, UncertaintyWeights, Weighting

__all__ = [
    "RBF",
    "FixedWeights",
    "GradNormWeights",
    "Kernel",
    "LossTerms",
    "MedianRBF",
    "MixtureRBF",
    "UncertaintyWeights",
    "Weighting",
    "kl_diagonal",
    "kl_standard_normal",
    "l1_error",
    "mmd2",
    "mmd2_per_class",
    "reparameterize",
    "squared_error",
    "ssim_error",
    "supervised_contrastive",
    "w2_diagonal",
]
