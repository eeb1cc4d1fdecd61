"""Published systems behind one interface; `method_names()` answers without importing torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fewgen.lazy import lazy_names
from fewgen.methods.registry import get_method, method_names, register

if TYPE_CHECKING:
    from fewgen.methods.base import DataSpec, Method
    from fewgen.methods.store import load_method, read_method_info

_HOMES = {
    "DataSpec": "fewgen.methods.base",
    "Method": "fewgen.methods.base",
    "load_method": "fewgen.methods.store",
    "read_method_info": "fewgen.methods.store",
}
__all__ = ["get_method", "method_names", "register", *_HOMES]
__getattr__ = lazy_names(__name__, _HOMES)
