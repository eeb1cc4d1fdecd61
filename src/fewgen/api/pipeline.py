"""Open what can be specialised: a run of the method `diffusion`, or a Stable Diffusion folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

from fewgen.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from fewgen.diffusion.pipeline import TextToImage


def load_pipeline(path: str | Path, device: str = "cpu") -> TextToImage:
    """Return the text-to-image model in a folder, in evaluation mode, its weights frozen.

    Args:
        path: a run folder or model file of the method `diffusion`, or a Stable Diffusion folder in the
            layout of diffusers (with model_index.json).
        device: where it shall lie.

    Raises:
        CheckpointError: neither of these, or damaged.
        ConfigError: a run of another method.
        MissingDependencyError: diffusers or transformers is not installed.
    """
    folder = Path(path)
    if (folder / "model_index.json").is_file():
        from fewgen.diffusion.stable import load_stable_diffusion

        return load_stable_diffusion(folder, device=device)
    if not folder.exists():
        raise CheckpointError(
            f'There is no folder "{folder}". Name a run of "fewgen train diffusion", or a '
            "Stable Diffusion folder."
        )
    from fewgen.methods import load_method, read_method_info

    method = read_method_info(folder).method
    if method != "diffusion":
        raise ConfigError(
            f'"{folder}" is a run of {method}; only a text-to-image diffusion model can be specialised. '
            'Name a run of "fewgen train diffusion", or a Stable Diffusion folder.'
        )
    pipe = cast("TextToImage", load_method(folder, device=device).pipe)
    return pipe.eval().requires_grad_(False)
