"""Encoders from images to styles of each layer (W+): a small feature pyramid, and the published one (pSp).

Shapes: B batch, L layers that take a style (`SynthesisNetwork.n_layers`), D numbers of a style, C channels,
H x W pixels. Both return offsets (B, L, D) to an average style, which whoever owns it adds once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from fewgen.errors import ConfigError
from fewgen.nn.stylegan import EqualConv, EqualLinear, start_size
from fewgen.nn.vae import check_images


class _Flat(nn.Sequential):
    """Two styles of a map: a convolution to fewer channels, and a linear map of all places."""

    def __init__(self, n_in: int, side: tuple[int, int], width: int, w_dim: int) -> None:
        super().__init__(
            EqualConv(n_in, width, 3), nn.Flatten(), EqualLinear(width * side[0] * side[1], 2 * w_dim)
        )


class PyramidStyleEncoder(nn.Module):
    """From small images (28, 32, 64 px, ...) to styles, by a feature pyramid.

    Maps are halved as often as the generator doubles them. The smallest gives the first two styles; links
    from larger maps, one after the other, give two for each size, as the generator uses them.

    Args:
        shape: (C, H, W) of an image, of a size that `start_size` takes.
        w_dim: D.
        width: channels of the largest map; each smaller one has as many more, and at most `max_width`.
        max_width: most channels of a map, and those of the way back.

    Source: Richardson et al. 2021, arXiv:2008.00951, Sec. 3.1 (styles from the maps of a pyramid).
    Differs: our design for small images, trained from the start with the generator: its scaled weights, so
        that one learning rate fits both; no residual network; heads that keep the places of a map; larger
        maps are averaged to the smallest before they are linked, since finer styles scale whole channels.
    """

    def __init__(self, shape: tuple[int, int, int], w_dim: int, width: int = 16, max_width: int = 64) -> None:
        super().__init__()
        channels, height, image_width = shape
        h, w, n = start_size(height, image_width)
        self.shape, self.w_dim, self.n_layers = shape, w_dim, 2 * n + 2
        widths = [min(max_width, width * (i + 1)) for i in range(n + 1)]
        self.first = EqualConv(channels, widths[0], 3)
        self.down = nn.ModuleList(
            nn.Sequential(nn.PixelUnshuffle(2), EqualConv(4 * n_in, n_out, 3), EqualConv(n_out, n_out, 3))
            for n_in, n_out in zip(widths[:-1], widths[1:], strict=True)
        )
        top = widths[-1]
        self.coarse = _Flat(top, (h, w), 64, w_dim)
        # From small to large, like the generator.
        self.lateral = nn.ModuleList(EqualConv(n_in, top, 1, activation=False) for n_in in widths[-2::-1])
        self.side = (h, w)
        self.fine = nn.ModuleList(_Flat(top, self.side, 32, w_dim) for _ in range(n))

    def forward(self, x: Tensor) -> Tensor:
        """Return offsets (B, L, D) of images (B, C, H, W) in [-1, 1].

        Raises:
            ShapeError: images of another shape.
        """
        check_images(x, self.shape)
        maps = [self.first(x)]
        for down in self.down:
            maps.append(down(maps[-1]))
        top = maps.pop()
        found = [self.coarse(top)]
        for lateral, fine in zip(self.lateral, self.fine, strict=True):
            own = functional.adaptive_avg_pool2d(maps.pop(), self.side)
            top = top + lateral(own)
            found.append(fine(top))
        return torch.stack(found, 1).reshape(len(x), self.n_layers, self.w_dim)


# --- The published encoder ---------------------------------------------------------------------------------


class _SqueezeExcite(nn.Module):
    """Scales channels by what the whole map holds."""

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, max(1, channels // reduction), 1, bias=False)
        self.fc2 = nn.Conv2d(max(1, channels // reduction), channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        scale = self.fc2(functional.relu(self.fc1(x.mean((2, 3), keepdim=True))))
        return x * torch.sigmoid(scale)


class _Bottleneck(nn.Module):
    """A residual unit of IR-SE: batch norm first, and squeeze and excitation last."""

    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        self.shortcut_layer = (
            nn.MaxPool2d(1, stride)
            if n_in == n_out
            else nn.Sequential(nn.Conv2d(n_in, n_out, 1, stride, bias=False), nn.BatchNorm2d(n_out))
        )
        self.res_layer = nn.Sequential(
            nn.BatchNorm2d(n_in),
            nn.Conv2d(n_in, n_out, 3, 1, 1, bias=False),
            nn.PReLU(n_out),
            nn.Conv2d(n_out, n_out, 3, stride, 1, bias=False),
            nn.BatchNorm2d(n_out),
            _SqueezeExcite(n_out),
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.res_layer(x) + self.shortcut_layer(x)
        return y


class _StyleHead(nn.Module):
    """One style of a map: halved by convolutions until one place is left, then a linear map."""

    def __init__(self, n_in: int, w_dim: int, side: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for i in range(int(math.log2(side))):
            layers += [nn.Conv2d(w_dim if i else n_in, w_dim, 3, 2, 1), nn.LeakyReLU()]
        self.convs = nn.Sequential(*layers)
        self.linear = EqualLinear(w_dim, w_dim)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear(self.convs(x).flatten(1))
        return y


class GradualStyleEncoder(nn.Module):
    """From images to styles: the published encoder, a pyramid on IR-SE-50.

    The first three styles come from the map of a sixteenth of the side, four from that of an eighth, and the
    others from that of a quarter. Names of parameters are those of the public code's "encoder".

    Args:
        channels: of the images; grey ones are repeated.
        n_layers: L, 18 at 1024 px.
        w_dim: D.
        side: at which images are seen, a power of 2 from 32; 256 as published.
        width: channels of the first map and of the four stages.
        units: residual units of each stage; (3, 4, 14, 3) is IR-SE-50.

    Source: Richardson et al. 2021, arXiv:2008.00951, Sec. 3.1 and Fig. 2; layers of the public code
        (github.com/eladrich/pixel2style2pixel, MIT licence), which takes IR-SE-50 from TreB1eN's
        InsightFace_Pytorch (MIT licence).
    Differs: images of another size are resized; grey ones become colour.
    """

    COARSE, MIDDLE = 3, 7

    def __init__(
        self,
        channels: int,
        n_layers: int,
        w_dim: int = 512,
        side: int = 256,
        width: Sequence[int] = (64, 64, 128, 256, 512),
        units: Sequence[int] = (3, 4, 14, 3),
    ) -> None:
        super().__init__()
        if channels not in (1, 3):
            raise ConfigError(f"The encoder sees grey or colour images, got {channels} channels.")
        if side < 32 or side & (side - 1):
            raise ConfigError(f"The encoder's side must be 32, 64, 128, 256, ..., got {side}.")
        if len(width) != 5 or len(units) != 4:
            raise ConfigError("The encoder has four stages: give five widths and four numbers of units.")
        self.n_layers, self.w_dim, self.side = n_layers, w_dim, side
        self.input_layer = nn.Sequential(
            nn.Conv2d(3, width[0], 3, 1, 1, bias=False), nn.BatchNorm2d(width[0]), nn.PReLU(width[0])
        )
        body = [
            _Bottleneck(width[stage] if i == 0 else width[stage + 1], width[stage + 1], 1 if i else 2)
            for stage, n in enumerate(units)
            for i in range(n)
        ]
        self.body = nn.ModuleList(body)
        ends = [sum(units[: stage + 1]) - 1 for stage in range(4)]
        self.taps = tuple(ends[1:])
        sides = [16 if j < self.COARSE else 8 if j < self.MIDDLE else 4 for j in range(n_layers)]
        self.styles = nn.ModuleList(_StyleHead(width[4], w_dim, side // down) for down in sides)
        self.latlayer1 = nn.Conv2d(width[3], width[4], 1)
        self.latlayer2 = nn.Conv2d(width[2], width[4], 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return offsets (B, L, D) of images (B, C, H, W) in [-1, 1]."""
        if tuple(x.shape[2:]) != (self.side, self.side):
            x = functional.interpolate(x, size=(self.side, self.side), mode="bilinear", antialias=True)
        x = self.input_layer(x.expand(-1, 3, -1, -1))
        maps = []
        for i, unit in enumerate(self.body):
            x = unit(x)
            if i in self.taps:
                maps.append(x)
        fine, middle, coarse = maps
        middle = _added(coarse, self.latlayer1(middle))
        fine = _added(middle, self.latlayer2(fine))
        levels = [
            coarse if j < self.COARSE else middle if j < self.MIDDLE else fine for j in range(self.n_layers)
        ]
        return torch.stack([head(level) for head, level in zip(self.styles, levels, strict=True)], 1)


def _added(top: Tensor, own: Tensor) -> Tensor:
    """Return a larger map with a smaller one, enlarged, added."""
    return functional.interpolate(top, size=own.shape[2:], mode="bilinear", align_corners=True) + own
