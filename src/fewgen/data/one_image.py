"""One image file as a set."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewgen.errors import DataError

if TYPE_CHECKING:
    from fewgen.data import ImageSet


IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff")


def is_image_file(source: Any) -> bool:
    """Return whether a source is named like one image file."""
    return isinstance(source, (str, Path)) and Path(source).suffix.lower() in IMAGE_SUFFIXES


def single_image(path: Path, size: int, channels: int, fit: str) -> ImageSet:
    """Return one image file as a set with one image."""
    import torch

    from fewgen.data import ImageSet
    from fewgen.data.folder import _decode, _Problem

    if not path.is_file():
        raise DataError(f'There is no image file "{path}".')
    try:
        pixels = torch.tensor(_decode(path, size, fit, channels, "error", False).array)
    except _Problem as problem:
        raise DataError(f'"{path}" {problem}.') from None
    return ImageSet(
        pixels.unsqueeze(0), torch.zeros(1, dtype=torch.int64), (path.stem or "image",), name=path.name
    )
