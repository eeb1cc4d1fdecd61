"""Optional sharpening of finished images: for the eye only.

Off by default, marked in the provenance of the images, and never applied before measuring: a filter
would change every figure of `evaluate` without the model being any better.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from fewgen.errors import ConfigError, ShapeError
from fewgen.generation.request import GeneratedImages

DEFAULT_STRENGTH = 0.25


def check_strength(strength: float) -> None:
    """Raise `ConfigError` for a strength that would only make noise."""
    if not 0 <= strength <= 4:
        raise ConfigError(f"The strength of sharpening must be between 0 (off) and 4, got {strength}.")


def sharpen(images: Tensor, strength: float = DEFAULT_STRENGTH) -> Tensor:
    """Return images with their edges raised, uint8 of the same shape.

    Each pixel becomes ``x + strength * (4 x - up - down - left - right)``, with the border repeated.

    Args:
        images: uint8 (N, C, H, W).
        strength: 0 changes nothing; 1 is the filter with centre 5 and cross -1.

    Source: the 3x3 filter (centre 5, cross -1) of the published CADA-VQ-VAE notebook.
    Differs: a strength, because the full filter rings on 28-pixel images; border repeated, not black.
    """
    if images.dtype != torch.uint8 or images.ndim != 4:
        raise ShapeError(f"images must be uint8 (N, C, H, W), got {images.dtype} {tuple(images.shape)}.")
    check_strength(strength)
    if strength == 0 or len(images) == 0:
        return images.clone()
    x = images.float()
    padded = torch.nn.functional.pad(x, (1, 1, 1, 1), mode="replicate")
    cross = padded[..., :-2, 1:-1] + padded[..., 2:, 1:-1] + padded[..., 1:-1, :-2] + padded[..., 1:-1, 2:]
    return (x + strength * (4 * x - cross)).round().clamp(0, 255).to(torch.uint8)


def sharpened(generated: GeneratedImages, strength: float = DEFAULT_STRENGTH) -> GeneratedImages:
    """Return generated images sharpened, with ``sharpened: strength`` in their provenance."""
    provenance = {**generated.provenance, "sharpened": strength}
    return dataclasses.replace(generated, images=sharpen(generated.images, strength), provenance=provenance)
