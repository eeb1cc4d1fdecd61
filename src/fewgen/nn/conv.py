"""Convolutional networks for small images: halves of autoencoders with a vector or a map in the middle.

The map has about 8 pixels a side (`map_size`): 28 px gives 7, 32 px and 64 px give 8. Upsampling is a
convolution at the low resolution followed by pixel shuffling, which on a processor costs a quarter of a
convolution at the high one.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from fewgen.errors import ConfigError
from fewgen.nn.vae import GaussianHead, check_images


def n_halvings(height: int, width: int) -> int:
    """How often an image is halved to reach a map of about 8 pixels a side.

    >>> [n_halvings(size, size) for size in (16, 28, 32, 64)]
    [1, 2, 2, 3]
    """
    return max(1, round(math.log2(min(height, width) / 8)))


def map_size(height: int, width: int) -> tuple[int, int]:
    """Return (height, width) of the map of an image.

    Raises:
        ConfigError: if the size cannot be halved that often; the message names sizes that can.

    >>> map_size(28, 28)
    (7, 7)
    """
    factor = 2 ** n_halvings(height, width)
    if min(height, width) < 8 or height % factor or width % factor:
        nearest = max(8, factor * round(min(height, width) / factor))
        raise ConfigError(
            f"The convolutional networks cannot make images of {height} x {width} pixels: "
            f"both sides must be 8 or more and divisible by {factor}. Use size {nearest}, or 28, 32 or 64."
        )
    return height // factor, width // factor


def norm(channels: int) -> nn.GroupNorm:
    """Group normalisation with at most 8 groups: no batch statistics, so batches may be small."""
    return nn.GroupNorm(math.gcd(8, channels), channels)


def _fast_layout(x: Tensor) -> Tensor:
    # On processors, channels-last halves the cost of the backward convolutions with few channels on large
    # maps, and costs a third more forward, where group normalisation is slow in it.
    layout = torch.channels_last if torch.is_grad_enabled() else torch.contiguous_format
    return x.contiguous(memory_format=layout)


class ResBlock(nn.Module):
    """Two 3 x 3 convolutions with normalisation before each, and a shortcut.

    Args:
        channels: in and out.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = norm(channels), norm(channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, channels, h, w) to the same shape."""
        h = self.conv1(functional.silu(self.norm1(x)))
        h = self.conv2(functional.silu(self.norm2(h)))
        return x + h


class ConvDown(nn.Sequential):
    """Image (B, C, H, W) to map (B, width, h, w).

    Args:
        shape: (C, H, W).
        width: channels of the map; the first layers have half.
        n_blocks: residual blocks on the map.
    """

    def __init__(self, shape: tuple[int, int, int], width: int = 64, n_blocks: int = 1) -> None:
        map_size(shape[1], shape[2])
        layers: list[nn.Module] = []
        channels, n = shape[0], n_halvings(shape[1], shape[2])
        for i in range(n):
            out = width if i == n - 1 else width // 2
            layers += [nn.Conv2d(channels, out, 4, stride=2, padding=1), nn.SiLU()]
            channels = out
        layers[-1:] = [ResBlock(width) for _ in range(n_blocks)]
        super().__init__(*layers, norm(width), nn.SiLU())

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, width, h, w)."""
        return super().forward(_fast_layout(x))


class ConvUp(nn.Sequential):
    """Map (B, width, h, w) to image before the output activation (B, C, H, W).

    Args:
        shape: (C, H, W).
        width: channels of the map; halved at each doubling of the resolution.
        n_blocks: residual blocks on the map.
    """

    def __init__(self, shape: tuple[int, int, int], width: int = 64, n_blocks: int = 1) -> None:
        map_size(shape[1], shape[2])
        layers: list[nn.Module] = [ResBlock(width) for _ in range(n_blocks)]
        channels = width
        for _ in range(n_halvings(shape[1], shape[2])):
            out = max(16, channels // 2)
            layers += [
                norm(channels),
                nn.SiLU(),
                nn.Conv2d(channels, 4 * out, 3, padding=1),
                nn.PixelShuffle(2),
            ]
            channels = out
        super().__init__(*layers, norm(channels), nn.SiLU(), nn.Conv2d(channels, shape[0], 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, width, h, w) to (B, C, H, W)."""
        image: Tensor = super().forward(_fast_layout(x))
        return image.contiguous()


class ConvImageEncoder(nn.Module):
    """Convolutional image encoder with a vector latent.

    Args:
        shape: (C, H, W).
        latent_size: L.
        width: channels of the map.
        n_blocks: residual blocks.
        hidden: width of the fully connected layer.
        dropout: on the flattened map.
        logvar: log-variance at the start.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        latent_size: int,
        width: int = 64,
        n_blocks: int = 1,
        hidden: int = 200,
        dropout: float = 0.0,
        logvar: float = -2.0,
    ) -> None:
        super().__init__()
        self.shape = shape
        h, w = map_size(shape[1], shape[2])
        self.down = ConvDown(shape, width, n_blocks)
        self.body = nn.Sequential(
            nn.Flatten(), nn.Dropout(dropout), nn.Linear(width * h * w, hidden), nn.SiLU()
        )
        self.head = GaussianHead(hidden, latent_size, logvar)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return mu and logvar, (B, L), of images (B, C, H, W)."""
        check_images(x, self.shape)
        mu, logvar = self.head(self.body(self.down(x)))
        return mu, logvar


class ConvImageDecoder(nn.Module):
    """Convolutional image decoder of a vector latent.

    Args:
        shape: (C, H, W).
        latent_size: L.
        width: channels of the map.
        n_blocks: residual blocks.
        hidden: width of the fully connected layer.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        latent_size: int,
        width: int = 64,
        n_blocks: int = 1,
        hidden: int = 200,
    ) -> None:
        super().__init__()
        h, w = map_size(shape[1], shape[2])
        self.body = nn.Sequential(
            nn.Linear(latent_size, hidden),
            nn.SiLU(),
            nn.Linear(hidden, width * h * w),
            nn.Unflatten(1, (width, h, w)),
        )
        self.up = ConvUp(shape, width, n_blocks)

    def forward(self, z: Tensor) -> Tensor:
        """Return images before the output activation, (B, C, H, W), of latents (B, L)."""
        return self.up(self.body(z))
