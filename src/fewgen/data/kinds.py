"""Kinds of files that are not read, known by their first bytes, and what to do with each."""

from __future__ import annotations

import os
from pathlib import Path

HEAD_BYTES = 1024

_AS_PNG = "save it as PNG or JPEG"
_UNPACK = "unpack it, and name the folder that it holds"
_EXPORT = "write its images to one folder per class, or as images and labels to an .npz"
_CODE = "which could run code when read and is not opened; save images and labels as .npz"

_KINDS: tuple[tuple[int, bytes, str, str], ...] = (
    *(
        (4, b"ftyp" + b, "a HEIC photo", _AS_PNG)
        for b in (b"heic", b"heix", b"hevc", b"heim", b"mif1", b"msf1")
    ),
    *((4, b"ftyp" + b, "an AVIF image", _AS_PNG) for b in (b"avif", b"avis")),
    (4, b"ftyp", "a film", "save single images of it as PNG or JPEG"),
    (0, b"\x00\x00\x00\x0cJXL ", "a JPEG XL image", _AS_PNG),
    (0, b"\xff\x0a", "a JPEG XL image", _AS_PNG),
    (0, b"\x00\x00\x00\x0cjP  ", "a JPEG 2000 image", _AS_PNG),
    (0, b"8BPS", "a Photoshop file", _AS_PNG),
    (0, b"%PDF", "a PDF", _AS_PNG),
    (0, b"%!PS", "a PostScript file", _AS_PNG),
    (128, b"DICM", "a DICOM file", "save its pixels as 8-bit PNG with the window that shows what matters"),
    (344, b"n+1\0", "a NIfTI volume", "save its slices as PNG"),
    (0, b"SIMPLE  =", "a FITS file", "save its pixels as PNG"),
    (0, b"PK\x03\x04", "a zip archive", _UNPACK),
    (0, b"PK\x05\x06", "an empty zip archive", "make it again"),
    (0, b"\x1f\x8b", "a gzip archive", _UNPACK),
    (0, b"BZh", "a bzip2 archive", _UNPACK),
    (0, b"\xfd7zXZ\0", "an xz archive", _UNPACK),
    (0, b"\x28\xb5\x2f\xfd", "a Zstandard archive", _UNPACK),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK),
    (0, b"Rar!", "a RAR archive", _UNPACK),
    (257, b"ustar", "a tar archive", _UNPACK),
    (0, b"\x89HDF\r\n\x1a\n", "an HDF5 file", _EXPORT),
    (0, b"MATLAB 5.0", "a MATLAB file", _EXPORT),
    (0, b"PAR1", "a Parquet table", _EXPORT),
    (0, b"ARROW1", "an Arrow table", _EXPORT),
    (0, b"SQLite format 3", "an SQLite database", _EXPORT),
    (0, b"\x93NUMPY", "a single NumPy array", "save images and labels together with numpy.savez"),
    *((0, bytes((0x80, version)), "a pickle", _CODE) for version in (2, 3, 4, 5)),
    (
        0,
        b"version https://git-lfs",
        "a pointer of Git LFS and not the file itself",
        "fetch it with git lfs pull",
    ),
    (0, b"<svg", "an SVG drawing", _AS_PNG),
    (0, b"<!DOCTYPE html", "a web page and not a download", "download the file again"),
    (0, b"<html", "a web page and not a download", "download the file again"),
)
"""Where the bytes stand, the bytes, what they mean, and what to do; the first that fits counts."""


def foreign_kind(head: bytes, size: int) -> str:
    """Return what a file is that no reader here takes, and what to do, as the end of a sentence.

    Args:
        head: its first `HEAD_BYTES` bytes.
        size: its length.

    Returns:
        Such as "is a zip archive; unpack it, ..."; "" for a kind that is not known.

    >>> foreign_kind(b"PAR1", 4)[:18]
    'is a Parquet table'
    """
    for place, magic, name, advice in _KINDS:
        if head[place : place + len(magic)] == magic:
            return f"is {name}; {advice}"
    if _is_tfrecord(head, size):
        return f"is a TFRecord file; {_EXPORT}"
    return ""


def kind_of(path: str | os.PathLike[str]) -> str:
    """Return `foreign_kind` of a file; "" if it cannot be read."""
    try:
        with Path(path).open("rb") as file:
            return foreign_kind(file.read(HEAD_BYTES), os.fstat(file.fileno()).st_size)
    except OSError:
        return ""


def is_text(head: bytes) -> bool:
    """Tell whether the first bytes are text, such as a caption or a list of labels."""
    try:
        text = head.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 3:  # else a character is cut in two
            return False
        text = head[: error.start].decode("utf-8")
    return bool(text) and not any(ord(character) < 32 and character not in "\t\n\r\f" for character in text)


def _is_tfrecord(head: bytes, size: int) -> bool:
    """Tell whether a file starts with the length of a record and the checksum of that length.

    Source: TensorFlow, "TFRecord and tf.train.Example": CRC-32C, rotated by 15 bits, plus 0xa282ead8.
    """
    if len(head) < 12 or int.from_bytes(head[:8], "little") + 16 > size:
        return False
    crc = 0xFFFFFFFF
    for byte in head[:8]:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    crc ^= 0xFFFFFFFF
    masked = ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
    return masked == int.from_bytes(head[8:12], "little")
