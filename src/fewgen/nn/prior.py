"""An autoregressive prior over maps of codes, conditioned on a map of features.

Shapes: B batch, P positions in raster order, G groups (codes per position), K codes per group, D numbers
per code, W width of the network.
"""

from __future__ import annotations

from typing import ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from fewgen.errors import ConfigError, ShapeError


class AttentionBlock(nn.Module):
    """Pre-norm transformer block in which every position sees all of them.

    Args:
        width: W.
        n_heads: attention heads; divides `width`.
        dropout: of the two residual branches (on the attention weights it would cost as much time as the
            whole block).
    """

    causal: ClassVar[bool] = False

    def __init__(self, width: int, n_heads: int, dropout: float) -> None:
        super().__init__()
        if width % n_heads:
            raise ConfigError(f"The transformer's width {width} must be divisible by its {n_heads} heads.")
        self.n_heads = n_heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.drop = nn.Dropout(dropout)

    def _heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self._split(self.norm1(x))

    def _split(self, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        b, p, w = h.shape
        qkv = self.qkv(h).reshape(b, p, 3, self.n_heads, w // self.n_heads).permute(2, 0, 3, 1, 4)
        return qkv[0], qkv[1], qkv[2]

    def _add(self, x: Tensor, attended: Tensor) -> Tensor:
        return x + self.drop(self.out(attended.transpose(1, 2).reshape(x.shape)))

    def _finish(self, x: Tensor, attended: Tensor) -> Tensor:
        x = self._add(x, attended)
        return x + self.drop(self.mlp(self.norm2(x)))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, P, W) to (B, P, W)."""
        q, k, v = self._heads(x)
        return self._finish(x, functional.scaled_dot_product_attention(q, k, v, is_causal=self.causal))


class CausalBlock(AttentionBlock):
    """The same with each position seeing itself and earlier ones."""

    causal = True

    def step(self, x: Tensor, cache: Tensor, position: int) -> Tensor:
        """Map one position, (B, 1, W), with the keys and values of earlier ones.

        Args:
            x: features of this position.
            cache: (2, B, n_heads, P, W / n_heads), filled up to `position`; this position is written.
            position: which, from 0.
        """
        q, k, v = self._heads(x)
        cache[0, :, :, position : position + 1] = k
        cache[1, :, :, position : position + 1] = v
        seen = cache[:, :, :, : position + 1]
        return self._finish(x, functional.scaled_dot_product_attention(q, seen[0], seen[1]))


class CodePrior(nn.Module):
    """p(codes | condition) as a product over positions, and over groups inside a position.

    A causal transformer reads the codes of earlier positions; inside a position, the groups follow one
    another. Codes enter and leave through one small network on their vectors, so that codes that look
    alike are treated alike: with 300 training images a free embedding per code would be seen a few dozen
    times.

    Args:
        n_positions: P.
        codebook_size: K.
        codebook_dim: D.
        groups: G.
        width: W.
        n_layers: transformer blocks.
        n_heads: attention heads.
        dropout: inside the blocks and on the codes that are read.

    Source: the factorisation is the usual autoregressive one, van den Oord et al. 2017, arXiv:1711.00937,
        Sec. 3.3 (prior over discrete latents); groups in turn as in Lee et al. 2022, arXiv:2203.01941.
    Differs: a transformer instead of a PixelCNN; logits are products with features of the code vectors.
    """

    def __init__(
        self,
        n_positions: int,
        codebook_size: int,
        codebook_dim: int,
        groups: int,
        width: int = 96,
        n_layers: int = 3,
        n_heads: int = 4,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if width % n_heads:
            raise ConfigError(f"The prior's width {width} must be divisible by its {n_heads} heads.")
        self.n_positions, self.codebook_size = n_positions, codebook_size
        self.groups, self.width = groups, width
        self.describe = nn.ModuleList(
            nn.Sequential(nn.Linear(codebook_dim, width), nn.GELU(), nn.Linear(width, width))
            for _ in range(groups)
        )
        self.read = nn.Linear(width, width)
        self.read_group = nn.ModuleList(nn.Linear(width, width) for _ in range(groups - 1))
        self.position = nn.Parameter(torch.randn(n_positions, width) * 0.02)
        self.drop = nn.Dropout(dropout)
        self.n_heads = n_heads
        self.blocks = nn.ModuleList(CausalBlock(width, n_heads, dropout) for _ in range(n_layers))
        self.norm = nn.LayerNorm(width)
        self.out = nn.ModuleList(
            nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width)) for _ in range(groups)
        )
        self.bias = nn.Parameter(torch.zeros(groups, codebook_size))

    def features(self, tables: Tensor) -> Tensor:
        """Return features (G, K, W) of the code vectors (G, K, D)."""
        return torch.stack([net(table) for net, table in zip(self.describe, tables, strict=True)])

    def _codes(self, features: Tensor, indices: Tensor) -> Tensor:
        """Features of codes, (B, P, G, W), of indices (B, P, G)."""
        offset = torch.arange(self.groups, device=indices.device) * self.codebook_size
        return functional.embedding(indices + offset, features.reshape(-1, self.width))

    def _logits(self, group: int, h: Tensor, features: Tensor) -> Tensor:
        """Logits (..., K) of one group from hidden states (..., W)."""
        scale = self.width**-0.5
        return self.out[group](h) @ features[group].T * scale + self.bias[group]

    def forward(self, indices: Tensor, condition: Tensor, tables: Tensor) -> Tensor:
        """Return logits (B, P, G, K): each depends on earlier positions and earlier groups only.

        Args:
            indices: int64 (B, P, G).
            condition: (B, P, W); the whole map may shape every position.
            tables: code vectors, (G, K, D).

        Raises:
            ShapeError: if the number of positions or groups differs from the prior's.
        """
        if tuple(indices.shape[1:]) != (self.n_positions, self.groups):
            raise ShapeError(
                f"indices must be (B, {self.n_positions}, {self.groups}), got {tuple(indices.shape)}."
            )
        features = self.features(tables)
        codes = self._codes(features, indices)
        read = self.drop(self.read(codes.sum(2)))
        earlier = functional.pad(read, (0, 0, 1, 0))[:, :-1]
        h = earlier + condition + self.position
        for block in self.blocks:
            h = block(h)
        h = self.norm(h)
        logits = []
        for g in range(self.groups):
            logits.append(self._logits(g, h, features))
            if g + 1 < self.groups:
                h = h + self.read_group[g](self.drop(codes[:, :, g]))
        return torch.stack(logits, dim=2)

    def loss(self, indices: Tensor, condition: Tensor, tables: Tensor, smoothing: float = 0.0) -> Tensor:
        """Return the negative log-likelihood in nats per code, a scalar.

        Args:
            indices: int64 (B, P, G).
            condition: (B, P, W).
            tables: (G, K, D).
            smoothing: label smoothing in [0, 1); training only.
        """
        logits = self(indices, condition, tables)
        return functional.cross_entropy(logits.flatten(0, 2), indices.flatten(), label_smoothing=smoothing)

    @torch.no_grad()
    def sample(self, condition: Tensor, tables: Tensor, uniforms: Tensor, temperature: float = 1.0) -> Tensor:
        """Draw maps of codes by inverting the cumulative distribution.

        Args:
            condition: (B, P, W).
            tables: (G, K, D).
            uniforms: numbers in [0, 1), (B, P, G); row i decides map i alone.
            temperature: divides the logits; 0 takes the likeliest code.

        Returns:
            indices, int64 (B, P, G).
        """
        features = self.features(tables)
        b, head = len(condition), self.width // self.n_heads
        caches = [condition.new_zeros(2, b, self.n_heads, self.n_positions, head) for _ in self.blocks]
        indices = torch.zeros((b, self.n_positions, self.groups), dtype=torch.int64, device=condition.device)
        earlier = torch.zeros_like(condition[:, 0])
        for p in range(self.n_positions):
            h = (earlier + condition[:, p] + self.position[p])[:, None]
            for block, cache in zip(self.blocks, caches, strict=True):
                h = cast(CausalBlock, block).step(h, cache, p)
            h = self.norm(h)[:, 0]
            chosen = torch.zeros_like(h)
            for g in range(self.groups):
                logits = self._logits(g, h, features)
                if temperature == 0:
                    index = logits.argmax(1)
                else:
                    cumulative = torch.softmax(logits.double() / temperature, dim=1).cumsum(1)
                    draw = uniforms[:, p, g : g + 1].double()
                    index = torch.searchsorted(cumulative, draw, right=True)[:, 0]
                    index = index.clamp(max=self.codebook_size - 1)
                indices[:, p, g] = index
                code = features[g][index]
                chosen = chosen + code
                if g + 1 < self.groups:
                    h = h + self.read_group[g](code)
            earlier = self.read(chosen)
        return indices
