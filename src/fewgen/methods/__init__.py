"""Published systems behind one interface; `method_names()` answers without importing torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fewgen.methods.registry import get_method, method_names, register

if TYPE_CHECKING:
    from fewgen.methods.base import DataSpec, Method, load_method, read_method_info

__all__ = [
    "DataSpec",
    "Method",
    "get_method",
    "load_method",
    "method_names",
    "read_method_info",
    "register",
]


def __getattr__(name: str) -> Any:
    if name in ("DataSpec", "Method", "load_method", "read_method_info"):
        from fewgen.methods import base

        return getattr(base, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
