"""Words in: texts become vectors, class names become the table that a method is trained with."""

from fewgen.encoders.base import TextEncoder, UnknownWordError
from fewgen.encoders.named import ENCODER_NAMES, make_text_encoder
from fewgen.text.phrases import split_phrases
from fewgen.text.standardize import Standardizer
from fewgen.text.table import ClassText

__all__ = [
    "ENCODER_NAMES",
    "ClassText",
    "Standardizer",
    "TextEncoder",
    "UnknownWordError",
    "make_text_encoder",
    "split_phrases",
]
