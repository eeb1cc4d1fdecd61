"""How a text-to-image model is called that stays as it is: mode, device, precision, sizes of images."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fewgen.config.checks import at_least
from fewgen.errors import DataError, ShapeError
from fewgen.nn.modes import evaluating

if TYPE_CHECKING:
    from fewgen.diffusion.pipeline import TextToImage

_FAR = 1.5
"""Resizing overshoots [-1, 1] a little; pixels of 0 ... 255 are far beyond."""


@contextlib.contextmanager
def frozen(pipe: TextToImage) -> Iterator[None]:
    """Put the model into evaluation mode without gradients for its weights; afterwards it is as before."""
    wanted = [p for p in pipe.parameters() if p.requires_grad]
    for parameter in wanted:
        parameter.requires_grad_(False)
    try:
        with evaluating(pipe):
            yield
    finally:
        for parameter in wanted:
            parameter.requires_grad_(True)


def place_of(pipe: TextToImage) -> tuple[torch.device, torch.dtype]:
    """Return where the model computes, and the dtype to keep latents and embeddings in: 32 bits at least."""
    device, dtype = _own(pipe)
    return device, torch.promote_types(dtype, torch.float32)


def cast(pipe: TextToImage, x: Tensor) -> Tensor:
    """Return embedded prompts in the model's dtype; latents keep their own, the model sees to that."""
    return x.to(_own(pipe)[1])


def predict(pipe: TextToImage, z: Tensor, t: int | Tensor, context: Tensor) -> Tensor:
    """Return the predicted noise in the dtype of `z`, whatever the model computes in.

    Args:
        pipe: the model.
        z: latents (B, *latent_shape).
        t: one time, or int64 (B,).
        context: embedded prompts (B, L, D).
    """
    times = t if isinstance(t, Tensor) else torch.full((len(z),), t, dtype=torch.int64, device=z.device)
    return pipe.eps(z, times, cast(pipe, context)).to(z.dtype)


def check_images(pipe: TextToImage, images: Tensor) -> None:
    """Refuse images that `encode_images` would.

    Args:
        pipe: the model.
        images: (K, C, H, W) in [-1, 1].

    Raises:
        ShapeError: the images have other channels than the model's, or there are none.
        DataError: they are whole numbers, far outside of [-1, 1], or not finite.
    """
    channels = pipe.image_shape[0]
    if images.ndim != 4 or images.shape[1] != channels or not images.numel():
        raise ShapeError(f"Images must be (K, {channels}, H, W), got {tuple(images.shape)}.")
    if not images.is_floating_point():
        raise DataError(f"Images must be floating point in [-1, 1], got {images.dtype}.")
    most = float(images.abs().max())
    if not most <= _FAR:
        raise DataError(f"Images must lie in [-1, 1] and be finite, got values up to {most:g}.")


def check_batch(batch: int | None) -> None:
    """Raise `ConfigError` unless `batch` is None or 1 or more."""
    if batch is not None:
        at_least("batch", batch, 1)


def encode_images(
    pipe: TextToImage,
    images: Tensor,
    *,
    batch: int | None = None,
) -> Tensor:
    """Return the latents of images of any size, on the host, (K, C, h, w).

    Args:
        pipe: the model.
        images: (K, C, H, W) in [-1, 1]; they are resized to the model's size, bilinear with antialiasing.
        batch: images computed at a time; None: all.

    Raises:
        ShapeError: the images have other channels than the model's, or there are none.
        DataError: they are whole numbers, far outside of [-1, 1], or not finite.
        ConfigError: a batch below 1.
    """
    check_images(pipe, images)
    check_batch(batch)
    height, width = pipe.image_shape[1:]
    latents = []
    device, dtype = _own(pipe)
    with torch.no_grad():
        for part in images.split(batch or len(images)):
            fitted = resize(part.float(), (height, width)).clamp(-1, 1)
            z = pipe.encode(fitted.to(device, dtype))
            latents.append(z.to("cpu", torch.promote_types(z.dtype, torch.float32)))
    return torch.cat(latents)


def decode_latents(pipe: TextToImage, z0: Tensor, size: tuple[int, int] | None = None) -> Tensor:
    """Return float32 images in [-1, 1], where the model is, (N, C, H, W).

    Args:
        pipe: the model.
        z0: clean latents, (N, *latent_shape), on any device.
        size: (H, W) to resize to; None: the model's.

    Raises:
        ShapeError: a size below 1.
        DataError: the model gave numbers that are not finite.
    """
    if size is not None and min(size) < 1:
        raise ShapeError(f"size must be (height, width) of 1 pixel or more each, got {tuple(size)}.")
    images = pipe.decode(z0.to(*_own(pipe))).float()
    if not bool(torch.isfinite(images).all()):
        raise DataError("Decoding gave numbers that are not finite. Use another precision.")
    return (images if size is None else resize(images, size)).clamp(-1, 1)


def resize(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Return images (N, C, *size), bilinear with antialiasing."""
    if tuple(images.shape[2:]) == tuple(size):
        return images
    return torch.nn.functional.interpolate(
        images, size=tuple(size), mode="bilinear", align_corners=False, antialias=True
    )


def _own(pipe: TextToImage) -> tuple[torch.device, torch.dtype]:
    for tensor in (*pipe.parameters(), *pipe.buffers()):
        if tensor.is_floating_point():
            return tensor.device, tensor.dtype
    return torch.device("cpu"), torch.float32
