"""Ways to say what is being done, how far it is, and how long it still takes: on a terminal, and as lines."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, TextIO

Progress = Callable[[str, float], None]
"""Is told what is being done, and the share of it that is done, in [0, 1]."""


class _Shown:
    """Lines on a stream, standard error by default: standard output stays free for results."""

    def __init__(self, show: bool = True, stream: TextIO | None = None) -> None:
        self.show = show
        self.stream = stream if stream is not None else sys.stderr
        self.terminal = self.stream.isatty()

    def line(self, text: str) -> None:
        """Write a line."""
        print(text, file=self.stream, flush=True)

    def rewrite(self, text: str) -> None:
        """Write in place of the last line of a terminal."""
        print(f"\r\x1b[K{text}", end="", file=self.stream, flush=True)


class ShownProgress(_Shown):
    """Names the part that is being measured; on a terminal it rewrites one line."""

    part = ""

    def __call__(self, part: str, share: float) -> None:
        """Take note that `share` of a part is done."""
        if self.show and self.terminal:
            self.rewrite(f"{part} {share:.0%}")
        elif self.show and part != self.part:
            self.line(part)
        self.part = part

    def close(self) -> None:
        """Leave the line free for what follows."""
        if self.show and self.terminal and self.part:
            self.rewrite("")


class DownloadProgress(_Shown):
    """Says how far a download is: a moving line on a terminal, a line per tenth elsewhere."""

    last = -1

    def __call__(self, url: str, done: int, total: int | None) -> None:
        """Take note that `done` of `total` bytes are there."""
        percent = int(100 * done / total) if total else 0
        step = percent if self.terminal else percent // 10
        if step == self.last:
            return
        self.last = step
        text = f"{url.rsplit('/', 1)[-1]}: {done / 1e6:.1f}"
        text += f" of {total / 1e6:.1f} MB ({percent} %)" if total else " MB"
        if self.terminal:
            self.rewrite(text)
        if not self.terminal or done == total:
            self.line("" if self.terminal else text)


class Display(_Shown):
    """Shows progress: a bar on a terminal, a line every few seconds elsewhere, or nothing.

    Args:
        show: False shows warnings only.
        stream: where to; None for standard error.
        seconds_between_lines: without a terminal.
    """

    def __init__(
        self, show: bool = True, stream: TextIO | None = None, seconds_between_lines: float = 10.0
    ) -> None:
        super().__init__(show, stream)
        self.between = seconds_between_lines
        self._bar: Any = None
        self._task: Any = None
        self._stage = ""
        self._last_line = 0.0
        self._last_bar = 0.0
        self._figures = ""

    def start_stage(self, name: str, done: int, steps: int, summary: str = "") -> None:
        """Announce a stage."""
        self.close()
        self._stage, self._figures = name, ""
        if not self.show:
            return
        if self.terminal:
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
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _print(self, text: str) -> None:
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False)
        else:
            self.line(text)
