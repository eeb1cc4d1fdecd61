"""What to generate, one random stream per image, and the pictures and files that come out."""

from fewgen.generate.request import (
    GeneratedImages,
    GenerationRequest,
    image_rngs,
    image_seeds,
    noise,
    uniform,
)

__all__ = ["GeneratedImages", "GenerationRequest", "image_rngs", "image_seeds", "noise", "uniform"]
