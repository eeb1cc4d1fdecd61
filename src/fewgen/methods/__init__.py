"""Published systems behind one interface; `method_names()` answers without importing torch."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from fewgen.methods.registry import get_method, method_names, register

if TYPE_CHECKING:
    from fewgen.methods.base import DataSpec, Method
    from fewgen.methods.store import load_method, read_method_info

__all__ = [
    "DataSpec",
    "Method",
    "get_method",
    "load_method",
    "method_names",
    "read_method_info",
    "register",
]


_HOMES = {"DataSpec": "base", "Method": "base", "load_method": "store", "read_method_info": "store"}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"fewgen.methods.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
