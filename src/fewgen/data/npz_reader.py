"""Read the arrays of an .npz without running code from it."""

from __future__ import annotations

import contextlib
import math
import os
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from fewgen.data.kinds import kind_of
from fewgen.data.value_range import ValueRange, in_range
from fewgen.errors import DataError

MAX_BYTES = 4 * 2**30
"""Largest single array accepted; the largest supported data set, decoded, has 0.3 GB."""

SMALL_BYTES, MAX_RATIO = 2**28, 200
"""Larger arrays may not be packed by more than this factor; deflate reaches 1,032 on zeros."""


class NpzReader:
    """Arrays of an `.npz` file by name, each checked before it is read.

    Raises:
        DataError: if the file is missing or is no zip archive of arrays.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        try:
            self.archive = zipfile.ZipFile(self.path)
        except FileNotFoundError:
            raise DataError(f'"{path}" does not exist.') from None
        except (zipfile.BadZipFile, EOFError) as error:
            kind = kind_of(path)
            raise DataError(
                f'"{path}" {kind}.'
                if kind and "zip" not in kind
                else f'"{path}" is not a valid .npz file ({error}); it may be truncated.'
            ) from error
        except OSError as error:
            raise DataError(f'"{path}" cannot be read: {error.strerror or error}.') from error
        self.names = {entry[: -len(".npy")] for entry in self.archive.namelist() if entry.endswith(".npy")}

    def __enter__(self) -> NpzReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.archive.close()

    def __contains__(self, name: str) -> bool:
        return name in self.names

    def read(self, name: str) -> np.ndarray[Any, Any]:
        """Return one array.

        Raises:
            DataError: if it is missing, holds Python objects, is too large or is damaged.
        """
        self.header(name)
        with self._stream(name) as stream:
            array: np.ndarray[Any, Any] = np.lib.format.read_array(stream, allow_pickle=False)
            stream.read()  # to the end, where zipfile compares the checksum
            return array

    def header(self, name: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
        """Return shape and type of one array, without reading it.

        Raises:
            DataError: it is missing, holds Python objects, is too large or its header is damaged.
        """
        with self._stream(name) as stream:
            version = np.lib.format.read_magic(stream)
            read_header = (
                np.lib.format.read_array_header_1_0
                if version == (1, 0)
                else np.lib.format.read_array_header_2_0
            )
            shape, _, dtype = read_header(stream)
        where = f'"{name}" in "{self.path}"'
        if dtype.hasobject:
            raise DataError(f"{where} holds pickled Python objects, which could run code; save plain arrays.")
        info = self.archive.getinfo(f"{name}.npy")
        n_bytes = math.prod(shape) * max(1, dtype.itemsize)
        # zipfile never yields more than file_size bytes, so this bounds what a hostile file can unpack.
        if n_bytes > MAX_BYTES or n_bytes > info.file_size:
            raise DataError(
                f"{where} states the shape {shape} of {dtype}, {n_bytes} bytes; the archive holds "
                f"{info.file_size} and at most {MAX_BYTES} are accepted."
            )
        if n_bytes > SMALL_BYTES and n_bytes > MAX_RATIO * info.compress_size:
            raise DataError(
                f"{where} unpacks {info.compress_size} bytes to {n_bytes}: it holds next to nothing, or is a "
                "decompression bomb. Leave out what is empty, or save it with numpy.savez."
            )
        return shape, dtype

    @contextlib.contextmanager
    def _stream(self, name: str) -> Iterator[IO[bytes]]:
        """Open one array; what is wrong with it becomes a `DataError`."""
        where = f'"{name}" in "{self.path}"'
        if name not in self.names:
            raise DataError(f"There is no {where}; it holds: {', '.join(sorted(self.names)) or 'nothing'}.")
        try:
            with self.archive.open(f"{name}.npy") as stream:
                yield stream
        except DataError:
            raise
        except (
            ValueError,
            SyntaxError,
            tokenize.TokenError,  # of NumPy, which reads headers of Python 2
            TypeError,
            MemoryError,
            EOFError,
            KeyError,
            NotImplementedError,
            RuntimeError,
            zipfile.BadZipFile,
            zlib.error,
        ) as error:
            raise DataError(f"{where} is damaged ({error}). Copy or make the file again.") from error
        except OSError as error:
            raise DataError(f"{where} cannot be read: {error.strerror or error}.") from error


def read_images(
    reader: NpzReader, name: str, beside: Sequence[str] = (), value_range: ValueRange | None = None
) -> Tensor:
    """Return an array of images as uint8 (N, C, H, W).

    What the headers say is compared before any array is read, which may be gigabytes.

    Args:
        reader: an open file.
        name: of the array.
        beside: names of arrays that must hold one value for each image.
        value_range: values that become black and white; None for uint8 as it is.

    Raises:
        DataError: there are no images or they do not fit the other arrays, or as for `to_nchw`.
    """
    where = f'"{name}" in "{reader.path}"'
    shape, _ = reader.header(name)
    if shape[:1] == (0,):
        raise DataError(f"{where} is empty.")
    to_nchw(np.empty((0, *shape[1:]), np.uint8), where, shape)
    for other in beside:
        n = (*reader.header(other)[0], 0)[0]
        if n != shape[0]:
            raise DataError(
                f'"{reader.path}" has {shape[0]} images but {n} {other}. They do not belong together.'
            )
    return to_nchw(in_range(reader.read(name), value_range, where), where)


def to_nchw(array: np.ndarray[Any, Any], where: str, shape: tuple[int, ...] = ()) -> Tensor:
    """Convert uint8 (N, H, W), (N, H, W, 1 or 3) or (N, 1 or 3, H, W) to (N, C, H, W).

    Raises:
        DataError: for another shape, or one that could be read in two ways.
    """
    if array.ndim == 3:
        array = array[:, None]
    elif array.ndim == 4 and array.shape[3] in (1, 3):
        array = array.transpose(0, 3, 1, 2)
    elif array.ndim == 4 and array.shape[3] == 4:
        raise DataError(
            f"{where} have four channels (transparency). Put them on a background and save three."
        )
    elif not (array.ndim == 4 and array.shape[1] in (1, 3)):
        raise DataError(f"{where} must have the shape (N, H, W) or (N, H, W, 3), got {shape or array.shape}.")
    return torch.from_numpy(np.ascontiguousarray(array))


def to_labels(array: np.ndarray[Any, Any], n_classes: int | None, where: str) -> Tensor:
    """Convert integer labels (N,) to int64; each must lie in [0, n_classes).

    Raises:
        DataError: for another type, shape or range.
    """
    if array.dtype.kind not in "iu" or array.ndim != 1:
        raise DataError(f"{where} must be integers of shape (N,), got {array.dtype} {array.shape}.")
    labels = array.astype(np.int64)
    if len(labels):
        low, high = int(labels.min()), int(labels.max())
        if low < 0:
            raise DataError(
                f"{where} hold {low}. Every image needs a class here; -1 marks images made from a free text."
            )
        if n_classes is not None and high >= n_classes:
            raise DataError(f"{where} reach up to {high}, but there are {n_classes} class names.")
        if n_classes is None and high >= 100_000:
            raise DataError(f"{where} reach up to {high}; name the classes, or number them from 0.")
    return torch.from_numpy(labels)


def to_texts(array: np.ndarray[Any, Any], where: str) -> tuple[str, ...]:
    """Convert an array of text to a tuple.

    Raises:
        DataError: if it is not one-dimensional text.
    """
    if array.dtype.kind not in "US" or array.ndim != 1:
        raise DataError(f"{where} must be text of shape (n,), got {array.dtype} {array.shape}.")
    try:
        return tuple(
            item.decode("utf-8") if isinstance(item, bytes) else str(item) for item in array.tolist()
        )
    except UnicodeDecodeError as error:
        raise DataError(f"{where} are not UTF-8 text ({error}).") from error


def find_prefix(reader: NpzReader, split: str, kind: str) -> str:
    """Return what stands before `kind` in the array names of a split: "", "train_", "test_" or "val_".

    Raises:
        DataError: if the file has no such part.
    """
    prefixes = ("train_", "") if split == "train" else ("test_", "val_")
    for prefix in prefixes:
        if prefix + kind in reader:
            return prefix
    if split != "train" and kind in reader:
        raise DataError(f'"{reader.path}" has no test part. Save the test images in a file of their own.')
    held = ", ".join(sorted(reader.names)) or "nothing"
    raise DataError(
        f'"{reader.path}" has no array "{prefixes[-1]}{kind}" or "{prefixes[0]}{kind}"; it holds: {held}.'
    )
