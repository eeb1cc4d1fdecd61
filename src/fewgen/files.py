"""Files that survive: atomic writes, JSON, and what may be written where.

A write goes to a temporary file in the same folder, is flushed to the disk and then renamed over the
old file. A kill, a full disk or an error in the writer therefore leaves either the old file or the new
one, and never half of one.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import json
import math
import os
import re
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fewgen.errors import DataError, FewgenError, OutputError

_LEFTOVER = re.compile(r"\..+[.-][0-9a-f]{12}\.tmp(\.[^.]*)?|\..*\.fewgen-lock")
"""Names of temporary files and locks of ours, which a kill may leave."""

_OS_ERROR_IN_TEXT = re.compile(r"\(os error (\d+)\)")


def reason_of(error: BaseException) -> str | None:
    """Say why the operating system refused a write; None if `error` is not of that kind."""
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
        raise OutputError(f'Cannot create the folder "{folder}": {reason_of(error)}.') from error
    return folder


def _sync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`; after the block it takes the place of `path` at once.

    The temporary file has the ending of `path` (writers such as numpy and Pillow look at it) and a name
    that starts with a dot (loaders ignore it). Missing parent folders are created. If the block raises,
    the temporary file is removed and an existing `path` stays as it was. What a killed process left of an
    earlier write of the same file is removed.

    Args:
        path: the file to write; a link is replaced, and what it points to stays as it is.

    Raises:
        OutputError: if the operating system refuses (disk full, no permission, read-only).
    """
    shown = Path(path)
    target = Path(os.path.realpath(shown.parent)) / shown.name
    if target.is_dir():
        raise OutputError(f'Cannot write the file "{shown}": a folder has this name. Choose another name.')
    make_dir(target.parent)
    before, after = f".{target.stem[:100]}.", f".tmp{target.suffix}"
    for name in _leftovers(target.parent):
        if name.startswith(before) and name.endswith(after) and len(name) == len(before + after) + 12:
            _remove_leftover(target.parent / name)
    temporary, held = target.with_name(f"{before}{secrets.token_hex(6)}{after}"), None
    try:
        # Created with the mode that the user's umask asks for; mkstemp would make it private.
        held = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        _lock(held)
        yield temporary
        _sync_file(temporary)
        os.replace(temporary, target)
        sync_folder(target.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, FewgenError) or not isinstance(error, Exception):
            raise
        reason = reason_of(error)
        if reason is None:
            raise
        kept = " The previous file is unchanged." if target.exists() else ""
        raise OutputError(f'Cannot write "{shown}": {reason}.{kept}') from error
    finally:
        if held is not None:
            os.close(held)


@functools.lru_cache(maxsize=256)
def _leftovers(folder: Path) -> tuple[str, ...]:
    """Return the temporary files of ours in a folder when this process first writes there."""
    with contextlib.suppress(OSError):
        return tuple(name for name in os.listdir(folder) if _LEFTOVER.fullmatch(name))
    return ()


def _lock(descriptor: int) -> bool:
    """Lock a file, until it is closed or the process ends; tell whether it is locked now."""
    try:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (ImportError, OSError):  # on Windows; another process has it; a file system without locks
        return False
    return True


def _remove_leftover(file: Path) -> None:
    """Remove a temporary file, unless a process is writing it."""
    with contextlib.suppress(OSError):
        held = os.open(file, os.O_RDWR)
        try:
            if _lock(held):
                file.unlink()
        finally:
            os.close(held)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write UTF-8 text atomically."""
    write_texts({path: text})


def write_texts(texts: Mapping[Any, str]) -> None:
    """Write UTF-8 texts by their paths; none takes its place before all of them are written."""
    with contextlib.ExitStack() as stack:
        for path, text in texts.items():
            temporary = stack.enter_context(atomic_write(path))
            with open(temporary, "w", encoding="utf-8", newline="\n") as file:
                file.write(text)
            if len(texts) > 1:
                _sync_file(temporary)  # takes time, which must not pass between one and the next


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write `value` as indented JSON, atomically.

    Raises:
        ValueError: if `value` holds NaN or infinity, which JSON does not know.
        OutputError: if the file cannot be written.
    """
    write_text(path, json_text(value))


def json_text(value: Any) -> str:
    """Return `value` as the text of a JSON file.

    Raises:
        ValueError: if `value` holds NaN or infinity, which JSON does not know.
    """
    return json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n"


def parse_json(text: str | bytes) -> Any:
    """Return the value of a JSON text that may come from anywhere.

    Refused is also what JSON allows and other parts cannot hold: whole numbers beyond 64 bits, numbers beyond
    the largest float, NaN and infinity, and halves of a character, which are no UTF-8.

    Raises:
        ValueError: says what is wrong.

    >>> parse_json('{"a": [1, 2.5, null]}')
    {'a': [1, 2.5, None]}
    """
    if isinstance(text, bytes):
        text = text.decode("utf-8")
    try:
        value = json.loads(text, parse_int=_integer, parse_float=_number, parse_constant=_number)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if "\\ud" in text.lower():
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise ValueError("it holds half of a character") from None
    return value


MOST = 2**63
"""Whole numbers of files and flags lie below it, and above its negative: tensors hold no larger ones."""


def _integer(text: str) -> int:
    if len(text) > 20 or not -MOST < int(text) < MOST:
        raise ValueError(f"the whole number {text[:24]}{'...' * (len(text) > 24)} is beyond 64 bits")
    return int(text)


def _number(text: str) -> float:
    if not math.isfinite(float(text)):
        raise ValueError(f"{float(text)} is not a finite number")
    return float(text)


def read_json(path: str | os.PathLike[str], error: type[FewgenError] = DataError, advice: str = "") -> Any:
    """Read a JSON file, whatever it holds; `config.records.read_record` also checks its shape.

    Args:
        path: the file.
        error: what to raise, so that a broken checkpoint can be told from broken data.
        advice: the next step if it holds no JSON, a sentence.
    """
    try:
        return parse_json(Path(path).read_bytes())
    except FileNotFoundError:
        raise error(f'"{path}" does not exist.') from None
    except OSError as cause:
        raise error(f'"{path}" cannot be read: {cause.strerror or cause}.') from cause
    except ValueError as cause:
        raise error(f'"{path}" is not valid JSON: {cause}. {advice}'.strip()) from cause


def file_sha256(path: str | os.PathLike[str]) -> str:
    """Return the sha256 digest of a file, 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def probe(folder: Path) -> None:
    """Write and delete an empty file: permission bits alone do not tell whether a place is writable."""
    probe = folder / f".fewgen-{secrets.token_hex(6)}.tmp"
    try:
        os.close(os.open(probe, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        probe.unlink()
    except OSError as error:
        with contextlib.suppress(OSError):
            probe.unlink()
        raise OutputError(f'Cannot write into "{folder}": {reason_of(error)}.') from error


def is_leftover(name: str) -> bool:
    """Tell whether a name is nobody's content: folder settings of a desktop, or our own killed writes."""
    return name in (".DS_Store", "Thumbs.db", "desktop.ini") or _LEFTOVER.fullmatch(name) is not None


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
    probe(file.parent)
    return file
