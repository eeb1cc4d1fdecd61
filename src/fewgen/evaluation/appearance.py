"""What images look like, in a few numbers each: sharpness, contrast, texture, colour; not what they show.

A judge that was trained on few images may take fog for a class. These numbers need no training, and a failed
generator is far from real images in some of them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

VISIBLE = 0.02
"""Spread of grey values, of 1, below which nobody sees a difference; less than that counts as nothing."""

_BLOCK = 256
_N_RINGS, _N_LEVELS = 8, 8
_LAGS = (1, 2, 3, 5)

# Least spread by which each kind of number is divided, as real images of one kind may have none at all.
_LEAST = {"spectrum": 0.2, "edges": 0.2, "levels": 2 * VISIBLE, "likeness": 0.05}


def _levels(values: Tensor, low: float, high: float) -> Tensor:
    """Return `_N_LEVELS` quantiles of each row of values (N, P), (N, _N_LEVELS)."""
    ordered = values.sort(dim=1).values
    places = torch.linspace(low, high, _N_LEVELS, dtype=torch.float64) * (values.shape[1] - 1)
    return ordered[:, places.round().long()]


def _edges(x: Tensor) -> Tensor:
    """Return logarithms of quantiles of the gradient's length of planes (N, H, W)."""
    down, right = x.diff(dim=1)[:, :, :-1], x.diff(dim=2)[:, :-1]
    return (_levels(torch.hypot(down, right).flatten(1), 0.1, 0.98) + VISIBLE).log()


def _spectrum(x: Tensor) -> Tensor:
    """Return the logarithm of the power in rings of frequencies of planes (N, H, W)."""
    height, width = x.shape[1:]
    window = (
        torch.hann_window(height + 2, periodic=False, dtype=torch.float64)[1:-1, None]
        * torch.hann_window(width + 2, periodic=False, dtype=torch.float64)[None, 1:-1]
    )
    power = torch.fft.fft2((x - x.mean(dim=(1, 2), keepdim=True)) * window).abs().square()
    rows, columns = torch.fft.fftfreq(height)[:, None], torch.fft.fftfreq(width)[None]
    n_rings = min(_N_RINGS, min(height, width) // 2)
    rings = (torch.hypot(rows, columns) / 0.5 * n_rings).long().clamp_max(n_rings - 1)
    noise = float(window.square().sum()) * VISIBLE**2  # the power of noise that is hardly visible
    return torch.stack([(power[:, rings == k].mean(dim=1) + noise).log() for k in range(n_rings)], dim=1)


def _likeness(x: Tensor) -> Tensor:
    """Return how alike pixels some steps apart are (autocorrelation), of planes (N, H, W)."""
    centred = x - x.mean(dim=(1, 2), keepdim=True)
    power = centred.square().mean(dim=(1, 2)) + VISIBLE**2
    found = []
    for lag in _LAGS:
        for a, b in (
            (centred[:, lag:], centred[:, :-lag]),
            (centred[:, :, lag:], centred[:, :, :-lag]),
        ):
            if a.numel():
                found.append((a * b).mean(dim=(1, 2)) / power)
    return torch.stack(found, dim=1)


def _of_block(images: Tensor) -> list[tuple[str, Tensor]]:
    """Return kinds of numbers of images with values in [0, 1], each (N, numbers)."""
    grey = images.mean(dim=1)
    parts = [
        ("spectrum", _spectrum(grey)),
        ("edges", _edges(grey)),
        ("levels", _levels(grey.flatten(1), 0.02, 0.98)),
        ("likeness", _likeness(grey)),
    ]
    for channel in range(images.shape[1] - 1):  # colour: what the channels have beside their mean
        colour = images[:, channel] - grey
        parts += [("levels", _levels(colour.flatten(1), 0.02, 0.98)), ("edges", _edges(colour))]
    return parts


def _numbers(images: Tensor) -> tuple[Tensor, Tensor]:
    """Return numbers of each image, float64 (N, D), and the least spread of each number, (D,)."""
    blocks = []
    least = torch.empty(0, dtype=torch.float64)
    for start in range(0, len(images), _BLOCK):
        parts = _of_block(images[start : start + _BLOCK].double() / 255)
        blocks.append(torch.cat([values for _, values in parts], dim=1))
        least = torch.cat([torch.full((v.shape[1],), _LEAST[k], dtype=torch.float64) for k, v in parts])
    return torch.cat(blocks), least


def appearance(reference: Tensor) -> Callable[[Tensor], Tensor]:
    """Return the function from images to numbers of their appearance, in units of the spread of real images.

    Power in rings of frequencies, quantiles of edges and of grey values, autocorrelation; of colour images
    also edges and values of the colours. What differs by less than is visible (`VISIBLE`) hardly counts.

    Args:
        reference: real images, uint8 (M, C, H, W).

    Returns:
        Images uint8 (N, C, H, W) -> float64 (N, D).
    """
    known, least = _numbers(reference)
    centre, spread = known.mean(dim=0), torch.maximum(known.std(dim=0, correction=0), least)
    return lambda images: (_numbers(images)[0] - centre) / spread
