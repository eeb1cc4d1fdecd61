"""The named parts of an objective, before they are weighted into one number."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fewgen.errors import ShapeError


@dataclass
class LossTerms:
    """What a phase returns for a batch: scalar terms, their weights, and figures that are only logged.

    Attributes:
        values: term name -> scalar tensor, summed over feature dimensions and averaged over the batch.
        weights: term name -> weight. A term without an entry has weight 1; entries for terms that are
            absent are ignored, so a method may pass all its configured weights every time.
        stats: figures for the log (perplexity, gradient norms); they never enter the objective.
    """

    values: dict[str, Tensor]
    weights: Mapping[str, float] = field(default_factory=dict)
    stats: Mapping[str, float | Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, value in self.values.items():
            if value.dim() != 0:
                raise ShapeError(
                    f'Loss term "{name}" has shape {tuple(value.shape)}, but a term is one number. '
                    "Sum it over the feature dimensions and average it over the batch."
                )

    def weight(self, name: str) -> float:
        """The weight of one term (1 when none was given)."""
        return float(self.weights.get(name, 1.0))

    def total(self, factors: Mapping[str, Tensor | float] | None = None) -> Tensor:
        """Weighted sum of the terms, a scalar.

        Args:
            factors: optional extra factor per term, on top of its weight.

        Raises:
            ShapeError: if there is no term at all.

        >>> LossTerms({"image": torch.tensor(2.0), "kl": torch.tensor(3.0)}, {"kl": 0.5}).total()
        tensor(3.5000)
        """
        if not self.values:
            raise ShapeError("LossTerms holds no term, so there is nothing to add up.")
        parts = []
        for name, value in self.values.items():
            factor = 1.0 if factors is None else factors.get(name, 1.0)
            if isinstance(factor, (int, float)) and factor * self.weight(name) == 0.0:
                # A term that is switched off must not bring its NaN or infinity along (0 * inf is NaN).
                # An infinite value has no use either way; a finite one keeps its (zero) gradient.
                parts.append(value * 0.0 if bool(torch.isfinite(value)) else torch.zeros_like(value))
            else:
                parts.append(value * (factor * self.weight(name)))
        return torch.stack(parts).sum()

    def floats(self) -> dict[str, float]:
        """The unweighted terms as numbers, for the log."""
        return {name: float(value.detach()) for name, value in self.values.items()}
