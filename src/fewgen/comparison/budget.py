"""Training time that every generator gets alike."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Protocol

from fewgen.clock import Clock
from fewgen.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from fewgen.data.imageset import ImageSet


class Budget:
    """Training time that is used up by waiting (clock "wall") or by computing (clock "cpu").

    Args:
        minutes: length, above 0.
        clock: "wall" or "cpu", see `Clock`.
        cores: cores that "cpu" minutes stand for.
        max_steps: stop after so many steps too (tests).

    Raises:
        ConfigError: an unknown clock, or no time at all.
    """

    def __init__(
        self, minutes: float, clock: str = "wall", cores: int = 2, max_steps: int | None = None
    ) -> None:
        if not (minutes > 0 and math.isfinite(minutes)) or cores < 1:
            raise ConfigError(
                f"A budget needs more than 0 minutes and at least 1 core, got {minutes:g} and {cores}."
            )
        self.clock = Clock(clock, cores)
        self.seconds, self.max_steps = minutes * 60, max_steps
        self.start()

    def start(self) -> None:
        """Begin to count."""
        self._started = self.clock.now()

    def used(self) -> float:
        """Return the used share, 0 to 1 and beyond."""
        return (self.clock.now() - self._started) / self.seconds


class Reference(Protocol):
    """A generator that learns from labelled images and draws images for labels."""

    name: str

    def fit(self, train: ImageSet, budget: Budget, seed: int) -> dict[str, object]:
        """Learn; return what happened (steps, losses), JSON-ready."""
        ...

    def sample(self, labels: Tensor, seed: int) -> Tensor:
        """Return one image per label, uint8 (N, C, H, W)."""
        ...
