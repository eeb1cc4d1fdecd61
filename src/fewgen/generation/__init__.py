"""What to generate, one random stream per image, and the pictures and files that come out."""

from __future__ import annotations

from fewgen.generation.noise import image_rngs, noise, uniform
from fewgen.generation.pictures import class_grid, grid, pairs, strip
from fewgen.generation.request import GeneratedImages, GenerationRequest, image_seeds
from fewgen.generation.sharpen import sharpen, sharpened
from fewgen.generation.writers import check_output, write_images, write_npz, write_picture

__all__ = [
    "GeneratedImages",
    "GenerationRequest",
    "check_output",
    "class_grid",
    "grid",
    "image_rngs",
    "image_seeds",
    "noise",
    "pairs",
    "sharpen",
    "sharpened",
    "strip",
    "uniform",
    "write_images",
    "write_npz",
    "write_picture",
]
