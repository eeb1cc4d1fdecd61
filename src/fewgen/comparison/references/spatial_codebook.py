"""A plain spatial VQ-VAE with an autoregressive class prior, the textbook form."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from fewgen.comparison.budget import Budget
from fewgen.comparison.references.learning import (
    Batches,
    by_parts,
    continued,
    cut,
    descend,
    multiple_of_4,
)
from fewgen.data.imageset import ImageSet, to_uint8
from fewgen.fitting.seeds import global_seed
from fewgen.nn.codebook import Codebook
from fewgen.nn.conv import ResBlock


class _Images(nn.Module):
    """VQ-VAE with codes on a map of a quarter of the image size, updated by exponential moving average."""

    def __init__(self, channels: int, codes: int, dim: int, width: int, seed: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(channels, width, 4, stride=2, padding=1), nn.SiLU(),
            nn.Conv2d(width, width, 4, stride=2, padding=1), ResBlock(width), nn.Conv2d(width, dim, 1),
        )  # fmt: skip
        self.decoder = nn.Sequential(
            nn.Conv2d(dim, width, 3, padding=1), ResBlock(width), nn.SiLU(),
            nn.ConvTranspose2d(width, width, 4, stride=2, padding=1), nn.SiLU(),
            nn.ConvTranspose2d(width, channels, 4, stride=2, padding=1),
        )  # fmt: skip
        self.codebook = Codebook(codes, dim, seed=seed)

    def indices(self, x: Tensor) -> Tensor:
        """Return the codes of images (B, C, H, W), int64 (B, h * w), in raster order."""
        found = self.codebook(self.encoder(x).permute(0, 2, 3, 1)).indices
        return found.flatten(1)

    def decode(self, indices: Tensor, size: tuple[int, int]) -> Tensor:
        """Return images of codes (B, h * w) on a map of height and width `size`."""
        codes = self.codebook.lookup(indices.reshape(len(indices), *size, 1))
        images: Tensor = self.decoder(codes.permute(0, 3, 1, 2))
        return images

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return reconstructions and commitment loss (summed per image) of images (B, C, H, W)."""
        found = self.codebook(self.encoder(x).permute(0, 2, 3, 1))
        return self.decoder(found.codes.permute(0, 3, 1, 2)), found.commitment_loss


class _ClassPrior(nn.Module):
    """Causal transformer over code indices in raster order, started by the class."""

    def __init__(
        self, codes: int, length: int, n_classes: int, width: int, depth: int, dropout: float
    ) -> None:
        super().__init__()
        self.start = nn.Embedding(n_classes, width)
        self.code = nn.Embedding(codes, width)
        self.place = nn.Parameter(torch.randn(length, width) * 0.02)
        self.class_bias = nn.Embedding(n_classes, width)
        layer = nn.TransformerEncoderLayer(
            width, 4, 4 * width, dropout, "gelu", batch_first=True, norm_first=True
        )
        self.body = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, codes))

    def forward(self, labels: Tensor, indices: Tensor) -> Tensor:
        """Return logits (B, T + 1, codes) of the codes that follow each prefix of indices (B, T)."""
        tokens = torch.cat([self.start(labels)[:, None], self.code(indices)], dim=1)
        tokens = tokens + self.place[: tokens.shape[1]] + self.class_bias(labels)[:, None]
        mask = nn.Transformer.generate_square_subsequent_mask(tokens.shape[1])
        logits: Tensor = self.head(self.body(tokens, mask=mask, is_causal=True))
        return logits


class SpatialCodebook:
    """A plain spatial VQ-VAE (256 codes on 7 x 7 at 28 px) and a small autoregressive class prior.

    Half of the time goes to each. The prior has dropout and sees codes of augmented images; with a few
    hundred images it would otherwise repeat them.

    Source: van den Oord et al. 2017, arXiv:1711.00937; EMA codebook as in its appendix A.1.
    """

    name = "spatial_codebook"

    def __init__(
        self,
        codes: int = 256,
        dim: int = 32,
        width: int = 64,
        prior_width: int = 96,
        prior_depth: int = 3,
        dropout: float = 0.2,
        batch_size: int = 64,
    ) -> None:
        self.codes, self.dim, self.width, self.batch_size = codes, dim, width, batch_size
        self.prior_width, self.prior_depth, self.dropout = prior_width, prior_depth, dropout

    def fit(self, train: ImageSet, budget: Budget, seed: int) -> dict[str, object]:
        """Train the codebook in the first half of the budget, the prior in the second."""
        with global_seed(torch.device("cpu"), seed, self.name):
            return self._fit(train, budget, seed)

    def _fit(self, train: ImageSet, budget: Budget, seed: int) -> dict[str, object]:
        rng = torch.Generator().manual_seed(seed)
        images = _Images(train.channels, self.codes, self.dim, self.width, seed)
        batches = Batches(train, self.batch_size, rng)
        height, width = multiple_of_4(train.size)
        self.size, self.map = train.size, (height // 4, width // 4)
        n_positions = self.map[0] * self.map[1]

        def codebook_loss() -> Tensor:
            x, _ = batches()
            found, commitment = images(x)
            # The codebook's loss is a sum over the image; here both are means over their numbers.
            return functional.mse_loss(found, x) + commitment / (n_positions * self.dim)

        first = descend(images, codebook_loss, budget, until=0.5, lr=2e-3)
        prior = _ClassPrior(
            self.codes, n_positions, train.n_classes, self.prior_width, self.prior_depth, self.dropout
        )

        def prior_loss() -> Tensor:
            x, labels = batches()
            with torch.no_grad():
                indices = images.indices(x)
            return functional.cross_entropy(prior(labels, indices[:, :-1]).flatten(0, 1), indices.flatten())

        second = descend(prior, prior_loss, budget, until=1.0, lr=1e-3, weight_decay=0.01, averaged=True)
        self.images, self.prior = images, prior
        return {"codebook": first, "prior": second}

    def reconstruct(self, images: ImageSet) -> Tensor:
        """Return images as they come back through the codes, uint8 (N, C, H, W)."""
        with torch.no_grad():
            return to_uint8(cut(self.images(continued(images.floats()))[0], self.size))

    def sample(self, labels: Tensor, seed: int) -> Tensor:
        """Draw codes one after the other at temperature 1 and decode them."""
        rng = torch.Generator().manual_seed(seed)

        def part(chunk: Tensor) -> Tensor:
            indices = torch.empty(len(chunk), 0, dtype=torch.int64)
            for _ in range(self.map[0] * self.map[1]):
                weights = self.prior(chunk, indices)[:, -1].softmax(dim=1)
                indices = torch.cat([indices, torch.multinomial(weights, 1, generator=rng)], dim=1)
            return to_uint8(cut(self.images.decode(indices, self.map), self.size))

        return by_parts(labels, part)
