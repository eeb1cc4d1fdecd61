"""What to generate, one random stream per image, and the pictures and files that come out."""

from fewgen.generate.pictures import class_grid, grid, pairs, strip
from fewgen.generate.request import (
    GeneratedImages,
    GenerationRequest,
    image_rngs,
    image_seeds,
    noise,
    uniform,
)
from fewgen.generate.sharpen import sharpen, sharpened
from fewgen.generate.writers import check_output, write_images, write_npz, write_picture

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
