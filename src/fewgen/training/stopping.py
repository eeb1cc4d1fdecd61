"""Requests to stop: Ctrl-C, SIGTERM, or a call."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any


class StopRequest:
    """Ctrl-C and SIGTERM ask for a stop at the next step; a second Ctrl-C stops at once."""

    def __init__(self, announce: Callable[[str], None]) -> None:
        self.asked = False
        self._announce = announce
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        # Python allows signal handlers in the main thread only; elsewhere `Trainer.stop` does it.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self.asked = False

    def _handle(self, number: int, _: FrameType | None) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = True
        with suppress(RuntimeError):  # the signal may have come in the middle of another print
            self._announce("Stopping after this step and saving; press Ctrl-C again to stop without saving.")
