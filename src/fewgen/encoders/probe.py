"""Classes from any features, by logistic regression."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fewgen.data.imageset import ImageSet
from fewgen.encoders.base import FrozenEncoder, ImageEncoder
from fewgen.encoders.classifier import ClassifierFeatures
from fewgen.errors import DataError, ShapeError

PRETRAINED_PENALTY = 1000.0
"""Of a probe on the features of a pretrained network: more features than images, and no pixels. Chosen by
cross-validation inside 30 training images per class of CIFAR-10."""


def class_predictor(
    extractor: ImageEncoder, train: ImageSet, features: Tensor | None = None
) -> Callable[[Tensor], Tensor]:
    """Return a function from features to classes: the classifier's own last layer, else a linear probe.

    The probe is a multinomial logistic regression on standardised features of the training images.

    Args:
        extractor: whose features will be judged.
        train: labelled images, of two or more classes that have images.
        features: of `train`, (N, dim), if at hand.

    Returns:
        A function: features (M, dim) -> classes, int64 (M,), labels of `train.class_names`.

    Raises:
        DataError: fewer than two classes with images, or features that are not finite.

    Source: Alain & Bengio 2016, arXiv:1610.01644 (linear probes).
    """
    if isinstance(extractor, ClassifierFeatures) and extractor.class_names == train.class_names:
        return extractor.classes_of
    found = extractor.features(train) if features is None else features
    penalty = PRETRAINED_PENALTY if isinstance(extractor, FrozenEncoder) else 1.0
    return linear_probe(found, train.labels, penalty=penalty).predict


@dataclass(frozen=True)
class LinearProbe:
    """A multinomial logistic regression on standardised features.

    Attributes:
        mean: of the features it learned from, (D,), float64.
        scale: their deviation; infinite where a feature never changes, so that it counts as 0.
        weight: (C, D).
        bias: (C,).
        labels: what the C rows stand for, int64.
    """

    mean: Tensor
    scale: Tensor
    weight: Tensor
    bias: Tensor
    labels: Tensor

    def logits(self, features: Tensor) -> Tensor:
        """Return logits (M, C), float64, of features (M, D); their softmax is the probability of each label.

        Raises:
            DataError: features that are not finite.
            ShapeError: another number of features.
        """
        if features.ndim != 2 or features.shape[1] != len(self.mean):
            raise ShapeError(
                f"the linear probe knows {len(self.mean)} features, got shape {tuple(features.shape)}."
            )
        return (_finite(features) - self.mean) / self.scale @ self.weight.T + self.bias

    def predict(self, features: Tensor) -> Tensor:
        """Return labels, int64 (M,)."""
        return self.labels[self.logits(features).argmax(dim=1)]


def linear_probe(features: Tensor, labels: Tensor, *, penalty: float = 1.0) -> LinearProbe:
    """Fit a multinomial logistic regression on standardised features.

    Args:
        features: (N, D).
        labels: int64 (N,), of two or more different classes.
        penalty: weight of half the squared coefficients against the sum of the cross-entropies.

    Returns:
        The probe. Nothing in it is random.

    Raises:
        DataError: features that are not finite, or fewer than two classes.
        ShapeError: features that are not (N, D) with one label each.
    """
    if features.ndim != 2 or labels.shape != features.shape[:1]:
        raise ShapeError(
            f"a linear probe needs features (N, D) and labels (N,), "
            f"got {tuple(features.shape)} and {tuple(labels.shape)}."
        )
    n_classes = len(labels.unique())
    if n_classes < 2:
        raise DataError(f"a linear probe needs images of at least two classes, but there are {n_classes}.")
    x = _finite(features)
    mean, deviation = x.mean(dim=0), x.std(dim=0, correction=0)
    # A feature that never changes says nothing; dividing by its deviation would be 0 / 0.
    scale = torch.where(
        deviation > 1e-12 * (1 + mean.abs()), deviation, torch.full_like(deviation, torch.inf)
    )
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings():
        # Separable features have no finite optimum without the penalty; the last digits do not matter here.
        warnings.simplefilter("ignore", ConvergenceWarning)
        fitted = LogisticRegression(C=1.0 / penalty, max_iter=500).fit(
            ((x - mean) / scale).numpy(), labels.numpy()
        )
    weight, bias = torch.from_numpy(fitted.coef_), torch.from_numpy(fitted.intercept_)
    if len(weight) == 1:  # of two classes scikit-learn keeps the difference of their rows alone
        weight, bias = torch.cat([-weight, weight]) / 2, torch.cat([-bias, bias]) / 2
    return LinearProbe(mean, scale, weight, bias, torch.from_numpy(fitted.classes_).to(torch.int64))


def _finite(features: Tensor) -> Tensor:
    features = features.detach().to(torch.float64)
    bad = int((~torch.isfinite(features).all(dim=1)).sum())
    if bad:
        raise DataError(f"{bad} of {len(features)} feature vectors hold NaN or infinity.")
    return features
