"""Names of methods and where they live. Free of torch, so that the command line lists them at once."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from fewgen.errors import ConfigError, suggest

if TYPE_CHECKING:
    from fewgen.methods.base import Method

MODULES: dict[str, str] = {
    "cada_vqvae": "fewgen.methods.cada_vqvae",
    "diffusion": "fewgen.methods.diffusion",
    "sq_gan": "fewgen.methods.sq_gan",
    "tint": "fewgen.methods.tint",
}
"""Method name -> module that registers it when imported."""

_REGISTERED: dict[str, type[Method]] = {}

M = TypeVar("M", bound="type[Method]")


def register(name: str) -> Callable[[M], M]:
    """Return a class decorator that makes a method known under `name`.

    Raises:
        ConfigError: if another class already has this name.
    """

    def decorate(cls: M) -> M:
        other = _REGISTERED.get(name)
        # The same class may come again when its module is reloaded.
        if other is not None and other.__qualname__ != cls.__qualname__:
            raise ConfigError(
                f'The method name "{name}" belongs to {other.__module__}.{other.__qualname__}; '
                f"{cls.__module__}.{cls.__qualname__} needs another one."
            )
        cls.name = name
        _REGISTERED[name] = cls
        return cls

    return decorate


def method_names() -> tuple[str, ...]:
    """Return the names of all methods, sorted."""
    return tuple(sorted(set(MODULES) | set(_REGISTERED)))


def get_method(name: str) -> type[Method]:
    """Return the class of a method, importing its module if need be.

    Raises:
        ConfigError: if there is no such method; names the closest.
    """
    if name not in _REGISTERED:
        if name not in MODULES:
            known = ", ".join(method_names())
            raise ConfigError(
                f'There is no method "{name}".{suggest(name, method_names())} Known methods: {known}.'
            )
        importlib.import_module(MODULES[name])
        if name not in _REGISTERED:
            raise RuntimeError(f'{MODULES[name]} did not register the method "{name}"')
    return _REGISTERED[name]
