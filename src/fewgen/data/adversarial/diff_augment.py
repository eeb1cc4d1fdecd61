"""DiffAugment: colour, translation and cutout with fixed strength."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fewgen.config.checks import one_of
from fewgen.data.adversarial.base import AdversarialAugment, Draw, check_images, image_shape
from fewgen.errors import ConfigError

CHANGES = ("color", "translation", "cutout", "flip")
"""Names that a policy of `DiffAugment` may contain."""


@dataclass(frozen=True)
class DiffDraw(Draw):
    """Decisions of `DiffAugment`, one row per image.

    Attributes:
        brightness: float (n,), in [-0.5, 0.5).
        saturation: float (n,), in [0, 2).
        contrast: float (n,), in [0.5, 1.5).
        shift: int64 (n, 2), rows and columns: pixel (i, j) of the result shows (i + row, j + column).
        cut: int64 (n, 2), first row and first column of the square; may be outside.
        flip: bool (n,).
    """

    brightness: Tensor
    saturation: Tensor
    contrast: Tensor
    shift: Tensor
    cut: Tensor
    flip: Tensor


class DiffAugment(AdversarialAugment):
    """Colour, translation and cutout with fixed strength.

    "color": adds U(-0.5, 0.5), multiplies the distance of each pixel from its mean over the channels by
    U(0, 2) (no effect on grey images), then the distance from the mean of the image by U(0.5, 1.5).
    "translation": by whole pixels, up to an eighth of each side. "cutout": a rectangle of half of each
    side becomes 0, its middle anywhere in the image. "flip": a mirror image with probability 1/2; it
    leaks (the generator may mirror), so use it only where a mirror image is of the same class.

    Args:
        policy: comma list of the names above; "" changes nothing.
        padding: what a translation leaves behind. "zero": 0, mid-grey, as published. "edge": the border
            row or column is repeated, so that a black ground stays black.

    Raises:
        ConfigError: for an unknown or repeated name in `policy`, or an unknown `padding`.

    Source: Zhao et al. 2020, "Differentiable Augmentation for Data-Efficient GAN Training"
    (arXiv:2006.10738), section 3 and the authors' definitions of the three changes.
    Differs: the order is always flip, color, translation, cutout, whatever the order in `policy`; the
    padding may be "edge"; "flip" is an addition.

    >>> x = torch.zeros(2, 1, 32, 32)
    >>> DiffAugment()(x, torch.Generator().manual_seed(0)).shape
    torch.Size([2, 1, 32, 32])
    """

    def __init__(self, policy: str = "color,translation,cutout", padding: str = "zero") -> None:
        super().__init__()
        names = [name.strip() for name in policy.split(",")] if policy.strip() else []
        for name in names:
            one_of("change in the policy of DiffAugment", name, CHANGES)
            if names.count(name) > 1:
                raise ConfigError(f'The policy of DiffAugment names "{name}" twice: "{policy}".')
        self.changes = tuple(name for name in CHANGES if name in names)
        one_of("padding of DiffAugment", padding, ("zero", "edge"))
        self.padding = padding

    def extra_repr(self) -> str:
        """Return the settings."""
        return f'"{",".join(self.changes)}", padding="{self.padding}"'

    def draw(self, n: int, shape: Sequence[int], rng: torch.Generator) -> Draw:
        """Decide the change of each of `n` images of `shape` (C, H, W); an empty policy draws nothing.

        Every change has its draws whether or not the policy names it: a shorter policy does not alter
        the rest.
        """
        shape = image_shape(shape)
        if not self.changes:
            return Draw(n, shape)
        u = torch.rand((n, 8), generator=rng, device=rng.device, dtype=torch.float32)
        sides = torch.tensor(shape[1:], device=u.device)
        reach, square = (sides + 4) // 8, (sides + 1) // 2  # side / 8 and side / 2, halves up
        # floor(u * k) is uniform on 0 ... k - 1: float32 u is below 1 by enough for any k < 2 ** 24.
        shift = torch.floor(u[:, 3:5] * (2 * reach + 1)).long() - reach
        # As published: the middle has one more place if the square has an even side.
        middle = torch.floor(u[:, 5:7] * (sides + 1 - square % 2)).long()
        return DiffDraw(
            n=n,
            shape=shape,
            brightness=u[:, 0] - 0.5,
            saturation=u[:, 1] * 2.0,
            contrast=u[:, 2] + 0.5,
            shift=shift,
            cut=middle - square // 2,
            flip=u[:, 7] < 0.5,
        )

    def replay(self, x: Tensor, draw: Draw) -> Tensor:
        """Carry out `draw` on `x` (n, C, H, W); see `AdversarialAugment.replay`."""
        check_images(x, draw, DiffDraw)
        if not isinstance(draw, DiffDraw) or draw.n == 0:
            return x
        if "color" in self.changes:
            x = self._color(x, draw)
        return self._place(x, draw)

    def _color(self, x: Tensor, draw: DiffDraw) -> Tensor:
        """Brightness, saturation and contrast in one step.

        With the means over channels m and over the image M, which saturation keeps, the three changes
        x + b, m + s (x - m), M + k (x - M) make k s x + k (1 - s) m + (1 - k) M + b.
        """
        b, s, k = (
            values.to(x)[:, None, None, None] for values in (draw.brightness, draw.saturation, draw.contrast)
        )
        constant = torch.addcmul(b, 1.0 - k, x.mean(dim=(1, 2, 3), keepdim=True))
        if x.shape[1] == 1:
            return torch.addcmul(constant, k, x)
        grey = torch.addcmul(constant, k * (1.0 - s), x.mean(dim=1, keepdim=True))
        return torch.addcmul(grey, k * s, x)

    def _place(self, x: Tensor, draw: DiffDraw) -> Tensor:
        """Flip, translation and cutout: one table of pixels to show and one of pixels to keep."""
        height, width = draw.shape[1:]
        place = torch.arange(max(height, width), device=x.device)
        rows, columns = place[None, :height], place[None, :width]  # (1, H), (1, W); (n, ...) once moved
        keeps: list[Tensor] = []  # bool, broadcast to (n, H, W)
        from_rows, from_columns = rows, columns
        if "translation" in self.changes:
            shift = draw.shift.to(x.device)
            from_rows, from_columns = rows + shift[:, :1], columns + shift[:, 1:]
            if self.padding == "zero":
                keeps.append(((from_rows >= 0) & (from_rows < height))[:, :, None])
                keeps.append(((from_columns >= 0) & (from_columns < width))[:, None])
            from_rows, from_columns = from_rows.clamp(0, height - 1), from_columns.clamp(0, width - 1)
        if "flip" in self.changes:
            mirror = draw.flip.to(x.device)[:, None]
            from_columns = torch.where(mirror, width - 1 - from_columns, from_columns)
        if from_columns is not columns:
            table = (from_rows[:, :, None] * width + from_columns[:, None]).reshape(-1, 1, height * width)
            x = x.flatten(2).gather(2, table.expand(*x.shape[:2], -1)).reshape(x.shape)
        if "cutout" in self.changes:
            first_row, first_column = draw.cut.to(x.device).split(1, dim=1)
            in_rows = (rows >= first_row) & (rows < first_row + (height + 1) // 2)
            in_columns = (columns >= first_column) & (columns < first_column + (width + 1) // 2)
            keeps.append(~(in_rows[:, :, None] & in_columns[:, None]))
        if not keeps:
            return x
        keep = keeps[0]
        for other in keeps[1:]:
            keep = keep & other
        return x * keep[:, None].to(x)
