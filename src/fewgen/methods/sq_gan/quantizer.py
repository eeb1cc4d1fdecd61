"""The style quantiser: a style is cut into short pieces, and each piece is replaced by its nearest code.

Shapes: B batch, D numbers of a style, s pieces of d numbers (D = s d), K codes, L layers of the generator.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fewgen.errors import ConfigError, ShapeError
from fewgen.losses.uniformity import uniformity
from fewgen.methods.sq_gan.config import QuantizerConfig
from fewgen.nn.codebook import Codebook
from fewgen.nn.stylegan import normalize_second_moment

MOST_CODES = 2048
"""Codes of a table that enter the uniformity loss; more are subsampled: its kernel has K^2 entries."""


@dataclass(frozen=True)
class StyleCodes:
    """What the quantiser makes of a batch of styles.

    Attributes:
        styles: quantised, same shape as what came in; the gradient passes straight through.
        indices: int64, (B, s), or (B, L, s) for W+.
        codebook_loss: scalar, mean over pieces of |sg(w_i) - c|^2; moves the codes.
        commitment_loss: scalar, mean over pieces of beta |w_i - sg(c)|^2; moves what makes the styles.
        perplexity: detached scalar in [1, K].
        error: detached scalar, |w - w^q| / |w| over the batch.
    """

    styles: Tensor
    indices: Tensor
    codebook_loss: Tensor
    commitment_loss: Tensor
    perplexity: Tensor
    error: Tensor

    @property
    def loss(self) -> Tensor:
        """L_sq, both parts."""
        return self.codebook_loss + self.commitment_loss


class StyleQuantizer(nn.Module):
    """Quantises styles piece by piece.

    Args:
        width: D.
        config: sizes and options.
        seed: of the codebook's own draws.

    Raises:
        ConfigError: if the width of a code does not divide that of a style; names widths that do.

    Source: Wang et al. 2025, arXiv:2503.24282 (SQ-GAN); the loss is that of van den Oord et al. 2017,
        arXiv:1711.00937, Eq. 3.
    Differs: codebook size, beta and the scale of the terms are not known from public descriptions; the linear maps
        before and after (`project`), normalisation, restarts and running means are options of ours.
    """

    def __init__(self, width: int, config: QuantizerConfig, seed: int = 0) -> None:
        super().__init__()
        if width % config.code_dim:
            good = [d for d in range(1, width + 1) if width % d == 0]
            raise ConfigError(
                f"quantizer.code_dim {config.code_dim} does not divide the width of a style "
                f"(network.w_dim {width}). Use one of {', '.join(str(d) for d in good[:12])}, "
                "or another network.w_dim."
            )
        self.width, self.config = width, config
        self.pieces = width // config.code_dim
        self.codebook = Codebook(
            config.codebook_size,
            config.code_dim,
            groups=self.pieces,
            share=not config.per_position,
            update=config.update,  # type: ignore[arg-type]
            commitment_weight=config.commitment_weight,
            restart_after=config.restart_after,
            seed=seed,
        )
        self.before: nn.Linear | None = None
        self.after: nn.Linear | None = None
        if config.project:
            self.before, self.after = (nn.Linear(width, width) for _ in range(2))
            for layer in (self.before, self.after):
                nn.init.eye_(layer.weight)
                nn.init.zeros_(layer.bias)

    def prepare(self, styles: Tensor) -> Tensor:
        """Return styles (..., D) as they are cut: normalised and mapped if so configured."""
        if styles.shape[-1] != self.width:
            raise ShapeError(f"The quantiser takes styles (..., {self.width}), got {tuple(styles.shape)}.")
        if self.config.normalize:
            styles = normalize_second_moment(styles.reshape(-1, self.width)).reshape(styles.shape)
        return styles if self.before is None else self.before(styles)

    def forward(self, styles: Tensor) -> StyleCodes:
        """Quantise styles (B, D) or (B, L, D)."""
        w = self.prepare(styles)
        found = self.codebook(w)
        with torch.no_grad():
            gap = (found.codes - w).square().sum() / w.square().sum().clamp_min(1e-12)
        # The codebook's losses are sums over all pieces of a row.
        pieces = w[0].numel() // self.config.code_dim
        return StyleCodes(
            styles=found.codes if self.after is None else self.after(found.codes),
            indices=found.indices,
            codebook_loss=found.codebook_loss / pieces,
            commitment_loss=found.commitment_loss / pieces,
            perplexity=found.perplexity,
            error=gap.sqrt(),
        )

    def lookup(self, indices: Tensor) -> Tensor:
        """Return the styles (..., D) of codes (..., s).

        Raises:
            ShapeError: if the last dimension is not s, or a code does not exist.
        """
        styles = self.codebook.lookup(indices)
        return styles if self.after is None else self.after(styles)

    def uniformity(self, rng: torch.Generator | None = None) -> Tensor:
        """Return how evenly the directions of the codes are spread, lower is more even; see `losses.uniformity`."""
        return uniformity(self.codebook.codes, self.config.uniformity_t, MOST_CODES, rng)

    @torch.no_grad()
    def set_codes(self, codes: Tensor) -> None:
        """Start from these codes, (K, d) for all positions, or (T, K, d).

        Raises:
            ShapeError: if there are not as many, or they are of another width.
        """
        table = self.codebook.codes
        if codes.shape[-2:] != table.shape[-2:] or not bool(codes.isfinite().all()):
            raise ShapeError(
                f"The codebook holds codes {tuple(table.shape)}, got {tuple(codes.shape)} or numbers that are "
                "not finite."
            )
        self.codebook.start_from(codes)
