"""How many images and classes are needed, and what to say where there are fewer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Shots:
    """How many images of each class are asked for.

    Attributes:
        k: images to learn from.
        n_holdout: other ones to hold out.
        within: whether the number that the user gave counts both.
    """

    k: int
    n_holdout: int = 0
    within: bool = False

    def problems(self, class_names: Sequence[str], counts: Sequence[int]) -> list[str]:
        """Return what to say of each class with too few images, with the number that all classes have."""
        needed = self.k + self.n_holdout
        asked = f"{self.k} shots" if self.n_holdout == 0 else f"{self.k} shots + {self.n_holdout} held out"
        total = f" = {needed}" if self.n_holdout else ""
        least = min((count for count in counts if count), default=0)
        fits = least if self.within else least - self.n_holdout
        fewer = f"take --shots {fits}" if fits > 0 else f"take --shots 1 --holdout {least - 1}"
        return [
            f'Class "{name}" has {count} image{"" if count == 1 else "s"}, but {asked}{total} are needed. '
            f"Add {needed - count} images, or {fewer if count else 'choose the other classes'}."
            for name, count in zip(class_names, counts, strict=True)
            if count < needed
        ]


def few_classes(class_names: Sequence[str], least: int, otherwise: str = "") -> str:
    """Return what to say if there are fewer than `least` classes, else ""; see `too_few_classes`."""
    if len(class_names) >= least:
        return ""
    there = f"is only: {class_names[0]}" if class_names else "is none"
    instead = f", or {otherwise}" if otherwise else ""
    return f"{least} classes are needed, but there {there}; add images of another class{instead}"
