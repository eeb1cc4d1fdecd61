"""Optimal transport between Gaussians."""

from __future__ import annotations

import torch
from torch import Tensor

from fewgen.losses.reconstruction import same_shape


def w2_diagonal(mu_a: Tensor, logvar_a: Tensor, mu_b: Tensor, logvar_b: Tensor) -> Tensor:
    """2-Wasserstein distance of diagonal Gaussians, averaged over the batch.

    For each sample ( |mu_a - mu_b|^2 + |sigma_a - sigma_b|^2 )^(1/2).

    Args:
        mu_a: means, (B, D).
        logvar_a: logarithms of the variances, same shape.
        mu_b: means of the other Gaussians, same shape.
        logvar_b: logarithms of their variances, same shape.

    Returns:
        A scalar >= 0 in units of mu; its gradient is zero (not NaN) where both Gaussians are equal.

    Raises:
        ShapeError: if the shapes differ.

    Source: Schoenfeld et al. 2019, arXiv:1812.01784, Sec. 3 (distribution alignment).
    Differs: averaged over the batch; sigma = exp(logvar / 2), while their public code uses exp(logvar).
    """
    for other in (logvar_a, mu_b, logvar_b):
        same_shape(mu_a, other, "Parameters of the two Gaussians")
    sigma_a, sigma_b = torch.exp(0.5 * logvar_a), torch.exp(0.5 * logvar_b)
    squared = ((mu_a - mu_b).square() + (sigma_a - sigma_b).square()).flatten(1).sum(1)
    # sqrt has an infinite slope at 0, which times the zero inner slope is NaN: step around it.
    apart = squared > 0
    distance = torch.where(
        apart, torch.sqrt(torch.where(apart, squared, torch.ones_like(squared))), 0.0 * squared
    )
    return distance.mean()
