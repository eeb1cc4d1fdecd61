"""A text-to-image diffusion model, from scratch; what TINT specialises to new classes."""

from fewgen.methods.diffusion.config import AutoencoderConfig, DiffusionConfig
from fewgen.methods.diffusion.model import Diffusion

__all__ = ["AutoencoderConfig", "Diffusion", "DiffusionConfig"]
