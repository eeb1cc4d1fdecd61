"""Import paths of version 0.1 that moved: they keep working for one release, with a warning.

A folder of the package was called like the function that it serves (`fewgen.evaluate`), so that Python hid
one behind the other. Folders are nouns now, and the function has its name for itself.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

MODULES = {
    "fewgen.api.prepare": "fewgen.runs.preparing",
    "fewgen.api.run": "fewgen.runs.run",
    "fewgen.benchmark": "fewgen.comparison",
    "fewgen.data.adversarial_augment": "fewgen.data.adversarial",
    "fewgen.distill": "fewgen.distillation",
    "fewgen.evaluate": "fewgen.evaluation",
    "fewgen.evaluate.aligned": "fewgen.evaluation",
    "fewgen.evaluate.features": "fewgen.evaluation",
    "fewgen.generate": "fewgen.generation",
    "fewgen.text.encoders": "fewgen.encoders.named",
    "fewgen.text.glove": "fewgen.encoders.glove",
    "fewgen.text.transformer": "fewgen.encoders.text_transformer",
    "fewgen.training.seeds": "fewgen.fitting.seeds",
}
"""Old module -> the one that holds its definitions now; what is below an old package is below the new one."""

FROM_API = ("Run", "benchmark", "distill", "load_run", "plan")
"""Names that were in `fewgen.api` too; they are in `fewgen`."""


def new_path(name: str) -> str | None:
    """Return where a module is now, or None for one that did not move.

    >>> new_path("fewgen.evaluate.distances"), new_path("fewgen.evaluation")
    ('fewgen.evaluation.distances', None)
    """
    parts = name.split(".")
    for n in range(len(parts), 1, -1):
        old = ".".join(parts[:n])
        if old in MODULES:
            return ".".join([MODULES[old], *parts[n:]])
    return None


def install() -> None:
    """Let Python find the old paths."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())  # first: an old folder that holds only __pycache__ would be found


def from_api(name: str) -> Any:
    """Return a name that `fewgen.api` no longer holds; the `__getattr__` of that package."""
    if name not in FROM_API:
        raise AttributeError(f"module 'fewgen.api' has no attribute {name!r}")
    _warn(f"fewgen.api.{name}", f"fewgen.{name}")
    return getattr(sys.modules["fewgen"], name)


def _warn(old: str, new: str) -> None:
    text = f"{old} is now {new}; the old path goes with the next release."
    warnings.warn(text, DeprecationWarning, stacklevel=3)


class _Old(ModuleType):
    """An old path. It is called as the function whose name it has, for Python puts it in that place."""

    def __getattr__(self, name: str) -> Any:
        if name == "__wrapped__":  # where `inspect` looks for the signature
            return sys.modules["fewgen"].__getattr__(self.__name__.removeprefix("fewgen."))
        if name.startswith("__") and name != "__all__":
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module(str(new_path(self.__name__))), name)

    def __call__(self, *args: Any, **keywords: Any) -> Any:
        return self.__wrapped__(*args, **keywords)


class _Finder:
    """Finds old paths, and makes modules of them that hand on what is at the new ones."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        new = new_path(name)
        if new is None:
            return None
        _warn(name, new)
        loader: Any = self  # its base class takes as long to import as the rest of `fewgen`
        return ModuleSpec(name, loader, is_package=True)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Old(spec.name, f"The old path of {new_path(spec.name)}.")

    def exec_module(self, module: ModuleType) -> None:
        importlib.import_module(str(new_path(module.__name__)))
