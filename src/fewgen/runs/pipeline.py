"""Open what can be specialised: a run of the method `diffusion`, or a Stable Diffusion folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fewgen.diffusion.pipeline import TextToImage


def load_pipeline(path: str | Path, device: str = "cpu", download: bool = True) -> TextToImage:
    """Return the text-to-image model in a folder, in evaluation mode, its weights frozen.

    Args:
        path: a run folder or model file of the method `diffusion`, or a Stable Diffusion folder in the
            layout of diffusers (with model_index.json), or the name of one on the hub (owner/model).
        device: where it shall lie; Stable Diffusion computes in 16 bits on CUDA.
        download: whether a model of the hub may be fetched; False looks into the cache alone.

    Raises:
        CheckpointError: neither of these, unfinished, or damaged.
        ConfigError: a run of another method.
        MissingDependencyError: diffusers or transformers is not installed.
    """
    import torch

    from fewgen.methods.tint.base import open_base, place_on

    return place_on(open_base(str(path), download=download).to(device), torch.device(device), "auto")
