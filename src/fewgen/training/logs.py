"""Where figures go while training: `metrics.jsonl`, the terminal, and TensorBoard on request."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from fewgen.errors import MissingDependencyError, OutputError


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


class Display:
    """Shows progress: a bar on a terminal, a line every few seconds elsewhere, or nothing.

    Args:
        show: False shows warnings only.
        stream: default: standard error, so that standard output stays free for results.
        seconds_between_lines: without a terminal.
    """

    def __init__(
        self, show: bool = True, stream: TextIO | None = None, seconds_between_lines: float = 10.0
    ) -> None:
        self.show = show
        self.stream = stream if stream is not None else sys.stderr
        self.between = seconds_between_lines
        self._bar: Any = None
        self._task: Any = None
        self._stage = ""
        self._steps = 0
        self._last_line = 0.0
        self._last_bar = 0.0
        self._figures = ""

    def start_stage(self, name: str, done: int, steps: int, summary: str = "") -> None:
        """Announce a stage."""
        self._stop_bar()
        self._stage, self._steps, self._figures = name, steps, ""
        if not self.show:
            return
        if self.stream.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[figures]}"),
                console=Console(file=self.stream),
                refresh_per_second=4,
            )
            self._bar.start()
            self._task = self._bar.add_task(name, total=steps, completed=done, figures="")
        else:
            self._print(f"{name}: {steps} steps{f', from {done}' if done else ''}. {summary}".rstrip())
            self._last_line = time.monotonic()

    def update(self, done: int, steps: int, figures: Mapping[str, float] | None = None) -> None:
        """Show how far the stage is; cheap enough for every step."""
        if not self.show:
            return
        if figures is not None:
            self._figures = "  ".join(f"{name} {value:.4g}" for name, value in figures.items())
        now = time.monotonic()
        if self._bar is not None:
            if now - self._last_bar > 0.1 or done == steps:
                self._bar.update(self._task, completed=done, total=steps, figures=self._figures)
                self._last_bar = now
        elif figures is not None and (now - self._last_line > self.between or done == steps):
            self._print(f"{self._stage} {done}/{steps}  {self._figures}")
            self._last_line = now

    def note(self, text: str) -> None:
        """Show a line."""
        if self.show:
            self._print(text)

    def warn(self, text: str) -> None:
        """Show a warning, even when progress is off."""
        self._print(f"warning: {text}")

    def close(self) -> None:
        """Finish the bar."""
        self._stop_bar()

    def _stop_bar(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _print(self, text: str) -> None:
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=self.stream, flush=True)
