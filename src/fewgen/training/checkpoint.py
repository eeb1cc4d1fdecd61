"""Training states on disk: whole or absent, whatever interrupts the writing.

Each state is a new folder `state/00000007/` with `tensors.safetensors` and `state.json`. It is written
under a temporary name, flushed, renamed, and only then named by the small file `state/current.json`, which
is itself replaced atomically. So a kill at any moment leaves the old state or the new one. The state before
the newest stays as a spare. No file is a pickle: there are tensors and JSON, each with its digest.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict

from torch import Tensor

from fewgen.config.records import parse_record
from fewgen.errors import CheckpointError, OutputError
from fewgen.files import parse_json, sync_folder, write_json
from fewgen.tensor_files import serialize

FORMAT_VERSION = 1
_FOLDER = re.compile(r"^\d{8}$")
_TEMPORARY = ".writing"
_POINTER = "current.json"
_TENSORS = "tensors.safetensors"
_VALUES = "state.json"


@dataclass
class State:
    """Everything a run needs to continue.

    Attributes:
        tensors: weights, averages, optimiser moments, random states.
        values: plain JSON values: positions, counters, figures, settings.
        folder: where it was read from.
        warnings: what was wrong on the way, e.g. that the newest state was damaged.
    """

    tensors: dict[str, Tensor]
    values: dict[str, Any]
    folder: Path | None = None
    warnings: list[str] = field(default_factory=list)


def write_state(root: Path, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> Path:
    """Write a state, switch to it, and remove all older ones but the last.

    Args:
        root: the run's `state` folder; created if missing.
        tensors: any tensors; they are copied to the host.
        values: JSON values without NaN or infinity.

    Returns:
        The folder of the new state.

    Raises:
        OutputError: if it cannot be written; the state before is then still the current one.
    """
    payload = serialize(tensors)
    body = json.dumps(values, allow_nan=False)
    document = {
        "format_version": FORMAT_VERSION,
        "tensors": {"bytes": len(payload), "blake2b": _digest(payload)},
        "blake2b": _digest(body.encode()),
        "values": values,
    }
    temporary = root / _TEMPORARY
    try:
        root.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        _write_file(temporary / _TENSORS, payload)
        _write_file(temporary / _VALUES, json.dumps(document, allow_nan=False).encode())
        sync_folder(temporary)
        folders = _folders(root)
        number = int(folders[-1].name) + 1 if folders else 1
        folder = root / f"{number:08d}"
        spare = _pointed(root)
        os.replace(temporary, folder)
        sync_folder(root)
        try:
            write_json(root / _POINTER, {"folder": folder.name})
        except OSError:
            shutil.rmtree(folder, ignore_errors=True)
            raise
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        why = getattr(error, "strerror", None) or error
        raise OutputError(
            f'The training state could not be saved in "{root}": {why}. The checkpoint before it is intact: '
            "free some space (or make the folder writable), then run the same command again to continue "
            "from it."
        ) from error
    for old in folders:
        if old.name != spare:
            shutil.rmtree(old, ignore_errors=True)
    return folder


def read_state(root: Path) -> State | None:
    """Return the current state of a run, or None if there is none.

    A damaged state is passed over for an older intact one, with a warning.

    Raises:
        CheckpointError: if there are states but none can be read.
    """
    folders = _folders(root) if root.is_dir() else []
    if not folders:
        return None
    current = _pointed(root)
    # A folder newer than the one pointed at is complete, but was not switched to before a kill.
    newest_first = sorted(folders, key=lambda folder: (folder.name == current, folder.name), reverse=True)
    problems: list[str] = []
    for folder in newest_first:
        try:
            state = _read_folder(folder)
        except CheckpointError as error:
            problems.append(str(error))
            continue
        state.warnings = [f"{problem} Continuing from an older state instead." for problem in problems]
        return state
    raise CheckpointError(
        f'No training state in "{root}" can be read: {" ".join(problems)} '
        f'Delete the folder "{root}" to train from the start, or use a new run folder. '
        "A model.safetensors beside it can still generate."
    )


class _Tensors(TypedDict):
    bytes: int
    blake2b: str


class _Document(TypedDict):
    format_version: int
    tensors: _Tensors
    blake2b: str
    values: dict[str, Any]


def _read_folder(folder: Path) -> State:
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        document = parse_record((folder / _VALUES).read_text(encoding="utf-8"), _Document)
        version = document["format_version"]
        if version > FORMAT_VERSION:
            raise CheckpointError(
                f'The training state "{folder}" has format {version}, but this fewgen reads up to '
                f"{FORMAT_VERSION}. Update fewgen."
            )
        values = document["values"]
        payload = (folder / _TENSORS).read_bytes()
        whole = len(payload) == document["tensors"]["bytes"]
        same = _digest(payload) == document["tensors"]["blake2b"]
        same = same and _digest(json.dumps(values).encode()) == document["blake2b"]
        if not (whole and same):
            raise CheckpointError(f'The training state "{folder}" is {"damaged" if whole else "truncated"}.')
        return State(load(payload), values, folder)
    except OSError as error:
        raise CheckpointError(
            f'The training state "{folder}" cannot be read: {error.strerror or error}.'
        ) from error
    except (ValueError, TypeError, KeyError, SafetensorError) as error:
        raise CheckpointError(f'The training state "{folder}" is damaged ({error}).') from error


def _pointed(root: Path) -> str | None:
    """Return the name of the current state's folder, None if the pointer is missing or damaged."""
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        return str(parse_json((root / _POINTER).read_bytes())["folder"])
    return None


def _folders(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if _FOLDER.match(path.name))


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def _write_file(path: Path, data: bytes) -> None:
    with open(path, "wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
    if path.stat().st_size != len(data):
        raise OSError(f"only {path.stat().st_size} of {len(data)} bytes were written")
