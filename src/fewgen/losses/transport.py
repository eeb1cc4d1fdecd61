"""Optimal transport between Gaussians, and between sets of vectors."""

from __future__ import annotations

import torch
from torch import Tensor

from fewgen.config.checks import above_zero, at_least
from fewgen.errors import ShapeError
from fewgen.losses.reconstruction import same_shape
from fewgen.losses.stable import directions, safe_sqrt, wide


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
    return safe_sqrt(squared).mean()


@torch.no_grad()
def sinkhorn(cost: Tensor, epsilon: float, n_iterations: int = 100) -> Tensor:
    """Entropic optimal transport plan, the argmin of <plan, cost> - epsilon H(plan) with uniform marginals.

    The iterations run on logarithms, which neither over- nor underflow, in float32 at least. The last update
    is one of the rows: row sums are right up to rounding after any number of iterations, and what is missing
    to convergence shows in the column sums. `marginal_error` measures it; a small epsilon needs more
    iterations, above all where both sets fall into clusters of unequal mass.

    Args:
        cost: (N, M), float, any sign; its unit is that of `epsilon`.
        epsilon: > 0, strength of the entropy. Towards 0 the plan becomes an assignment.
        n_iterations: pairs of updates, >= 1.

    Returns:
        (N, M), >= 0, of row sums 1/N and column sums 1/M, without gradient. By the envelope theorem it is
        itself the gradient of the regularised minimum in the cost.

    Raises:
        ShapeError: if the shapes do not fit or there is nothing to transport.
        ConfigError: if epsilon or the number of iterations cannot be used.

    Source: Cuturi 2013, arXiv:1306.0895, Algorithm 1; in the log domain Peyre & Cuturi 2019,
        arXiv:1803.00567, Sec. 4.4.
    """
    if cost.dim() != 2 or cost.numel() == 0:
        raise ShapeError(f"Transport cost has shape {tuple(cost.shape)}; it must be (N, M) and not empty.")
    above_zero("Sinkhorn epsilon", epsilon)
    at_least("Sinkhorn n_iterations", n_iterations, 1)
    cost = wide(cost)
    log_a, log_b = (cost.new_full((n,), 1.0 / n).log() for n in cost.shape)
    # Everything in units of epsilon. A transposed copy, because reducing along rows is the fast direction.
    score = cost / -epsilon
    score_t = score.T.contiguous()
    g = torch.zeros_like(log_b)
    for _ in range(n_iterations):
        f = -torch.logsumexp(score + (g + log_b), dim=1)
        g = -torch.logsumexp(score_t + (f + log_a), dim=1)
    f = -torch.logsumexp(score + (g + log_b), dim=1)
    return torch.exp(score + (f + log_a)[:, None] + (g + log_b))


def marginal_error(plan: Tensor) -> Tensor:
    """Largest absolute difference of the sums of a plan (N, M) from 1/N in rows and 1/M in columns.

    Up to 1e-4 counts as converged here.
    """
    n, m = plan.shape
    return torch.maximum((plan.sum(1) - 1.0 / n).abs().max(), (plan.sum(0) - 1.0 / m).abs().max())


def cosine_cost(x: Tensor, y: Tensor, center: bool = True) -> Tensor:
    """Cost 1 - cos between the vectors of two sets.

    Args:
        x: (N, D), float, any scale (only directions count).
        y: (M, D), float.
        center: subtract from each set of directions its mean, and take directions again. It removes a
            constant offset between the sets, such as the gap between text and image features of CLIP.

    Returns:
        (N, M), in [0, 2], differentiable in both. A vector without a direction (0, or equal to the mean of
        its set) costs 1 everywhere, with gradient 0.

    Raises:
        ShapeError: if widths differ, a set is empty, or a set to be centred has one vector.

    Source: Wang et al. 2025, arXiv:2503.24282 (transport between codes and features of images).
    Differs: centring is ours; features of the two towers of CLIP never meet (Liang et al. 2022,
        arXiv:2203.02053), so without it the cost hardly tells one pair from another.
    """
    needed = 2 if center else 1
    if x.dim() != 2 or y.dim() != 2 or x.shape[1:] != y.shape[1:] or min(len(x), len(y)) < needed:
        raise ShapeError(
            f"The two sets have shapes {tuple(x.shape)} and {tuple(y.shape)}; transport needs (N, D) and "
            f"(M, D) with at least {needed} of each{' to centre' if center else ''}."
        )
    x, y = directions(wide(x)), directions(wide(y))
    if center:
        # Lengths are 1 here, so below 1e-6 a difference from the mean is rounding and not a direction.
        x, y = directions(x - x.mean(0), 1e-6), directions(y - y.mean(0), 1e-6)
    with torch.autocast(
        device_type=x.device.type, enabled=False
    ):  # rounding here is divided by epsilon later
        return 1.0 - x @ y.T
