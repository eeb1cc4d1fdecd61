"""Bring word vectors of any encoder to mean zero and unit size, and remember how."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fewgen.errors import ShapeError


@dataclass(frozen=True, eq=False)
class Standardizer:
    """(vectors - mean) / scale.

    Attributes:
        mean: (D,), in units of the encoder.
        scale: > 0, one number, so that directions are kept.

    Source: none; a choice of this library. It keeps the squared error of word vectors comparable between
        encoders (the components of GloVe are of order 0.3, those of a normalised MiniLM of order 0.05).
    """

    mean: Tensor
    scale: float

    @classmethod
    def fit(cls, vectors: Tensor) -> Standardizer:
        """Mean over the rows of `vectors` (N, D), and the standard deviation over all their entries.

        With one row there is no spread to measure: the mean is left at zero and the scale is the root mean
        square, so that the vector does not turn into zeros.
        """
        if vectors.dim() != 2 or not len(vectors):
            raise ShapeError(f"Standardizing needs vectors of shape (N, D); it got {tuple(vectors.shape)}.")
        vectors = vectors.detach().to(torch.float32)
        mean = vectors.mean(0) if len(vectors) > 1 else torch.zeros_like(vectors[0])
        scale = float((vectors - mean).square().mean().sqrt())
        # All rows equal: nothing to scale by.
        return cls(mean=mean, scale=scale if scale > 1e-12 else 1.0)

    def __call__(self, vectors: Tensor) -> Tensor:
        """Standardised vectors, (..., D)."""
        if vectors.shape[-1:] != self.mean.shape:
            raise ShapeError(
                f"The text vectors have {vectors.shape[-1] if vectors.dim() else 0} numbers, "
                f"but these were fitted with {len(self.mean)}."
            )
        return (vectors - self.mean.to(vectors)) / self.scale

    def inverse(self, vectors: Tensor) -> Tensor:
        """Vectors in units of the encoder again, (..., D)."""
        return vectors * self.scale + self.mean.to(vectors)
