"""Spread vectors evenly over the sphere."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fewgen.config.checks import above_zero, at_least
from fewgen.errors import ConfigError, ShapeError
from fewgen.losses.stable import directions, wide


def uniformity(codes: Tensor, t: float = 2.0, most: int = 4096, rng: torch.Generator | None = None) -> Tensor:
    """How unevenly the directions of codes are spread: log mean over i != j of exp(-t |u_i - u_j|^2).

    u_i = c_i / |c_i|, so lengths are free. It is 0 when all codes point the same way and falls as they
    separate; minimising it keeps a codebook from collapsing. A code of length 0 has no direction: it counts
    as the centre of the sphere and gets no gradient.

    Args:
        codes: one codebook (K, D) or one per position (T, K, D), float, K >= 2. Memory grows with T K^2.
        t: > 0, inverse squared width of the Gaussian potential.
        most: above this many codes per codebook, that many are drawn (the same rows for all codebooks).
        rng: where that draw comes from; needed only above `most`.

    Returns:
        A scalar in nats in [-4 t, 0], the mean over codebooks.

    Raises:
        ShapeError: if the shape is another or there is only one code.
        ConfigError: if t is not positive, `most` below 2, or a draw is needed without an rng.

    Source: Wang & Isola 2020, arXiv:2005.10242, Eq. 4 (L_uniform); for codebooks Wang et al. 2025,
        arXiv:2503.24282.
    Differs: pairs i = j are left out; they would only add a constant inside the logarithm.
    """
    if codes.dim() not in (2, 3) or codes.shape[-2] < 2 or codes.numel() == 0:
        raise ShapeError(
            f"Codes have shape {tuple(codes.shape)}, but uniformity needs (K, D) or (T, K, D) with K >= 2."
        )
    above_zero("Uniformity t", t)
    at_least("Uniformity most", most, 2)
    n = codes.shape[-2]
    if n > most:
        if rng is None:
            raise ConfigError(
                f"Uniformity of {n} codes looks at {most} of them, so it needs an rng (a torch.Generator), "
                f"or most={n}."
            )
        rows = torch.randperm(n, generator=rng, device=rng.device)[:most]
        codes, n = codes.index_select(-2, rows.to(codes.device)), most
    u = directions(wide(codes))
    squares = u.square().sum(-1)
    # No clamp at 0: rounding below 0 is harmless in exp, while a clamp would cut the gradient of close pairs.
    with torch.autocast(device_type=codes.device.type, enabled=False):  # distances cancel: no half precision
        sq_distances = squares[..., :, None] + squares[..., None, :] - 2.0 * (u @ u.mT)
    itself = torch.eye(n, dtype=torch.bool, device=codes.device)
    potential = (-t * sq_distances).masked_fill(itself, -torch.inf)
    return (potential.flatten(-2).logsumexp(-1) - math.log(n * (n - 1))).mean()
