"""A text-to-image model whose denoiser is known exactly: every prompt is a Gaussian of its own mean.

Data N(mean(context), SPREAD^2 I), mean = tanh(W context): nothing to train, 1,952 numbers, float64.
"""

import torch
from torch import nn

from fewgen.diffusion.pipeline import TextToImage
from fewgen.diffusion.schedule import NoiseSchedule
from fewgen.errors import TextError

SPREAD = 0.3
WORDS = ("", "a", "photo", "of", "an", "object", "cat", "dog")
LENGTH, SHAPE = 6, (1, 4, 4)
WIDTH = 16


class Toy(TextToImage):
    """Latents are images times `scaling`; `calls` and `times` keep what the denoiser was asked."""

    def __init__(self, seed=0, scaling=0.9, dtype=torch.float64):
        super().__init__()
        rng = torch.Generator().manual_seed(seed)

        def draw(*shape):
            return torch.randn(*shape, generator=rng, dtype=torch.float64)

        blocks = [torch.linalg.qr(draw(WIDTH, WIDTH))[0] for _ in range(LENGTH)]
        self.table = nn.Parameter((0.3 * draw(len(WORDS), WIDTH)).to(dtype))
        self.mix = nn.Parameter((0.4 * torch.cat(blocks, 1)).to(dtype))
        self.scaling = scaling
        self.schedule = NoiseSchedule.scaled_linear()
        self.latent_shape = self.image_shape = SHAPE
        self.context_shape = (LENGTH, WIDTH)
        self.seed = seed
        self.calls, self.times = [], []

    @property
    def model_id(self):
        return f"toy-{self.seed}"

    def encode(self, x):
        return x * self.scaling

    def decode(self, z0):
        return (z0 / self.scaling).clamp(-1, 1)

    def _word_ids(self, text):
        for word in text.split():
            if word not in WORDS[1:]:
                raise TextError(f'unknown word "{word}"')
        return [WORDS.index(word) for word in text.split()]

    def _framed(self, ids):
        return ids + [0] * (LENGTH - len(ids))

    def _table(self):
        return self.table

    def _context(self, ids, rows):
        return torch.cat([self.table, rows])[ids]

    def mean(self, context):
        return torch.tanh(context.flatten(1) @ self.mix.T).reshape(-1, *SHAPE)

    def eps(self, z, t, context):
        self.calls.append(len(z))
        self.times += t.tolist()
        bar = self.schedule.alphas_cumprod[t].to(z).reshape(-1, 1, 1, 1)
        whole = bar * SPREAD**2 + 1 - bar
        return (1 - bar).sqrt() * (z - bar.sqrt() * self.mean(context)) / whole


def supports(k, seed=0, word="cat", pipe=None):
    """Latents that the toy would draw for "a photo of an <word>", (k, 1, 4, 4)."""
    pipe = pipe or Toy()
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        mean = pipe.mean(pipe.embed([f"a photo of an {word}"]))
    return mean + SPREAD * torch.randn(k, *SHAPE, generator=rng, dtype=torch.float64)


def cat(pipe):
    return pipe.embed(["a photo of an cat"]).detach()
