"""Independent random streams from one seed, named by their use."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def derive_seed(*parts: object) -> int:
    """Return a seed in [0, 2**63) that depends on every part, equal on all machines.

    >>> derive_seed(0, "sampler", 1) == derive_seed(0, "sampler", 1)
    True
    >>> derive_seed(0, "sampler", 1) == derive_seed(0, "sampler", 2)
    False
    """
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def make_rng(device: torch.device | str, *parts: object) -> torch.Generator:
    """Return a `torch.Generator` on `device`, seeded from `parts`."""
    return torch.Generator(device=device).manual_seed(derive_seed(*parts))


@contextmanager
def global_seed(device: torch.device, *parts: object) -> Iterator[None]:
    """Seed torch's global random state inside the block; afterwards it is as it was before.

    Dropout and layers without an `rng` draw from the global state. Isolating it keeps validation,
    previews and the caller's own draws from shifting the training's random numbers.
    """
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices, enabled=True):
        torch.manual_seed(derive_seed(*parts))
        yield
