"""One way to say what is being done, how far it is, and how long it still takes."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    Progress = Callable[[str, float], None]


class ShownProgress:
    """Names the part that is being measured, on standard error; on a terminal it rewrites one line."""

    def __init__(self, show: bool) -> None:
        self.show, self.part, self.terminal = show, "", sys.stderr.isatty()

    def __call__(self, part: str, share: float) -> None:
        """Take note that `share` of a part is done."""
        if not self.show:
            return
        if self.terminal:
            print(f"\r\x1b[K{part} {share:.0%}", end="", file=sys.stderr, flush=True)
        elif part != self.part:
            print(part, file=sys.stderr, flush=True)
        self.part = part

    def close(self) -> None:
        """Leave the line free for what follows."""
        if self.show and self.terminal and self.part:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
