"""Terms that keep changes of attributes few and apart from what makes a category, or make them follow words.

Shapes: L layers of a generator, D numbers of a style, M categories, r directions of a dictionary, B batch, F
numbers of a joint encoder's feature.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from fewgen.errors import ShapeError
from fewgen.losses.reconstruction import same_shape
from fewgen.losses.stable import directions as unit

THETA = (0.5, -1.0)
"""Slope and shift of the sigmoid that counts used directions."""

CODE_SCALE = 32.0
"""The public code divides the sparsity by this constant."""

Form = Literal["code", "paper"]


def sparsity(n: Tensor, form: Form = "code") -> Tensor:
    """Count softly how many directions an image's change uses, averaged over the batch.

    "code": sum sigmoid(0.5 |n| - 1) / 32. "paper": |sigmoid(0.5 n + 1)|_1, which rewards negative numbers
    instead of small ones.

    Args:
        n: coefficients of the directions, (B, ...).
        form: of the paper, or of its public code.

    Source: Ding et al. 2022, "Attribute Group Editing for Reliable Few-shot Image Generation", sparsity
        loss; public code github.com/UniBester/AGE.
    """
    slope, shift = THETA
    if form == "code":
        return torch.sigmoid(slope * n.abs() + shift).flatten(1).sum(1).mean() / CODE_SCALE
    return torch.sigmoid(slope * n - shift).flatten(1).sum(1).mean()


def orthogonality(means: Tensor, directions: Tensor, form: Form = "code") -> Tensor:
    """Measure how far directions of change point along the means of categories; 0 if they are orthogonal.

    "code": the mean over all entries of |A_l^T B_l|. "paper": the sum over layers of |B_l^T A_l|_F^2.

    Args:
        means: B, one row for each category and layer, (M, L, D).
        directions: A, (L, D, r).
        form: of the paper, or of its public code.

    Raises:
        ShapeError: layers or numbers differ.

    Source: Ding et al. 2022, orthogonality loss; public code github.com/UniBester/AGE.
    """
    if means.ndim != 3 or directions.ndim != 3 or means.shape[1:] != directions.shape[:2]:
        raise ShapeError(
            f"Means (M, L, D) and directions (L, D, r) do not fit: {tuple(means.shape)} and "
            f"{tuple(directions.shape)}."
        )
    products = torch.einsum("mld,ldr->lmr", means, directions)
    return products.abs().mean() if form == "code" else products.square().sum()


def feature_error(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> Tensor:
    """Compare what a frozen network sees of two batches of images: LPIPS without learned weights.

    Each place of a map is scaled to length 1; squared differences are summed over channels and averaged
    over places, the batch, and maps.

    Args:
        found: maps (B, C, h, w) of one batch.
        wanted: those of the other, in the same order.

    Source: Zhang et al. 2018, arXiv:1801.03924, Eq. 1 (all weights 1, and the mean over layers).
    """
    errors = []
    for a, b in zip(found, wanted, strict=True):
        same_shape(a, b, "Maps of images")
        a, b = (functional.normalize(side, dim=1, eps=1e-4) for side in (a, b))
        errors.append((a - b).square().sum(1).mean())
    return torch.stack(errors).mean()


def direction_error(found: Tensor, source: Tensor, text: Tensor, neutral: Tensor) -> Tensor:
    """Return 1 - cos(I(x^) - I(x), T(p) - T(p_0)), averaged over the batch; in [0, 2].

    Without a change of the image it is 1, without gradient: no direction is wrong.

    Args:
        found: features I(x^) of the images, (B, F).
        source: those of the images that they were made from.
        text: features T(p) of what the images shall become.
        neutral: of what they are, p_0; (B, F), or (F,) for all.

    Source: Gal et al. 2022, arXiv:2108.00946, Eq. 3.
    """
    same_shape(found, source, "Features of images")
    return 1.0 - (unit(found - source) * unit(text - neutral)).sum(-1).mean()


def alignment_error(found: Tensor, source: Tensor, text: Tensor, text_weight: float) -> Tensor:
    """Return (1 - cos(I(x^), I(x))) + text_weight (1 - cos(I(x^), T(p))), averaged over the batch.

    Args:
        found: features I(x^) of the images, (B, F).
        source: those of the images that they were made from.
        text: features T(p) of what the images shall become.
        text_weight: of the text.

    Source: our reading of TAGE, arXiv:2410.17855, which says that images are aligned with both.
    """
    same_shape(found, source, "Features of images")
    image_error, text_error = (1.0 - (unit(found) * unit(other)).sum(-1).mean() for other in (source, text))
    return image_error + text_weight * text_error
