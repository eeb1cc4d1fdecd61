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
        pieces: what was cut and quantised, detached, for `StyleQuantizer.learn`.
    """

    styles: Tensor
    indices: Tensor
    codebook_loss: Tensor
    commitment_loss: Tensor
    perplexity: Tensor
    error: Tensor
    pieces: Tensor

    @property
    def loss(self) -> Tensor:
        """L_sq, both parts."""
        return self.codebook_loss + self.commitment_loss


class StyleQuantizer(nn.Module):
    """Quantises styles piece by piece.

    Args:
        width: D.
        config: sizes and options.
        layers: 1, or L: a codebook for each layer's style.
        seed: of the codebook's own draws.

    Raises:
        ConfigError: if the width of a code does not divide that of a style; names widths that do.

    Source: Wang et al. 2025, arXiv:2503.24282 (SQ-GAN); the loss is that of van den Oord et al. 2017,
        arXiv:1711.00937, Eq. 3.
    Differs: codebook size, beta and the scale of the terms are not known from public descriptions; the
        linear maps before and after (`project`), normalisation, restarts and running means are ours.
    """

    def __init__(self, width: int, config: QuantizerConfig, layers: int = 1, seed: int = 0) -> None:
        super().__init__()
        if width % config.code_dim:
            good = [d for d in range(1, width + 1) if width % d == 0]
            what, where = ("latent", "z_dim") if config.space == "z" else ("style", "w_dim")
            raise ConfigError(
                f"quantizer.code_dim {config.code_dim} does not divide the width of a {what} "
                f"(network.{where} {width}). Use one of {', '.join(str(d) for d in good[:12])}, "
                f"or another network.{where}."
            )
        self.width, self.config, self.layers = width, config, layers
        self.pieces = width // config.code_dim
        self.codebooks = nn.ModuleList(
            Codebook(
                config.codebook_size,
                config.code_dim,
                groups=self.pieces,
                share=not config.per_position,
                update=config.update,
                commitment_weight=config.commitment_weight,
                restart_after=config.restart_after,
                seed=seed + i,
            )
            for i in range(layers)
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

    def tables(self) -> list[Codebook]:
        """The codebooks: one, or one for each layer."""
        return list(self.codebooks)  # type: ignore[arg-type]

    def forward(self, styles: Tensor, learn: bool = True) -> StyleCodes:
        """Quantise styles (B, D), or (B, L, D) with a codebook for each of L layers.

        Args:
            styles: what to quantise.
            learn: in training mode, let the codebooks learn from it (running means, restarts). Otherwise
                call `learn` with the result, when everything that must meet the same codes has.
        """
        w = self.prepare(styles)
        training = self.training
        if not learn:
            self.codebooks.eval()
        try:
            return self._quantise(w)
        finally:
            self.codebooks.train(training)

    @torch.no_grad()
    def learn(self, codes: StyleCodes) -> None:
        """Let running means and restarts of the codebooks see what a training step has quantised."""
        if not self.training or (self.config.update == "gradient" and not self.config.restart_after):
            return
        parts = [codes.pieces] if self.layers == 1 else codes.pieces.unbind(1)
        for table, part in zip(self.tables(), parts, strict=True):
            table(part)

    def _quantise(self, w: Tensor) -> StyleCodes:
        if self.layers == 1:
            found = [self.codebooks[0](w)]
            codes, indices = found[0].codes, found[0].indices
        else:
            if w.ndim != 3 or w.shape[1] != self.layers:
                raise ShapeError(
                    f"The quantiser takes styles (B, {self.layers}, {self.width}), got {tuple(w.shape)}."
                )
            found = [table(part) for table, part in zip(self.codebooks, w.unbind(1), strict=True)]
            codes = torch.stack([one.codes for one in found], 1)
            indices = torch.stack([one.indices for one in found], 1)
        with torch.no_grad():
            gap = (codes - w).square().sum() / w.square().sum().clamp_min(1e-12)
        # The codebooks' losses are sums over all pieces of a row.
        pieces = self.pieces * self.layers
        return StyleCodes(
            styles=codes if self.after is None else self.after(codes),
            indices=indices,
            codebook_loss=torch.stack([one.codebook_loss for one in found]).sum() / pieces,
            commitment_loss=torch.stack([one.commitment_loss for one in found]).sum() / pieces,
            perplexity=torch.stack([one.perplexity for one in found]).mean(),
            error=gap.sqrt(),
            pieces=w.detach(),
        )

    def lookup(self, indices: Tensor) -> Tensor:
        """Return the styles (..., D) of codes (..., s).

        Raises:
            ShapeError: if the last dimension is not s, or a code does not exist.
        """
        if self.layers == 1:
            styles = self.tables()[0].lookup(indices)
        else:
            if indices.ndim != 3 or indices.shape[1] != self.layers:
                raise ShapeError(f"lookup takes codes (B, {self.layers}, s), got {tuple(indices.shape)}.")
            parts = [t.lookup(part) for t, part in zip(self.tables(), indices.unbind(1), strict=True)]
            styles = torch.stack(parts, 1)
        return styles if self.after is None else self.after(styles)

    def uniformity(self, rng: torch.Generator | None = None) -> Tensor:
        """Return how evenly the directions of the codes are spread; see `losses.uniformity`."""
        return torch.stack(
            [uniformity(t.codes, self.config.uniformity_t, MOST_CODES, rng) for t in self.tables()]
        ).mean()

    @torch.no_grad()
    def set_codes(self, codes: Tensor) -> None:
        """Start from these codes, (K, d) for all positions and layers, or (T, K, d), or (L, T, K, d).

        Raises:
            ShapeError: if there are not as many, or they are of another width, or not finite.
        """
        if codes.ndim == 4 and len(codes) != self.layers:
            raise ShapeError(f"There are {self.layers} layers, got codes for {len(codes)}.")
        of_layers = codes if codes.ndim == 4 else [codes] * self.layers
        for table, codes in zip(self.tables(), of_layers, strict=True):
            if codes.shape[-2:] != table.codes.shape[-2:] or not bool(codes.isfinite().all()):
                raise ShapeError(
                    f"The codebook holds codes {tuple(table.codes.shape)}, got {tuple(codes.shape)}, or "
                    "numbers that are not finite."
                )
            table.start_from(codes)
