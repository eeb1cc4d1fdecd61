"""TAGE: attributes of images as codes, exchanged between classes; and AGE, its baseline."""

from fewgen.methods.tage.config import (
    AgeConfig,
    AutoencoderConfig,
    CodebookConfig,
    NetworkConfig,
    PredictorConfig,
    PromptsConfig,
    SamplerConfig,
    TageConfig,
)
from fewgen.methods.tage.model import Tage

__all__ = [
    "AgeConfig",
    "AutoencoderConfig",
    "CodebookConfig",
    "NetworkConfig",
    "PredictorConfig",
    "PromptsConfig",
    "SamplerConfig",
    "Tage",
    "TageConfig",
]
