"""Optimal transport between Gaussians, and between sets of vectors."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fewgen.errors import ConfigError, ShapeError
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
def sinkhorn(
    cost: Tensor,
    epsilon: float,
    n_iterations: int = 100,
    a: Tensor | None = None,
    b: Tensor | None = None,
) -> Tensor:
    """Entropic optimal transport plan, the argmin of <plan, cost> - epsilon H(plan) with given marginals.

    The iterations run on logarithms, which neither over- nor underflow, in float32 at least. The last update
    is one of the rows: row sums are right up to rounding after any number of iterations, and what is missing
    to convergence shows in the column sums. `marginal_error` measures it; a small epsilon needs more
    iterations, above all where both sets fall into clusters of unequal mass.

    Args:
        cost: (N, M), float, any sign; its unit is that of `epsilon`.
        epsilon: > 0, strength of the entropy. Towards 0 the plan becomes an assignment.
        n_iterations: pairs of updates, >= 1.
        a: mass of the rows, (N,), >= 0; 1/N each if None.
        b: mass of the columns, (M,), >= 0, of the same sum; 1/M each if None.

    Returns:
        (N, M), >= 0, without gradient. By the envelope theorem it is itself the gradient of the regularised
        minimum in the cost.

    Raises:
        ShapeError: if the shapes do not fit or there is nothing to transport.
        ConfigError: if epsilon, the number of iterations or the masses cannot be used.

    Source: Cuturi 2013, arXiv:1306.0895, Algorithm 1; in the log domain Peyre & Cuturi 2019,
        arXiv:1803.00567, Sec. 4.4.
    """
    if cost.dim() != 2 or cost.numel() == 0:
        raise ShapeError(f"Transport cost has shape {tuple(cost.shape)}; it must be (N, M) and not empty.")
    if not (math.isfinite(epsilon) and epsilon > 0):
        raise ConfigError(f"Sinkhorn epsilon is {epsilon}, but it must be greater than 0.")
    if n_iterations < 1:
        raise ConfigError(f"Sinkhorn n_iterations is {n_iterations}, but it must be at least 1.")
    cost = wide(cost)
    a, b = _masses(cost, a, b)
    log_a, log_b = a.log(), b.log()
    # Everything in units of epsilon. A transposed copy, because reducing along rows is the fast direction.
    score = cost / -epsilon
    score_t = score.T.contiguous()
    g = torch.zeros_like(b)
    for _ in range(n_iterations):
        f = -torch.logsumexp(score + (g + log_b), dim=1)
        g = -torch.logsumexp(score_t + (f + log_a), dim=1)
    f = -torch.logsumexp(score + (g + log_b), dim=1)
    return torch.exp(score + (f + log_a)[:, None] + (g + log_b))


def _masses(plan: Tensor, a: Tensor | None, b: Tensor | None) -> tuple[Tensor, Tensor]:
    """Masses of rows and columns like `plan` (N, M), checked; uniform where None."""
    given = []
    for name, mass, n in (("rows", a, plan.shape[0]), ("columns", b, plan.shape[1])):
        if mass is None:
            mass = plan.new_full((n,), 1.0 / n)
        elif mass.shape != (n,):
            raise ShapeError(f"Masses of {n} {name} have shape {tuple(mass.shape)}, not ({n},).")
        elif not bool((torch.isfinite(mass) & (mass >= 0)).all()):
            raise ConfigError(f"Masses of the {name} must be finite and at least 0.")
        given.append(mass.to(plan))
    if a is not None or b is not None:
        total_a, total_b = (float(mass.sum()) for mass in given)
        if not (total_a > 0 and abs(total_a - total_b) <= 1e-4 * total_a):
            raise ConfigError(
                f"Rows hold a mass of {total_a:g} and columns of {total_b:g}; transport needs equal, "
                "positive sums."
            )
    return given[0], given[1]


def marginal_error(plan: Tensor, a: Tensor | None = None, b: Tensor | None = None) -> Tensor:
    """Largest absolute difference of the sums of a plan from the masses it should have.

    Args:
        plan: (N, M), from `sinkhorn`.
        a: mass of the rows, (N,); 1/N each if None.
        b: mass of the columns, (M,); 1/M each if None.

    Returns:
        A scalar >= 0 in units of mass. Up to 1e-4 of the total mass (1e-4 with the masses left at None)
        counts as converged here.

    Raises:
        ShapeError: if the shapes do not fit.
    """
    a, b = _masses(plan, a, b)
    return torch.maximum((plan.sum(1) - a).abs().max(), (plan.sum(0) - b).abs().max())


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


def transport_loss(
    x: Tensor, y: Tensor, epsilon: float = 0.05, n_iterations: int = 100, center: bool = True
) -> Tensor:
    """Cost of transporting one set of vectors into another, sum_ij plan_ij (1 - cos(x_i, y_j)).

    The plan is the entropic one, uniform over both sets, and a constant of the step: the gradient is that
    of the entropic objective (envelope theorem). To see whether the plan has converged, call
    `cosine_cost`, `sinkhorn` and `marginal_error`, of which this is made.

    Args:
        x: (N, D), float.
        y: (M, D), float.
        epsilon: > 0, strength of the entropy, in units of the cost.
        n_iterations: of Sinkhorn, >= 1.
        center: see `cosine_cost`.

    Returns:
        A scalar in [0, 2] without unit.

    Raises:
        ShapeError: if the shapes do not fit.
        ConfigError: if epsilon or the number of iterations cannot be used.

    Source: Wang et al. 2025, arXiv:2503.24282; Cuturi 2013, arXiv:1306.0895.
    """
    cost = cosine_cost(x, y, center)
    return (sinkhorn(cost.detach(), epsilon, n_iterations) * cost).sum()
