"""Differentiable augmentation: small random changes that leave the class of an image as it is.

All draws of a batch come from one call per kind of change, and every change acts on the whole batch at
once, so that augmentation costs little beside a training step. Gradients pass through to the images,
which a generator needs when its output is augmented before a discriminator sees it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor

from fewgen.config.checks import one_of
from fewgen.errors import ConfigError, ShapeError


@dataclass(frozen=True)
class AugmentConfig:
    """Strength of each change; 0 turns it off. Each image gets its own draw, uniform in the range.

    Attributes:
        rotate_degrees: rotation by up to this angle, either way.
        scale: enlargement or reduction by up to this share (0.1: from 1/1.1 to 1.1).
        shift: shift by up to this share of the side, in each direction.
        flip: probability of a mirror image (left-right).
        elastic: standard deviation of a smooth distortion, as a share of the side.
        tone: bends the tone curve by up to this much, at most 1; black stays black and white stays
            white, so that backgrounds keep their value.
        brightness: added to all values, up to this share of the range.
        contrast: multiplied around the mean of the image, by up to this share.
        saturation: colour strength multiplied, by up to this share; without effect on grey images.
        cutout: side of a square set to mid-grey, as a share of the side.
    """

    rotate_degrees: float = 0.0
    scale: float = 0.0
    shift: float = 0.0
    flip: float = 0.0
    elastic: float = 0.0
    tone: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    cutout: float = 0.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            limit = 180.0 if field.name == "rotate_degrees" else 1.0
            if not 0.0 <= value <= limit:
                raise ConfigError(f"augment.{field.name} must lie in [0, {limit:g}], got {value}.")


PRESETS: dict[str, AugmentConfig] = {
    "none": AugmentConfig(),
    "light": AugmentConfig(rotate_degrees=4.0, scale=0.04, shift=0.03),
    # Characters and objects on plain ground, where a mirror image may be another class.
    "shapes": AugmentConfig(rotate_degrees=8.0, scale=0.1, shift=0.05, elastic=0.015, tone=0.25),
    "photo": AugmentConfig(
        rotate_degrees=5.0, scale=0.15, shift=0.06, flip=0.5, brightness=0.1, contrast=0.2, saturation=0.3
    ),
}


KNOTS = 4
"""Points per side at which an elastic distortion is drawn."""


class Augment:
    """Random changes of a batch of images.

    Args:
        preset: "none", "light" (small shifts and turns), "shapes" (drawings, clothes, characters),
            "photo" (with mirror images and colour), or an `AugmentConfig`.

    Raises:
        ConfigError: for an unknown preset.

    >>> x = torch.zeros(2, 1, 28, 28)
    >>> Augment("shapes")(x, torch.Generator().manual_seed(0)).shape
    torch.Size([2, 1, 28, 28])
    """

    def __init__(self, preset: str | AugmentConfig = "none") -> None:
        if isinstance(preset, str):
            one_of("augmentation", preset, PRESETS)
            preset = PRESETS[preset]
        self.config = preset
        self._moves = any((preset.rotate_degrees, preset.scale, preset.shift, preset.flip, preset.elastic))
        self._grids: dict[tuple[int, int, torch.device, torch.dtype], Tensor] = {}
        self._bases: dict[tuple[int, int, torch.device, torch.dtype], Tensor] = {}

    def __repr__(self) -> str:
        name = next((name for name, config in PRESETS.items() if config == self.config), None)
        return f'Augment("{name}")' if name else f"Augment({self.config})"

    def __call__(self, x: Tensor, rng: torch.Generator) -> Tensor:
        """Return changed images.

        Args:
            x: float, (B, C, H, W), in [-1, 1].
            rng: the source of every draw; the same state gives the same changes.

        Returns:
            Same shape and type, in [-1, 1]; `x` itself if nothing is turned on.

        Raises:
            ShapeError: if `x` is not a batch of floating-point images.
        """
        if x.ndim != 4 or not x.is_floating_point():
            raise ShapeError(f"Augment needs float images (B, C, H, W), got {x.dtype} {tuple(x.shape)}.")
        if self.config == PRESETS["none"] or len(x) == 0:
            return x
        # One row of uniform draws in [-1, 1] per image, in an order that settings do not change.
        draws = torch.rand((len(x), 11), generator=rng, device=rng.device).mul_(2.0).sub_(1.0).to(x)
        if self._moves:
            x = self._move(x, draws, rng)
        x = self._recolour(x, draws)
        return self._cut(x, draws)

    def _grid(self, x: Tensor) -> Tensor:
        """Return pixel centres (H * W, 2) in [-1, 1]; kept, since batches have one size."""
        height, width = x.shape[2:]
        key = (height, width, x.device, x.dtype)
        if key not in self._grids:
            rows = (torch.arange(height, device=x.device, dtype=x.dtype) * 2 + 1) / height - 1
            columns = (torch.arange(width, device=x.device, dtype=x.dtype) * 2 + 1) / width - 1
            grid_y, grid_x = torch.meshgrid(rows, columns, indexing="ij")
            self._grids[key] = torch.stack((grid_x, grid_y), dim=-1).reshape(-1, 2)
        return self._grids[key]

    def _smooth(self, x: Tensor) -> Tensor:
        """Return the matrix (KNOTS * KNOTS, H * W) that interpolates a coarse grid smoothly (bicubic)."""
        height, width = x.shape[2:]
        key = (height, width, x.device, x.dtype)
        if key not in self._bases:
            knots = torch.eye(KNOTS * KNOTS, device=x.device, dtype=x.dtype).reshape(-1, 1, KNOTS, KNOTS)
            basis = F.interpolate(knots, size=(height, width), mode="bicubic", align_corners=True)
            self._bases[key] = basis.reshape(KNOTS * KNOTS, -1)
        return self._bases[key]

    def _move(self, x: Tensor, draws: Tensor, rng: torch.Generator) -> Tensor:
        """Turn, scale, shift, mirror and distort, with a single interpolation."""
        config = self.config
        batch, _, height, width = x.shape
        angle = draws[:, 0] * math.radians(config.rotate_degrees)
        zoom = torch.exp(-draws[:, 1] * math.log1p(config.scale))
        mirror = 1.0 - 2.0 * ((draws[:, 4] + 1.0) / 2.0 < config.flip).to(x)
        cos, sin = torch.cos(angle) * zoom, torch.sin(angle) * zoom
        # Coordinates run from -1 to 1 along both sides; the ratio keeps a turn a turn on wide images.
        ratio = height / width
        theta = torch.stack((mirror * cos, mirror * -sin * ratio, sin / ratio, cos), dim=1).reshape(
            batch, 2, 2
        )
        shift = 2.0 * config.shift * draws[:, 2:4]
        grid = self._grid(x) @ theta.transpose(1, 2) + shift[:, None]
        grid = grid.reshape(batch, height, width, 2)
        if config.elastic:
            knots = torch.randn((batch, 2, KNOTS * KNOTS), generator=rng, device=rng.device).to(x)
            bend = knots @ self._smooth(x)
            grid = grid + bend.reshape(batch, 2, height, width).permute(0, 2, 3, 1) * (2.0 * config.elastic)
        # Repeating the border keeps paper white and a dark background dark. Bicubic keeps edges sharp,
        # so that a model does not learn the blur of its augmentation; it overshoots, hence the clamp.
        moved = F.grid_sample(x, grid, mode="bicubic", padding_mode="border", align_corners=False)
        return moved.clamp(-1.0, 1.0)

    def _recolour(self, x: Tensor, draws: Tensor) -> Tensor:
        config = self.config
        column = draws[:, :, None, None, None]  # (B, 11, 1, 1, 1)
        if config.tone:
            # u + g u (1 - u) on [0, 1], written for [-1, 1]: rises everywhere for |g| <= 1.
            x = x + (0.5 * config.tone * column[:, 5]) * (1.0 - x * x)
        if not (config.brightness or config.contrast or config.saturation):
            return x
        if config.saturation and x.shape[1] == 3:
            grey = x.mean(dim=1, keepdim=True)
            x = grey + (x - grey) * (1.0 + config.saturation * column[:, 8])
        if config.contrast:
            mean = x.mean(dim=(1, 2, 3), keepdim=True)
            x = mean + (x - mean) * (1.0 + config.contrast * column[:, 7])
        if config.brightness:
            x = x + 2.0 * config.brightness * column[:, 6]
        return x.clamp(-1.0, 1.0)

    def _cut(self, x: Tensor, draws: Tensor) -> Tensor:
        if not self.config.cutout:
            return x
        grid = self._grid(x)  # (H * W, 2)
        inside = ((grid - draws[:, None, 9:11]).abs() < self.config.cutout).all(dim=-1)
        return x.masked_fill(inside.reshape(len(x), 1, *x.shape[2:]), 0.0)


def shift_images(x: Tensor, max_shift: int, rng: torch.Generator) -> Tensor:
    """Move each image by its own whole number of pixels, continuing it by its edge pixels.

    Args:
        x: (B, C, H, W).
        max_shift: largest move in each direction, in pixels; 0 returns `x` itself and draws nothing.
        rng: random stream of the moves.

    Returns:
        (B, C, H, W).
    """
    if max_shift == 0:
        return x
    n, _, height, width = x.shape
    padded = F.pad(x, (max_shift,) * 4, mode="replicate")
    dy, dx = torch.randint(0, 2 * max_shift + 1, (2, n), generator=rng)
    rows = dy[:, None] + torch.arange(height)
    columns = dx[:, None] + torch.arange(width)
    picked = padded[torch.arange(n)[:, None, None], :, rows[:, :, None], columns[:, None, :]]
    return picked.permute(0, 3, 1, 2)
