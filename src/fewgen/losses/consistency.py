"""Consistency regularisation of discriminators: equal scores for what should look equally real.

One interface for five published forms, which differ only in where the pairs of logits come from and in the
weights:

- ``real``: D(x) and D(T(x)) of a real image x and its augmentation (CR, bCR);
- ``fake``: D(g(z)) and D(T(g(z))) (bCR);
- ``latent``: D(g(z)) and D(g(z + sigma * noise)) (zCR); with a style quantiser inside g this is the
  quantised consistency (QCR). Both images need the same noise inputs and the same draw of the augmentation,
  otherwise the discriminator is held against that noise instead. The images are made without a gradient;
- ``diversity``: for the generator, which is to keep g(z) and g(z + sigma * noise) apart (zCR).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fewgen.config.checks import at_least
from fewgen.errors import ConfigError, ShapeError
from fewgen.losses.reconstruction import same_shape
from fewgen.losses.stable import wide


@dataclass(frozen=True)
class Consistency:
    """Weights of the consistency terms and how the perturbed latent is drawn.

    Attributes:
        real: weight of the squared gap between a real image and its augmentation.
        fake: the same for generated images.
        latent: weight of the squared gap between images of neighbouring latents.
        diversity: weight of the generator's term.
        sigma: standard deviation of the noise on the latent, >= 0. With 0 the latent term is exactly 0.
        every: steps between two computations; `weights` makes up for it.
    """

    real: float = 0.0
    fake: float = 0.0
    latent: float = 0.0
    diversity: float = 0.0
    sigma: float = 0.1
    every: int = 1

    def __post_init__(self) -> None:
        for name in ("real", "fake", "latent", "diversity", "sigma"):
            at_least(f'Consistency "{name}"', getattr(self, name), 0)
        if self.every < 1 or self.every != int(self.every):
            raise ConfigError(
                f'Consistency "every" is {self.every}, but it must be a whole number of at least 1.'
            )

    def weights(self) -> dict[str, float]:
        """Weight of every term by its name, times `every` (lazy regularisation)."""
        return {
            f"consistency_{name}": getattr(self, name) * self.every
            for name in ("real", "fake", "latent", "diversity")
        }


CONSISTENCIES: dict[str, Consistency] = {
    "none": Consistency(),
    "cr": Consistency(real=10.0),
    "bcr": Consistency(real=10.0, fake=10.0),
    "zcr": Consistency(latent=5.0, diversity=0.5, sigma=0.07),
    "qcr": Consistency(latent=0.01, sigma=0.1),
}
"""The published forms.

Source: Zhang et al. 2020, arXiv:1910.12027 (cr); Zhao et al. 2021, arXiv:2002.04724 (bcr, zcr); Wang et al.
2025, arXiv:2503.24282 (qcr).
"""


def squared_gap(a: Tensor, b: Tensor) -> Tensor:
    """Mean of the squared differences of two sets of logits, with gradients to both.

    Args:
        a: (B,) or (B, 1), float.
        b: same shape.

    Returns:
        A scalar >= 0 in squared logits, exactly 0 where both are equal.

    Raises:
        ShapeError: if the shapes differ or the batch is empty.

    Source: Zhang et al. 2020, arXiv:1910.12027, Eq. 3 (on the last layer only).
    """
    same_shape(a, b, "The logits of a pair")
    if a.numel() == 0:
        raise ShapeError(f"The logits of a pair have shape {tuple(a.shape)}: there is no image.")
    return (wide(a) - wide(b)).square().mean()


def discriminator_terms(
    weights: Consistency,
    *,
    real: tuple[Tensor, Tensor] | None = None,
    fake: tuple[Tensor, Tensor] | None = None,
    latent: tuple[Tensor, Tensor] | None = None,
) -> dict[str, Tensor]:
    """The raw consistency terms of the discriminator, for `LossTerms` together with `weights.weights()`.

    Args:
        weights: which terms are on. Pairs of terms that are off need not be given and are left alone.
        real: logits of real images and of their augmentations, each (B,).
        fake: logits of generated images and of their augmentations.
        latent: logits of images of neighbouring latents.

    Returns:
        "consistency_real", "consistency_fake", "consistency_latent", those with a positive weight; scalars.

    Raises:
        ConfigError: if a term is on and its pair is missing.
        ShapeError: if the two members of a pair differ in shape.

    Source: Zhang et al. 2020, arXiv:1910.12027, Eq. 3-4; Zhao et al. 2021, arXiv:2002.04724, Algorithms 1-2;
        Wang et al. 2025, arXiv:2503.24282.
    """
    terms = {}
    for name, pair in (("real", real), ("fake", fake), ("latent", latent)):
        weight = getattr(weights, name)
        if weight == 0:
            continue
        if pair is None:
            raise ConfigError(
                f'Consistency "{name}" has weight {weight}, but no pair of logits was given for it; '
                "compute the pair, or set the weight to 0."
            )
        terms[f"consistency_{name}"] = squared_gap(*pair)
    return terms


def generator_term(images: Tensor, near: Tensor) -> Tensor:
    """The raw term "consistency_diversity" of the generator: - mean |g(z) - g(z + noise)|^2 per pixel.

    Args:
        images: g(z), (B, C, H, W).
        near: g(z + sigma * noise), same shape.

    Returns:
        A scalar <= 0 in squared units of the images.

    Raises:
        ShapeError: if the shapes differ or the batch is empty.

    Source: Zhao et al. 2021, arXiv:2002.04724, Algorithm 2.
    Differs: the mean over pixels, so that the weight does not depend on the resolution; the paper writes
        the squared norm of the difference.
    """
    same_shape(images, near, "Images of neighbouring latents")
    if images.numel() == 0:
        raise ShapeError(f"Images of neighbouring latents have shape {tuple(images.shape)}: there is none.")
    return -(wide(images) - wide(near)).square().mean()
