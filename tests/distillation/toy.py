"""A text-to-image model that is known exactly, with images large enough for a student; and its data."""

import torch
from tests.diffusion.toy import Gaussian
from torch import nn

from fewgen.data.imageset import ImageSet, to_uint8

NOVEL = ("cat", "dog", "bird", "fish")
BASE = ("car", "ship", "lamp", "tree", "boot")
WORDS = ("", "a", "photo", "of", "an", "object", *NOVEL, *BASE)
SPREAD, WIDTH, LENGTH, SIDE = 0.7, 16, 6, 16


class Toy(Gaussian):
    """Images of a prompt are a Gaussian around its own smooth picture; float32.

    Args:
        blind: the denoiser sees noise that has nothing to do with the prompt: it makes rubbish.
    """

    def __init__(self, blind=False):
        rng = torch.Generator().manual_seed(3)
        table = 0.3 * torch.randn(len(WORDS), WIDTH, generator=rng)
        # Few broad waves, so that convolutions and crops see the pictures.
        coarse = torch.randn(4 * 4, LENGTH * WIDTH, generator=rng) * 0.9
        wide = nn.functional.interpolate(
            coarse.T.reshape(-1, 1, 4, 4), size=(SIDE, SIDE), mode="bilinear", align_corners=False
        )
        mix = wide.flatten(1).T.contiguous()
        super().__init__(WORDS, table, mix, (1, SIDE, SIDE), SPREAD, name=f"toy-{blind}".ljust(20, "-"))
        self.blind = blind

    def eps(self, z, t, context):
        if self.blind:
            return 0.0 * self.mean(context)  # what it starts from stays: black and white noise
        return super().eps(z, t, context)


def data(each=20, names=BASE + NOVEL, seed=0):
    """What the toy would draw for "a photo of an <name>"; labelled, base classes first."""
    pipe = Toy()
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        means = pipe.mean(pipe.embed([f"a photo of an {name}" for name in names]))
    labels = torch.arange(len(names)).repeat_interleave(each)
    x = means[labels] + SPREAD * torch.randn(len(labels), 1, SIDE, SIDE, generator=rng)
    return ImageSet(to_uint8(x), labels, tuple(names), name="toy")
