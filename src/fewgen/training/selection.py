"""Which checkpoint of a stage is kept, by the images that it draws.

At up to `N_COMPARED` steps, images of fixed seeds are drawn and compared with held-out images. Kept is the
latest checkpoint whose distance is within one standard error of the lowest, among those that copy no more
training images than held-out images seem to. So an earlier one is kept only if it is clearly better.

Source: the one-standard-error rule of Breiman, Friedman, Olshen & Stone 1984, "Classification and regression
    trees", Sec. 3.4.3.
Differs: the simplest model there is the latest checkpoint here, since learning rates have fallen by then.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

CHOICES = ("best", "images", "last")

N_COMPARED = 10
"""Checkpoints of a stage that are compared, about."""

LEAST_STEPS = 100
"""Steps between two of them at least; a stage of no more steps has a single one, and nothing is compared."""

MOST_COST = 0.04
"""Share of a stage that drawing may take, by counts of steps: by a clock, each run would be another."""


@dataclass(frozen=True)
class Drawn:
    """What images of fixed seeds say of a checkpoint.

    Attributes:
        distance: to held-out images.
        error: standard error of the distance, over the drawn images.
        copy_share: share of them that equal or nearly equal a training image.
        copies: whether they copy more than held-out images seem to.
        real_distance: of training images to held-out images, for comparison.
        real_copy_share: share of held-out images that seem to be near-copies.
        images: some of them, uint8 (N, C, H, W).
    """

    distance: float
    error: float
    copy_share: float
    copies: bool
    real_distance: float
    real_copy_share: float
    images: Tensor

    def line(self) -> dict[str, Any]:
        """Return what the log keeps."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "images"}


@dataclass
class Selection:
    """The checkpoints of a stage so far, and which of them is kept.

    Attributes:
        step: of the last one; 0 before the first.
        n: how many were measured.
        n_copying: how many of them copy.
        lowest: the lowest distance of those that do not.
        error: its standard error.
        kept: step of the one that is kept; None: of none.
        distance: of the one that is kept.
        reason: why there are none.
    """

    step: int = 0
    n: int = 0
    n_copying: int = 0
    lowest: float | None = None
    error: float = 0.0
    kept: int | None = None
    distance: float | None = None
    reason: str = ""

    @staticmethod
    def interval(steps: int, cost: float = 1.0) -> int:
        """Return the steps between two checkpoints of a stage.

        Args:
            steps: of the stage.
            cost: steps that drawing takes as long as.
        """
        return max(LEAST_STEPS, math.ceil(steps / N_COMPARED), math.ceil(cost / MOST_COST))

    def due(self, step: int, steps: int, cost: float = 1.0) -> bool:
        """Return whether to measure after this step; see `interval`."""
        if self.reason or step == self.step:
            return False
        return step - self.step >= self.interval(steps, cost) or (step >= steps and self.n > 0)

    def take(self, step: int, distance: float, error: float, copies: bool) -> bool:
        """Count a checkpoint with figures of `Drawn`; return whether it is the one to keep now."""
        self.step, self.n, self.n_copying = step, self.n + 1, self.n_copying + copies
        if copies or not math.isfinite(distance):
            return False
        if self.lowest is None or distance < self.lowest:
            self.lowest, self.error = distance, error
        if distance > self.lowest + self.error:
            return False
        self.kept, self.distance = step, distance
        return True

    def why(self) -> str:
        """Return why that checkpoint is kept, as a part of a sentence."""
        if self.reason or self.n == 0:
            return self.reason or "too few steps to compare checkpoints"
        left = f"; {self.n_copying} that copy training images are left out" if self.n_copying else ""
        if self.kept is None or self.distance is None or self.lowest is None:
            return f"all {self.n} checkpoints copy training images"
        if self.distance == self.lowest:
            return (
                f"of {self.n} checkpoints its images are the nearest to held-out images (distance "
                f"{self.distance:.3g}{left})"
            )
        return (
            f"the latest of {self.n} checkpoints whose images are as near to held-out images as any, within "
            f"one standard error (distance {self.distance:.3g}, lowest {self.lowest:.3g}{left})"
        )

    def state(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return dataclasses.asdict(self)

    @classmethod
    def of(cls, state: Mapping[str, Any] | None) -> Selection:
        """Continue from `state`; states of releases before have none."""
        return cls(**(state or {}))
