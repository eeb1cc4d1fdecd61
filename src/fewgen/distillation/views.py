"""Other views of the same images, and mixtures of them: what a teacher labels and a student sees."""

from __future__ import annotations

import torch
from torch import Tensor

from fewgen.data.augment import shift_images
from fewgen.data.imageset import ImageSet, to_uint8
from fewgen.errors import ConfigError
from fewgen.fitting.fit import Shuffled
from fewgen.fitting.seeds import make_rng

MIXTURES = 3000
"""Mixtures of a task's supports, unless another number is asked for."""

_BLOCK = 512


def vary(x: Tensor, padding: int, jitter: float, flip: bool, rng: torch.Generator) -> Tensor:
    """Crop, colour and mirror each image at random.

    Args:
        x: images (B, C, H, W) in [-1, 1], on the processor.
        padding: largest move in each direction, in pixels.
        jitter: brightness, contrast and saturation are each multiplied by up to 1 +- this, in [0, 1].
        flip: half of the images are mirrored.
        rng: random stream.

    Returns:
        Images of the same shape, in [-1, 1]. What is off draws nothing.

    Source: Jian & Torresani 2022, arXiv:2112.03340 (LabelHalluc), its code.
    Differs: a crop of the padded image continues it by its edge pixels instead of black, so that light
        grounds stay as they are; grey is the plain mean of the colours; brightness, contrast and saturation
        come in this order instead of a random one.
    """
    x = shift_images(x, padding, rng)
    if jitter:
        factors = 1.0 + jitter * (torch.rand(3, len(x), 1, 1, 1, generator=rng) * 2.0 - 1.0)
        x = ((x + 1.0) * factors[0] - 1.0).clamp(-1.0, 1.0)
        grey = x.mean(dim=(1, 2, 3), keepdim=True)
        x = (grey + (x - grey) * factors[1]).clamp(-1.0, 1.0)
        if x.shape[1] == 3:
            grey = x.mean(dim=1, keepdim=True)
            x = (grey + (x - grey) * factors[2]).clamp(-1.0, 1.0)
    if flip:
        turned = torch.rand(len(x), generator=rng) < 0.5
        x = torch.where(turned[:, None, None, None], x.flip(3), x)
    return x


def padding_for(shape: tuple[int, ...], padding: int) -> int:
    """Return the largest move of a crop in pixels; -1 means 8 from 64 pixels on and 4 below.

    Args:
        shape: (C, H, W).
        padding: as the user set it.
    """
    return padding if padding >= 0 else 8 if min(shape[1:]) >= 64 else 4


def mixed(x: Tensor, y: Tensor, rng: torch.Generator) -> Tensor:
    """Return images between two: half of them blended (mixup), half with a rectangle of the other (cutmix).

    The share of the first image is uniform in [0, 1].

    Args:
        x: images (B, C, H, W).
        y: others of the same shape.
        rng: random stream.

    Source: Zhang et al. 2018, arXiv:1710.09412 (mixup, with Beta(1, 1)); Yun et al. 2019, arXiv:1905.04899
        (cutmix): a rectangle of the image's aspect whose place is uniform and may reach over the edge.
    Differs: the label is not mixed; a teacher gives it, as in Beyer et al. 2022, arXiv:2106.05237.
    """
    share = torch.rand(len(x), 1, 1, 1, generator=rng)
    middle = torch.rand(2, len(x), 1, 1, 1, generator=rng)
    blended = torch.lerp(y, x, share)
    half = (1.0 - share).sqrt() / 2
    height, width = x.shape[2:]
    rows = (torch.arange(height).view(1, 1, -1, 1) + 0.5) / height
    columns = (torch.arange(width).view(1, 1, 1, -1) + 0.5) / width
    inside = ((rows - middle[0]).abs() < half) & ((columns - middle[1]).abs() < half)
    cut = torch.where(inside, y, x)
    odd = torch.arange(len(x)) % 2 == 1
    return torch.where(odd[:, None, None, None], cut, blended)


def mixtures(
    images: ImageSet, n: int, *, padding: int = -1, jitter: float = 0.4, flip: bool = True, seed: int = 0
) -> ImageSet:
    """Return mixtures of augmented images; a third of them are single augmented images.

    Args:
        images: of any classes; each appears equally often, up to one.
        n: images to make, 1 or more.
        padding: of `vary`; -1 as in `padding_for`.
        jitter: of `vary`.
        flip: of `vary`.
        seed: of pairs, augmentation and mixtures.

    Returns:
        `ImageSet` of one class, as no single class is right: a teacher says what they show.

    Raises:
        ConfigError: n below 1.
    """
    if n < 1:
        raise ConfigError(f"mixtures must be 1 or more, got {n}.")
    draws = [Shuffled(len(images), make_rng("cpu", seed, "mixtures", which)) for which in ("first", "second")]
    rng = make_rng("cpu", seed, "mixtures")
    moved = padding_for(images.shape, padding)
    parts = []
    for start in range(0, n, _BLOCK):
        count = min(_BLOCK, n - start)
        x, y = (vary(images.floats(draw.draw(count)), moved, jitter, flip, rng) for draw in draws)
        single = torch.arange(start, start + count) % 3 == 0
        parts.append(to_uint8(torch.where(single[:, None, None, None], x, mixed(x, y, rng))))
    return ImageSet(torch.cat(parts), torch.zeros(n, dtype=torch.int64), ("mixtures",), name="mixtures")
