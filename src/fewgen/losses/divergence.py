"""Diagonal Gaussians: drawing from them, and Kullback-Leibler divergences between them."""

from __future__ import annotations

import torch
from torch import Tensor

from fewgen.losses.reconstruction import same_shape


def reparameterize(mu: Tensor, logvar: Tensor, rng: torch.Generator) -> Tensor:
    """Draw z = mu + exp(logvar / 2) * eps, with one eps per sample and dimension.

    Args:
        mu: means, (B, ...).
        logvar: logarithms of the variances, same shape.
        rng: where the noise comes from.

    Returns:
        z, same shape as `mu`, differentiable in both arguments.

    Source: Kingma & Welling 2014, arXiv:1312.6114, Eq. 10.
    Differs: the public CADA-VAE code draws one eps per sample and shares it between dimensions; that ties
        the dimensions together and is not done here.
    """
    same_shape(mu, logvar, "Means and log-variances")
    eps = torch.randn(mu.shape, generator=rng, device=rng.device, dtype=mu.dtype).to(mu.device)
    return mu + torch.exp(0.5 * logvar) * eps


def kl_standard_normal(mu: Tensor, logvar: Tensor) -> Tensor:
    """KL(N(mu, exp(logvar)) || N(0, I)) in nats, summed over dimensions and averaged over the batch.

    Args:
        mu: means, (B, ...).
        logvar: logarithms of the variances, same shape.

    Returns:
        A scalar >= 0.

    Raises:
        ShapeError: if the shapes differ.

    Source: Kingma & Welling 2014, arXiv:1312.6114, Appendix B.
    """
    same_shape(mu, logvar, "Means and log-variances")
    kl = 0.5 * (mu.square() + torch.expm1(logvar) - logvar)
    return kl.flatten(1).sum(1).mean()


def kl_diagonal(mu_q: Tensor, logvar_q: Tensor, mu_p: Tensor, logvar_p: Tensor) -> Tensor:
    """KL(q || p) of two diagonal Gaussians in nats, summed over dimensions and averaged over the batch.

    Args:
        mu_q: means of q, (B, ...).
        logvar_q: logarithms of the variances of q, same shape.
        mu_p: means of p, same shape.
        logvar_p: logarithms of the variances of p, same shape.

    Returns:
        A scalar >= 0, with gradients to all four arguments.

    Raises:
        ShapeError: if the shapes differ.

    Source: Sohn et al. 2015, "Learning structured output representation using deep conditional generative
        models", Eq. 4 (the KL to a conditional prior), in closed form for diagonal Gaussians.
    """
    for other in (logvar_q, mu_p, logvar_p):
        same_shape(mu_q, other, "Parameters of the two Gaussians")
    difference = logvar_q - logvar_p
    # expm1 keeps the difference of two nearly equal variances exact near zero.
    kl = 0.5 * (torch.expm1(difference) - difference + (mu_q - mu_p).square() * torch.exp(-logvar_p))
    return kl.flatten(1).sum(1).mean()


ACTIVE = 0.1
"""Nats about the image from which on a number of a latent counts as active; healthy ones carry 1 or more."""


def active_units(mu: Tensor, logvar: Tensor) -> Tensor:
    """Return which numbers of a latent tell images apart, bool (...).

    A number is active if it carries `ACTIVE` nats: ``0.5 log(1 + Var_x(mu) / E_x(sigma^2)) >= 0.1``, the
    information of a Gaussian channel. If few or none are, the posterior has collapsed onto its prior.

    Args:
        mu: means of the posteriors of at least 2 images, (B, ...); less the prior's, if it knows the class.
        logvar: logarithms of their variances, same shape.

    Source: Burda, Grosse & Salakhutdinov 2016, arXiv:1509.00519, Sec. 5.2 (active units: Var_x(mu) > 0.01).
    Differs: in units of the posterior's own variance, as a conditional prior may have any scale.
    """
    same_shape(mu, logvar, "Means and log-variances")
    return 0.5 * torch.log1p(mu.var(0) / logvar.exp().mean(0)) >= ACTIVE
