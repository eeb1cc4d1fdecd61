"""A text-to-image model that is known exactly, with images large enough for a student; and its data."""

import torch
from torch import nn

from fewgen.data.imageset import ImageSet, to_uint8
from fewgen.diffusion.pipeline import TextToImage
from fewgen.diffusion.schedule import NoiseSchedule
from fewgen.errors import TextError

NOVEL = ("cat", "dog", "bird", "fish")
BASE = ("car", "ship", "lamp", "tree", "boot")
WORDS = ("", "a", "photo", "of", "an", "object", *NOVEL, *BASE)
SPREAD, WIDTH, LENGTH, SIDE = 0.7, 16, 6, 16


class Toy(TextToImage):
    """Images of a prompt are a Gaussian around its own smooth picture; float32, nothing to train.

    Args:
        blind: the denoiser sees noise that has nothing to do with the prompt: it makes rubbish.
    """

    def __init__(self, blind=False):
        super().__init__()
        rng = torch.Generator().manual_seed(3)
        self.table = nn.Parameter(0.3 * torch.randn(len(WORDS), WIDTH, generator=rng))
        # Few broad waves, so that convolutions and crops see the pictures.
        coarse = torch.randn(4 * 4, LENGTH * WIDTH, generator=rng) * 0.9
        wide = nn.functional.interpolate(
            coarse.T.reshape(-1, 1, 4, 4), size=(SIDE, SIDE), mode="bilinear", align_corners=False
        )
        self.mix = nn.Parameter(wide.flatten(1).T.contiguous())
        self.schedule = NoiseSchedule.scaled_linear()
        self.latent_shape = self.image_shape = (1, SIDE, SIDE)
        self.context_shape = (LENGTH, WIDTH)
        self.blind = blind

    @property
    def model_id(self):
        return f"toy-{self.blind}".ljust(20, "-")

    def encode(self, x):
        return x

    def decode(self, z0):
        return z0.clamp(-1, 1)

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
        return torch.tanh(context.flatten(1) @ self.mix.T).reshape(-1, *self.image_shape)

    def eps(self, z, t, context):
        bar = self.schedule.alphas_cumprod[t].to(z).reshape(-1, 1, 1, 1)
        whole = bar * SPREAD**2 + 1 - bar
        mean = self.mean(context)
        if self.blind:
            return 0.0 * mean.expand_as(z)  # what it starts from stays: black and white noise
        return (1 - bar).sqrt() * (z - bar.sqrt() * mean) / whole


def data(each=20, names=BASE + NOVEL, seed=0):
    """What the toy would draw for "a photo of an <name>"; labelled, base classes first."""
    pipe = Toy()
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        means = pipe.mean(pipe.embed([f"a photo of an {name}" for name in names]))
    labels = torch.arange(len(names)).repeat_interleave(each)
    x = means[labels] + SPREAD * torch.randn(len(labels), 1, SIDE, SIDE, generator=rng)
    return ImageSet(to_uint8(x), labels, tuple(names), name="toy")
