"""Networks that a file or a flag asks for: what they would be, before memory and time are spent."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as hooks

from fewgen.errors import ConfigError, is_out_of_memory

MOST_TENSORS = 100_000
"""Of a network; the largest in use have some thousands."""


@contextlib.contextmanager
def bounded(n_tensors: int = MOST_TENSORS) -> Iterator[None]:
    """Stop the building of a network within the block that has more parts than it can need.

    Args:
        n_tensors: that it may have; as many modules, and some more, may be around them.

    Raises:
        ConfigError: there are more, after the time that building so many takes.
    """
    counted = {"parameters": 0, "modules": 0}

    def count(what: str, most: int) -> Callable[..., None]:
        def hook(parent: nn.Module, name: str, part: Any) -> None:
            counted[what] += 1
            if counted[what] > most:
                raise ConfigError(f"The settings ask for a network of more than {most:,} {what}.")

        return hook

    handles = [
        hooks.register_module_parameter_registration_hook(count("parameters", n_tensors)),
        hooks.register_module_module_registration_hook(count("modules", 8 * n_tensors + 1000)),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def shapes_of(build: Callable[[], nn.Module], n_tensors: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a network's tensors, without allocating them.

    A hostile file may ask for a network of any size: on the meta device width costs nothing, and depth ends
    with the number of tensors that the file has.

    Args:
        build: returns the network.
        n_tensors: that the file holds.

    Raises:
        ConfigError: the network has many more, or one that no memory holds.
    """
    try:
        with torch.device("meta"), bounded(2 * n_tensors + 1000):
            return {name: tuple(value.shape) for name, value in build().state_dict().items()}
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise ConfigError("The settings ask for a network beyond any memory.") from error
