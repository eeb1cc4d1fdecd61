"""The energy score: how well draws stand for the distribution that some samples came from."""

from __future__ import annotations

import torch
from torch import Tensor

from fewgen.errors import ShapeError

_SMALLEST = 1e-6
"""Added to squared distances: the derivative of a root at 0 is infinite."""


def energy_score_per_class(draws: Tensor, real: Tensor, labels: Tensor) -> Tensor:
    """Return the mean over draws of their distance to real samples, less half that to other draws.

    Within each class, mean |g - x| - 1/2 mean |g - g'| over draws g, g' and samples x. The first term brings
    draws to the samples, the second keeps them apart; the expectation is least if and only if draws and
    samples have the same distribution.

    Args:
        draws: (N, ...), row i a draw of the class `labels[i]`.
        real: (N, ...), row i a sample of the same class.
        labels: int64 (N,).

    Returns:
        A scalar in the unit of the samples: the mean over rows, so classes count by their size. With a
        single row the second term of its class is absent.

    Raises:
        ShapeError: if the shapes do not fit.

    Source: Gneiting, Raftery 2007, "Strictly proper scoring rules, prediction, and estimation", J. American
        Statistical Association 102(477), Eq. 22.
    Differs: an average over several samples of a class, each with the same draws.
    """
    if draws.shape != real.shape or labels.shape != draws.shape[:1]:
        raise ShapeError(
            f"Draws, samples and labels have shapes {tuple(draws.shape)}, {tuple(real.shape)} and "
            f"{tuple(labels.shape)}; they must be (N, ...) twice and (N,)."
        )
    g, x = draws.flatten(1), real.flatten(1)
    same = (labels[:, None] == labels[None, :]).to(g.dtype)
    others = same - torch.eye(len(g), dtype=g.dtype, device=g.device)
    to_real = (same * _distances(g, x)).sum(1) / same.sum(1)
    to_draws = (others * _distances(g, g)).sum(1) / others.sum(1).clamp_min(1.0)
    return (to_real - 0.5 * to_draws).mean()


def _distances(a: Tensor, b: Tensor) -> Tensor:
    """Return Euclidean distances (N, M), differentiable everywhere."""
    centre = b.detach().mean(0)  # distances do not change, but less is lost to rounding
    a, b = a - centre, b - centre
    squares = a.square().sum(1)[:, None] + b.square().sum(1)[None, :] - 2.0 * (a @ b.T)
    return (squares.clamp_min(0.0) + _SMALLEST).sqrt()
