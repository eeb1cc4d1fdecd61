"""One image file as a set."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewgen.errors import DataError

if TYPE_CHECKING:
    from fewgen.data import ImageSet
    from fewgen.data.transforms import Form


IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff")


def is_image_file(source: Any) -> bool:
    """Return whether a source is named like one image file."""
    return isinstance(source, (str, Path)) and Path(source).suffix.lower() in IMAGE_SUFFIXES


def single_image(path: str | Path, form: Form) -> ImageSet:
    """Return one image file as a set with one image."""
    import torch

    from fewgen.data import ImageSet
    from fewgen.data.folder import read_image

    file = Path(path).expanduser()
    if not file.is_file():
        raise DataError(f'There is no image file "{path}".')
    pixels = torch.tensor(read_image(file, form)).unsqueeze(0)
    return ImageSet(pixels, torch.zeros(1, dtype=torch.int64), (file.stem or "image",), name=file.name)
