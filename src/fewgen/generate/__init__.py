"""What to generate, one random stream per image, and the pictures and files that come out."""

from __future__ import annotations

import sys
import types
from typing import Any

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


class _CallableModule(types.ModuleType):
    """`fewgen.generate` is this package and, as design has it, the function of the same name."""

    def __call__(self, *args: Any, **keywords: Any) -> GeneratedImages:
        """Make images with a trained run; see `fewgen.api.generate`."""
        from fewgen.api import generate

        return generate(*args, **keywords)


# Python sets the attribute `fewgen.generate` to this package whenever any part of it is imported, which
# would hide a plain function of that name.
sys.modules[__name__].__class__ = _CallableModule
