"""SQ-GAN: a style-based GAN for little data, whose styles pass through a codebook."""

from fewgen.methods.sq_gan.config import SqGanConfig
from fewgen.methods.sq_gan.model import SqGan

__all__ = ["SqGan", "SqGanConfig"]
