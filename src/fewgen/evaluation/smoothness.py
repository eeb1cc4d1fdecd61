"""How evenly images change along walks between two points of a latent space."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fewgen.errors import DataError, ShapeError
from fewgen.evaluation.checks import check_finite
from fewgen.evaluation.statistics import mean_and_spread


@dataclass(frozen=True)
class Smoothness:
    """How evenly the images of walks change; each list has one entry per walk.

    Attributes:
        length: length of the path through the features, in their units.
        detour: length over the distance of the two ends, at least 1 (1 is a straight line); None where the
            ends are equal or nothing moves.
        largest_step: share of the length in the largest step, from 1 / steps to 1; None if nothing moves.
        evenness: entropy of the steps' shares of the length over its maximum, 1 for equal steps and 0 for a
            single jump; None if nothing moves.
        variation: standard deviation of the step lengths over their mean, 0 for equal steps; None if nothing
            moves. The mean squared step of the perceptual path length is
            (length / steps)^2 (1 + variation^2).
        jump: whether one step holds more than half of the path.
        n_steps: steps of each walk.
        n_still: walks whose images are all equal.
    """

    length: tuple[float, ...]
    detour: tuple[float | None, ...]
    largest_step: tuple[float | None, ...]
    evenness: tuple[float | None, ...]
    variation: tuple[float | None, ...]
    jump: tuple[bool, ...]
    n_steps: int
    n_still: int

    def summary(self) -> dict[str, dict[str, float | int | None]]:
        """Return mean, spread (sample standard deviation, None below two) and n of each figure over walks.

        A figure that no walk has is left out. `jump_share` is the share of the moving walks with a jump.
        """
        found: dict[str, dict[str, float | int | None]] = {}
        for name in ("length", "detour", "largest_step", "evenness", "variation"):
            values = [v for v in getattr(self, name) if v is not None]
            if values:
                mean, spread = mean_and_spread(values)
                found[name] = {"mean": mean, "spread": spread, "n": len(values)}
        moving = len(self.jump) - self.n_still
        if moving:
            found["jump_share"] = {"mean": sum(self.jump) / moving, "spread": None, "n": moving}
        return found


def interpolation_smoothness(features: Tensor) -> Smoothness:
    """Measure how evenly images change along walks between two points of a latent space.

    Compare with the same walk through pixels (a cross-fade of the two end images): it is even, but its
    images are not real. Smooth is not realistic.

    Args:
        features: of the images in the order of the walk, (S, D), or of several walks, (W, S, D); S >= 4.

    Returns:
        `Smoothness`. Images count as equal if all lie within a millionth of the largest feature vector.

    Raises:
        ShapeError: another shape.
        DataError: fewer than 4 images per walk (with 2 steps the larger one always holds half), no walk, or
            values that are not finite.

    Source: Karras et al. 2019, arXiv:1812.04948, Sec. 4.1 (perceptual path length: how much images change
    per step of the latent).
    Differs: PPL divides the squared LPIPS-type distance of two images by a small squared step, 1e-4, averaged
    over random places. Here it is the given walk with its finite steps, so that a jump within a step counts
    with the step; the total length and its distribution over the steps are told apart; and the length is
    relative to the distance of the ends, because PPL alone rewards a generator that hardly changes anything.
    """
    if features.ndim == 2:
        features = features[None]
    if features.ndim != 3:
        raise ShapeError(f"features must be (S, D) or (W, S, D), got {tuple(features.shape)}.")
    n_walks, n_images, _ = features.shape
    if n_walks == 0 or n_images < 4:
        raise DataError(f"{n_walks} walks of {n_images} images; at least 1 walk of 4 images is needed.")
    x = check_finite("features", features)
    steps = (x[:, 1:] - x[:, :-1]).norm(dim=2)
    lengths = steps.sum(dim=1)
    ends = (x[:, -1] - x[:, 0]).norm(dim=1)
    smallest = 1e-6 * x.norm(dim=2).amax(dim=1)
    still = (steps.sum(dim=1) <= smallest).tolist()
    closed = (ends <= smallest).tolist()

    rows: list[tuple[float | None, ...]] = []
    for w in range(n_walks):
        share = steps[w] / lengths[w]
        rows.append(
            (None,) * 4
            if still[w]
            else (
                None if closed[w] else max(1.0, float(lengths[w] / ends[w])),
                float(share.max()),
                float(-torch.xlogy(share, share).sum()) / math.log(n_images - 1),
                float(share.std(correction=0)) * (n_images - 1),
            )
        )
    detour, largest, evenness, variation = zip(*rows, strict=True)
    jump = tuple(v is not None and v > 0.5 for v in largest)
    lengths_of = tuple(lengths.tolist())
    return Smoothness(lengths_of, detour, largest, evenness, variation, jump, n_images - 1, sum(still))
