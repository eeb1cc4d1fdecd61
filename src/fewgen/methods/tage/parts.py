"""The parts of TAGE and of AGE: the style autoencoder, the dictionary of directions, the codes of attributes.

Shapes: B batch, L layers that take a style, D numbers of a style, E edited layers (the first ones), M
classes, N codes, P parts of a style, T = E P tokens, d = D / P, G groups of layers, r directions of a group.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fewgen.errors import ConfigError, ShapeError
from fewgen.methods.tage.config import AgeConfig, CodebookConfig, NetworkConfig
from fewgen.nn.codebook import Codebook
from fewgen.nn.style_encoder import GradualStyleEncoder, PyramidStyleEncoder
from fewgen.nn.stylegan import SynthesisNetwork, channels_per_map, start_size


class StyleAutoencoder(nn.Module):
    """A style-based generator and the encoder that inverts it, trained together or read from files.

    Args:
        shape: (C, H, W) of an image.
        config: of both networks.

    Source: Karras et al. 2020, arXiv:1912.04958 (generator); Richardson et al. 2021, arXiv:2008.00951
        (w = E(x) + w_avg).
    Differs: our design. The published order is a GAN first and then its encoder; trained together, both
        are ready sooner, and images of classes that neither has seen come back far more exactly.
        `weights.read_weights` makes the published order possible.
    """

    def __init__(self, shape: tuple[int, int, int], config: NetworkConfig) -> None:
        super().__init__()
        _, _, n = start_size(shape[1], shape[2])
        width = channels_per_map(n, config.width, config.max_width)
        self.noise = "fixed" if config.noise else "none"
        self.synthesis = SynthesisNetwork(shape, config.w_dim, width, config.start, config.output)
        self.n_layers, self.w_dim = self.synthesis.n_layers, config.w_dim
        self.encoder: PyramidStyleEncoder | GradualStyleEncoder
        if config.encoder == "gradual":
            base = config.encoder_width
            self.encoder = GradualStyleEncoder(
                shape[0],
                self.n_layers,
                config.w_dim,
                config.encoder_side,
                (base, base, 2 * base, 4 * base, 8 * base),
            )
        else:
            self.encoder = PyramidStyleEncoder(
                shape, config.w_dim, config.encoder_width, 4 * config.encoder_width
            )
        self.w_avg = nn.Parameter(torch.zeros(config.w_dim))

    def encode(self, x: Tensor) -> Tensor:
        """Return styles (B, L, D) of images (B, C, H, W): offsets and the average style, once."""
        w: Tensor = self.encoder(x) + self.w_avg
        return w

    def decode(self, w: Tensor) -> Tensor:
        """Return images (B, C, H, W) of styles (B, L, D)."""
        x: Tensor = self.synthesis(w, self.noise)
        return x

    def forward(self, x: Tensor) -> Tensor:
        """Return images as they come back."""
        return self.decode(self.encode(x))


class Directions(nn.Module):
    """AGE's dictionary: the changes within classes as sums of few directions.

    For each group of layers, a perceptron finds coefficients n of a residual; the change of layer l is A_l n.

    Args:
        config: of the groups, the rank and the perceptrons.
        w_dim: D.
        n_layers: L.

    Raises:
        ConfigError: the groups have more layers than there are.

    Source: Ding et al. 2022, "Attribute Group Editing for Reliable Few-shot Image Generation", Eq. 4-8;
        groups of layers and widths of the perceptrons of the public code, github.com/UniBester/AGE.
    """

    mean: Tensor
    factor: Tensor
    size: Tensor

    def __init__(self, config: AgeConfig, w_dim: int, n_layers: int) -> None:
        super().__init__()
        groups = config.groups or 2 * (min(3, n_layers // 2),)
        if sum(groups) > n_layers:
            raise ConfigError(
                f"age.groups {list(groups)} edit {sum(groups)} layers, but the generator has "
                f"{n_layers}. Set --model.age.groups to fewer, such as [{n_layers // 2}, {n_layers // 2}]."
            )
        self.groups, self.rank, self.n_edited = tuple(groups), config.rank, sum(groups)
        self.find = nn.ModuleList(_perceptron(n * w_dim, config.hidden, config.rank) for n in groups)
        start = torch.randn(self.n_edited, w_dim, config.rank)
        self.directions = nn.Parameter(start / math.sqrt(config.rank))
        n_groups = len(groups)
        self.register_buffer("mean", torch.zeros(n_groups, config.rank))
        self.register_buffer("factor", torch.eye(config.rank).expand(n_groups, -1, -1).clone())
        self.register_buffer("size", torch.ones(n_groups, config.rank))

    def coefficients(self, residuals: Tensor) -> Tensor:
        """Return n (B, G, r) of residuals (B, L, D); layers after the groups are not looked at."""
        parts = residuals[:, : self.n_edited].split(self.groups, dim=1)
        return torch.stack([net(part.flatten(1)) for net, part in zip(self.find, parts, strict=True)], 1)

    def change(self, n: Tensor) -> Tensor:
        """Return the change of the edited layers, (B, E, D), of coefficients (B, G, r)."""
        counts = torch.tensor(self.groups, device=n.device)
        of_layer = n.repeat_interleave(counts, dim=1)
        return torch.einsum("blr,ldr->bld", of_layer, self.directions)

    @torch.no_grad()
    def fit(self, n: Tensor) -> None:
        """Take over the mean, covariance and mean size of all images' coefficients (N, G, r)."""
        if len(n) < 2:
            raise ShapeError("The coefficients of two images or more are needed for a covariance.")
        self.mean.copy_(n.mean(0))
        self.size.copy_(n.abs().mean(0))
        centred = (n - n.mean(0)).double()
        covariance = torch.einsum("ngr,ngs->grs", centred, centred) / (len(n) - 1)
        # The symmetric root: it exists for a singular covariance, too, unlike Cholesky's.
        values, vectors = torch.linalg.eigh(covariance)
        root = vectors * values.clamp_min(0.0).sqrt()[:, None, :]
        self.factor.copy_((root @ vectors.transpose(1, 2)).to(self.factor))

    def draw(self, normal: Tensor, beta: float, temperature: float = 1.0) -> Tensor:
        """Return coefficients from the fitted Gaussian, without the directions that images hardly use.

        Args:
            normal: standard normal numbers, (B, G, r).
            beta: directions with a mean size up to this are 0.
            temperature: factor on the spread.
        """
        n = self.mean + temperature * torch.einsum("grs,bgs->bgr", self.factor, normal)
        return n * (self.size > beta)


def _perceptron(n_in: int, hidden: Sequence[int], n_out: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in (*hidden, n_out):
        layers += [nn.Linear(n_in, width), nn.LeakyReLU(0.2)]
        n_in = width
    return nn.Sequential(*layers, nn.Linear(n_out, n_out))


@dataclass(frozen=True)
class Coded:
    """What the codes make of residuals.

    Attributes:
        change: what the codes stand for, (B, E, D); gradients reach maps and residuals.
        indices: int64 (B, T).
        loss: codebook and commitment loss, a scalar.
        perplexity: detached scalar.
    """

    change: Tensor
    indices: Tensor
    loss: Tensor
    perplexity: Tensor


class AttributeCodes(nn.Module):
    """The codebook learning module: parts of residuals become the nearest of N codes.

    Tokens are the P parts of F_l dw_l / scale_l, changes scale_l G_l C_s. The scale is that of the training
    images' residuals, so that one codebook serves layers of different size. With several parts F starts as
    the residuals' principal axes, dealt out in turn, so that all parts have as much to say, and G as the way
    back.

    Args:
        config: of the codes.
        n_layers: E.
        w_dim: D.

    Raises:
        ConfigError: the style does not divide into the parts, or tables for each token would be too small.

    Source: TAGE, arXiv:2410.17855: residuals are replaced by their nearest codebook entries; Jegou et al.
        2011, "Product quantization for nearest neighbor search", and Ge et al. 2013, "Optimized product
        quantization" (parts, and principal axes that balance them).
    Differs: our design, since the paper's equations are not public to us: one shared table, linear maps for
        each layer, scales, parts, k-means start, restarts. The paper has one code for a layer, of 18; a
        generator of few layers has too few codes for an image then.
    """

    scale: Tensor

    def __init__(self, config: CodebookConfig, n_layers: int, w_dim: int) -> None:
        super().__init__()
        if w_dim % config.parts:
            raise ConfigError(
                f"codebook.parts {config.parts} must divide network.w_dim {w_dim}. Set "
                f"--model.codebook.parts to {_divisor(w_dim, config.parts)}."
            )
        self.n_layers, self.parts = n_layers, config.parts
        self.n_tokens, self.token_dim = n_layers * config.parts, w_dim // config.parts
        tables = self.n_tokens if config.per_layer else 1
        size = config.codebook_size // tables
        if size < 2:
            raise ConfigError(
                f"codebook.codebook_size {config.codebook_size} leaves fewer than 2 codes for each of "
                f"{self.n_tokens} tables. Set it to {2 * self.n_tokens} or more, or codebook.per_layer to "
                "false."
            )
        self.tables, self.size = tables, size
        self.codebook = Codebook(
            size,
            self.token_dim,
            groups=tables,
            update="gradient",
            commitment_weight=config.commitment_weight,
            restart_after=config.restart_after,
        )
        self.register_buffer("scale", torch.ones(n_layers))
        self.into: nn.Parameter | None = None
        self.back: nn.Parameter | None = None
        if config.maps == "linear":
            self.into = nn.Parameter(torch.eye(w_dim).repeat(n_layers, 1, 1))
            self.back = nn.Parameter(torch.eye(w_dim).repeat(n_layers, 1, 1))

    @property
    def table(self) -> Tensor:
        """The codes: (N, d), or (T, N / T, d) with a table for each token."""
        codes = self.codebook.codes
        return codes if self.tables > 1 else codes[0]

    def tokens(self, residuals: Tensor) -> Tensor:
        """Return tokens (B, T, d) of the residuals of the edited layers, (B, E, D)."""
        z = residuals / self.scale[:, None]
        z = z if self.into is None else torch.einsum("bld,lde->ble", z, self.into)
        return z.reshape(len(z), self.n_tokens, self.token_dim)

    def change(self, codes: Tensor) -> Tensor:
        """Return the change (B, E, D) that codes (B, T, d) stand for."""
        codes = codes.reshape(len(codes), self.n_layers, -1)
        if self.back is not None:
            codes = torch.einsum("bld,lde->ble", codes, self.back)
        return codes * self.scale[:, None]

    def changes_of_table(self) -> Tensor:
        """Return what every code does as every token that may be it, (T, D, N): to that token's layer."""
        table = self.table if self.tables > 1 else self.table.expand(self.n_tokens, -1, -1)
        n, d = self.n_layers, self.token_dim
        back: Tensor | None = self.back
        if back is None:
            back = torch.eye(self.parts * d, device=table.device).expand(n, -1, -1)
        rows = back.reshape(self.n_tokens, d, self.parts * d)
        scale = self.scale.repeat_interleave(self.parts)
        return torch.einsum("tnd,tde->ten", table, rows) * scale[:, None, None]

    def forward(self, residuals: Tensor) -> Coded:
        """Quantise residuals (B, E, D); in training mode the codes are counted and restarted."""
        z = self.tokens(residuals)
        found = self.codebook(z.flatten(1) if self.tables > 1 else z)
        change = self.change(found.codes.reshape(z.shape))
        loss = found.codebook_loss + found.commitment_loss
        return Coded(change, found.indices.reshape(z.shape[:2]), loss, found.perplexity)

    def nearest(self, tokens: Tensor) -> Tensor:
        """Return the nearest codes, int64 (B, T), of tokens (B, T, d); nothing is counted."""
        was = self.codebook.training
        try:
            self.codebook.eval()
            found: Tensor = self.codebook(tokens.flatten(1) if self.tables > 1 else tokens).indices
        finally:
            self.codebook.train(was)
        return found.reshape(tokens.shape[:2])

    def lookup(self, indices: Tensor) -> Tensor:
        """Return codes (B, T, d) of indices int64 (B, T).

        Raises:
            ShapeError: there are more or fewer tokens, or a code does not exist.
        """
        if indices.ndim != 2 or indices.shape[1] != self.n_tokens:
            raise ShapeError(f"An image has {self.n_tokens} codes, got {tuple(indices.shape)}.")
        shaped = indices if self.tables > 1 else indices[:, :, None]
        return self.codebook.lookup(shaped).reshape(*indices.shape, -1)

    @torch.no_grad()
    def start(self, residuals: Tensor) -> None:
        """Take scales, axes, and codes by k-means, from the residuals (N, E, D) of all training images."""
        self.scale.copy_(residuals.square().mean((0, 2)).sqrt().clamp_min(1e-6))
        if self.into is not None and self.back is not None and self.parts > 1:
            in_turn = torch.arange(residuals.shape[2]).reshape(-1, self.parts).T.flatten()
            for layer, own in enumerate(residuals.transpose(0, 1).double()):
                axes = torch.linalg.eigh(own.T @ own).eigenvectors.flip(1)[:, in_turn.to(own.device)]
                self.into[layer] = axes.to(self.into)
                self.back[layer] = axes.T.to(self.back)
        z = self.tokens(residuals)
        self.codebook.start_from_data(z.flatten(1) if self.tables > 1 else z)


def _divisor(n: int, near: int) -> int:
    """Return the divisor of n next to a number.

    >>> _divisor(256, 10)
    8
    """
    return min((d for d in range(1, n + 1) if n % d == 0), key=lambda d: abs(d - near))
