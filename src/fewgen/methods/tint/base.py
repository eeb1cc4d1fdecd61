"""Open the model that TINT specialises, and say what is wrong with one that it cannot."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from fewgen.diffusion.small import SmallDiffusion
from fewgen.diffusion.stable import (
    StableDiffusion,
    fetch_stable_diffusion,
    is_hub_name,
    load_stable_diffusion,
)
from fewgen.errors import CheckpointError, ConfigError
from fewgen.methods.store import load_method, read_method_info
from fewgen.methods.tint.config import BaseModel

if TYPE_CHECKING:
    from fewgen.diffusion.pipeline import TextToImage

_PARTS = ("unet", "vae", "text_encoder", "scheduler")
_WANTED = (
    'Name a run of "fewgen train diffusion", a Stable Diffusion folder, or one on the hub (owner/model).'
)


def open_base(base: str | None, attention_slicing: bool = False, *, download: bool = True) -> TextToImage:
    """Return the model in a folder on the processor, frozen.

    Args:
        base: a run folder or model file of the method diffusion, a Stable Diffusion folder, or the name of
            one on the hub (owner/model), which is downloaded.
        attention_slicing: of Stable Diffusion.
        download: False looks into the cache of the hub alone.

    Raises:
        ConfigError: no folder is named, or it is a run of another method.
        CheckpointError: it is missing, damaged, or lacks parts.
    """
    if base is None:
        raise ConfigError(f"tint needs a model to specialise: --model PATH. {_WANTED}")
    place = Path(base).expanduser()
    if names_hub_model(base):
        place = fetch_stable_diffusion(base, download=download)
    if not place.exists():
        raise CheckpointError(f'There is no model "{base}" to specialise. {_WANTED}')
    if is_stable_diffusion(place):
        return load_stable_diffusion(place, attention_slicing=attention_slicing)
    if place.is_dir() and not (place / "model.safetensors").is_file():
        raise CheckpointError(
            f'"{base}" is no model to specialise: it has neither a model.safetensors nor the folders '
            f"{', '.join(_PARTS)}. {_WANTED}"
        )
    info = read_method_info(place)
    if info.method != "diffusion":
        raise ConfigError(f'"{base}" is a run of {info.method}, and tint needs diffusion. {_WANTED}')
    if not info.extra.get("training", {}).get("finished", True):
        raise CheckpointError(
            f'The training of "{base}" is not finished. Repeat its command to continue it, and specialise '
            "it then."
        )
    pipe = load_method(place).pipe
    assert isinstance(pipe, SmallDiffusion)
    return pipe.requires_grad_(False).eval()


def names_hub_model(base: str) -> bool:
    """Tell whether a name is to be looked for on the hub: owner/model, without a folder "owner" here."""
    place = Path(base).expanduser()
    return is_hub_name(base) and not place.exists() and not place.parent.is_dir()


def is_stable_diffusion(place: Path) -> bool:
    """Tell whether a folder is Stable Diffusion in the layout of diffusers, or what is left of one."""
    return (place / "model_index.json").is_file() or any((place / part).is_dir() for part in _PARTS)


def describe(pipe: TextToImage, folder: str) -> BaseModel:
    """Return what a trained model keeps of its base."""
    place = Path(folder).expanduser()
    from_hub = is_hub_name(folder) and not place.exists()
    small = isinstance(pipe, SmallDiffusion)
    return BaseModel(
        kind="small" if small else "stable",
        # A small one is in the model file, which is the same wherever the base lay.
        folder=place.name if small else str(place.absolute()) if folder and not from_hub else folder,
        model_id=pipe.model_id,
        image_shape=pipe.image_shape,
        latent_shape=pipe.latent_shape,
        context_shape=pipe.context_shape,
        word_size=pipe.word_size,
        settings=pipe.settings() if isinstance(pipe, SmallDiffusion) else {},
    )


def reopen(base: BaseModel, attention_slicing: bool = False, beside: Path | None = None) -> TextToImage:
    """Return the Stable Diffusion that a model was trained with, from its folder or the cache of the hub.

    Nothing is downloaded: a model file of others must not make this machine fetch what it names.

    Args:
        base: what the model keeps of it.
        attention_slicing: of Stable Diffusion.
        beside: the model file; a folder of the base's name that lies beside it, or beside its run, is taken
            where the first place is gone.

    Raises:
        CheckpointError: it is not there any more, or it is another one.
    """
    place = Path(base.folder)
    if beside is not None and not place.is_dir():
        moved = (folder / place.name for folder in beside.absolute().parents[:2])
        place = next((folder for folder in moved if is_stable_diffusion(folder)), place)
    if not place.is_dir() and is_hub_name(base.folder):
        place = fetch_stable_diffusion(base.folder, download=False)
    if not base.folder or not place.is_dir():
        raise CheckpointError(
            f'This model needs the Stable Diffusion that was in "{base.folder}", and that folder is gone. '
            "Put it back, or a link to it, or a copy beside the run."
        )
    pipe = load_stable_diffusion(place, attention_slicing=attention_slicing)
    if pipe.model_id != base.model_id:
        raise CheckpointError(
            f'This model was made with the Stable Diffusion "{base.model_id[:16]}"; in "{base.folder}" is '
            f'now "{pipe.model_id[:16]}". Put the first one back, or train again.'
        )
    return pipe


def place_on(pipe: TextToImage, device: torch.device, precision: str) -> TextToImage:
    """Move a Stable Diffusion to a device; denoiser and autoencoder change their precision, words do not."""
    if isinstance(pipe, StableDiffusion):
        half = precision == "float16" or (precision == "auto" and device.type == "cuda")
        pipe.place(device, torch.float16 if half else torch.float32)
    return pipe
