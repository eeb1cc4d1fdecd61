"""Folders that commands write: whose they are, who writes there now, and how a whole one comes about.

A folder is ours by its marker, a hidden file that is written first, and not by names of other files in it,
which a stranger's folder may have too. While a command works, it holds the lock of its output.
"""

from __future__ import annotations

import contextlib
import glob
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from fewgen.errors import CheckpointError, OutputError
from fewgen.files import is_leftover, make_dir, probe, reason_of, sync_folder, write_text
from fewgen.tensor_files import read_tensor_header

RUN_MARKER = ".fewgen-run"
"""Empty file that marks a folder as a run of ours from its first second on, before any checkpoint."""


def contents(folder: Path) -> list[str]:
    """Return the names of what a folder holds, without what desktops and killed writes of ours leave.

    Raises:
        OutputError: it cannot be read.
    """
    try:
        return sorted(entry.name for entry in folder.iterdir() if not is_leftover(entry.name))
    except OSError as error:
        raise OutputError(f'Cannot read the folder "{folder}": {reason_of(error)}.') from error


@dataclass(frozen=True)
class FolderKind:
    """A kind of folder that commands write and come back to.

    Attributes:
        what: for messages, after "is not".
        marker: name of the empty file that makes a folder ours; "" where no folder with anything in it is.
        earlier: tells whether a folder without the marker was written by a release that had none.
    """

    what: str
    marker: str = ""
    earlier: Callable[[Path], bool] = lambda _: False

    def holds(self, path: str | os.PathLike[str]) -> bool:
        """Tell whether a folder is of this kind."""
        folder = Path(path)
        return bool(self.marker) and ((folder / self.marker).is_file() or self.earlier(folder))

    def check(self, path: str | os.PathLike[str]) -> Path:
        """Return the folder if it is new, empty or of this kind; creates nothing.

        Raises:
            OutputError: it is none of these, or cannot be made.
        """
        folder = Path(path)
        there = next((parent for parent in folder.absolute().parents if parent.exists()), None)
        if there is not None and not there.is_dir():
            raise OutputError(
                f'"{folder}" cannot be a folder, because "{there}" is a file. Choose another --out.'
            )
        if there is not None and not folder.exists() and not os.access(there, os.W_OK):
            raise OutputError(f'Writing into "{there}" is not permitted. Choose another --out.')
        if folder.exists() and not folder.is_dir():
            raise OutputError(f'"{folder}" is a file, but a folder is needed. Choose another --out.')
        foreign = contents(folder) if folder.is_dir() else []
        if foreign and not self.holds(folder):
            more = f" and {len(foreign) - 1} more" if len(foreign) > 1 else ""
            raise OutputError(
                f'The folder "{folder}" is not {self.what} (it holds "{foreign[0]}"{more}). '
                "Nothing was changed. Choose a new or empty folder for --out."
            )
        return folder

    def prepare(self, path: str | os.PathLike[str]) -> Path:
        """Return the folder, which is there, writable and marked afterwards.

        Raises:
            OutputError: as `check`; or it cannot be written.
        """
        folder = make_dir(self.check(path))
        probe(folder)
        if self.marker and not (folder / self.marker).is_file():
            write_text(folder / self.marker, "")
        return folder


def is_our_tensor_file(file: Path) -> bool:
    """Tell whether the metadata of a file of tensors, if it is there, name a format of ours."""
    with contextlib.suppress(CheckpointError):
        metadata = read_tensor_header(file).get("__metadata__")
        if isinstance(metadata, dict):
            return "fewgen_classifier" in metadata or str(metadata.get("format")).startswith("fewgen-")
    return False


RUN = FolderKind("a fewgen run", RUN_MARKER, lambda folder: is_our_tensor_file(folder / "model.safetensors"))
NEW = FolderKind("empty")
"""For folders that no command adds to."""


# ------------------------------------------------------------------------------------------ one at a time


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
def locked(path: str | os.PathLike[str]) -> Iterator[None]:
    """Hold the lock of an output within the block, so that no second process writes there meanwhile.

    The operating system lets go of the lock when its process ends, even by a kill. Taking it again in the
    same thread is fine. Of several processes that train together the main one holds it for all. If the block
    fails, no empty folder is left.

    Args:
        path: the file or folder that the command writes.

    Raises:
        OutputError: another process holds it; it is named.
    """
    helps = int(os.environ.get("WORLD_SIZE", "1")) > 1 and os.environ.get("RANK", "0") != "0"
    if helps:
        yield
    else:
        with no_empty_folders(path), _held(path):
            yield


@contextlib.contextmanager
def _held(path: str | os.PathLike[str]) -> Iterator[None]:
    from filelock import FileLock, SoftFileLock, Timeout

    file = _lock_file(path)
    lock = FileLock(file, is_singleton=True)
    try:
        make_dir(file.parent)
        lock.acquire(blocking=False)
    except Timeout:
        raise OutputError(
            f'"{path}" is being written by {_holder(file)}. Nothing was changed. Wait until it has '
            "finished, or choose another --out."
        ) from None
    except (OSError, NotImplementedError):
        # No place for a lock. Why nothing can be written there, if so, the command's own checks say better.
        yield
        return
    native = not isinstance(lock, SoftFileLock)  # where a file system has no locks, filelock replaces them
    outermost = lock.lock_counter == 1
    try:
        if native and outermost:
            with contextlib.suppress(OSError):
                file.write_text(f"{os.getpid()}\n{_host()}\n", encoding="utf-8")
        yield
    finally:
        if native and outermost:
            with contextlib.suppress(OSError):  # filelock sees that a file which it locked has gone
                file.unlink()
        lock.release()


def _lock_file(path: str | os.PathLike[str]) -> Path:
    """Return the lock file: beside the output; in it, if only there something can be written."""
    out = Path(os.path.realpath(path))
    inside = out.is_dir() and not os.access(out.parent, os.W_OK)
    return (out if inside else out.parent) / f".{out.name[:100]}.fewgen-lock"


def _holder(file: Path) -> str:
    with contextlib.suppress(OSError, ValueError):
        process, host = file.read_text(encoding="utf-8").splitlines()[:2]
        return f"process {process[:20]} on {host[:100]}"
    return "another process"


def _host() -> str:
    import socket

    return socket.gethostname()


# ------------------------------------------------------------------------------------------ whole folders


@contextlib.contextmanager
def atomic_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; after the block it takes the place of `path` at once.

    A kill or an error in the block leaves `path` as it was; what a killed one left beside it is removed.

    Args:
        path: a new or empty folder.

    Raises:
        OutputError: there is something in it, or it cannot be written.
    """
    NEW.check(path)
    out = Path(os.path.realpath(path))
    with locked(out):
        beside = make_dir(out.parent)
        if out.is_dir() and not os.access(beside, os.W_OK):
            beside = out
        for left in beside.glob(f".{glob.escape(out.name[:100])}.*.tmp"):
            if re.fullmatch(r"[0-9a-f]{12}", left.name.split(".")[-2]):
                shutil.rmtree(left, ignore_errors=True)
        folder = make_dir(beside / f".{out.name[:100]}.{secrets.token_hex(6)}.tmp")
        try:
            yield folder
            try:
                os.replace(folder, out)
            except OSError:  # there is what desktops leave, or a file system is mounted there
                make_dir(out)
                for entry in sorted(folder.iterdir()):
                    os.replace(entry, out / entry.name)
            sync_folder(out.parent)
        except OSError as error:
            if isinstance(error, OutputError):
                raise
            raise OutputError(f'Cannot write "{path}": {reason_of(error)}.') from error
        finally:
            shutil.rmtree(folder, ignore_errors=True)
