"""CIFAR-10 in the binary layout of its authors: one label byte, then 3,072 bytes of red, green, blue.

Source: A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch

from fewgen.data.imageset import ImageSet
from fewgen.errors import DataError

CLASS_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
FILES = {"train": tuple(f"data_batch_{i}.bin" for i in range(1, 6)), "test": ("test_batch.bin",)}
ROW_BYTES = 1 + 3 * 32 * 32
MAX_BYTES = 2**30


def find_cifar(folder: Path, split: str) -> list[Path] | None:
    """Return the files of a split in `folder`; None unless every one is there."""
    files = [folder / name for name in FILES[split]]
    return files if all(file.is_file() for file in files) else None


def load_cifar_binary(folder: str | os.PathLike[str], split: str = "train", name: str = "") -> ImageSet:
    """Read the five training batches or the test batch.

    Args:
        folder: holds `data_batch_1.bin` to `data_batch_5.bin` and `test_batch.bin`.
        split: "train" or "test".
        name: where the images came from.

    Returns:
        Colour images of 32x32, in the order of the files.

    Raises:
        DataError: if a file is missing, truncated or holds an impossible label.
    """
    batches = []
    for file in (Path(folder) / file_name for file_name in FILES[split]):
        try:
            n_bytes = file.stat().st_size
            if n_bytes == 0 or n_bytes % ROW_BYTES or n_bytes > MAX_BYTES:
                raise DataError(
                    f'"{file}" has {n_bytes} bytes, not a multiple of {ROW_BYTES}; it is truncated or not a '
                    "CIFAR-10 batch. Copy or download it again."
                )
            rows = np.fromfile(file, dtype=np.uint8).reshape(-1, ROW_BYTES)
        except FileNotFoundError:
            raise DataError(f'"{file}" does not exist.') from None
        except OSError as error:
            raise DataError(f'"{file}" cannot be read: {error.strerror or error}.') from error
        if rows[:, 0].max() > 9:
            raise DataError(f'"{file}" holds the label {rows[:, 0].max()}, but CIFAR-10 has 0 to 9.')
        batches.append(rows)
    rows = np.concatenate(batches)
    images = np.ascontiguousarray(rows[:, 1:]).reshape(-1, 3, 32, 32)
    labels = torch.from_numpy(rows[:, 0].astype(np.int64))
    return ImageSet(torch.from_numpy(images), labels, CLASS_NAMES, None, name or f"cifar10 ({split})")
