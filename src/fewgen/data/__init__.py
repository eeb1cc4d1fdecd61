"""Images in: loaders for folders and files, `ImageSet`, splits, and differentiable augmentation.

The names load at their first use, so that the help of a command, which needs the signatures of functions
alone, imports no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fewgen.data.imageset import ClassSplit, ImageSet, to_uint8
    from fewgen.data.registry import DatasetInfo, datasets, load_images, save_images

__all__ = [
    "ClassSplit",
    "DatasetInfo",
    "ImageSet",
    "datasets",
    "load_images",
    "save_images",
    "to_uint8",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        home = "imageset" if name in ("ClassSplit", "ImageSet", "to_uint8") else "registry"
        return getattr(importlib.import_module(f"fewgen.data.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
