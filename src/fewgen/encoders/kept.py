"""Features of images, kept on the disk by content: no set of images is described twice by an encoder."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewgen.data.identity import image_digests
from fewgen.data.imageset import ImageSet
from fewgen.errors import OutputError
from fewgen.tensor_files import DIGEST, content_digest, write_tensors

Encode = Callable[[list[str]], Tensor]

LIMIT = 2 << 30
"""Bytes of a folder of features; beyond, the files that were not read for longest go."""

# Raise when features change in a way that the description of an encoder does not show.
_FORMAT = 1


def kept_features(
    images: ImageSet, about: Mapping[str, Any], folder: Path | None, compute: Callable[[Tensor], Tensor]
) -> Tensor:
    """Return features of images, read from the disk where the same set was described before, in any order.

    Args:
        images: (N, C, H, W), whatever their labels.
        about: what tells the encoder from every other; JSON-ready.
        folder: where files lie; None computes and keeps nothing.
        compute: uint8 (N, C, H, W) -> (N, D), each row from its own image.

    Returns:
        (N, D), float32. A damaged file is made again; where nothing can be written, nothing is kept.
    """
    if folder is None or len(images) == 0:
        return compute(images.images)
    digests = image_digests(images)
    order = torch.tensor(sorted(range(len(digests)), key=digests.__getitem__))
    path, header = _place(images, digests, about, folder)
    found = _read(path, len(images))
    if found is not None:
        return found[order.argsort()]
    features = compute(images.images)
    _write(path, features[order], header)
    return features


def are_kept(images: ImageSet, about: Mapping[str, Any], folder: Path | None) -> bool:
    """Return whether `kept_features` would read the features of images; takes what it takes."""
    if folder is None or len(images) == 0:
        return False
    return _place(images, image_digests(images), about, folder)[0].is_file()


def _place(
    images: ImageSet, digests: Sequence[bytes], about: Mapping[str, Any], folder: Path
) -> tuple[Path, str]:
    """Return the file of the features of images, and what it says of itself."""
    header = json.dumps([_FORMAT, torch.__version__, list(images.images.shape), about], sort_keys=True)
    key = hashlib.sha256(header.encode() + b"".join(sorted(digests))).hexdigest()
    return folder / f"{key[:32]}.safetensors", header


def kept_vectors(
    texts: Sequence[str], about: Mapping[str, Any], folder: Path | None, encode: Encode
) -> Tensor:
    """Return vectors of texts, (len(texts), D), read from the disk where the same texts were encoded before.

    Args:
        texts: in their order.
        about: what tells the encoder from every other; JSON-ready.
        folder: where files lie; None encodes and keeps nothing.
        encode: texts -> (len(texts), D).
    """
    if folder is None:
        return encode(list(texts))
    header = json.dumps([_FORMAT, torch.__version__, about], sort_keys=True)
    path = folder / f"{hashlib.sha256((header + json.dumps(texts)).encode()).hexdigest()[:32]}.safetensors"
    found = _read(path, len(texts))
    if found is None:
        found = encode(list(texts))
        _write(path, found, header)
    return found


def _write(path: Path, rows: Tensor, header: str) -> None:
    with contextlib.suppress(OutputError):
        write_tensors(path, {"features": rows}, {"fewgen_features": header})
        _tidy(path.parent)


def _read(path: Path, n: int) -> Tensor | None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            tensors, about = {"features": file.get_tensor("features")}, dict(file.metadata() or {})
        os.utime(path)
    except (SafetensorError, OSError):
        return None
    digest, found = about.pop(DIGEST, None), tensors["features"]
    whole = found.ndim == 2 and len(found) == n and digest == content_digest(tensors, about)
    return found if whole else None


def _tidy(folder: Path) -> None:
    """Remove the files that were not used for longest, until the rest fits."""
    with contextlib.suppress(OSError):  # another process tidies up, too
        files = sorted(((f.stat(), f) for f in folder.glob("*.safetensors")), key=lambda row: row[0].st_mtime)
        left = sum(stat.st_size for stat, _ in files)
        for stat, file in files[:-1]:
            if left <= LIMIT:
                return
            file.unlink()
            left -= stat.st_size
