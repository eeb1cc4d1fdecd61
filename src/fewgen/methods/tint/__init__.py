"""TINT: textual and null-text inversion, which specialise a text-to-image model to a few images."""

from fewgen.diffusion.settings import NullTextConfig, TextualConfig
from fewgen.methods.tint.config import BaseModel, TintConfig
from fewgen.methods.tint.model import Tint

__all__ = ["BaseModel", "NullTextConfig", "TextualConfig", "Tint", "TintConfig"]
