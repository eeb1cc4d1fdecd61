"""ADA: changes whose probability follows how far the discriminator overfits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fewgen.config.checks import one_of
from fewgen.data.adversarial.base import AdversarialAugment, Draw, check_images, image_shape
from fewgen.errors import ConfigError, ShapeError, TrainingError

PADDINGS = {"reflect": "reflection", "edge": "border", "zero": "zeros"}
"""What lies outside an image that ADA moves -> its name in `grid_sample`."""

SHIFT = 0.125
"""Largest whole-pixel shift, and standard deviation of the fractional one, as shares of the side."""
SCALE_STD = 0.2
"""Standard deviation of log2 of both the isotropic and the anisotropic scale."""
BRIGHTNESS_STD = 0.2
CONTRAST_STD = 0.5
"""Standard deviation of log2 of the contrast; `SATURATION_STD` likewise."""
SATURATION_STD = 1.0


@dataclass(frozen=True)
class AdaDraw(Draw):
    """Decisions of `AdaptiveAugment`; None where no image changes.

    Attributes:
        affine: float (n, 2, 3): a pixel of the result at (x, y) shows the place affine @ (x, y, 1) of
            the image. Units are pixels, from the middle of the image, x to the right and y downwards.
        color: float (n, C, C + 1): a pixel with channels v becomes color @ (v, 1).
    """

    affine: Tensor | None
    color: Tensor | None


class AdaptiveAugment(AdversarialAugment):
    """ADA: many changes, each with a probability `p` that follows how far the discriminator overfits.

    Pipeline letters, with the changes in the order in which they act:

    - "b", blit: mirror image (half of the chosen ones), turn by 0, 90, 180 or 270 degrees, translation by
      whole pixels, uniform up to 1/8 of the side;
    - "g", geometric: scale 2^N(0, 0.2^2); rotation; scale 2^N(0, 0.2^2) along x and its inverse along y;
      rotation again; translation by N(0, 0.125^2) of the side. The rotations are uniform up to
      `rotate_degrees` either way, each with probability 1 - sqrt(1 - p), so that one of them or both act
      with probability p;
    - "c", colour: brightness + N(0, 0.2^2); contrast times 2^N(0, 0.5^2); luma inverted (half of the
      chosen ones); hue turned by U(-180, 180) degrees; saturation times 2^N(0, 1). Hue and saturation
      have no effect on grey images.

    Changes leak little as long as the unchanged image stays more likely than any changed one. The paper
    finds leaks above p of about 0.8; a `p` that stays there says that the data are too few for the
    discriminator. At p near 1 mirror images, quarter turns and inverted luma cannot be
    told from the originals, which for digits and letters makes other classes of them: `flips=False`
    leaves these three out. Free rotation and hue remain; `rotate_degrees` limits the former.

    Args:
        channels: of the images, 1 or 3.
        pipeline: any of the letters "b", "g", "c"; "" changes nothing.
        target: of the mean sign of the discriminator on real images, in [-1, 1]; above it `p` rises.
        interval: discriminator steps between two changes of `p`.
        speed_kimg: thousands of real images in which `p` goes from 0 to 1 at the fastest.
        flips: with mirror images, quarter turns and inverted luma.
        padding: what lies outside a moved image: "reflect" as published, "edge" or "zero" (mid-grey).
        rotate_degrees: largest rotation of "g", in [0, 180].

    Buffers (all the state there is):
        p: probability, float scalar in [0, 1], starts at 0; `augment.p.fill_(0.3)` sets it.
        mean_sign: mean sign on real images over the last complete interval; 0 before it.
        sign_sum, sign_count, steps: of the interval under way, int64 scalars.

    Raises:
        ConfigError: for settings out of range.

    Source: Karras et al. 2020, "Training Generative Adversarial Networks with Limited Data"
    (arXiv:2006.06676), section 3.1 for `p`, appendix B for the changes and their distributions.
    Differs: images are sampled once, bilinearly, where the paper resamples at twice the resolution with a
    wavelet low-pass filter: turned images are softer, and reductions alias a little, on real and
    generated images alike. Reflection repeats without end; the paper pads by at most one side. `p` is
    also held at most 1. Image-space filtering, noise and cutout of the paper are not there; "bgc" is
    what the paper recommends.

    >>> augment = AdaptiveAugment(channels=1)
    >>> x = torch.zeros(2, 1, 32, 32)
    >>> augment(x, torch.Generator().manual_seed(0)) is x
    True
    """

    p: Tensor
    mean_sign: Tensor
    sign_sum: Tensor
    sign_count: Tensor
    steps: Tensor

    def __init__(
        self,
        channels: int,
        pipeline: str = "bgc",
        target: float = 0.6,
        interval: int = 4,
        speed_kimg: float = 500.0,
        flips: bool = True,
        padding: str = "reflect",
        rotate_degrees: float = 180.0,
    ) -> None:
        super().__init__()
        if channels not in (1, 3):
            raise ConfigError(f"ADA is for images with 1 or 3 channels, got {channels}.")
        if not set(pipeline) <= set("bgc") or len(set(pipeline)) < len(pipeline):
            raise ConfigError(
                f'The pipeline of ADA holds each of the letters "b" (blit), "g" (geometric), "c" (colour) '
                f'at most once, got "{pipeline}".'
            )
        if not -1.0 <= target <= 1.0:
            raise ConfigError(f"The target of ADA is a mean sign, in [-1, 1], got {target}.")
        if interval < 1:
            raise ConfigError(f"The interval of ADA must be at least 1 step, got {interval}.")
        if not 0.0 < speed_kimg < math.inf:
            raise ConfigError(f"speed_kimg of ADA must be positive and finite, got {speed_kimg}.")
        if not 0.0 <= rotate_degrees <= 180.0:
            raise ConfigError(f"rotate_degrees of ADA must lie in [0, 180], got {rotate_degrees}.")
        self.channels, self.pipeline, self.flips = channels, pipeline, flips
        self.target, self.interval, self.speed_kimg = target, interval, speed_kimg
        self.rotate_degrees = rotate_degrees
        one_of("padding of ADA", padding, PADDINGS)
        self.padding = padding
        self.register_buffer("p", torch.tensor(0.0))
        self.register_buffer("mean_sign", torch.tensor(0.0))
        for name in ("sign_sum", "sign_count", "steps"):
            self.register_buffer(name, torch.tensor(0, dtype=torch.int64))

    def extra_repr(self) -> str:
        """Return the settings."""
        return (
            f'"{self.pipeline}", target={self.target:g}, interval={self.interval}, '
            f'speed_kimg={self.speed_kimg:g}, flips={self.flips}, padding="{self.padding}", '
            f"rotate_degrees={self.rotate_degrees:g}"
        )

    @torch.no_grad()
    def update(self, real_logits: Tensor) -> None:
        """Count the signs of the discriminator on real images; move `p` at the end of an interval.

        The step is sign(mean sign - target) * images / (1000 speed_kimg), with the images of the
        interval, which is batch * interval for batches of one size.

        Args:
            real_logits: float, any shape, one value per real image of this step. Where several processes
                train together, pass the logits of all of them, so that they agree on `p`.

        Raises:
            TrainingError: if a logit is not a number; the state is then as before.

        Source: Karras et al. 2020, equation 1 (r_t) and section 3.1.
        """
        if real_logits.isnan().any():
            raise TrainingError(
                f"The discriminator gave NaN for {int(real_logits.isnan().sum())} of {real_logits.numel()} "
                "real images: training has diverged; lower the learning rate or strengthen R1."
            )
        self.sign_sum += real_logits.sign().sum(dtype=torch.int64).to(self.sign_sum.device)
        self.sign_count += real_logits.numel()
        self.steps += 1
        if int(self.steps) < self.interval:
            return
        count = int(self.sign_count)
        if count:
            mean = int(self.sign_sum) / count
            direction = (mean > self.target) - (mean < self.target)
            self.p.add_(direction * count / (self.speed_kimg * 1000.0)).clamp_(0.0, 1.0)
            self.mean_sign.fill_(mean)
        for counter in (self.sign_sum, self.sign_count, self.steps):
            counter.zero_()

    def draw(self, n: int, shape: Sequence[int], rng: torch.Generator) -> Draw:
        """Decide the change of each of `n` images of `shape` (C, H, W); p = 0 draws nothing.

        Raises:
            ShapeError: if `shape` has another number of channels than `channels`.
        """
        shape = image_shape(shape)
        if shape[0] != self.channels:
            raise ShapeError(f"ADA was made for {self.channels} channels, got images {shape}.")
        p = float(self.p)
        if p == 0.0 or not self.pipeline:
            return Draw(n, shape)
        # Fixed columns: leaving a change out does not alter the draws of the others.
        gate = torch.rand((n, 13), generator=rng, device=rng.device, dtype=torch.float32)
        u = torch.rand((n, 8), generator=rng, device=rng.device, dtype=torch.float32)
        z = torch.randn((n, 7), generator=rng, device=rng.device, dtype=torch.float32)
        moves = "b" in self.pipeline or "g" in self.pipeline
        return AdaDraw(
            n=n,
            shape=shape,
            affine=self._affine(shape[1], shape[2], p, gate, u, z) if moves else None,
            color=self._color(p, gate, u, z) if "c" in self.pipeline else None,
        )

    def _affine(self, height: int, width: int, p: float, gate: Tensor, u: Tensor, z: Tensor) -> Tensor:
        """Compose the moves, each inverted since a pixel of the result asks where it comes from.

        With the mirror image and quarter turns Q, whole shift s, the free linear part M and fractional
        shift f, the image moves by v -> M^-1 (Q^-1 v + s) + f, hence the inverse Q (M (v - f) - s).
        """
        sides = torch.tensor([width, height], device=u.device, dtype=u.dtype)
        zero, one = torch.zeros_like(u[:, 0]), torch.ones_like(u[:, 0])
        turn: Tensor = torch.eye(2, device=u.device, dtype=u.dtype).expand(len(u), 2, 2)
        linear, whole, fraction = turn, torch.zeros_like(u[:, :2]), torch.zeros_like(u[:, :2])
        if "b" in self.pipeline:
            if self.flips:
                mirror = torch.where((gate[:, 0] < p) & (u[:, 0] < 0.5), -one, one)
                quarters = torch.where(gate[:, 1] < p, torch.floor(u[:, 1] * 4.0), zero)
                # Rounded, so that quarter turns are exact.
                turn = _rotation(quarters * (math.pi / 2.0)).round()
                turn = turn * torch.stack((mirror, one), dim=1)[:, :, None]
            share = torch.where(gate[:, 2:3] < p, (u[:, 2:4] * 2.0 - 1.0) * SHIFT, zero[:, None])
            whole = torch.round(share * sides)
        if "g" in self.pipeline:
            p_rotate = 1.0 - math.sqrt(1.0 - p)
            limit = math.radians(self.rotate_degrees)
            scale = torch.exp2(torch.where(gate[:, 3] < p, -z[:, 0] * SCALE_STD, zero))
            before = torch.where(gate[:, 4] < p_rotate, (u[:, 4] * 2.0 - 1.0) * limit, zero)
            stretch = torch.exp2(torch.where(gate[:, 5] < p, -z[:, 1] * SCALE_STD, zero))
            after = torch.where(gate[:, 6] < p_rotate, (u[:, 5] * 2.0 - 1.0) * limit, zero)
            diagonal = torch.stack((scale * stretch, scale / stretch), dim=1)
            linear = (_rotation(before) * diagonal[:, None]) @ _rotation(after)
            fraction = torch.where(gate[:, 7:8] < p, z[:, 2:4] * SHIFT, zero[:, None]) * sides
        offset = -(turn @ (linear @ fraction[:, :, None] + whole[:, :, None]))
        return torch.cat((turn @ linear, offset), dim=2)

    def _color(self, p: float, gate: Tensor, u: Tensor, z: Tensor) -> Tensor:
        """Compose the changes of colour.

        All of them act separately on the grey part of a pixel (its mean over channels, the axis v) and
        on the rest: with brightness b, contrast c, luma sign l, hue angle h and saturation s the matrix
        is c (l vv^T + s (cos h (I - vv^T) + sin h [v]x)), and the offset c l b in every channel.
        """
        zero = torch.zeros_like(u[:, 0])
        brightness = torch.where(gate[:, 8] < p, z[:, 4] * BRIGHTNESS_STD, zero)
        contrast = torch.exp2(torch.where(gate[:, 9] < p, z[:, 5] * CONTRAST_STD, zero))
        inverted = (gate[:, 10] < p) & (u[:, 6] < 0.5) & self.flips
        grey = torch.where(inverted, -contrast, contrast)
        offset = (grey * brightness)[:, None, None]
        if self.channels == 1:
            return torch.cat((grey[:, None, None], offset), dim=2)
        hue = torch.where(gate[:, 11] < p, (u[:, 7] * 2.0 - 1.0) * math.pi, zero)
        rest = contrast * torch.exp2(torch.where(gate[:, 12] < p, z[:, 6] * SATURATION_STD, zero))
        axis = torch.full((3, 3), 1.0 / 3.0, device=u.device)  # v v^T with v = (1, 1, 1) / sqrt(3)
        cross = torch.tensor([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]], device=u.device)
        cross = cross / math.sqrt(3.0)  # [v]x
        eye = torch.eye(3, device=u.device)
        grey, cos, sin = (values[:, None, None] for values in (grey, rest * hue.cos(), rest * hue.sin()))
        matrix = grey * axis + cos * (eye - axis) + sin * cross
        return torch.cat((matrix, offset.expand(-1, 3, 1)), dim=2)

    def replay(self, x: Tensor, draw: Draw) -> Tensor:
        """Carry out `draw` on `x` (n, C, H, W): the moves, then the colours."""
        check_images(x, draw, AdaDraw)
        if not isinstance(draw, AdaDraw) or draw.n == 0:
            return x
        kind = x.dtype
        # Half precision cannot tell the pixels of a large image apart: places would be off by half of one, on
        # generated images alone, which a discriminator sees.
        x = x.to(torch.promote_types(kind, torch.float32))
        if draw.affine is not None:
            x = self._move(x, draw.affine.to(x))
        if draw.color is not None:
            color = draw.color.to(x)
            if self.channels == 1:
                x = torch.addcmul(color[:, :, 1:, None], color[:, :, :1, None], x)
            else:
                with torch.autocast(device_type=x.device.type, enabled=False):
                    x = torch.baddbmm(color[:, :, 3:], color[:, :, :3], x.flatten(2)).reshape(x.shape)
        return x.to(kind)

    def _move(self, x: Tensor, affine: Tensor) -> Tensor:
        height, width = x.shape[2:]
        size = torch.tensor([width, height], device=x.device, dtype=x.dtype)
        rows, columns = (
            torch.arange(side, device=x.device, dtype=x.dtype) - (side - 1) / 2.0 for side in (height, width)
        )
        along = affine[:, :, 0, None, None] * columns + affine[:, :, 1, None, None] * rows[:, None]
        places = (along + affine[:, :, 2, None, None]).permute(0, 2, 3, 1)  # (n, H, W, 2), pixels
        # [-1, 1] spans what `grid_sample` mirrors: from the first to the last pixel centre for "reflect",
        # which shows the outermost pixels once; from border to border otherwise.
        span = (size - 1.0).clamp_min(1.0) if self.padding == "reflect" else size
        grid = places * (2.0 / span)
        return _Sample.apply(x, grid, PADDINGS[self.padding])


def _rotation(angle: Tensor) -> Tensor:
    """Return matrices (n, 2, 2) that turn by `angle` (n,), in radians, from the x axis to the y axis."""
    cos, sin = angle.cos(), angle.sin()
    return torch.stack((torch.stack((cos, -sin), dim=1), torch.stack((sin, cos), dim=1)), dim=1)


def _sample(x: Tensor, grid: Tensor, padding: str) -> Tensor:
    centres = padding == PADDINGS["reflect"]
    return F.grid_sample(x, grid, mode="bilinear", padding_mode=padding, align_corners=centres)


class _Sample(torch.autograd.Function):
    """`grid_sample` that can be differentiated any number of times with respect to the images.

    The derivative of torch's own has no derivative, which a gradient penalty needs. Sampling is linear in
    the images: its derivative is its transpose, and that of the transpose is the sampling itself.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, grid: Tensor, padding: str) -> Tensor:
        ctx.save_for_backward(grid)
        ctx.padding, ctx.shape = padding, x.shape
        return _sample(x, grid, padding)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None, None]:
        (grid,) = ctx.saved_tensors
        return _Transpose.apply(grads[0], grid, ctx.padding, ctx.shape), None, None


class _Transpose(torch.autograd.Function):
    """The transpose of `_Sample`: spreads values over the pixels they would have been sampled from."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, grid: Tensor, padding: str, shape: torch.Size) -> Tensor:
        ctx.save_for_backward(grid)
        ctx.padding = padding
        with torch.enable_grad():
            x = torch.zeros(shape, device=y.device, dtype=y.dtype, requires_grad=True)
            return torch.autograd.grad(_sample(x, grid, padding), x, y)[0]

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None, None, None]:
        (grid,) = ctx.saved_tensors
        return _Sample.apply(grads[0], grid, ctx.padding), None, None, None
