"""References without a network: normal distributions along principal components."""

from __future__ import annotations

import torch
from torch import Tensor

from fewgen.comparison.budget import Budget
from fewgen.data.imageset import ImageSet, to_uint8
from fewgen.errors import DataError


def _check_counts(train: ImageSet, who: str) -> None:
    counts = train.counts()
    if int(counts.min()) < 2:
        name = train.class_names[int(counts.argmin())]
        raise DataError(
            f'{who} needs at least 2 images per class for a spread, but "{name}" has {int(counts.min())}.'
        )


class PcaGaussian:
    """Principal components of all images, and an independent normal distribution of each per class."""

    name = "pca_gaussian"

    def __init__(self, n_components: int = 50) -> None:
        self.n_components = n_components

    def fit(self, train: ImageSet, budget: Budget, seed: int) -> dict[str, object]:
        """Compute the components, and mean and standard deviation of every class along them."""
        _check_counts(train, self.name)
        x = train.floats().flatten(1)
        self.shape = tuple(train.images.shape[1:])
        self.mean = x.mean(dim=0)
        self.components = torch.linalg.svd(x - self.mean, full_matrices=False)[2][: self.n_components]
        z = (x - self.mean) @ self.components.T
        classes = [z[train.labels == c] for c in range(train.n_classes)]
        self.centres = torch.stack([members.mean(dim=0) for members in classes])
        self.deviations = torch.stack([members.std(dim=0) for members in classes])
        return {"components": len(self.components)}

    def sample(self, labels: Tensor, seed: int) -> Tensor:
        """Draw each component on its own."""
        rng = torch.Generator().manual_seed(seed)
        noise = torch.randn(len(labels), len(self.components), generator=rng)
        z = self.centres[labels] + self.deviations[labels] * noise
        return to_uint8((self.mean + z @ self.components).reshape(-1, *self.shape))


class ClassPcaGaussian:
    """A Gaussian on the principal components of each class, as many as 95 % of its variance needs.

    A draw mixes the images of a class with random weights of both signs: never a copy, and a strong
    opponent in every figure that looks at features.
    """

    name = "class_pca_gaussian"

    def fit(self, train: ImageSet, budget: Budget, seed: int) -> dict[str, object]:
        """Compute mean, components and standard deviations of every class."""
        _check_counts(train, self.name)
        self.shape = tuple(train.images.shape[1:])
        self.models = []
        for c in range(train.n_classes):
            x = train.floats((train.labels == c).nonzero().flatten()).flatten(1).double()
            mean = x.mean(dim=0)
            _, values, components = torch.linalg.svd(x - mean, full_matrices=False)
            variance = values**2 / (len(x) - 1)
            kept = 1 + int((variance.cumsum(0) / variance.sum() < 0.95).sum())
            self.models.append((mean, components[:kept], variance[:kept].sqrt()))
        return {"components": [len(m[2]) for m in self.models]}

    def sample(self, labels: Tensor, seed: int) -> Tensor:
        """Draw from the Gaussian of each label."""
        rng = torch.Generator().manual_seed(seed)
        images = torch.empty(len(labels), *self.shape)
        for c in labels.unique().tolist():
            mean, components, deviation = self.models[c]
            wanted = labels == c
            noise = torch.randn(int(wanted.sum()), len(deviation), generator=rng, dtype=torch.float64)
            images[wanted] = (mean + (noise * deviation) @ components).float().reshape(-1, *self.shape)
        return to_uint8(images)
