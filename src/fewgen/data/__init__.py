"""Images in: loaders for folders and files, `ImageSet`, splits, and differentiable augmentation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fewgen.lazy import lazy_names

if TYPE_CHECKING:
    from fewgen.data.imageset import ClassSplit, ImageSet, to_uint8
    from fewgen.data.registry import DatasetInfo, NamedSet, datasets, load_images, save_images

_HOMES = {
    "ClassSplit": "fewgen.data.imageset",
    "DatasetInfo": "fewgen.data.registry",
    "ImageSet": "fewgen.data.imageset",
    "NamedSet": "fewgen.data.registry",
    "datasets": "fewgen.data.registry",
    "load_images": "fewgen.data.registry",
    "save_images": "fewgen.data.registry",
    "to_uint8": "fewgen.data.imageset",
}
__all__ = [*_HOMES]
__getattr__ = lazy_names(__name__, _HOMES)
