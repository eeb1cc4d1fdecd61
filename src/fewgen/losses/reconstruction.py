"""How far a reconstruction is from what it should show."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from fewgen.errors import ShapeError


def same_shape(a: Tensor, b: Tensor, what: str) -> None:
    """Raise `ShapeError` unless both shapes are equal (broadcasting would hide a mistake)."""
    if a.shape != b.shape:
        raise ShapeError(f"{what} have shapes {tuple(a.shape)} and {tuple(b.shape)}; they must be equal.")


def squared_error(x_hat: Tensor, x: Tensor) -> Tensor:
    """Squared error, summed over features and averaged over the batch.

    Args:
        x_hat: reconstruction, (B, ...), float.
        x: what it should be, same shape.

    Returns:
        A scalar, in squared units of `x`, per sample.

    Raises:
        ShapeError: if the shapes differ.

    Source: Kingma & Welling 2014, arXiv:1312.6114, Appendix C.2 (Gaussian decoder, unit variance).
    Differs: without the factor 1/2 and the additive constant of the log-likelihood.
    """
    same_shape(x_hat, x, "Reconstruction and target")
    return (x_hat - x).square().flatten(1).sum(1).mean()


def ssim_error(x_hat: Tensor, x: Tensor, window: int = 7) -> Tensor:
    """One minus structural similarity, averaged over windows, channels and the batch.

    Squared error alone prefers a grey blur where the position of an edge is uncertain; this term asks for
    the local contrast and structure too.

    Args:
        x_hat: reconstruction, (B, C, H, W), in [0, 1].
        x: what it should be, same shape.
        window: side of the uniform window in pixels, no larger than the image.

    Returns:
        A scalar in [0, 2].

    Raises:
        ShapeError: if the shapes differ or the image is smaller than the window.

    Source: Wang et al. 2004, IEEE Trans. Image Processing 13(4), Eq. 13; as a loss: Zhao et al. 2017,
        arXiv:1511.08861, Sec. III-B.
    Differs: a uniform window instead of a Gaussian one, population covariance.
    """
    same_shape(x_hat, x, "Reconstruction and target")
    if x.ndim != 4 or min(x.shape[2:]) < window:
        raise ShapeError(f"SSIM over {window} x {window} windows needs larger images than {tuple(x.shape)}.")
    n = len(x)
    moments = torch.cat([x_hat, x, x_hat * x_hat, x * x, x_hat * x])
    mean_a, mean_b, square_a, square_b, product = functional.avg_pool2d(moments, window, stride=1).split(n)
    c1, c2 = 0.01**2, 0.03**2
    covariance = product - mean_a * mean_b
    variances = square_a - mean_a.square() + square_b - mean_b.square()
    similarity = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    similarity = similarity / ((mean_a.square() + mean_b.square() + c1) * (variances + c2))
    return 1.0 - similarity.mean()
