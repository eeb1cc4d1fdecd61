"""Figures of pairs of images: SSIM, MSE, PSNR, nearness to training images."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

from fewgen.errors import DataError, ShapeError
from fewgen.evaluation.distances import BLOCK_ENTRIES

# ------------------------------------------------------------------------------------- reconstructions


def _check_images(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    if x.shape != y.shape or x.ndim != 4:
        raise ShapeError(f"images must both be (N, C, H, W), got {tuple(x.shape)} and {tuple(y.shape)}.")
    if len(x) == 0:
        raise DataError("there are no images to compare.")
    x, y = x.detach(), y.detach()
    if not (torch.isfinite(x).all() and torch.isfinite(y).all()):
        raise DataError("images hold NaN or infinity.")
    return x, y


def _window() -> Tensor:
    """Return the weights (11,) of one axis of the separable window, summing to 1."""
    offsets = torch.arange(-5, 6, dtype=torch.float64)
    weights = torch.exp(-(offsets**2) / (2 * 1.5**2))
    return weights / weights.sum()


def _mirror(length: int, pad: int) -> Tensor:
    """Indices that continue an axis by mirroring it, the edge pixel repeated: c b a | a b c | c b a."""
    position = torch.arange(-pad, length + pad)
    folded = position.remainder(2 * length)
    return torch.where(folded < length, folded, 2 * length - 1 - folded)


def ssim(x: Tensor, y: Tensor, *, data_range: float = 255.0) -> Tensor:
    """Structural similarity of each pair of images, averaged over pixels and channels.

    A Gaussian window of 11 pixels and sigma 1.5 (population covariance), images continued by mirroring, and
    the mean over all pixels: the setting under which PCA fitted on 300 Fashion-MNIST images gives 0.564 with
    20 and 0.717 with 200 components on held-out images (`benchmarks/reconstruction.py` prints it).

    Args:
        x: images, (N, C, H, W), uint8 or float, in [0, data_range]. SSIM compares means, so it changes
            when black is not zero: images in [-1, 1] must be converted first (`to_uint8`).
        y: images of the same shape and range.
        data_range: value of white: 255 for uint8, 1 for images in [0, 1].

    Returns:
        SSIM per image, (N,), float64, in [-1, 1].

    Raises:
        ShapeError: shapes differ.
        DataError: no images, or values that are not finite or outside [0, data_range].

    Source: Wang et al. 2004, IEEE Trans. Image Processing 13(4), Eq. 13, K1 = 0.01, K2 = 0.03.
    Differs: the border is part of the mean; colour is the mean over channels.
    """
    x, y = _check_images(x, y)
    for image in (x, y):
        if float(image.min()) < 0 or float(image.max()) > data_range:
            raise DataError(
                f"SSIM needs values in [0, {data_range:g}], but these reach from {float(image.min()):g} to "
                f"{float(image.max()):g}. Convert model images with to_uint8, or set data_range."
            )
    weights = _window()
    return torch.cat([_ssim(x[rows], y[rows], data_range, weights) for rows in _image_blocks(x)])


def _image_blocks(images: Tensor) -> Iterator[slice]:
    """Blocks of images: about twelve tensors of a block live at once, which must not grow with the set."""
    size = max(1, BLOCK_ENTRIES // images[0].numel())
    for start in range(0, len(images), size):
        yield slice(start, start + size)


def _ssim(x: Tensor, y: Tensor, data_range: float, weights: Tensor) -> Tensor:
    """SSIM (N,) of checked images."""
    x, y = x.to(torch.float64), y.to(torch.float64)
    pad = len(weights) // 2
    n, channels, height, width = x.shape
    rows, columns = _mirror(height, pad), _mirror(width, pad)
    x, y = (image[:, :, rows][:, :, :, columns] for image in (x, y))

    def blur(image: Tensor) -> Tensor:
        flat = image.reshape(n * channels, 1, *image.shape[2:])
        flat = functional.conv2d(flat, weights[None, None, :, None])
        return functional.conv2d(flat, weights[None, None, None, :]).reshape(n, channels, height, width)

    mean_x, mean_y = blur(x), blur(y)
    var_x, var_y = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2
    cov = blur(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    numerator = (2 * mean_x * mean_y + c1) * (2 * cov + c2)
    denominator = (mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2)
    return (numerator / denominator).mean(dim=(1, 2, 3))


def mean_squared_error(x: Tensor, y: Tensor) -> Tensor:
    """Mean squared difference of each pair of images (N, C, H, W); (N,), float64, squared input units.

    Raises: ShapeError for different shapes; DataError for empty or non-finite input.
    """
    x, y = _check_images(x, y)
    differences = (x[rows].to(torch.float64) - y[rows].to(torch.float64) for rows in _image_blocks(x))
    return torch.cat([difference.square_().mean(dim=(1, 2, 3)) for difference in differences])


def psnr(x: Tensor, y: Tensor, *, data_range: float = 255.0) -> Tensor:
    """Peak signal-to-noise ratio of each pair in decibels, (N,); infinite for equal images.

    Args:
        x: images, (N, C, H, W).
        y: images of the same shape.
        data_range: largest minus smallest possible value.

    Raises: ShapeError for different shapes; DataError for empty or non-finite input.

    Source: ITU-T J.247 (2008), Annex; 10 log10(range^2 / MSE).
    """
    return 10 * torch.log10(data_range**2 / mean_squared_error(x, y))
