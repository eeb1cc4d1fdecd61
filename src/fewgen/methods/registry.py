"""Names of methods and where they live. Free of torch, so that the command line lists them at once."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from fewgen import plugins
from fewgen.errors import ConfigError, suggest

if TYPE_CHECKING:
    from fewgen.methods.base import Method

MODULES: dict[str, str] = {
    "cada_vqvae": "fewgen.methods.cada_vqvae",
    "diffusion": "fewgen.methods.diffusion",
    "sq_gan": "fewgen.methods.sq_gan",
    "tage": "fewgen.methods.tage",
    "tint": "fewgen.methods.tint",
}
"""Method name -> module that registers it when imported. Other packages add entry points of `GROUP`."""

GROUP = "fewgen.methods"

_REGISTERED: dict[str, type[Method]] = {}

M = TypeVar("M", bound="type[Method]")


def register(name: str) -> Callable[[M], M]:
    """Return a class decorator that makes a method known under `name`.

    Raises:
        ConfigError: if another class already has this name.
    """

    def decorate(cls: M) -> M:
        other, home = _REGISTERED.get(name), MODULES.get(name)
        owner = ""
        # The same class may come again when its module is reloaded.
        if other is not None and other.__qualname__ != cls.__qualname__:
            owner = f"{other.__module__}.{other.__qualname__}"
        elif home is not None and not cls.__module__.startswith(home):
            owner = home
        if owner:
            raise ConfigError(
                f'The method name "{name}" belongs to {owner}; '
                f"{cls.__module__}.{cls.__qualname__} needs another one."
            )
        cls.name = name
        _REGISTERED[name] = cls
        return cls

    return decorate


def method_names() -> tuple[str, ...]:
    """Return the names of all methods, those of other packages among them, sorted."""
    return tuple(sorted({*MODULES, *_REGISTERED, *plugins.find(GROUP, MODULES)}))


def method_origin(name: str) -> str:
    """Return the package that a method comes from, with its version; "" for fewgen's own."""
    point = plugins.find(GROUP, MODULES).get(name)
    return plugins.package(point) if point else ""


def get_method(name: str) -> type[Method]:
    """Return the class of a method, importing its module if need be.

    Raises:
        ConfigError: if there is no such method (names the closest), or that of another package is broken.
    """
    if name in _REGISTERED:
        return _REGISTERED[name]
    point = None if name in MODULES else plugins.find(GROUP, MODULES).get(name)
    if point is not None:
        plugins.load(point)
    elif name in MODULES:
        importlib.import_module(MODULES[name])
    else:
        known = ", ".join(method_names())
        raise ConfigError(
            f'There is no method "{name}".{suggest(name, method_names())} Known methods: {known}.'
        )
    if name not in _REGISTERED:
        where = point.value if point else MODULES[name]
        raise ConfigError(f'{where} holds no class with @register("{name}").')
    return _REGISTERED[name]
