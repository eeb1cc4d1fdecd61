"""Images in: loaders for folders and files, `ImageSet`, splits, and differentiable augmentation."""

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
