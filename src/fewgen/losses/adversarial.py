"""What the two players of a GAN minimise, and the penalties on their gradients.

The penalties are raw: the caller multiplies by the weight (R1: gamma / 2) and, where a penalty is computed
only every n-th step (lazy regularisation), by n.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from fewgen.config.checks import choose
from fewgen.errors import ConfigError, DataError, ShapeError
from fewgen.losses.reconstruction import same_shape
from fewgen.losses.stable import safe_sqrt, wide


def _not_empty(logits: Tensor, what: str) -> Tensor:
    """The logits in float32 at least; an error if there are none."""
    if logits.numel() == 0:
        raise ShapeError(f"{what} have shape {tuple(logits.shape)}: a batch needs at least one image.")
    return wide(logits)


def generator_loss(fake_logits: Tensor) -> Tensor:
    """Non-saturating logistic loss of the generator, the mean of softplus(-D(fake)).

    Args:
        fake_logits: what the discriminator says of generated images, (B,) or (B, 1), higher is "real".

    Returns:
        A scalar in nats, >= 0; log 2 for an undecided discriminator.

    Raises:
        ShapeError: if the batch is empty.

    Source: Goodfellow et al. 2014, arXiv:1406.2661, Sec. 3 (maximise log D(G(z))).
    """
    return functional.softplus(-_not_empty(fake_logits, "Logits of generated images")).mean()


def discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> tuple[Tensor, Tensor]:
    """Logistic loss of the discriminator: the means of softplus(-D(real)) and softplus(D(fake)).

    Args:
        real_logits: what the discriminator says of real images, (B,) or (B, 1).
        fake_logits: what it says of generated images; the number of images may differ.

    Returns:
        The term of the real images and that of the generated ones, scalars in nats, >= 0; their sum is the
        loss. They are apart because the log shows both, and their gap tells overfitting.

    Raises:
        ShapeError: if a batch is empty.

    Source: Goodfellow et al. 2014, arXiv:1406.2661, Eq. 1.
    """
    real = functional.softplus(-_not_empty(real_logits, "Logits of real images")).mean()
    fake = functional.softplus(_not_empty(fake_logits, "Logits of generated images")).mean()
    return real, fake


def hinge_generator_loss(fake_logits: Tensor) -> Tensor:
    """Hinge loss of the generator, the mean of -D(fake).

    Args:
        fake_logits: what the discriminator says of generated images, any shape, images first.

    Returns:
        A scalar in logits, of either sign.

    Raises:
        ShapeError: if the batch is empty.

    Source: Lim & Ye 2017, arXiv:1705.02894 (geometric GAN), Sec. 3.
    """
    return -_not_empty(fake_logits, "Logits of generated images").mean()


def hinge_discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> tuple[Tensor, Tensor]:
    """Hinge loss of the discriminator: the means of max(0, 1 - D(real)) and max(0, 1 + D(fake)).

    Args:
        real_logits: what the discriminator says of real images, any shape, images first.
        fake_logits: what it says of generated images; the number of images may differ.

    Returns:
        The term of the real images and that of the generated ones, scalars >= 0; their sum is the loss.

    Raises:
        ShapeError: if a batch is empty.

    Source: Lim & Ye 2017, arXiv:1705.02894, Sec. 3.
    """
    real = functional.relu(1.0 - _not_empty(real_logits, "Logits of real images")).mean()
    fake = functional.relu(1.0 + _not_empty(fake_logits, "Logits of generated images")).mean()
    return real, fake


def relativistic_loss(better: Tensor, worse: Tensor) -> Tensor:
    """Relativistic paired loss: the mean of softplus(D(worse) - D(better)) over pairs.

    The discriminator takes real images for better than generated ones, the generator the other way round.

    Args:
        better: logits of the images that shall have the higher ones, any shape, images first.
        worse: logits of as many others; the one at the same place makes the pair.

    Returns:
        A scalar in nats, >= 0; log 2 where both are equal.

    Raises:
        ShapeError: if the batch is empty, or the shapes differ.

    Source: Jolicoeur-Martineau 2018, arXiv:1807.00734; Huang et al. 2024, arXiv:2501.05441 (R3GAN), Eq. 2,
        which adds `r1_penalty` of real and of generated images.
    """
    same_shape(better, worse, "The logits of pairs")
    return functional.softplus(_not_empty(worse, "Logits") - _not_empty(better, "Logits")).mean()


LOSSES = ("logistic", "hinge", "relativistic")


def discriminator_terms(kind: str, real: Sequence[Tensor], fake: Sequence[Tensor]) -> dict[str, Tensor]:
    """Return the terms that a discriminator minimises, each a sum over its heads.

    Args:
        kind: of `LOSSES`.
        real: logits of real images, one tensor (B, ...) for each head.
        fake: the same of generated images.

    Returns:
        "real" and "fake", which are apart because the log shows both; "relativistic" has one term, "paired".
    """
    choose("loss", kind, LOSSES)
    pairs = list(zip(real, fake, strict=True))
    if kind == "relativistic":
        return {"paired": _sum(relativistic_loss(a, b) for a, b in pairs)}
    of_head = hinge_discriminator_loss if kind == "hinge" else discriminator_loss
    on_real, on_fake = zip(*(of_head(a, b) for a, b in pairs), strict=True)
    return {"real": _sum(on_real), "fake": _sum(on_fake)}


def generator_term(kind: str, fake: Sequence[Tensor], real: Sequence[Tensor] | None = None) -> Tensor:
    """Return what a generator minimises, a sum over the heads of its discriminator.

    Args:
        kind: of `LOSSES`.
        fake: logits of generated images, one tensor (B, ...) for each head.
        real: the same of real images; "relativistic" needs them.
    """
    choose("loss", kind, LOSSES)
    if kind == "relativistic":
        if real is None:
            raise ConfigError("The relativistic loss of a generator needs the logits of real images.")
        return _sum(relativistic_loss(a, b) for a, b in zip(fake, real, strict=True))
    of_head = hinge_generator_loss if kind == "hinge" else generator_loss
    return _sum(of_head(a) for a in fake)


def mismatch_term(kind: str, right: Sequence[Tensor], wrong: Sequence[Tensor]) -> Tensor:
    """Return what a discriminator minimises to tell images under another class from those under their own.

    Args:
        kind: of `LOSSES`; images under another class count as generated ones.
        right: logits of real images under their class, one tensor (B, ...) for each head.
        wrong: logits of the same images under another class.

    Source: Reed et al. 2016, arXiv:1605.05396, Sec. 4.2 (matching-aware discriminator).
    """
    terms = discriminator_terms(kind, right, wrong)
    return terms["paired"] if kind == "relativistic" else terms["fake"]


def _sum(terms: Iterable[Tensor]) -> Tensor:
    """Return the sum of scalars."""
    first, *others = terms
    for term in others:
        first = first + term
    return first


def _gradient(value: Tensor, inputs: Tensor, outputs_name: str, inputs_name: str) -> Tensor:
    """Gradient of a scalar, itself differentiable; clear errors where there is none."""
    if not inputs.requires_grad:
        raise DataError(
            f"The {inputs_name} do not require a gradient; call {inputs_name}.requires_grad_() before the "
            f"{outputs_name} are computed from them."
        )
    gradient = None
    if value.requires_grad:
        (gradient,) = torch.autograd.grad(value, inputs, create_graph=True, allow_unused=True)
    if gradient is None:
        raise DataError(
            f"The {outputs_name} do not depend on these {inputs_name}; compute them from this very tensor, "
            "outside torch.no_grad()."
        )
    return gradient


def r1_penalty(logits: Tensor, images: Tensor) -> Tensor:
    """Mean over the batch of |d D(x) / d x|^2, the raw R1 penalty.

    One backward pass serves the whole batch, because D(x_i) depends on x_i alone; with a minibatch standard
    deviation in the discriminator that holds up to the (small) influence of the other images, as in the
    public StyleGAN2 code.

    Args:
        logits: discriminator of `images`, (B,) or (B, 1).
        images: (B, ...), requiring a gradient.

    Returns:
        A scalar >= 0 in squared logits per squared unit of the images, differentiable in the parameters of
        the discriminator.

    Raises:
        ShapeError: if there are not as many logits as images, or none.
        DataError: if the images do not require a gradient or the logits do not depend on them.

    Source: Mescheder, Geiger & Nowozin 2018, arXiv:1801.04406, Eq. 9; lazy form Karras et al. 2020,
        arXiv:1912.04958, Appendix B.
    Differs: without the factor gamma / 2.
    """
    if len(images) == 0 or logits.shape[:1] != images.shape[:1] or logits.numel() != len(images):
        raise ShapeError(
            f"Logits and images have shapes {tuple(logits.shape)} and {tuple(images.shape)}; "
            "R1 needs one logit per image and at least one image."
        )
    gradient = _gradient(logits.sum(), images, "logits", "images")
    return wide(gradient).square().flatten(1).sum(1).mean()


class PathLength(nn.Module):
    """Penalty on how unevenly the image answers to steps of the style: E ( |J' y| - a )^2.

    J is the Jacobian of an image in its styles, y a random image of normal noise over sqrt(H W) and a the
    running mean of |J' y|. The mean is a buffer, so it belongs into the checkpoint of the training; it moves
    only in training mode.

    Args:
        decay: share of the batch in the running mean at every step, in (0, 1].

    Source: Karras et al. 2020, arXiv:1912.04958, Eq. 4 and Appendix B.
    Differs: the running mean is a constant of the step, as in Eq. 4; in the public code a hundredth of the
        gradient passes through it.
    """

    mean: Tensor

    def __init__(self, decay: float = 0.01) -> None:
        super().__init__()
        if not 0.0 < decay <= 1.0:
            raise ConfigError(f"Decay of the mean path length is {decay}, but it must be in (0, 1].")
        self.decay = decay
        self.register_buffer("mean", torch.zeros(()))

    def forward(self, images: Tensor, styles: Tensor, rng: torch.Generator) -> Tensor:
        """Mean over the batch of the squared distance of the path lengths from their running mean.

        Args:
            images: generated from `styles`, (B, C, H, W).
            styles: (B, L, w), one style per layer, or (B, w), one for all; requiring a gradient. Quantised
                styles belong here after quantisation.
            rng: where the noise image comes from.

        Returns:
            A scalar >= 0, differentiable in the parameters of the generator.

        Raises:
            ShapeError: if the shapes do not fit.
            DataError: if the styles do not require a gradient or the images do not depend on them.
        """
        if images.dim() != 4 or styles.dim() not in (2, 3) or len(images) != len(styles) or not len(images):
            raise ShapeError(
                f"Images and styles have shapes {tuple(images.shape)} and {tuple(styles.shape)}; path length "
                "needs (B, C, H, W) and (B, L, w) or (B, w)."
            )
        noise = torch.randn(images.shape, generator=rng, device=rng.device, dtype=wide(images).dtype)
        noise = noise.to(images.device) / math.sqrt(images.shape[2] * images.shape[3])
        jacobian = _gradient((images * noise).sum(), styles, "images", "styles")
        squared = wide(jacobian).square().sum(-1)
        lengths = safe_sqrt(squared if squared.dim() == 1 else squared.mean(1))
        if self.training:
            with torch.no_grad():
                self.mean.lerp_(lengths.mean().to(self.mean), self.decay)
        # A copy: the next forward moves the buffer in place, perhaps before this graph's backward pass.
        return (lengths - self.mean.clone()).square().mean()
