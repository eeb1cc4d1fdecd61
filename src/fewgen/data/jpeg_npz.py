"""Data sets kept as JPEG streams inside one `.npz`: a third of the size of the pixels.

`train_jpeg` is one vector of bytes; image i is the JPEG file in
`train_jpeg[train_offsets[i]:train_offsets[i + 1]]` and has the class `train_labels[i]`; likewise
`test_...` or `val_...`; `class_names` names the classes.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fewgen.data.colour import said_colours, to_srgb, unusable_profiles
from fewgen.data.npz_reader import NpzReader, find_prefix, to_labels, to_texts
from fewgen.data.transforms import from_pillow, parallel_map
from fewgen.errors import DataError


def read_jpegs(reader: NpzReader, split: str) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """Return images uint8 (N, 3, H, W), decoded in threads, labels int64 (N,) and class names of one part.

    Raises:
        DataError: if arrays are missing or do not fit each other, a stream is damaged, or sizes differ.
    """
    prefix = find_prefix(reader, split, "jpeg")
    where = f'"{prefix}jpeg" in "{reader.path}"'
    class_names = to_texts(reader.read("class_names"), "class_names")
    labels = to_labels(
        reader.read(f"{prefix}labels"), len(class_names), f'"{prefix}labels" in "{reader.path}"'
    )
    shape, dtype = reader.header(f"{prefix}jpeg")
    if dtype != np.uint8 or len(shape) != 1:
        raise DataError(f"{where} must be uint8 of shape (bytes,), got {dtype} {shape}.")
    shape, dtype = reader.header(f"{prefix}offsets")
    if dtype.kind not in "iu" or shape != (len(labels) + 1,):
        raise DataError(f"{where}: {len(labels)} labels need {len(labels) + 1} offsets, got {shape}.")
    data, offsets = reader.read(f"{prefix}jpeg"), reader.read(f"{prefix}offsets").astype(np.int64)
    if len(labels) == 0 or offsets[0] < 0 or offsets[-1] > len(data) or (np.diff(offsets) <= 0).any():
        raise DataError(f"{where}: the offsets do not describe {len(labels)} streams in {len(data)} bytes.")
    rows = parallel_map(lambda i: _decode(data[offsets[i] : offsets[i + 1]], i, where), range(len(labels)))
    for i, row in enumerate(rows):
        if row.shape != rows[0].shape:
            raise DataError(f"Image {i} of {where} has the shape {row.shape}, others {rows[0].shape}.")
    return torch.from_numpy(np.stack(rows)), labels, class_names


def _decode(stream: np.ndarray[Any, Any], index: int, where: str) -> np.ndarray[Any, Any]:
    try:
        with Image.open(io.BytesIO(stream.tobytes()), formats=["JPEG"]) as image:
            if max(image.size) > 4096:
                raise DataError(f"Image {index} of {where} has {image.size} pixels, more than 4096 a side.")
            made, usable = to_srgb(image.convert("RGB"), said_colours(image, b""))
            unusable_profiles([] if usable else [f"image {index}"])
            return from_pillow(made)
    except DataError:
        raise
    except Exception as error:  # damaged streams make Pillow raise many kinds
        raise DataError(f"Image {index} of {where} is damaged ({error}). Copy the file again.") from error
