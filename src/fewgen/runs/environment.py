"""What every result file records: command, commit, versions, processor, threads."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
import time
from pathlib import Path

LIBRARIES = (
    "fewgen", "torch", "numpy", "scipy", "scikit-learn", "joblib", "diffusers", "safetensors", "pillow",
)  # fmt: skip


def _git(*arguments: str) -> str | None:
    package = Path(__file__).resolve().parents[1]
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=package, capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


@functools.cache
def _checkout() -> tuple[str | None, bool | None]:
    """Return commit and whether tracked files differ from it; None unless git knows this very package.

    An installed package may lie inside the checkout of something else (a virtual environment in a
    project's folder), whose commit says nothing about it. Asked once: the code that runs is the code that
    was there at the start.
    """
    if not _git("ls-files", "--error-unmatch", "__init__.py"):
        return None, None
    changed = _git("status", "--porcelain", "--untracked-files=no")
    return _git("rev-parse", "HEAD"), None if changed is None else bool(changed)


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


COMMAND_VARIABLE = "FEWGEN_COMMAND"
"""Environment variable that tells worker processes the command that started them."""


def command_line() -> str:
    """Return the command of this process or the one it works for, without the place of the interpreter."""
    if os.environ.get(COMMAND_VARIABLE):
        return os.environ[COMMAND_VARIABLE]
    name = Path(sys.argv[0]).name
    module = getattr(sys.modules["__main__"], "__spec__", None)
    if module is not None:
        return shlex.join(["python", "-m", module.name.removesuffix(".__main__"), *sys.argv[1:]])
    return shlex.join([*(["fewgen"] if name == "fewgen" else ["python", name]), *sys.argv[1:]])


def environment() -> dict[str, object]:
    """Return command, commit, whether files differ from it, versions, hardware and load; JSON-ready."""
    import torch

    commit, changed = _checkout()
    return {
        "command": command_line(),
        "commit": commit,
        "changed_files": changed,
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
