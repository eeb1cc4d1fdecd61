"""Latents between an image's own and fresh noise, with a norm that the denoiser expects."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from fewgen.config.checks import choose
from fewgen.errors import ConfigError, DataError, ShapeError
from fewgen.losses.stable import wide

NormMode = Literal["interp", "gaussian", "none"]
"""Norm of a blend: between those of its ends, that of its noise, or as it comes."""

_FLOOR = 1e-6
"""A blend shorter than this share of the norm it should have is rounding noise without a direction."""


def blend(z_T: Tensor, noise: Tensor, alpha: float | Tensor, norm_mode: str = "interp") -> Tensor:
    """Return the latents (1 - alpha) z_T + alpha noise, rescaled sample by sample.

    Half of one Gaussian plus half of another has 0.71 of the norm of each, and a denoiser that is given too
    little noise paints bland images. "interp" gives each sample the norm (1 - alpha) |z_T| + alpha |noise|,
    which keeps both ends exactly: alpha = 0 returns `z_T`, alpha = 1 returns `noise`, bit by bit.

    Args:
        z_T: inverted latents, (B, ...).
        noise: draws from N(0, 1), same shape.
        alpha: in [0, 1], one number or one for each sample, (B,).
        norm_mode: "interp"; "gaussian", the norm of the noise, which does not reproduce at alpha = 0;
            "none", the sum as it is.

    Returns:
        (B, ...), the dtype of `z_T`.

    Raises:
        ShapeError: if the shapes differ.
        ConfigError: if alpha is outside [0, 1], or the mode is unknown.
        DataError: if a sum has no direction (norm 0), or is not finite.

    Source: Landolsi, Kahl, "Tiny models from tiny data", Eq. 4 (interp).
    Differs: the norm is that of the whole latent; the public code takes its root mean square, the same up
    to a constant.
    """
    if z_T.ndim < 2 or z_T.shape != noise.shape:
        raise ShapeError(
            f"Latents {tuple(z_T.shape)} and noise {tuple(noise.shape)} must have one shape (B, ...)."
        )
    check_norm_mode(norm_mode)
    alphas = alpha_rows(alpha, len(z_T))
    source, fresh = wide(z_T), wide(noise).to(z_T.device)
    share = alphas.to(source).reshape(-1, *[1] * (z_T.ndim - 1))
    mixed = (1 - share) * source + share * fresh
    norm = _norm(mixed)
    if not torch.isfinite(norm).all():
        raise DataError("A blended latent is not finite. Check the inverted latents.")
    if norm_mode == "none":
        return mixed.to(z_T.dtype)
    wanted = _norm(fresh)
    if norm_mode == "interp":
        wanted = (1 - share) * _norm(source) + share * wanted
    lost = ((norm <= _FLOOR * wanted) | (norm == 0)).flatten()
    if lost.any():
        i = int(lost.nonzero()[0])
        raise DataError(
            f"Blended latent {i} (alpha {float(alphas[i]):g}) has norm {float(norm.flatten()[i]):.3g} where "
            f"{float(wanted.flatten()[i]):.3g} is wanted: nothing to rescale. "
            "Use other noise, another alpha, or norm_mode none."
        )
    return (mixed * (wanted / norm)).to(z_T.dtype)


def check_norm_mode(norm_mode: str) -> None:
    """Raise `ConfigError` for an unknown mode."""
    choose("norm_mode", norm_mode, get_args(NormMode))


def alpha_rows(alpha: float | Tensor, n: int) -> Tensor:
    """Return alpha for each of `n` samples, float64 (n,).

    Raises:
        ConfigError: if a value is outside [0, 1].
        ShapeError: if there are several values, but not `n`.

    >>> alpha_rows(0.5, 2).tolist()
    [0.5, 0.5]
    """
    values = torch.as_tensor(alpha, dtype=torch.float64).detach().cpu().flatten()
    if len(values) not in (1, n):
        raise ShapeError(f"{len(values)} values of alpha for {n} samples. Give one number, or one each.")
    wrong = values[~((values >= 0) & (values <= 1))]  # catches NaN too
    if len(wrong):
        raise ConfigError(
            f"alpha must lie in [0, 1], got {float(wrong[0]):g}. 0 reproduces the given images, 1 only "
            "shares their class."
        )
    return values.expand(n)


def _norm(x: Tensor) -> Tensor:
    """Length of each whole sample, (B, 1, ..., 1)."""
    lengths = torch.linalg.vector_norm(x.flatten(1), dim=1, dtype=torch.float64)
    return lengths.to(x.dtype).reshape(-1, *[1] * (x.ndim - 1))
