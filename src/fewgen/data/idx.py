"""The idx files of MNIST and Fashion-MNIST, plain or gzipped.

Source: Y. LeCun, C. Cortes, C. Burges, "The MNIST database": two zero bytes, one byte for the type
(8: unsigned byte), one for the number of dimensions, then big-endian sizes, then the values.
"""

from __future__ import annotations

import gzip
import math
import os
import struct
import zlib
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from fewgen.data.imageset import ImageSet
from fewgen.errors import DataError

MAX_BYTES = 2**31
"""Largest array accepted; MNIST has 47 million bytes."""

FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}


def read_idx(path: str | os.PathLike[str]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Read one idx file of unsigned bytes.

    Args:
        path: the file; gzip is recognised by content, not by name.

    Returns:
        uint8, in the shape that the file states.

    Raises:
        DataError: if it is missing, not idx, of another type, truncated, too long or too large.
    """
    try:
        with open(path, "rb") as raw:
            zipped = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            if not zipped:
                return _read(raw, path)
            with gzip.open(raw, "rb") as stream:
                return _read(stream, path)
    except FileNotFoundError:
        raise DataError(f'"{path}" does not exist.') from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f'"{path}" is a damaged gzip file ({error}). Copy or download it again.') from error
    except OSError as error:
        raise DataError(f'"{path}" cannot be read: {error.strerror or error}.') from error


def _read(stream: IO[bytes] | gzip.GzipFile, path: str | os.PathLike[str]) -> np.ndarray[Any, Any]:
    magic = stream.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0" or magic[3] == 0:
        raise DataError(f'"{path}" is not an idx file: it starts with {magic.hex() or "nothing"}.')
    if magic[2] != 8:
        raise DataError(f'"{path}" holds idx type 0x{magic[2]:02x}, but unsigned bytes (0x08) are needed.')
    n_dims = magic[3]
    header = stream.read(4 * n_dims)
    if n_dims > 4 or len(header) < 4 * n_dims:
        raise DataError(f'"{path}" has a damaged idx header ({n_dims} dimensions).')
    shape = struct.unpack(f">{n_dims}I", header)
    n_bytes = math.prod(shape)
    if n_bytes > MAX_BYTES:
        raise DataError(
            f'"{path}" states the shape {shape}, more than the {MAX_BYTES} bytes that are accepted.'
        )
    values = stream.read(n_bytes)
    if len(values) < n_bytes:
        raise DataError(
            f'"{path}" is truncated: {len(values)} of {n_bytes} bytes. Copy or download it again.'
        )
    if stream.read(1):
        raise DataError(f'"{path}" is longer than its stated shape {shape}.')
    return np.frombuffer(bytearray(values), dtype=np.uint8).reshape(shape)


def find_idx(folder: Path, split: str) -> tuple[Path, Path] | None:
    """Return the image and label files of a split in `folder`, gzipped or plain; None if one is missing."""
    images, labels = (plain_or_zipped(folder, name) for name in FILES[split])
    return (images, labels) if images and labels else None


def plain_or_zipped(folder: Path, name: str) -> Path | None:
    """Return a file of a folder, or the one that is called the same with .gz; None if neither is there."""
    return next((path for path in (folder / f"{name}.gz", folder / name) if path.is_file()), None)


def load_idx(
    images_path: str | os.PathLike[str],
    labels_path: str | os.PathLike[str],
    class_names: tuple[str, ...] | None = None,
    name: str = "",
) -> ImageSet:
    """Read an image file and its label file.

    Args:
        images_path: idx of shape (N, H, W).
        labels_path: idx of shape (N,).
        class_names: None names the classes "0", "1", ...
        name: where they came from.

    Returns:
        Grey images, in the order of the files.

    Raises:
        DataError: see `read_idx`; also if the two files do not belong together.
    """
    images, labels = read_idx(images_path), read_idx(labels_path)
    if images.ndim != 3 or 0 in images.shape:
        raise DataError(f'"{images_path}" must hold images of shape (N, H, W), got {images.shape}.')
    if labels.ndim != 1:
        raise DataError(f'"{labels_path}" must hold labels of shape (N,), got {labels.shape}.')
    if len(images) != len(labels):
        raise DataError(
            f'"{images_path}" has {len(images)} images, but "{labels_path}" has {len(labels)} labels. '
            "They do not belong together."
        )
    names = class_names or tuple(str(i) for i in range(int(labels.max()) + 1))
    return ImageSet(
        torch.from_numpy(images)[:, None], torch.from_numpy(labels).to(torch.int64), names, None, name
    )
