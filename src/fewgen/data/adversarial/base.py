"""What the augmentations of a discriminator's images share: a draw, and an interface that replays it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from fewgen.errors import ShapeError


@dataclass(frozen=True)
class Draw:
    """The random decisions for a batch; without more, the batch stays as it is.

    Attributes:
        n: number of images.
        shape: (C, H, W) of each image.
    """

    n: int
    shape: tuple[int, int, int]


def repeated(draw: Draw, times: int) -> Draw:
    """Return the decisions of a draw for `times` batches behind each other, (n times) images."""
    found = {field.name: getattr(draw, field.name) for field in fields(draw)}
    decisions: dict[str, Any] = {
        name: value.repeat(times, *[1] * (value.ndim - 1))
        for name, value in found.items()
        if isinstance(value, Tensor)
    }
    return replace(draw, n=draw.n * times, **decisions)


class AdversarialAugment(nn.Module):
    """Interface of the augmentations of this folder; this class itself changes nothing."""

    def draw(self, n: int, shape: Sequence[int], rng: torch.Generator) -> Draw:
        """Decide the change of each of `n` images.

        Args:
            n: number of images.
            shape: (C, H, W) of an image.
            rng: the source of every draw; the same state gives the same changes.

        Returns:
            What `replay` needs, on the device of `rng`.

        Raises:
            ShapeError: if `shape` is not (C, H, W) with positive sides.
        """
        return Draw(n, image_shape(shape))

    def replay(self, x: Tensor, draw: Draw) -> Tensor:
        """Carry out `draw` on images.

        Args:
            x: float, (n, C, H, W), in [-1, 1].
            draw: from `draw`, for this number and shape of images.

        Returns:
            Same shape and type, not clamped; `x` itself if nothing is to change.

        Raises:
            ShapeError: if `x` is not what `draw` was made for.
        """
        check_images(x, draw)
        return x

    def forward(self, x: Tensor, rng: torch.Generator) -> Tensor:
        """Return `x` (n, C, H, W) changed by a new draw.

        Raises:
            ShapeError: if `x` is not a batch of floating-point images.
        """
        if x.ndim != 4:
            raise ShapeError(f"Augmentation needs images (B, C, H, W), got {tuple(x.shape)}.")
        return self.replay(x, self.draw(len(x), x.shape[1:], rng))

    def update(self, real_logits: Tensor) -> None:
        """Hear what the discriminator said about real images, once per step of it; ignored here."""


def image_shape(shape: Sequence[int]) -> tuple[int, int, int]:
    """Return the shape as a tuple; raises `ShapeError` unless it is (C, H, W) with positive sides."""
    if len(shape) != 3 or min(shape) < 1:
        raise ShapeError(f"The shape of an image is (C, H, W) with positive sides, got {tuple(shape)}.")
    return int(shape[0]), int(shape[1]), int(shape[2])


def check_images(x: Tensor, draw: Draw, kind: type[Draw] = Draw) -> None:
    """Raise `TypeError` for a draw of another augmentation, `ShapeError` for images it was not made for."""
    if type(draw) is not Draw and not isinstance(draw, kind):
        raise TypeError(f"This augmentation takes a {kind.__name__}, got a {type(draw).__name__}.")
    wanted = (draw.n, *draw.shape)
    if tuple(x.shape) != wanted:
        raise ShapeError(f"The draw is for images {wanted}, got {tuple(x.shape)}; draw again for these.")
    if not x.is_floating_point():
        raise ShapeError(f"Augmentation needs floating-point images, got {x.dtype}.")
