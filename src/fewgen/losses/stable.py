"""Roots and directions whose gradients stay finite at zero, and sums that do not lose digits."""

from __future__ import annotations

import torch
from torch import Tensor


def wide(x: Tensor) -> Tensor:
    """`x` in float32 at least: a loss of 16-bit outputs is summed with all its digits.

    >>> wide(torch.ones(1, dtype=torch.bfloat16)).dtype, wide(torch.ones(1, dtype=torch.float64)).dtype
    (torch.float32, torch.float64)
    """
    return x.to(torch.promote_types(x.dtype, torch.float32))


def safe_sqrt(squared: Tensor) -> Tensor:
    """Square root of values >= 0, any shape, with gradient 0 (not NaN) where the value is 0.

    >>> x = torch.tensor([0.0, 4.0], requires_grad=True)
    >>> safe_sqrt(x).sum().backward()
    >>> x.grad
    tensor([0.0000, 0.2500])
    """
    # sqrt has an infinite slope at 0, which times the zero inner slope is NaN: step around it.
    apart = squared > 0
    roots = torch.sqrt(torch.where(apart, squared, torch.ones_like(squared)))
    return torch.where(apart, roots, 0.0 * squared)


def directions(x: Tensor, floor: float = 1e-8) -> Tensor:
    """Each vector over its length; a vector no longer than `floor` has no direction and becomes 0.

    Such a vector also gets gradient 0. `torch.nn.functional.normalize` would give it the gradient
    1/eps = 1e12, which one optimiser step turns into a code or feature far outside everything else.

    Args:
        x: (..., D), float.
        floor: length at and below which a vector counts as 0, in units of `x`.

    Returns:
        (..., D), of length 1 or 0.
    """
    lengths = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    apart = ~(lengths <= floor)  # so that NaN stays NaN
    return torch.where(apart, x / torch.where(apart, lengths, torch.ones_like(lengths)), torch.zeros_like(x))
