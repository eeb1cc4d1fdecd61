"""Image sets from elsewhere, whose images may lack a class."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import torch
from torch import Tensor

from fewgen.data import cifar_binary, idx
from fewgen.data.folder import is_flat_folder, load_flat_folder
from fewgen.data.imageset import ImageSet
from fewgen.data.npz_reader import NpzReader, read_images
from fewgen.data.origin import Origin
from fewgen.data.registry import Reading, is_named
from fewgen.data.value_range import ValueRange
from fewgen.errors import DataError

NO_CLASS = "(no class)"
"""The one class name of a set whose images have no class."""


def without_labels(images: Tensor, name: str = "", origins: tuple[Origin, ...] | None = None) -> ImageSet:
    """Return images (N, C, H, W), uint8, as a set whose images have no class."""
    return ImageSet(images, torch.zeros(len(images), dtype=torch.int64), (NO_CLASS,), None, name, origins)


def has_labels(images: ImageSet) -> bool:
    """Tell whether the images have classes; False for what `without_labels` made."""
    return images.class_names != (NO_CLASS,)


def _unlabelled_npz(path: Path, value_range: ValueRange | None) -> Tensor | None:
    """Return the images of a file without labels or with labels of -1; None if every image has a class."""
    with NpzReader(path) as reader:
        if "images" not in reader:
            return None
        n_without = None
        if "labels" in reader:
            labels = reader.read("labels")
            if labels.dtype.kind not in "iu" or not (labels < 0).any():
                return None
            n_without = int((labels < 0).sum())
        images = read_images(reader, "images", ("labels",) if "labels" in reader else (), value_range)
    if n_without is not None and n_without < len(images):
        warnings.warn(
            f'{n_without} of the {len(images)} images in "{path}" have no class, so the classes of the '
            "others are not used either. Save the images with a class in a file of their own.",
            UserWarning,
            stacklevel=4,
        )
    return images


def load_foreign(
    source: str | os.PathLike[str],
    reading: Reading | None = None,
    *,
    labels_required: bool = True,
) -> ImageSet:
    """Load images that another program may have made, with or without classes.

    Args:
        source: whatever `load_images` takes. Without `labels_required` also a folder that holds image
            files directly, and an `.npz` with `images` alone or with labels of -1.
        reading: how; None for as they are.
        labels_required: whether every image must have a class.

    Returns:
        The images in the order of the source. If some image has no class, none has: `has_labels` is then
        False.

    Raises:
        DataError: if the source is missing or not usable, or images lack a class and must have one.
        ConfigError: if an argument has no meaning.
    """
    reading = reading or Reading()
    form = reading.form()
    path = Path(source).expanduser()
    named = isinstance(source, str) and is_named(source)
    flat = not named and is_flat_folder(path) and not _has_arrays(path)
    if labels_required and flat:
        raise DataError(
            f'The folder "{source}" has no class folders, so its images have no class. Make one subfolder '
            "per class, or set labels_required=False."
        )
    if not labels_required:
        if flat or (not named and path.is_dir() and not any(path.iterdir())):
            files, origins = load_flat_folder(path, form)
            return without_labels(files, path.resolve().name, origins)
        if not named and path.is_file() and path.suffix.lower() == ".npz":
            found = _unlabelled_npz(path, form.value_range)
            if found is not None:
                array = Origin(
                    "array", found.shape[2], found.shape[3], converted=form.value_range is not None
                )
                return without_labels(form.of(found), path.name, (array,) * len(found))
    return reading.load(source)


def _has_arrays(path: Path) -> bool:
    return any(
        idx.find_idx(path, split) or cifar_binary.find_cifar(path, split) for split in ("train", "test")
    )
