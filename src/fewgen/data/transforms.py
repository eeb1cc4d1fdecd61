"""Resize and change channels of file images, the same way for every source.

Every resize goes through Pillow's bicubic filter, which widens with the reduction and so does not
alias, one image at a time: an image comes out the same from a folder, from an `.npz` and in a batch.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fewgen.config.checks import one_of
from fewgen.data.value_range import ValueRange, checked_range
from fewgen.errors import ConfigError

FITS = ("crop", "pad", "stretch")
BACKGROUNDS = ("error", "white", "black")

_In = TypeVar("_In")
_Out = TypeVar("_Out")


def check_fit(fit: str) -> None:
    """Raise `ConfigError` unless `fit` is one of `FITS`."""
    one_of("fit", fit, FITS)


def check_channels(channels: int | None) -> None:
    """Raise `ConfigError` unless `channels` is 1, 3 or None."""
    if channels not in (None, 1, 3):
        raise ConfigError(f"channels must be 1 (grey), 3 (colour) or left out, got {channels!r}.")


@dataclass(frozen=True)
class Form:
    """What the images of a source are made into.

    Attributes:
        size: side of the square images in pixels; None keeps the size.
        channels: 1 for grey, 3 for colour, None to keep.
        fit: how other shapes become square, see `fit_image`.
        background: what becomes of transparent image files: "error", or they are put on "white" or "black".
        convert: True reduces image files of 16 bits to 8 and converts CMYK to RGB; else they are an error.
        value_range: the values of the files that become black and white, see `value_range`; None for 0 and
            the largest of their type.

    Raises:
        ConfigError: if a value has no meaning.
    """

    size: int | None = None
    channels: int | None = None
    fit: str = "crop"
    background: str = "error"
    convert: bool = False
    value_range: ValueRange | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "value_range", checked_range(self.value_range))
        size = self.size
        if size is not None and (
            isinstance(size, bool) or not isinstance(size, int) or not 4 <= size <= 4096
        ):
            raise ConfigError(
                f"size must be a whole number of pixels from 4 to 4096, or left out, got {size!r}."
            )
        check_fit(self.fit)
        one_of("background", self.background, BACKGROUNDS)
        check_channels(self.channels)

    def of(self, images: Tensor) -> Tensor:
        """Return uint8 images (N, C, H, W) in this form; `images` itself if they have it.

        The range of values belongs to what a file holds and was applied when it was read.
        """
        images = set_channels(images, self.channels)
        return images if self.size is None else resize(images, self.size, self.fit)


def parallel_map(function: Callable[[_In], _Out], items: Iterable[_In], chunk: int = 256) -> list[_Out]:
    """Apply `function` to each item in threads; Pillow gives up the interpreter lock while it computes."""
    work = list(items)
    pieces = [work[start : start + chunk] for start in range(0, len(work), chunk)]
    if len(pieces) <= 1:
        return [function(item) for item in work]

    def run(piece: list[_In]) -> list[_Out]:
        return [function(item) for item in piece]

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return [result for piece in pool.map(run, pieces) for result in piece]


def fit_image(image: Image.Image, size: int, fit: str = "crop") -> Image.Image:
    """Return the image as a square of `size` pixels, antialiased.

    Args:
        image: Pillow image of mode L or RGB.
        size: side of the result in pixels.
        fit: "crop" scales the short side to `size` and cuts out the centre; "pad" scales the long side
            and repeats the border; "stretch" ignores the shape.

    Returns:
        The image itself if it has that size already.
    """
    check_fit(fit)
    width, height = image.size
    if (width, height) == (size, size):
        return image
    filter_ = Image.Resampling.BICUBIC
    if fit == "stretch" or width == height:
        return image.resize((size, size), filter_)
    if fit == "crop":
        side = min(width, height)
        left, top = (width - side) / 2, (height - side) / 2
        return image.resize((size, size), filter_, box=(left, top, left + side, top + side))
    scale = size / max(width, height)
    inner = (max(1, round(width * scale)), max(1, round(height * scale)))
    array = np.asarray(image.resize(inner, filter_))
    pads = [((size - n) // 2, size - n - (size - n) // 2) for n in array.shape[:2]]
    # Repeating the border keeps white paper white and a black background black.
    return Image.fromarray(np.pad(array, pads + [(0, 0)] * (array.ndim - 2), mode="edge"))


def to_pillow(image: Tensor) -> Image.Image:
    """Convert one uint8 image (1 or 3, H, W) to a Pillow image of mode L or RGB."""
    array = image.permute(1, 2, 0).contiguous().numpy()
    return Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array)


def from_pillow(image: Image.Image) -> np.ndarray[Any, Any]:
    """Convert a Pillow image of mode L or RGB to uint8 (1 or 3, H, W)."""
    array = np.asarray(image, dtype=np.uint8)
    return array[None] if array.ndim == 2 else np.ascontiguousarray(array.transpose(2, 0, 1))


def resize(images: Tensor, size: int, fit: str = "crop") -> Tensor:
    """Resize uint8 images to squares.

    Args:
        images: uint8, (N, C, H, W), C in {1, 3}.
        size: side in pixels.
        fit: see `fit_image`.

    Returns:
        uint8, (N, C, size, size).
    """
    check_fit(fit)
    if images.shape[2:] == (size, size):
        return images
    out = np.empty((len(images), images.shape[1], size, size), dtype=np.uint8)
    rows = parallel_map(lambda image: from_pillow(fit_image(to_pillow(image), size, fit)), images)
    for i, row in enumerate(rows):
        out[i] = row
    return torch.from_numpy(out)


def set_channels(images: Tensor, channels: int | None) -> Tensor:
    """Convert uint8 (N, C, H, W) to grey (1) or colour (3); None leaves them.

    Colour becomes grey by ITU-R 601 luma, in the integer arithmetic of Pillow, so that a folder and an
    array give the same grey values. Grey becomes colour by repetition.
    """
    check_channels(channels)
    if channels is None or images.shape[1] == channels:
        return images
    if channels == 3:
        return images.expand(-1, 3, -1, -1).contiguous()
    out = torch.empty_like(images[:, :1])
    for start in range(0, len(images), 4096):  # bounds the memory of the integer copy
        red, green, blue = images[start : start + 4096].to(torch.int32).unbind(1)
        grey = (red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16
        out[start : start + 4096, 0] = grey.to(torch.uint8)
    return out
