"""Data sets kept as JPEG streams inside one `.npz`: a third of the size of the pixels.

`train_jpeg` is one vector of bytes; image i is the JPEG file in
`train_jpeg[train_offsets[i]:train_offsets[i + 1]]` and has the class `train_labels[i]`; likewise
`test_...` or `val_...`; `class_names` names the classes.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fewgen.data.npz_reader import NpzReader, find_prefix, to_labels, to_texts
from fewgen.data.transforms import from_pillow, parallel_map
from fewgen.errors import DataError


@dataclass(frozen=True, eq=False)
class JpegStreams:
    """Images that are decoded when asked for, so that 300 of 50,000 cost no more than 300.

    Attributes:
        data: uint8, all streams one after the other.
        offsets: int64, (N + 1,).
        labels: int64, (N,).
        class_names: one name per class.
        where: the file, for messages.
    """

    data: np.ndarray[Any, Any]
    offsets: np.ndarray[Any, Any]
    labels: Tensor
    class_names: tuple[str, ...]
    where: str

    def __len__(self) -> int:
        return len(self.labels)

    def decode(self, indices: Sequence[int] | Tensor | None = None) -> Tensor:
        """Return the images at `indices` (None: all), uint8 (n, 3, H, W), decoded in threads.

        Raises:
            DataError: if a stream is damaged, or sizes differ.
        """
        chosen = range(len(self)) if indices is None else [int(i) for i in indices]
        rows = parallel_map(self._decode_one, chosen)
        if not rows:
            raise DataError(f"No images were chosen from {self.where}.")
        out = np.empty((len(rows), *rows[0].shape), dtype=np.uint8)
        for n, row in enumerate(rows):
            if row.shape != rows[0].shape:
                raise DataError(
                    f"Image {chosen[n]} of {self.where} has the shape {row.shape}, others {rows[0].shape}."
                )
            out[n] = row
        return torch.from_numpy(out)

    def _decode_one(self, index: int) -> np.ndarray[Any, Any]:
        stream = self.data[self.offsets[index] : self.offsets[index + 1]].tobytes()
        try:
            with Image.open(io.BytesIO(stream), formats=["JPEG"]) as image:
                if max(image.size) > 4096:
                    raise DataError(
                        f"Image {index} of {self.where} has {image.size} pixels, more than 4096 a side."
                    )
                return from_pillow(image.convert("RGB"))
        except DataError:
            raise
        except Exception as error:  # damaged streams make Pillow raise many kinds
            raise DataError(
                f"Image {index} of {self.where} is damaged ({error}). Copy the file again."
            ) from error


def read_jpeg_split(reader: NpzReader, split: str) -> JpegStreams:
    """Read the streams of one part without decoding them.

    Raises:
        DataError: if arrays are missing or do not fit each other.
    """
    prefix = find_prefix(reader, split, "jpeg")
    where = f'"{prefix}jpeg" in "{reader.path}"'
    class_names = to_texts(reader.read("class_names"), "class_names")
    labels = to_labels(
        reader.read(f"{prefix}labels"), len(class_names), f'"{prefix}labels" in "{reader.path}"'
    )
    data, offsets = reader.read(f"{prefix}jpeg"), reader.read(f"{prefix}offsets")
    if data.dtype != np.uint8 or data.ndim != 1:
        raise DataError(f"{where} must be uint8 of shape (bytes,), got {data.dtype} {data.shape}.")
    if offsets.dtype.kind not in "iu" or offsets.shape != (len(labels) + 1,):
        raise DataError(f"{where}: {len(labels)} labels need {len(labels) + 1} offsets, got {offsets.shape}.")
    offsets = offsets.astype(np.int64)
    if len(labels) == 0 or offsets[0] < 0 or offsets[-1] > len(data) or (np.diff(offsets) <= 0).any():
        raise DataError(f"{where}: the offsets do not describe {len(labels)} streams in {len(data)} bytes.")
    return JpegStreams(data, offsets, labels, class_names, where)
