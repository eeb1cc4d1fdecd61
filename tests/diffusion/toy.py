"""Text-to-image models whose denoiser is known exactly: every prompt is a Gaussian of its own mean.

Data N(mean(context), spread^2 I), mean = tanh(W context): nothing to train.
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


class Gaussian(TextToImage):
    """Latents are images times `scaling`; `calls` and `times` keep what the denoiser was asked.

    Args:
        words: that it knows; the first is the padding.
        table: their input embeddings, (n_words, D).
        mix: W, (pixels, L * D).
        shape: of images and latents.
        spread: standard deviation around the mean.
        scaling: of latents.
        name: its `model_id`.
    """

    def __init__(self, words, table, mix, shape, spread, scaling=1.0, name="gaussian"):
        super().__init__()
        self.words, self.spread, self.scaling, self.name = words, spread, scaling, name
        self.table, self.mix = nn.Parameter(table), nn.Parameter(mix)
        self.schedule = NoiseSchedule.scaled_linear()
        self.latent_shape = self.image_shape = shape
        self.context_shape = (mix.shape[1] // table.shape[1], table.shape[1])
        self.calls, self.times = [], []

    @property
    def model_id(self):
        return self.name

    def encode(self, x):
        return x * self.scaling

    def decode(self, z0):
        return (z0 / self.scaling).clamp(-1, 1)

    def _word_ids(self, text):
        for word in text.split():
            if word not in self.words[1:]:
                raise TextError(f'unknown word "{word}"')
        return [self.words.index(word) for word in text.split()]

    def _framed(self, ids):
        return ids + [0] * (self.context_shape[0] - len(ids))

    def _table(self):
        return self.table

    def _context(self, ids, rows):
        return torch.cat([self.table, rows])[ids]

    def mean(self, context):
        return torch.tanh(context.flatten(1) @ self.mix.T).reshape(-1, *self.image_shape)

    def eps(self, z, t, context):
        self.calls.append(len(z))
        self.times += t.tolist()
        bar = self.schedule.alphas_cumprod[t].to(z).reshape(-1, 1, 1, 1)
        whole = bar * self.spread**2 + 1 - bar
        return (1 - bar).sqrt() * (z - bar.sqrt() * self.mean(context)) / whole


class Toy(Gaussian):
    """1,952 numbers, float64 unless asked otherwise."""

    def __init__(self, seed=0, scaling=0.9, dtype=torch.float64):
        rng = torch.Generator().manual_seed(seed)

        def draw(*shape):
            return torch.randn(*shape, generator=rng, dtype=torch.float64)

        blocks = [torch.linalg.qr(draw(WIDTH, WIDTH))[0] for _ in range(LENGTH)]
        table = (0.3 * draw(len(WORDS), WIDTH)).to(dtype)
        mix = (0.4 * torch.cat(blocks, 1)).to(dtype)
        super().__init__(WORDS, table, mix, SHAPE, SPREAD, scaling, f"toy-{seed}")


def supports(k, seed=0, word="cat", pipe=None):
    """Latents that the toy would draw for "a photo of an <word>", (k, 1, 4, 4)."""
    pipe = pipe or Toy()
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        mean = pipe.mean(pipe.embed([f"a photo of an {word}"]))
    return mean + SPREAD * torch.randn(k, *SHAPE, generator=rng, dtype=torch.float64)


def cat(pipe):
    return pipe.embed(["a photo of an cat"]).detach()
