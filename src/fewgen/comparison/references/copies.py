"""References that repeat the training images."""

from __future__ import annotations

import torch
from torch import Tensor

from fewgen.comparison.budget import Budget
from fewgen.data.augment import Augment, AugmentConfig
from fewgen.data.imageset import ImageSet, to_uint8
from fewgen.errors import DataError


class Copies:
    """The training images themselves, in turn: the control that a good measure must not praise."""

    name = "copies"

    def fit(self, train: ImageSet, budget: Budget, seed: int) -> dict[str, object]:
        """Keep the images."""
        self.train = train
        return {}

    def _pick(self, labels: Tensor) -> Tensor:
        """Return for each label the index of a training image, the images of a class in turn."""
        chosen = torch.empty_like(labels)
        for c in labels.unique().tolist():
            members = (self.train.labels == c).nonzero().flatten()
            if not len(members):
                raise DataError(f'The class "{self.train.class_names[c]}" has no training image to copy.')
            wanted = (labels == c).nonzero().flatten()
            chosen[wanted] = members[torch.arange(len(wanted)) % len(members)]
        return chosen

    def sample(self, labels: Tensor, seed: int) -> Tensor:
        """Return the images of each class one after the other, again and again."""
        return self.train.images[self._pick(labels)]


class AugmentedCopies(Copies):
    """Training images rotated by up to 10 degrees, scaled by 10 % and shifted by 7 %; photos mirrored."""

    name = "augmented_copies"

    def sample(self, labels: Tensor, seed: int) -> Tensor:
        """Return moved training images."""
        rng = torch.Generator().manual_seed(seed)
        flip = 0.5 if self.train.channels == 3 else 0.0
        move = Augment(AugmentConfig(rotate_degrees=10.0, scale=0.1, shift=0.07, flip=flip))
        return to_uint8(move(self.train.floats(self._pick(labels)), rng))
