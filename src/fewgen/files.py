"""Files that survive: atomic writes, JSON, and rules for folders that commands write into.

A write goes to a temporary file in the same folder, is flushed to the disk and then renamed over the
old file. A kill, a full disk or an error in the writer therefore leaves either the old file or the new
one, and never half of one.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import re
import secrets
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewgen.errors import CheckpointError, DataError, FewgenError, OutputError

if TYPE_CHECKING:
    from torch import Tensor

RUN_MARKER = ".fewgen-run"
"""Empty file that marks a folder as a run of ours from its first second on, before any checkpoint."""

_MAX_HEADER_BYTES = 8 << 20
"""Ours are below 1 MB. The format's own limit of 100 MB would let a small file take gigabytes to parse."""
_MAX_REASON = 300
_MAX_DIMS = 64
"""A product of the millions that fit into a header would take minutes."""
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

_OS_ERROR_IN_TEXT = re.compile(r"\(os error (\d+)\)")


def _reason(error: BaseException) -> str | None:
    """Say why the operating system refused a write; None if `error` is not of that kind."""
    code: int | None = None
    if isinstance(error, OSError):
        code = error.errno
    else:
        # safetensors writes from Rust and reports a full disk as its own exception with this text.
        found = _OS_ERROR_IN_TEXT.search(str(error))
        if found is None:
            return None
        code = int(found.group(1))
    if code in (errno.ENOSPC, errno.EDQUOT):
        return "the disk is full. Free some space, or choose another place"
    if code in (errno.EACCES, errno.EPERM):
        return "writing there is not permitted. Change its permissions, or choose another place"
    if code == errno.EROFS:
        return "the file system is read-only. Choose another place"
    if code in (errno.ENOTDIR, errno.EEXIST):
        return "a part of this path is a file, not a folder. Choose another place"
    return os.strerror(code) if code else str(error)


def sync_folder(folder: Path) -> None:
    """Flush the folder's own entry, so that a rename survives a power cut, where the system can."""
    with contextlib.suppress(OSError):  # not possible on Windows and on some network file systems
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def make_dir(path: str | os.PathLike[str]) -> Path:
    """Create a folder and its parents; an existing folder is fine.

    Raises:
        OutputError: if it cannot be created.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f'Cannot create the folder "{folder}": {_reason(error)}.') from error
    return folder


@contextlib.contextmanager
def no_empty_folders(path: str | os.PathLike[str]) -> Iterator[None]:
    """Remove the folders that the block made for `path` and left empty, if the block fails.

    Args:
        path: where the block writes; it and its parents are removed only if they were not there before.
    """
    target = Path(path)
    missing = [place for place in (target, *target.parents) if not place.exists()]
    try:
        yield
    except BaseException:
        for folder in missing:
            with contextlib.suppress(OSError):  # not a folder, or something is in it
                folder.rmdir()
        raise


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`; after the block it takes the place of `path` at once.

    The temporary file has the ending of `path` (writers such as numpy and Pillow look at it) and a name
    that starts with a dot (loaders ignore it). Missing parent folders are created. If the block raises,
    the temporary file is removed and an existing `path` stays as it was.

    Args:
        path: the file to write; a link is followed, so that the file it points to is replaced.

    Raises:
        OutputError: if the operating system refuses (disk full, no permission, read-only).
    """
    shown = Path(path)
    target = Path(os.path.realpath(shown))
    if target.is_dir():
        raise OutputError(f'Cannot write the file "{shown}": a folder has this name. Choose another name.')
    make_dir(target.parent)
    temporary = target.with_name(f".{target.stem[:100]}.{secrets.token_hex(6)}.tmp{target.suffix}")
    try:
        # Created with the mode that the user's umask asks for; mkstemp would make it private.
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        yield temporary
        descriptor = os.open(temporary, os.O_RDWR)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(temporary, target)
        sync_folder(target.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, FewgenError) or not isinstance(error, Exception):
            raise
        reason = _reason(error)
        if reason is None:
            raise
        kept = " The previous file is unchanged." if target.exists() else ""
        raise OutputError(f'Cannot write "{shown}": {reason}.{kept}') from error


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write UTF-8 text atomically."""
    with atomic_write(path) as temporary, open(temporary, "w", encoding="utf-8", newline="\n") as file:
        file.write(text)


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write `value` as indented JSON, atomically.

    Raises:
        ValueError: if `value` holds NaN or infinity, which JSON does not know.
        OutputError: if the file cannot be written.
    """
    write_text(path, json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def read_json(path: str | os.PathLike[str], error: type[FewgenError] = DataError) -> Any:
    """Read a JSON file.

    Args:
        path: the file.
        error: what to raise, so that a broken checkpoint can be told from broken data.
    """
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except FileNotFoundError:
        raise error(f'"{path}" does not exist.') from None
    except OSError as cause:
        raise error(f'"{path}" cannot be read: {cause.strerror or cause}.') from cause
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as cause:
        raise error(f'"{path}" is not valid JSON: {cause}.') from cause


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
    again = "Copy or download it again, or use another checkpoint."
    try:
        size = file.stat().st_size
        with open(file, "rb") as stream:
            start = stream.read(8)
            if len(start) < 8:
                raise CheckpointError(f'The model file "{file}" is truncated: {size} bytes. {again}')
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
                raise CheckpointError(f'The model file "{file}" is truncated inside its header. {again}')
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
                f"{again}"
            ) from error
        end = max(end, last)
    if 8 + length + end != size:
        what = "truncated" if 8 + length + end > size else "longer than its header says"
        raise CheckpointError(
            f'The model file "{file}" is {what}: {size} bytes instead of {8 + length + end}. {again}'
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
            about = json.loads(metadata[self.about])
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
            reason = " ".join(str(error).split())[:_MAX_REASON] or type(error).__name__
            raise CheckpointError(self.damaged.format(path=path, reason=reason)) from error


def is_run_dir(path: str | os.PathLike[str]) -> bool:
    """Tell whether a folder is a run of ours: by its marker, or by a config beside weights or state."""
    folder = Path(path)
    if (folder / RUN_MARKER).is_file():
        return True
    return (folder / "config.yaml").is_file() and (
        (folder / "model.safetensors").is_file() or (folder / "state").is_dir()
    )


def _probe(folder: Path, shown: Path) -> None:
    """Write and delete an empty file: permission bits alone do not tell whether a place is writable."""
    probe = folder / f".fewgen-{secrets.token_hex(6)}.tmp"
    try:
        os.close(os.open(probe, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        probe.unlink()
    except OSError as error:
        with contextlib.suppress(OSError):
            probe.unlink()
        raise OutputError(f'Cannot write into "{shown}": {_reason(error)}.') from error


def prepare_output_dir(path: str | os.PathLike[str], *, run: bool = True) -> Path:
    """Return a folder that is there, writable, and either empty or an earlier run of ours.

    Args:
        path: the folder; created with its parents if missing.
        run: True marks the folder as a run (`RUN_MARKER`) and accepts an earlier run, to resume it.
            False accepts only a new or empty folder, for example for images.

    Raises:
        OutputError: if it is a file, cannot be written, or holds files that are not ours. Nothing is
            changed then.
    """
    folder = Path(path)
    if folder.exists() and not folder.is_dir():
        raise OutputError(f'"{folder}" is a file, but a folder is needed. Choose another name.')
    if folder.is_dir():
        try:
            foreign = sorted(entry.name for entry in folder.iterdir() if not _is_leftover(entry.name))
        except OSError as error:
            raise OutputError(f'Cannot read the folder "{folder}": {_reason(error)}.') from error
        if foreign and not (run and is_run_dir(folder)):
            what = "not a fewgen run" if run else "not empty"
            raise OutputError(
                f'The folder "{folder}" is {what} (it holds "{foreign[0]}"'
                f"{f' and {len(foreign) - 1} more' if len(foreign) > 1 else ''}). "
                "Nothing was changed. Choose a new or empty folder."
            )
    make_dir(folder)
    _probe(folder, folder)
    if run:
        write_text(folder / RUN_MARKER, "")
    return folder


def _is_leftover(name: str) -> bool:
    """Tell whether a name is nobody's content: folder settings of a desktop, or our own killed writes."""
    return name in (".DS_Store", "Thumbs.db", "desktop.ini") or (name.startswith(".") and ".tmp" in name)


def prepare_output_file(path: str | os.PathLike[str], overwrite: bool = False) -> Path:
    """Return a file path that can be written; the file itself is not created.

    Args:
        path: the file; missing parent folders are created.
        overwrite: whether an existing file may be replaced.

    Raises:
        OutputError: if it exists (and `overwrite` is False), is a folder, or cannot be written.
    """
    file = Path(path)
    if file.is_dir():
        raise OutputError(f'"{file}" is a folder, but a file is needed. Add a file name.')
    if not overwrite and (file.exists() or file.is_symlink()):
        raise OutputError(f'"{file}" exists already and was left as it is. Choose another name.')
    make_dir(file.parent)
    _probe(file.parent, file.parent)
    return file
