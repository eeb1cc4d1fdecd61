"""The two halves of variational autoencoders for vectors and for images seen as vectors.

Every encoder returns the mean and log-variance of a diagonal Gaussian, (B, L) each; every decoder takes
latents (B, L). Image decoders return intensities before the output activation, (B, C, H, W).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fewgen.config.checks import choose
from fewgen.errors import ShapeError

LOGVAR_RANGE = (-10.0, 6.0)
"""Keeps exp(logvar) and its inverse finite; standard deviations from 0.007 to 20."""


def mlp(sizes: Sequence[int], dropout: float = 0.0) -> nn.Sequential:
    """Fully connected layers with ELU after each, dropout before each layer but the first.

    Args:
        sizes: widths from input to output; the output gets an ELU as well.
        dropout: probability, in [0, 1).
    """
    layers: list[nn.Module] = []
    for i, (n_in, n_out) in enumerate(zip(sizes[:-1], sizes[1:], strict=True)):
        if dropout and i:
            layers.append(nn.Dropout(dropout))
        layers += [nn.Linear(n_in, n_out), nn.ELU()]
    return nn.Sequential(*layers)


class GaussianHead(nn.Module):
    """Mean and log-variance of a diagonal Gaussian from features.

    Args:
        n_in: width of the features.
        latent_size: L.
        logvar: log-variance at the start.
    """

    def __init__(self, n_in: int, latent_size: int, logvar: float = -2.0) -> None:
        super().__init__()
        self.mu = nn.Linear(n_in, latent_size)
        self.logvar = nn.Linear(n_in, latent_size)
        nn.init.constant_(self.logvar.bias, logvar)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return mu and logvar, (B, L) each; logvar is kept inside `LOGVAR_RANGE`."""
        return self.mu(features), self.logvar(features).clamp(*LOGVAR_RANGE)


class MLPImageEncoder(nn.Module):
    """The published image encoder: flatten, 400, 200, two heads of `latent_size`.

    Args:
        shape: (C, H, W).
        latent_size: L.
        hidden: widths of the hidden layers.
        dropout: before hidden layers.
        logvar: log-variance at the start.

    Source: report "Few-Shot Image Generation Using Cross-Aligned and Vector Quantized VAE with
        Meta-Learning", image encoder.
    Differs: log-variances are kept inside `LOGVAR_RANGE`.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        latent_size: int,
        hidden: Sequence[int] = (400, 200),
        dropout: float = 0.0,
        logvar: float = -2.0,
    ) -> None:
        super().__init__()
        self.shape = shape
        self.body = mlp([shape[0] * shape[1] * shape[2], *hidden], dropout)
        self.head = GaussianHead(hidden[-1], latent_size, logvar)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return mu and logvar, (B, L), of images (B, C, H, W)."""
        check_images(x, self.shape)
        mu, logvar = self.head(self.body(x.flatten(1)))
        return mu, logvar


class MLPImageDecoder(nn.Module):
    """The published image decoder: `latent_size`, 200, 400, pixels.

    Args:
        shape: (C, H, W).
        latent_size: L.
        hidden: widths of the hidden layers.
    """

    def __init__(
        self, shape: tuple[int, int, int], latent_size: int, hidden: Sequence[int] = (200, 400)
    ) -> None:
        super().__init__()
        self.shape = shape
        self.body = mlp([latent_size, *hidden])
        self.out = nn.Linear(hidden[-1], shape[0] * shape[1] * shape[2])

    def forward(self, z: Tensor) -> Tensor:
        """Return images before the output activation, (B, C, H, W), of latents (B, L)."""
        return self.out(self.body(z)).reshape(-1, *self.shape)


class SemanticBody(nn.Module):
    """From a standardised text vector to the latent that is quantised: D, 200, L.

    Args:
        dim: D, width of a text vector.
        latent_size: L.
        hidden: width of the hidden layer.

    Source: same report, semantic encoder (its two heads follow the quantiser, see `GaussianHead`).
    """

    def __init__(self, dim: int, latent_size: int, hidden: int = 200) -> None:
        super().__init__()
        self.dim = dim
        self.body = mlp([dim, hidden])
        self.out = nn.Linear(hidden, latent_size)

    def forward(self, c: Tensor) -> Tensor:
        """Return z_e, (B, L), of text vectors (B, D)."""
        if c.ndim != 2 or c.shape[1] != self.dim:
            raise ShapeError(f"text vectors must be (B, {self.dim}), got {tuple(c.shape)}.")
        return self.out(self.body(c))


class SemanticDecoder(nn.Module):
    """From a latent back to a text vector: L, 200, D.

    Args:
        latent_size: L.
        dim: D.
        hidden: width of the hidden layer.
        output: "linear"; "sigmoid" as published, which cannot give the negative half of a word vector.
    """

    def __init__(self, latent_size: int, dim: int, hidden: int = 200, output: str = "linear") -> None:
        super().__init__()
        choose("The text output", output, ("linear", "sigmoid"))
        self.body = mlp([latent_size, hidden])
        self.out = nn.Linear(hidden, dim)
        self.output = output

    def forward(self, z: Tensor) -> Tensor:
        """Return text vectors (B, D) of latents (B, L)."""
        c: Tensor = self.out(self.body(z))
        return torch.sigmoid(c) if self.output == "sigmoid" else c


def check_images(x: Tensor, shape: tuple[int, int, int]) -> None:
    """Raise `ShapeError` unless `x` is a batch of images of `shape`."""
    if x.ndim != 4 or tuple(x.shape[1:]) != tuple(shape):
        raise ShapeError(
            f"images must be (B, {', '.join(map(str, shape))}), got {tuple(x.shape)}. "
            "Resize them to the size that the model was trained with."
        )
