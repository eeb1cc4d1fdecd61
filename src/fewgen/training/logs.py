"""Where figures go while training: `metrics.jsonl`, and TensorBoard on request."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fewgen.errors import MissingDependencyError, OutputError
from fewgen.files import atomic_write


class MetricsFile:
    """Appends one JSON object per line, and can be cut back to where a checkpoint was made.

    Args:
        path: the file; created if missing.
        keep_bytes: what follows is removed, because the steps it tells of will be taken again.

    Raises:
        OutputError: if it cannot be written.
    """

    def __init__(self, path: Path, keep_bytes: int = 0) -> None:
        self.path = path
        with self._explained():
            if path.is_symlink():  # a file of its own, so that what the link points to stays as it is
                kept = path.read_bytes() if path.exists() else b""
                with atomic_write(path) as temporary:
                    temporary.write_bytes(kept)
            self._stream = open(path, "ab")  # noqa: SIM115 - open for the length of the run
            if self._stream.seek(0, os.SEEK_END) > keep_bytes:
                self._stream.truncate(keep_bytes)
                self._stream.seek(0, os.SEEK_END)

    def write(self, line: Mapping[str, Any]) -> None:
        """Append a line. NaN and infinity, which JSON does not know, become null.

        Raises:
            OutputError: if the disk is full.
        """
        clean = {key: None if _not_finite(value) else value for key, value in line.items()}
        with self._explained():
            self._stream.write((json.dumps(clean, ensure_ascii=False) + "\n").encode())
            self._stream.flush()

    def sync(self) -> int:
        """Flush to the disk and return the length in bytes."""
        with self._explained():
            self._stream.flush()
            os.fsync(self._stream.fileno())
            return self._stream.seek(0, os.SEEK_END)

    def close(self) -> None:
        """Close the file."""
        with self._explained():
            self._stream.close()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OutputError(
                f'Cannot write "{self.path}": {error.strerror or error}. The last checkpoint is intact; '
                "run the same command again to continue from it."
            ) from error


def _not_finite(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


class TensorBoard:
    """Optional TensorBoard files.

    Raises:
        MissingDependencyError: if the package tensorboard is not installed.
    """

    def __init__(self, folder: Path, purge_step: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise MissingDependencyError(
                'tensorboard is on, but the package is missing. Install "fewgen[tensorboard]", or turn '
                "it off."
            ) from error
        self._writer = SummaryWriter(str(folder), purge_step=purge_step)  # type: ignore[no-untyped-call]

    def write(self, step: int, prefix: str, values: Mapping[str, Any]) -> None:
        """Add those values that are figures, as prefix/name, at a step of the whole run."""
        for name, value in values.items():
            if isinstance(value, float):
                self._writer.add_scalar(f"{prefix}/{name}", value, step)  # type: ignore[no-untyped-call]

    def close(self) -> None:
        """Flush and close."""
        self._writer.close()  # type: ignore[no-untyped-call]
