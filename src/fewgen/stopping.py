"""Requests to stop: Ctrl-C, the signals of schedulers and of a closed terminal, or a call."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from types import FrameType
from typing import Any


def _stop_signals() -> list[int]:
    """Return the signals besides Ctrl-C that ask for a stop.

    SIGTERM comes from schedulers, SIGUSR1 from SLURM if asked for, SIGHUP from a terminal that is closed. One
    that is ignored stays so: `nohup` ignores SIGHUP.
    """
    known = [getattr(signal, name, None) for name in ("SIGTERM", "SIGHUP", "SIGUSR1")]
    return [n for n in known if n is not None and signal.getsignal(n) not in (signal.SIG_IGN, None)]


def _in_main_thread() -> bool:
    """Tell whether Python allows signal handlers here."""
    return threading.current_thread() is threading.main_thread()


class StopRequest:
    """Ctrl-C and the like ask for a stop at the next step; a second Ctrl-C stops at once."""

    def __init__(self, announce: Callable[[str], None]) -> None:
        self.asked = False
        self._at_once = False
        self._announce = announce
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if _in_main_thread():  # elsewhere `Trainer.stop` does it
            for number in (signal.SIGINT, *_stop_signals()):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self.asked = False

    @contextlib.contextmanager
    def at_once(self, allowed: bool = True) -> Iterator[None]:
        """Within the block a request interrupts, if allowed: what is computed there is not saved anyhow."""
        self._at_once = allowed
        try:
            yield
        finally:
            self._at_once = False

    def _handle(self, number: int, _: FrameType | None) -> None:
        if self._at_once or (self.asked and number == signal.SIGINT):
            self.asked, self._at_once = True, False
            raise KeyboardInterrupt
        self.asked = True
        with suppress(RuntimeError):  # the signal may have come in the middle of another print
            self._announce("Stopping after this step and saving; press Ctrl-C again to stop without saving.")


@contextlib.contextmanager
def signals_interrupt() -> Iterator[None]:
    """Within the block signals that ask for a stop interrupt as Ctrl-C does, so that nothing half is left.

    Only the first one does: another must not interrupt the tidying.
    """
    before: dict[int, Any] = {}

    def interrupt(*_: object) -> None:
        for number in before:
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    try:
        if _in_main_thread():
            for number in _stop_signals():
                before[number] = signal.signal(number, interrupt)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
