"""Classes that no task has shown before, made of those at hand.

With few base classes and fixed words, a network learns each class by heart and solves every task without
adapting, so meta-training teaches it nothing. Here some classes of a task get a word that never
occurred and come turned or mirrored: only the support says what they look like.

Source: turned images as further classes: Santoro et al. 2016, "Meta-learning with memory-augmented neural
    networks", Sec. 4.1; the fault that this mends: Yin et al. 2020, arXiv:1912.03820, Sec. 3.
Differs: words drawn anew, and mirrored images, are our additions.
"""

from __future__ import annotations

import torch
from torch import Tensor

LIKENESS = 0.7
"""Largest share of a known word in a new one. Word vectors of related things resemble each other, and
so will the words of classes that come later."""


def symmetries(height: int, width: int) -> int:
    """Return how many ways of turning and mirroring keep the shape of an image: 8, or 4 if not square."""
    return 8 if height == width else 4


def turned(images: Tensor, k: int) -> Tensor:
    """Return images turned and mirrored in the k-th way; 0 leaves them as they are.

    Args:
        images: (B, C, H, W).
        k: in [0, symmetries(H, W)): 0 to 3 are identity, half a turn, and both mirrored; 4 to 7 the same
            after a quarter turn.
    """
    if k & 4:
        images = images.rot90(1, (-2, -1))
    if k & 1:
        images = images.rot90(2, (-2, -1))
    return images.flip(-1) if k & 2 else images


def new_words(table: Tensor, n: int, rng: torch.Generator) -> Tensor:
    """Return vectors of words that do not exist, (n, D): random directions, in part like known words.

    Args:
        table: vectors of the known classes, (n_classes, D), on the device of `rng`.
        n: how many.
        rng: of the draws.

    Returns:
        (n, D), about as long as the rows of the table.
    """
    length = table.norm(dim=1).mean()
    direction = torch.nn.functional.normalize(
        torch.randn(n, table.shape[1], generator=rng, device=rng.device, dtype=table.dtype), dim=1
    )
    likeness = LIKENESS * torch.rand(n, 1, generator=rng, device=rng.device, dtype=table.dtype)
    like = torch.randint(len(table), (n,), generator=rng, device=rng.device)
    return (1.0 - likeness.square()).sqrt() * length * direction + likeness * table[like]
