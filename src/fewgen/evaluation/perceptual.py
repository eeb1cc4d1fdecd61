"""Perceptual distance of image pairs (LPIPS), with published trunks or with the small classifier's layers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from fewgen.encoders.classifier import ClassifierFeatures
from fewgen.encoders.weights import read_weights
from fewgen.errors import CheckpointError, DataError, ShapeError

# Keeps the direction of a vector of zeros at zero.
_EPSILON = 1e-10


class Trunk(Protocol):
    """A network whose layers are compared."""

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of each layer."""
        ...

    def layers(self, x: Tensor) -> list[Tensor]:
        """Return the layers, (B, channels[l], h_l, w_l) each, of images (B, C, H, W) in [-1, 1]."""
        ...

    def record(self) -> dict[str, object]:
        """Return what a reader must know to compare distances; JSON-ready."""
        ...


class FeaturePyramid:
    """The convolutional layers of the small classifier (after each ReLU), so that no weight file is needed.

    Args:
        extractor: a trained classifier; it must fit the images in size and channels.
    """

    def __init__(self, extractor: ClassifierFeatures) -> None:
        self.extractor = extractor
        convolutions = [m for m in extractor.network.body if isinstance(m, nn.Conv2d)]
        self.channels = tuple(m.out_channels for m in convolutions)

    @torch.no_grad()
    def layers(self, x: Tensor) -> list[Tensor]:
        """Return the layers of images (B, C, H, W) in [-1, 1]. Raises ShapeError for another image shape."""
        return self.maps(x)

    def maps(self, x: Tensor) -> list[Tensor]:
        """Return `layers` with gradient to the images, for a loss."""
        if tuple(x.shape[1:]) != self.extractor.image_shape:
            raise ShapeError(
                f"the classifier was made for images of (channels, height, width) "
                f"{self.extractor.image_shape}, but these are {tuple(x.shape[1:])}."
            )
        x = self.extractor.shrink(x).contiguous(memory_format=torch.channels_last)
        found = []
        for layer in self.extractor.network.body:
            x = layer(x)
            if isinstance(layer, nn.ReLU):
                found.append(x)
        return found

    def record(self) -> dict[str, object]:
        """Return the record of the classifier under a name of its own."""
        return {**self.extractor.record(), "name": "classifier_layers", "channels": list(self.channels)}


def lpips_distance(
    x: Tensor, y: Tensor, trunk: Trunk, weights: Sequence[Tensor] | None = None, *, batch_size: int = 64
) -> Tensor:
    """Perceptual distance of each pair of images.

    ``d(x, y) = sum_l 1 / (H_l W_l) sum_hw sum_c w_lc (f_lchw(x) / |f_lhw(x)| - f_lchw(y) / |f_lhw(y)|)^2``

    Args:
        x: images, (N, C, H, W), uint8 or float in [-1, 1].
        y: the image to compare each with, same shape.
        trunk: `LpipsTrunk` (published networks) or `FeaturePyramid` (the small classifier).
        weights: per layer one weight per channel, (channels,), none negative, from `read_lpips_weights`;
            None weighs every channel 1.
        batch_size: pairs per forward pass; changes rounding only.

    Returns:
        Distances, (N,), float64; 0 for equal images. Without weights at most 2 per layer.

    Raises:
        ShapeError: shapes that differ, or weights that do not fit the layers.
        DataError: images that are not finite or leave [-1, 1], or negative weights.

    Source: Zhang et al. 2018, arXiv:1801.03924, Eq. 1 (there w is multiplied before squaring; the
    published weights belong after it, as in the authors' code).
    """
    if x.shape != y.shape or x.ndim != 4:
        raise ShapeError(f"both sets must be equal (N, C, H, W), got {tuple(x.shape)} and {tuple(y.shape)}.")
    scales = _checked_weights(trunk, weights)
    distances = [torch.zeros(0, dtype=torch.float64)]
    for start in range(0, len(x), batch_size):
        pairs = [_in_range(images[start : start + batch_size]) for images in (x, y)]
        layers = [trunk.layers(images) for images in pairs]
        total = torch.zeros(len(pairs[0]), dtype=torch.float64)
        for a, b, scale in zip(*layers, scales, strict=True):
            squared = (_unit(a) - _unit(b)).square()
            total += torch.einsum("nchw,c->n", squared, scale) / (a.shape[2] * a.shape[3])
        distances.append(total)
    return torch.cat(distances)


def _unit(layer: Tensor) -> Tensor:
    """Return each position's channel vector scaled to length 1, float64."""
    layer = layer.to(torch.float64)
    return layer / (layer.square().sum(dim=1, keepdim=True).sqrt() + _EPSILON)


def _in_range(images: Tensor) -> Tensor:
    if images.dtype == torch.uint8:
        return images.to(torch.float32).div_(127.5).sub_(1.0)
    low, high = (float(v) for v in images.aminmax())
    if not (low >= -1.0 - 1e-6 and high <= 1.0 + 1e-6):
        raise DataError(f"images must be uint8 or lie in [-1, 1], but reach from {low:.3g} to {high:.3g}.")
    return images.detach().to(torch.float32)


def _checked_weights(trunk: Trunk, weights: Sequence[Tensor] | None) -> list[Tensor]:
    if weights is None:
        return [torch.ones(channels, dtype=torch.float64) for channels in trunk.channels]
    shapes, wanted = [tuple(w.shape) for w in weights], [(c,) for c in trunk.channels]
    if shapes != wanted:
        raise ShapeError(f"the weights have shapes {shapes}, but the layers of the trunk need {wanted}.")
    scales = [w.detach().to(torch.float64) for w in weights]
    if not all(bool((w >= 0).all()) and bool(torch.isfinite(w).all()) for w in scales):
        raise DataError("the weights of layers must be finite and not negative; a distance would be neither.")
    return scales


def read_lpips_weights(
    path: str | Path, channels: Sequence[int], sha256: str | None = None
) -> tuple[list[Tensor], str]:
    """Read the learned weights of the published LPIPS (its "lin" files, version 0.1).

    Args:
        path: .pth or .safetensors with `lin0.model.1.weight` and so on, (1, channels, 1, 1) each.
        channels: of the trunk's layers.
        sha256: digest that the file must have; None for any.

    Returns:
        One weight per channel for each layer, (channels,), and the digest that was found.

    Raises:
        ConfigError: no such file.
        CheckpointError: another digest, a damaged file, or weights of another trunk.
    """
    tensors, found = read_weights(path, sha256)
    wanted = {f"lin{i}.model.1.weight": (1, c, 1, 1) for i, c in enumerate(channels)}
    shapes = {name: tuple(value.shape) for name, value in tensors.items()}
    if shapes != wanted:
        wrong = sorted(n for n in shapes.keys() | wanted.keys() if shapes.get(n) != wanted.get(n))
        name = wrong[0]
        raise CheckpointError(
            f"{path} does not hold the LPIPS weights of this trunk: {name} is {shapes.get(name, 'missing')}, "
            f"wanted {wanted.get(name, 'no such tensor')} ({len(wrong)} tensors differ)."
        )
    return [tensors[name].flatten() for name in wanted], found
