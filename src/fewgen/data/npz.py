"""Image sets in one `.npz` file, ours and common others, read without trusting them.

Our form: `images` uint8 (N, H, W) or (N, H, W, 3), `labels` integers (N,), optional `class_names`,
`captions` and `seeds`. Also read: `train_images`/`train_labels` with `test_...` or `val_...`, and JPEG
streams (see `jpeg_npz`). Pickled objects are refused, and the size that a file states is checked before
any memory is taken.
"""

from __future__ import annotations

import dataclasses
import os
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fewgen.data.imageset import ImageSet
from fewgen.data.jpeg_npz import read_jpegs
from fewgen.data.npz_reader import NpzReader, find_prefix, read_images, to_labels, to_texts
from fewgen.data.origin import Origin
from fewgen.data.value_range import ValueRange, in_range
from fewgen.files import atomic_write


def load_npz(
    path: str | os.PathLike[str],
    split: str = "train",
    name: str = "",
    value_range: ValueRange | None = None,
) -> ImageSet:
    """Read an image set from one `.npz` file.

    Args:
        path: the file.
        split: "train" or "test". A file without parts has only "train"; "val" serves as "test".
        name: where the images came from; the file name if empty.
        value_range: values that become black and white; None for uint8 as it is.

    Returns:
        All images of that part. Without `class_names` the classes are called "0", "1", ...

    Raises:
        DataError: if the file is missing, damaged, not in a known form, or lacks the part.
    """
    path = Path(path)
    with NpzReader(path) as reader:
        if "train_jpeg" in reader:
            jpegs = ImageSet(*read_jpegs(reader, split), None, name or f"{path.name} ({split})")
            pixels = in_range(jpegs.images.numpy(), value_range, f'the images in "{path}"')
            origin = Origin("JPEG", *jpegs.size, converted=value_range is not None)
            return dataclasses.replace(jpegs, images=torch.from_numpy(pixels), origins=(origin,) * len(jpegs))
        prefix = find_prefix(reader, split, "images")
        labels_name, captions_name = f"{prefix}labels", f"{prefix}captions"
        beside = (labels_name, captions_name) if captions_name in reader else (labels_name,)
        images = read_images(reader, f"{prefix}images", beside, value_range)
        class_names = to_texts(reader.read("class_names"), "class_names") if "class_names" in reader else None
        labels_where = f'"{labels_name}" in "{path}"'
        labels = to_labels(
            reader.read(labels_name), None if class_names is None else len(class_names), labels_where
        )
        if class_names is None:
            class_names = tuple(str(i) for i in range(int(labels.max()) + 1))
        captions = None
        if captions_name in reader:
            captions = to_texts(reader.read(captions_name), "captions")
    return ImageSet(images, labels, class_names, captions, name or path.name)


def is_whole_npz(path: str | os.PathLike[str]) -> bool:
    """Tell whether a file is an `.npz` whose arrays are the bytes that were written, by their checksums."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError):
        return False


def save_npz(
    path: str | os.PathLike[str],
    images: Tensor,
    labels: Tensor,
    class_names: Iterable[str],
    seeds: Tensor | None = None,
    captions: Iterable[str] | None = None,
) -> None:
    """Write images in our form, atomically.

    Args:
        path: the file; an existing one is replaced.
        images: uint8, (N, C, H, W).
        labels: integers, (N,); -1 marks an image without a class, which `load_npz` refuses.
        class_names: names of the labels 0, 1, ...
        seeds: int64, (N,), the seed behind each image.
        captions: one text per image.
    """
    array = images.cpu().numpy()
    arrays: dict[str, Any] = {
        "images": array[:, 0] if array.shape[1] == 1 else array.transpose(0, 2, 3, 1),
        "labels": labels.cpu().numpy().astype(np.int64),
        "class_names": np.array(list(class_names), dtype=np.str_),
    }
    if seeds is not None:
        arrays["seeds"] = torch.as_tensor(seeds).cpu().numpy().astype(np.int64)
    if captions is not None:
        arrays["captions"] = np.array(list(captions), dtype=np.str_)
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, **arrays)
