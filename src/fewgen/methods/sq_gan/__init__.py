"""SQ-GAN: a style-based GAN for little data, whose styles pass through a codebook."""

from fewgen.methods.sq_gan.config import (
    InitConfig,
    NetworkConfig,
    QuantizerConfig,
    SqGanConfig,
)
from fewgen.methods.sq_gan.model import SqGan
from fewgen.methods.sq_gan.quantizer import StyleCodes, StyleQuantizer

__all__ = [
    "InitConfig",
    "NetworkConfig",
    "QuantizerConfig",
    "SqGan",
    "SqGanConfig",
    "StyleCodes",
    "StyleQuantizer",
]
