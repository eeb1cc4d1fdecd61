"""Thickness, slant and size of drawings, measured; and what words say of them.

Shapes: N images.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from fewgen.errors import ShapeError

FAINT = 0.1
"""Ink up to this share of the darkest pixel's is ground: what generators leave there would count as edges."""

MARKED = 0.5
"""Standard deviations from the mean beyond which a drawing is said to be thick, slanted or small."""

ATTRIBUTES: Mapping[str, tuple[str, str]] = {
    "thickness": ("thin", "thick"),
    "size": ("small", "large"),
    "slant": ("slanted to the left", "slanted to the right"),
}
"""What is measured -> words for little and for much of it."""


def caption(words: Sequence[str] = ()) -> str:
    """Return a caption with some words of `ATTRIBUTES`, in their order.

    >>> caption(), caption(("thick", "slanted to the left"))
    ('a drawing', 'a thick drawing slanted to the left')
    """
    before = [word for word in words if not word.startswith("slanted")]
    return " ".join(["a", *before, "drawing", *(word for word in words if word not in before)])


def every_caption() -> tuple[str, ...]:
    """Return all captions that `captions_of` may give."""
    choices = itertools.product(*(("", *words) for words in ATTRIBUTES.values()))
    return tuple(caption([word for word in words if word]) for words in choices)


DRAWING_PROMPTS = tuple(caption((word,)) for words in ATTRIBUTES.values() for word in words)
"""A prompt for each word."""


def measured(images: Tensor) -> dict[str, Tensor]:
    """Return thickness, size and slant of drawings, float64 (N,).

    Ink is what differs from the border's median, as a share of what differs most. An image without any has 0.

    - thickness: twice the ink over the length of its edges (its total variation), in pixels: the width of
      long strokes, whatever their number.
    - size: root mean square distance of ink from its centre, as a share of the longer side.
    - slant: by how many pixels ink moves to the right, on average, one pixel further up.

    Args:
        images: uint8 (N, C, H, W) or float in any range.

    Raises:
        ShapeError: they are not (N, C, H, W).
    """
    if images.ndim != 4:
        raise ShapeError(f"Drawings must be (N, C, H, W), got {tuple(images.shape)}.")
    x = images.double().mean(1)
    border = torch.cat([x[:, 0], x[:, -1], x[:, :, 0], x[:, :, -1]], 1)
    ink = (x - border.median(1).values[:, None, None]).abs()
    ink = ink / ink.amax((1, 2), keepdim=True).clamp_min(1e-12)
    ink = (ink - FAINT).clamp_min(0.0)
    total = ink.sum((1, 2))
    some = total.clamp_min(1e-12)
    padded = functional.pad(ink, (1, 1, 1, 1))
    down, right = padded[:, 1:, :-1] - padded[:, :-1, :-1], padded[:, :-1, 1:] - padded[:, :-1, :-1]
    edges = (down.square() + right.square()).sqrt().sum((1, 2))
    rows, columns = (torch.arange(side, dtype=torch.float64, device=x.device) for side in x.shape[1:])
    v = rows[None, :, None] - (ink.sum(2) @ rows / some)[:, None, None]
    u = columns[None, None, :] - (ink.sum(1) @ columns / some)[:, None, None]
    vv, uu, uv = ((ink * moment).sum((1, 2)) / some for moment in (v * v, u * u, u * v))
    return {
        "thickness": 2.0 * total / edges.clamp_min(1e-12),
        "size": (vv + uu).sqrt() / max(x.shape[1:]),
        "slant": torch.where(vv > 1e-9, -uv / vv.clamp_min(1e-9), torch.zeros_like(uv)),
    }


def captions_of(images: Tensor) -> tuple[str, ...]:
    """Return a caption for each drawing (N, C, H, W), with words for what is far from the mean of all."""
    words: list[list[str]] = [[] for _ in images]
    for name, values in measured(images).items():
        spread = values.std(correction=0).clamp_min(1e-12)
        for i, z in enumerate(((values - values.mean()) / spread).tolist()):
            if abs(z) > MARKED:
                words[i].append(ATTRIBUTES[name][z > 0])
    return tuple(caption(own) for own in words)


def promised(prompt: str) -> tuple[str, int] | None:
    """Return what a prompt promises more (1) or less (-1) of, or None if it says nothing of what is measured.

    >>> promised("a thick drawing"), promised("a small A"), promised("a cat")
    (('thickness', 1), ('size', -1), None)
    """
    found = [
        (name, sign)
        for name, words in ATTRIBUTES.items()
        for sign, word in zip((-1, 1), words, strict=True)
        if f" {word} " in f" {prompt} "
    ]
    return found[0] if len(found) == 1 else None
