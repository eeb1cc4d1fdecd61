"""What every result file records: command, commit, versions, processor, threads."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
import time
from pathlib import Path

LIBRARIES = ("fewgen", "torch", "numpy", "scipy", "scikit-learn", "diffusers", "safetensors", "pillow")


def _git(*arguments: str) -> str | None:
    root = Path(__file__).parent.parent
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=root, capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _memory_gb() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (ValueError, OSError, AttributeError):
        return None


def _version(library: str) -> str | None:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return None


def command_line() -> str:
    """Return the command of this process without the place of the interpreter and the scripts."""
    module = getattr(sys.modules["__main__"], "__spec__", None)
    start = f"-m {module.name.removesuffix('.__main__')}" if module else Path(sys.argv[0]).name
    return shlex.join(["python", *start.split(), *sys.argv[1:]])


def environment() -> dict[str, object]:
    """Return command, commit, whether files differ from it, versions, hardware and load; JSON-ready."""
    import torch

    changed = _git("status", "--porcelain", "--untracked-files=no")
    return {
        "command": command_line(),
        "commit": _git("rev-parse", "HEAD"),
        "changed_files": None if changed is None else bool(changed),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in LIBRARIES},
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gb": _memory_gb(),
        # Timings of a machine that others use too are to be read with this in mind.
        "load_1_5_15_minutes": [round(v, 2) for v in os.getloadavg()] if hasattr(os, "getloadavg") else None,
    }
