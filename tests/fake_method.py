"""A linear method that can do everything, trained in a second: for tests of what surrounds methods."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fewgen.generation import noise
from fewgen.losses.terms import LossTerms
from fewgen.methods.base import Method
from fewgen.methods.registry import register
from fewgen.training import Phase, Stage


@dataclass(frozen=True)
class FakeConfig:
    """Settings of the fake.

    Attributes:
        latent_size: numbers per image.
        steps: of training.
        lr: learning rate.
    """

    latent_size: int = 4
    steps: int = 20
    lr: float = 1e-2


@register("fake")
class Fake(Method):
    """A linear autoencoder whose words share its latent space."""

    Config = FakeConfig
    capabilities = frozenset({"reconstruct", "encode", "text", "interpolate", "retrieve"})
    citations = ("cada_vae",)

    def __init__(self, config, spec):
        super().__init__(config, spec)
        pixels = spec.channels * spec.height * spec.width
        self.image_encoder = nn.Linear(pixels, config.latent_size)
        self.text_encoder = nn.Linear(spec.text.dim, config.latent_size)
        self.image_decoder = nn.Linear(config.latent_size, pixels)

    def encode(self, images: Tensor) -> Tensor:
        return self.image_encoder(images.flatten(1))

    def encode_text(self, vectors: Tensor) -> Tensor:
        return self.text_encoder(vectors)

    def decode(self, latents: Tensor, seeds: Tensor, temperature: float) -> Tensor:
        z = latents + temperature * 0.1 * noise(seeds, (self.config.latent_size,)).to(latents.device)
        return self.image_decoder(z).tanh().view(len(z), *self.spec.shape)

    def reconstruct(self, images: Tensor) -> Tensor:
        return self.decode(self.encode(images), torch.zeros(len(images), dtype=torch.int64), 0.0)

    def retrieve(self, images: Tensor) -> Tensor:
        words = self.encode_text(self.class_vectors(torch.arange(self.spec.n_classes)))
        return -torch.cdist(self.encode(images), words)

    def codebook_usage(self, images) -> dict[str, Tensor]:
        return {"words": torch.tensor([5, 0, 3, 2])}

    def sample(self, class_vectors, labels, seeds, temperature, *, shift=0.0):
        return self.decode(self.encode_text(class_vectors) + shift, seeds, temperature)

    def loss(self, batch, context):
        words = self.encode_text(self.class_vectors(batch.labels))
        z = self.encode(batch.images)
        own = self.image_decoder(z).tanh() - batch.images.flatten(1)
        cross = self.image_decoder(words).tanh() - batch.images.flatten(1)
        return LossTerms(
            {
                "image": own.square().sum(1).mean(),
                "cross": cross.square().sum(1).mean(),
                "align": (z - words).square().sum(1).mean(),
            }
        )

    def validate(self, context):
        if context.held_out is None:
            return None
        total = sum(
            float((self.reconstruct(b.images) - b.images).square().sum())
            for b in context.held_out.batches(64)
        )
        return {"image": total / len(context.held_out)}

    def stages(self, train, held_out):
        return [
            Stage(
                "linear",
                [Phase("model", self, self.loss, lr=self.config.lr)],
                steps=self.config.steps,
                batch_size=16,
                validate=self.validate if held_out is not None else None,
                monitor="image" if held_out is not None else None,
            )
        ]
