"""Files of tensors (safetensors): written so that equal content gives equal bytes, read with checks first.

The metadata keep a digest of everything else in the file. A changed byte is noticed for certain; so is more
damage, unless its changes within 4 kB add up to nothing. It is no signature: who changes a file on purpose
can change the digest, too.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import struct
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewgen.errors import CheckpointError, FewgenError, is_out_of_memory
from fewgen.files import atomic_write, parse_json

if TYPE_CHECKING:
    from torch import Tensor

_MAX_HEADER_BYTES = 8 << 20
"""Ours are below 1 MB. The format's own limit of 100 MB would let a small file take gigabytes to parse."""
_MAX_REASON = 300
_MAX_DIMS = 64
"""A product of the millions that fit into a header would take minutes."""
_AGAIN = "Copy or download it again, or delete it and repeat the command that made it."
DIGEST = "digest"
"""Key of the metadata."""
_BLOCK = 512
"""Words of 8 bytes that are added up to one in a digest."""
_DTYPE_BYTES = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "F16": 2,
    "BF16": 2,
    "I16": 2,
    "I32": 4,
    "F32": 4,
    "I64": 8,
    "F64": 8,
}


def _separate(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors on the host, contiguous and without shared memory, as safetensors needs them."""
    seen: set[int] = set()
    result = {}
    for name, tensor in tensors.items():
        value = tensor.detach().to("cpu").contiguous()
        pointer = value.untyped_storage().data_ptr()
        whole = value.untyped_storage().nbytes() == value.numel() * value.element_size()
        if value.numel() and (pointer in seen or not whole):
            value = value.clone()
        seen.add(value.untyped_storage().data_ptr())
        result[name] = value
    return result


def serialize(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> bytes:
    """Return a safetensors file as bytes, equal for equal content.

    The library writes its metadata in an order that changes from run to run; here it is sorted, so that
    equal models have equal checksums.
    """
    from safetensors.torch import save

    data = save(_separate(tensors), dict(metadata) if metadata else None)
    if not metadata or len(metadata) < 2:
        return data
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    header["__metadata__"] = dict(sorted(metadata.items()))
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors stay aligned
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


def content_digest(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """Return a digest of tensors and metadata, 32 hexadecimal digits.

    A hash of all bytes would take a tenth (crc32) to a half (BLAKE2) of the time of loading a large file;
    sums of blocks of 4 kB modulo 2^64, which are hashed then, take 2 to 3 %.
    """
    import numpy as np
    import torch

    about = [
        sorted((key, text) for key, text in metadata.items() if key != DIGEST),
        sorted((name, str(tensor.dtype), list(tensor.shape)) for name, tensor in tensors.items()),
    ]
    total = hashlib.blake2b(json.dumps(about).encode(), digest_size=16)
    for name in sorted(tensors):
        raw = tensors[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        whole = len(raw) - len(raw) % (8 * _BLOCK)
        blocks = raw[:whole].view("<u8").reshape(-1, _BLOCK)
        total.update(np.add.reduce(blocks, axis=1, dtype="<u8").tobytes())
        total.update(raw[whole:].tobytes())
    return total.hexdigest()


def check_content(path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Any) -> None:
    """Compare what was read from a file with the digest in its metadata; without one, warn.

    Args:
        path: of the file, for the message.
        tensors: all that are in the file.
        metadata: of the header.

    Raises:
        CheckpointError: they differ.
    """
    if not isinstance(metadata, Mapping) or DIGEST not in metadata:
        text = f'An earlier release wrote "{path}" without a digest: damage to it cannot be noticed.'
        warnings.warn(text, stacklevel=1)  # one place, so that the same text is shown once
    elif metadata[DIGEST] != content_digest(tensors, metadata):
        raise CheckpointError(
            f'The model file "{path}" is damaged: it does not hold the numbers that were written. {_AGAIN}'
        )


def check_tensor_file(path: str | os.PathLike[str]) -> None:
    """Read a whole file of tensors, and compare it with its digest.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    from safetensors.torch import load_file

    metadata = read_tensor_header(path).get("__metadata__")
    check_content(path, load_file(path), metadata)


def write_tensors(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> None:
    """Write a safetensors file with a digest of its content, atomically.

    Raises:
        OutputError: if it cannot be written; an older file stays as it was.
    """
    data = serialize(tensors, {**metadata, DIGEST: content_digest(tensors, metadata)})
    with atomic_write(path) as temporary:
        temporary.write_bytes(data)


def read_tensor_header(
    path: str | os.PathLike[str], wanted: str = "Name a model.safetensors written by fewgen."
) -> dict[str, Any]:
    """Return the header of a safetensors file, after checking that it fits the file.

    Checked here and not left to the library, because its errors do not tell a truncated download from a
    file of another kind.

    Args:
        path: the file.
        wanted: what to name instead of a file of another kind, a sentence.

    Raises:
        CheckpointError: if it cannot be read, is damaged, or is of another kind.
    """
    file = Path(path)
    try:
        size = file.stat().st_size
        with open(file, "rb") as stream:
            start = stream.read(8)
            if len(start) < 8:
                raise CheckpointError(f'The model file "{file}" is truncated: {size} bytes. {_AGAIN}')
            (length,) = struct.unpack("<Q", start)
            # The first bytes are a length, and a small one may look like the start of a pickle.
            if length > _MAX_HEADER_BYTES and (start[:2] == b"PK" or start[0] == 0x80):
                raise CheckpointError(
                    f'"{file}" is a pickle or zip file. fewgen reads only safetensors files, because '
                    "opening a pickle can run code. Convert it with the tool that made it."
                )
            if length > _MAX_HEADER_BYTES:
                raise CheckpointError(
                    f'"{file}" is not a safetensors file that fewgen can read: its header would have '
                    f"{length} bytes, the limit is {_MAX_HEADER_BYTES}. {wanted}"
                )
            if 8 + length > size:
                raise CheckpointError(f'The model file "{file}" is truncated inside its header. {_AGAIN}')
            raw = stream.read(length)
    except OSError as error:
        raise CheckpointError(f'"{file}" cannot be read: {error.strerror or error}.') from error
    try:
        header = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f'"{file}" is not a safetensors file: its header is not JSON. {wanted}'
        ) from error
    if not isinstance(header, dict):
        raise CheckpointError(f'"{file}" is not a safetensors file. {wanted}')
    end = 0
    for name, entry in header.items():
        if name == "__metadata__":
            if not isinstance(entry, dict) or not all(isinstance(text, str) for text in entry.values()):
                raise CheckpointError(f'"{file}" is damaged: its metadata must be texts by name. {_AGAIN}')
            continue
        try:
            shape, (first, last) = entry["shape"], entry["data_offsets"]
            numbers_fit = len(shape) <= _MAX_DIMS and all(
                type(n) is int and n >= 0 for n in [*shape, first, last]
            )
            if not numbers_fit or math.prod(shape) * _DTYPE_BYTES[entry["dtype"]] != last - first:
                raise ValueError("size")
        except (TypeError, KeyError, ValueError) as error:
            raise CheckpointError(
                f'The model file "{file}" is damaged: the entry of tensor "{name[:80]}" makes no sense. '
                f"{_AGAIN}"
            ) from error
        end = max(end, last)
    if 8 + length + end != size:
        what = "truncated" if 8 + length + end > size else "longer than its header says"
        raise CheckpointError(
            f'The model file "{file}" is {what}: {size} bytes instead of {8 + length + end}. {_AGAIN}'
        )
    return header


@dataclass(frozen=True)
class TensorFile:
    """A kind of safetensors file, told by its metadata: `format`, `format_version`, and one text of JSON.

    Attributes:
        format: what the metadata call it.
        version: the version that is written, and the highest that is read.
        about: key of the metadata whose JSON object describes the tensors.
        wanted: what to name instead of a file of another kind, a sentence.
        foreign: how a message goes on after "is a safetensors file, but not".
        outdated: how a message goes on after "has", where {version} is the file's.
        damaged: message for a file whose content makes no sense, with {path} and {reason}.
        older: whether versions below `version` are read too.
    """

    format: str
    version: int
    about: str
    wanted: str
    foreign: str
    outdated: str
    damaged: str
    older: bool = False

    def metadata(self, about: str) -> dict[str, str]:
        """Return the metadata of a file to be written, whose JSON text is `about`."""
        return {"format": self.format, "format_version": str(self.version), self.about: about}

    def read(self, path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return what a file says about its tensors, and the tensors, on the host.

        Raises:
            CheckpointError: the file is missing, damaged, of another kind or version, or holds numbers that
                are not finite.
        """
        from safetensors.torch import load_file

        metadata = read_tensor_header(path, self.wanted).get("__metadata__")
        if not isinstance(metadata, dict) or metadata.get("format") != self.format:
            raise CheckpointError(f'"{path}" is a safetensors file, but not {self.foreign}')
        version = str(metadata.get("format_version"))
        # Not isdigit, which takes a superscript for a number and int does not.
        known = version.isdecimal() and int(version[:9]) <= self.version
        if not known or (not self.older and version != str(self.version)):
            raise CheckpointError(f'"{path}" has {self.outdated.format(version=version[:20])}')
        with self.fits(path):
            tensors = load_file(path)
            check_content(path, tensors, metadata)
            about = parse_json(metadata[self.about])
            if not isinstance(about, dict):
                raise ValueError(f"{self.about} is not an object")
            for name, tensor in tensors.items():
                if not tensor.isfinite().all():
                    raise ValueError(f"{name} is not finite")
        return about, tensors

    @contextlib.contextmanager
    def fits(self, path: str | os.PathLike[str]) -> Iterator[None]:
        """Turn what goes wrong in the block, where the content of the file is used, into one message.

        Raises:
            CheckpointError: in place of the errors that content can cause; its own pass.
        """
        from safetensors import SafetensorError

        try:
            yield
        except CheckpointError:
            raise
        except (
            SafetensorError,
            FewgenError,
            OSError,
            LookupError,
            TypeError,
            ValueError,
            ArithmeticError,
            AttributeError,
            RuntimeError,
        ) as error:
            if is_out_of_memory(error):
                raise
            reason = " ".join(str(error).split())[:_MAX_REASON] or type(error).__name__
            raise CheckpointError(self.damaged.format(path=path, reason=reason)) from error
