"""A conditional variational autoencoder, the first thing many would try."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from fewgen.comparison.budget import Budget
from fewgen.comparison.references.learning import Batches, by_parts, cut, descend, multiple_of_4
from fewgen.data.imageset import ImageSet, to_uint8
from fewgen.fitting.seeds import global_seed
from fewgen.losses.divergence import kl_standard_normal


class _Network(nn.Module):
    def __init__(self, channels: int, size: tuple[int, int], n_classes: int, latent: int, width: int) -> None:
        super().__init__()
        self.map, self.width = (size[0] // 4, size[1] // 4), width
        self.embed = nn.Embedding(n_classes, 32)
        self.encoder = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1), nn.SiLU(),
            nn.Conv2d(width, width, 4, stride=2, padding=1), nn.GroupNorm(8, width), nn.SiLU(),
            nn.Conv2d(width, 2 * width, 4, stride=2, padding=1), nn.GroupNorm(8, 2 * width), nn.SiLU(),
            nn.Flatten(),
        )  # fmt: skip
        flat = 2 * width * self.map[0] * self.map[1]
        self.moments = nn.Sequential(nn.Linear(flat + 32, 256), nn.SiLU(), nn.Linear(256, 2 * latent))
        self.expand = nn.Sequential(nn.Linear(latent + 32, 256), nn.SiLU(), nn.Linear(256, flat), nn.SiLU())
        self.decoder = nn.Sequential(
            nn.ConvTranspose2d(2 * width, width, 4, stride=2, padding=1), nn.GroupNorm(8, width), nn.SiLU(),
            nn.ConvTranspose2d(width, width, 4, stride=2, padding=1), nn.GroupNorm(8, width), nn.SiLU(),
            nn.Conv2d(width, channels, 3, padding=1),
        )  # fmt: skip

    def encode(self, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        mu, logvar = self.moments(torch.cat([self.encoder(x), self.embed(labels)], 1)).chunk(2, 1)
        return mu, logvar.clamp(-12, 6)

    def decode(self, z: Tensor, labels: Tensor) -> Tensor:
        h = self.expand(torch.cat([z, self.embed(labels)], 1))
        logits: Tensor = self.decoder(h.reshape(len(z), 2 * self.width, *self.map))
        return logits


class ConditionalVae:
    """Convolutional VAE with the class given to both halves; cross-entropy per pixel, 20 latents.

    Source: Kingma & Welling 2014, arXiv:1312.6114; Sohn et al. 2015 for the condition.
    """

    name = "conditional_vae"

    def __init__(self, latent: int = 20, width: int = 32, batch_size: int = 64) -> None:
        self.latent, self.width, self.batch_size = latent, width, batch_size

    def fit(self, train: ImageSet, budget: Budget, seed: int) -> dict[str, object]:
        """Train for the whole budget."""
        with global_seed(torch.device("cpu"), seed, self.name):
            return self._fit(train, budget, seed)

    def _fit(self, train: ImageSet, budget: Budget, seed: int) -> dict[str, object]:
        rng = torch.Generator().manual_seed(seed)
        self.size = train.size
        network = _Network(
            train.channels, multiple_of_4(train.size), train.n_classes, self.latent, self.width
        )
        batches = Batches(train, self.batch_size, rng)

        def loss() -> Tensor:
            x, labels = batches()
            mu, logvar = network.encode(x, labels)
            z = mu + (0.5 * logvar).exp() * torch.randn(mu.shape, generator=rng)
            logits = network.decode(z, labels)
            grey = functional.binary_cross_entropy_with_logits(logits, (x + 1) / 2, reduction="sum")
            return grey / len(x) + kl_standard_normal(mu, logvar)

        about = descend(network, loss, budget, until=1.0, lr=1e-3, averaged=True)
        self.network = network
        return about | {"n_parameters": sum(p.numel() for p in network.parameters())}

    def sample(self, labels: Tensor, seed: int) -> Tensor:
        """Decode draws from the prior; the image is the mean of the pixels' distribution."""
        rng = torch.Generator().manual_seed(seed)

        def part(chunk: Tensor) -> Tensor:
            z = torch.randn(len(chunk), self.latent, generator=rng)
            return to_uint8(cut(self.network.decode(z, chunk), self.size).sigmoid() * 2 - 1)

        return by_parts(labels, part)
