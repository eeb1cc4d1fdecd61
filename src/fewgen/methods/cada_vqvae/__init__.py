"""CADA-VQ-VAE: cross-aligned, vector-quantised variational autoencoder."""

from fewgen.methods.cada_vqvae.config import (
    CadaVqVaeConfig,
    ImageConfig,
    SpatialConfig,
    TextConfig,
    WeightConfig,
)
from fewgen.methods.cada_vqvae.model import CadaVqVae
from fewgen.methods.cada_vqvae.spatial import ConditionedPrior, Tokenizer

__all__ = [
    "CadaVqVae",
    "CadaVqVaeConfig",
    "ConditionedPrior",
    "ImageConfig",
    "SpatialConfig",
    "TextConfig",
    "Tokenizer",
    "WeightConfig",
]
