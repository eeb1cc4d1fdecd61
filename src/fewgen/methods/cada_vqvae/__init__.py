"""CADA-VQ-VAE: cross-aligned, vector-quantised variational autoencoder."""

from fewgen.methods.cada_vqvae.config import CadaVqVaeConfig
from fewgen.methods.cada_vqvae.model import CadaVqVae

__all__ = ["CadaVqVae", "CadaVqVaeConfig"]
