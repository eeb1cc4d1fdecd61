"""What this process holds in memory, by the counters of the system."""

from __future__ import annotations

import contextlib
import resource
import sys
from pathlib import Path


def forget_peak() -> None:
    """Let `peak_megabytes` count from now on, where the system can."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_megabytes() -> float:
    """Return the most memory this process has held, in MiB, since `forget_peak` where the system can."""
    # A counter of this program alone; that of getrusage starts with the memory of the parent process.
    found = _counter("VmHWM")
    if found is not None:
        return found
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def resident_megabytes() -> float | None:
    """Return the memory that this process holds now, in MiB; None where the system does not say."""
    return _counter("VmRSS")


def _counter(name: str) -> float | None:
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) / 2**10
    except OSError:
        pass
    return None
