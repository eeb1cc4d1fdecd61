"""One random stream per image, from its own seed.

Image i depends on its own seed alone: not on the batch size, the order of the images, the device or the
images beside it. That rules out drawing a batch from one random state. Every number here is a pure
function of (seed, stream, position) instead, computed by Philox 4x32-10 for all images at once, which is
as fast as a batch draw.

Source: Salmon, Moraes, Dror, Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3" (Philox 4x32-10);
Box, Muller 1958, "A note on the generation of random normal deviates".
Differs: the counter holds the position inside the image and the stream number, the key holds the seed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fewgen.errors import ConfigError, DataError

_LOW = np.uint64(0xFFFFFFFF)


_HALF = np.uint64(32)


_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))


_WEYL = (0x9E3779B9, 0xBB67AE85)


_ROUNDS = 10


_CHUNK_BLOCKS = 1 << 16
"""Blocks computed at a time: the working arrays stay inside the processor's cache."""


def image_rngs(seeds: Tensor | Sequence[int], stream: int = 0) -> list[torch.Generator]:
    """Return one `torch.Generator` per image, for draws that are sequential or of unknown length.

    `noise` and `uniform` are much faster when the number of draws is known. torch reads 32 bits of a
    seed, so the seed is mixed by Philox first: nearby seeds give unrelated generators.
    """
    mixed = _random_words(seeds, n_words=1, stream=stream, domain=1)[:, 0]
    return [torch.Generator().manual_seed(int(word)) for word in mixed]


def uniform(seeds: Tensor | Sequence[int], shape: Sequence[int], stream: int = 0) -> Tensor:
    """Return numbers uniform on [0, 1), float32 (N, *shape); row i depends on `seeds[i]` alone.

    Args:
        seeds: one per image, (N,).
        shape: of one image's draw.
        stream: separates different uses within one image; the same stream gives the same numbers.
    """
    values = _random_words(seeds, math.prod(shape), stream)
    # 24 bits are what a float32 below 1 holds exactly; rounding 32 bits could give 1.0.
    numbers = (values >> np.uint32(8)).astype(np.float32) * np.float32(2.0**-24)
    return torch.from_numpy(numbers).reshape(len(seeds), *shape)


def noise(seeds: Tensor | Sequence[int], shape: Sequence[int], stream: int = 0) -> Tensor:
    """Return draws from N(0, 1), float32 (N, *shape); row i depends on `seeds[i]` alone.

    Two 32-bit words make two normal numbers (Box-Muller in float64), so the largest possible value is
    6.8 standard deviations, beyond which one number in 10^11 would lie.

    Args:
        seeds: one per image, (N,).
        shape: of one image's draw.
        stream: separates different uses within one image; the same stream gives the same numbers.

    >>> together = noise([1, 2, 3], (4,))
    >>> bool((noise([2], (4,))[0] == together[1]).all())
    True
    """
    n_numbers = math.prod(shape)
    n_pairs = (n_numbers + 1) // 2
    words = _random_words(seeds, 2 * n_pairs, stream).astype(np.float64)
    words += 0.5
    words *= 2.0**-32  # strictly inside (0, 1): the logarithm stays finite
    radius = np.sqrt(-2.0 * np.log(np.ascontiguousarray(words[:, 0::2])))
    angle = np.ascontiguousarray(words[:, 1::2]) * (2.0 * math.pi)
    numbers = np.empty((len(words), 2 * n_pairs), dtype=np.float32)
    numbers[:, 0::2] = radius * np.cos(angle)
    numbers[:, 1::2] = radius * np.sin(angle)
    return torch.from_numpy(np.ascontiguousarray(numbers[:, :n_numbers])).reshape(len(seeds), *shape)


def _random_words(seeds: Tensor | Sequence[int], n_words: int, stream: int, domain: int = 0) -> np.ndarray:
    """Return random 32-bit words, uint32 (N, n_words), word j of row i a function of (seeds[i], stream, j).

    `domain` keeps `image_rngs` apart from `noise` and `uniform` of the same stream.
    """
    if not 0 <= stream < 2**32:
        raise ConfigError(f"stream must be between 0 and 2**32 - 1, got {stream}.")
    n_blocks = (n_words + 3) // 4
    keys = seed_tensor(seeds).numpy().astype(np.uint64)
    out = np.empty((len(keys), n_blocks, 4), dtype=np.uint32)
    rows = max(1, _CHUNK_BLOCKS // max(1, n_blocks))
    position = np.arange(n_blocks, dtype=np.uint64)[None, :]
    for start in range(0, len(keys), rows):
        key = keys[start : start + rows, None]
        counter = (position & _LOW, position >> _HALF, np.uint64(stream), np.uint64(domain))
        out[start : start + rows] = philox(counter, (key & _LOW, key >> _HALF))
    return out.reshape(len(seeds), 4 * n_blocks)[:, :n_words]


def philox(counter: Sequence[Any], key: Sequence[Any]) -> np.ndarray:
    """Return the four 32-bit words of Philox 4x32-10 for counters and keys that broadcast together.

    Args:
        counter: four uint64 arrays holding 32-bit words.
        key: two uint64 arrays holding 32-bit words.

    Returns:
        uint64 array (..., 4) holding 32-bit words.

    Source: Salmon et al. 2011, section 3.4; the tests compare with the known answers of Random123.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for round_index in range(_ROUNDS):
        if round_index:
            k0 = (k0 + np.uint64(_WEYL[0])) & _LOW
            k1 = (k1 + np.uint64(_WEYL[1])) & _LOW
        left, right = _MULTIPLIERS[0] * c0, _MULTIPLIERS[1] * c2
        c0, c1, c2, c3 = (right >> _HALF) ^ c1 ^ k0, right & _LOW, (left >> _HALF) ^ c3 ^ k1, left & _LOW
    return np.stack(np.broadcast_arrays(c0, c1, c2, c3), axis=-1)


def seed_tensor(seeds: Tensor | Sequence[int]) -> Tensor:
    """Return seeds as int64 (N,) on the processor, or say which is none."""
    if isinstance(seeds, Tensor):
        if seeds.is_floating_point() or seeds.dtype == torch.bool:
            raise DataError(f"seeds must be whole numbers, got a tensor of {seeds.dtype}.")
        return seeds.detach().to("cpu", torch.int64).reshape(-1)
    values = list(seeds)
    if not all(isinstance(value, (int, np.integer)) and not isinstance(value, bool) for value in values):
        raise DataError(f"seeds must be whole numbers, got {values[:5]}.")
    if any(not -(2**63) <= value < 2**63 for value in values):
        raise DataError("seeds must fit into 64 bits.")
    return torch.tensor(values, dtype=torch.int64)
