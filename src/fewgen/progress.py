"""Ways to say what is being done, how far it is, and how long it still takes: on a terminal, and as lines."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, TextIO

from fewgen.clock import Limit

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


def shown_seconds(seconds: float) -> str:
    """Return a time as a reader writes it: seconds, minutes or hours.

    >>> shown_seconds(42.3), shown_seconds(600), shown_seconds(9000)
    ('42 s', '10 min', '2.5 h')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def within(progress: Progress | None, limit: Limit) -> Progress | None:
    """Return a progress that stops what reports to it once the limit is over, by a `TimeIsUp`."""
    if limit.minutes is None:
        return progress

    def told(part: str, share: float) -> None:
        limit.check()
        if progress is not None:
            progress(part, share)

    return told


class ShownProgress(_Shown):
    """Says what is being done as a sentence with a count and a time left.

    A terminal shows one line that moves; elsewhere there is a line for each part, and more in long ones.

    Args:
        show: False shows nothing.
        stream: where to; None for standard error.
        what: begins the sentence, such as "Measuring", where `parts` are known.
        parts: parts in their order -> seconds that each will take.
        between: seconds between two lines of one part, without a terminal.
    """

    def __init__(
        self,
        show: bool = True,
        stream: TextIO | None = None,
        *,
        what: str = "Measuring",
        parts: Mapping[str, float] | None = None,
        between: float = 10.0,
    ) -> None:
        super().__init__(show, stream)
        self.what, self.parts, self.between = what, dict(parts or {}), between
        self.part = ""
        self._begun = self._since = self._last = time.monotonic()

    def __call__(self, part: str, share: float) -> None:
        """Take note that `share` of a part is done."""
        now = time.monotonic()
        new = part != self.part
        if new:
            self.part, self._since = part, now
        if not self.show or not (self.terminal or new or now - self._last > self.between):
            return
        self._last = now
        text = self._sentence(share, now)
        if self.terminal:
            self.rewrite(text)
        else:
            self.line(text)

    def _sentence(self, share: float, now: float) -> str:
        names = list(self.parts)
        if self.part not in self.parts:
            text = f"{self.part[:1].upper()}{self.part[1:]}"
        else:
            text = f"{self.what} {names.index(self.part) + 1} of {len(names)}: {self.part}"
        left = self._left(share, now)
        if left is None:
            return f"{text}, {share:.0%} done" if share > 0 else text
        return f"{text}, {shown_seconds(left)} left"

    def _left(self, share: float, now: float) -> float | None:
        """Seconds that are left, of all parts where they are known; None if nothing tells."""
        if self.part not in self.parts:
            return (now - self._since) * (1 - share) / share if share > 0.05 else None
        names, seconds = list(self.parts), list(self.parts.values())
        index = names.index(self.part)
        done = sum(seconds[:index]) + share * seconds[index]
        # How much faster or slower than expected it has gone so far, once there is something to see.
        pace = (now - self._begun) / done if done > 1.0 else 1.0
        return max(0.0, sum(seconds) - done) * min(max(pace, 0.2), 10.0)

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
        self._begun = (0, 0.0)

    def start_stage(self, name: str, done: int, steps: int, summary: str = "") -> None:
        """Announce a stage."""
        self.close()
        self._stage, self._figures, self._begun = name, "", (done, time.monotonic())
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
            self._task = self._bar.add_task(f"Training {name}", total=steps, completed=done, figures="")
        else:
            since = f", from {done}" if done else ""
            self._print(f"Training {name}: {steps} steps{since}. {summary}".rstrip())
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
            left = self._left(done, steps, now)
            self._print(f"Training {self._stage}: step {done} of {steps}{left}  {self._figures}")
            self._last_line = now

    def _left(self, done: int, steps: int, now: float) -> str:
        begun, since = self._begun
        if done <= begun:
            return ""
        return f", {shown_seconds((now - since) / (done - begun) * (steps - done))} left"

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
