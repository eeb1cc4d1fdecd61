"""What images were before they were read, so that figures can say what they were computed from."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

DRAWN = "drawn by the model"
"""The form of images that never were in a file: nothing has compressed or resized them."""

# Table K.1 of ITU-T T.81, in rising order, as scaling keeps the order.
_LUMINANCE = (
    *(10, 11, 12, 12, 13, 14, 14, 14, 16, 16, 16, 17, 18, 19, 22, 22, 24, 24, 24, 26, 29, 35, 37, 40, 40, 49),
    *(51, 51, 55, 55, 56, 56, 57, 58, 60, 61, 62, 64, 64, 68, 69, 72, 77, 78, 80, 81, 87, 87, 92, 92, 95, 98),
    *(99, 100, 101, 103, 103, 103, 104, 109, 112, 113, 120, 121),
)


@dataclass(frozen=True)
class Origin:
    """What an image was where it was read.

    Attributes:
        form: the format of its file, such as "PNG"; "array" for numbers of an `.npz`, idx or CIFAR-10 file;
            `DRAWN`.
        height: pixels, turned upright.
        width: pixels.
        quality: of a JPEG, as libjpeg counts it; None for others.
        converted: whether channels, colours or the range of values were changed, beside the size.
        file: below the folder that was read, for messages; "" for arrays.
    """

    form: str
    height: int
    width: int
    quality: int | None = None
    converted: bool = False
    file: str = field(default="", compare=False)


def drawn(images: Any) -> tuple[Origin, ...]:
    """Return the origins of images (N, C, H, W) that a generator made."""
    return (Origin(DRAWN, *images.shape[2:]),) * len(images)


def chosen(origins: tuple[Origin, ...] | None, indices: Iterable[int]) -> tuple[Origin, ...] | None:
    """Return the origins of some images; None where they are not known."""
    return None if origins is None else tuple(origins[i] for i in indices)


def jpeg_quality(image: Any) -> int | None:
    """Return the quality from 1 to 100 with which a Pillow image was saved as JPEG; None for others.

    Of tables that are not libjpeg's, the nearest of those.

    Source: jcparam.c of libjpeg (jpeg_quality_scaling, jpeg_add_quant_table).
    """
    tables = getattr(image, "quantization", None)
    return _nearest_quality(tuple(sorted(tables[min(tables)]))) if tables else None


@functools.lru_cache
def _nearest_quality(table: tuple[int, ...]) -> int:
    def off(quality: int) -> int:
        scale = 5000 // quality if quality < 50 else 200 - 2 * quality
        own = (max(1, min(255, (value * scale + 50) // 100)) for value in _LUMINANCE)
        return sum(abs(a - b) for a, b in zip(own, table, strict=True))

    return min(range(1, 101), key=off)
