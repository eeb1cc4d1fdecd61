"""What is watched while SQ-GAN trains: the discriminator's memory and consistency, the use of the codes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fewgen.methods.sq_gan.config import SqGanConfig

WON = {"logistic": 4.0, "hinge": 1.0, "relativistic": 4.0}
"""Loss -> logits beyond which, on both sides, the discriminator has little left to learn, nor to teach."""

LEAST_SPREAD = 0.05
"""Share of the variance of real images below which draws of a class count as collapsed."""


@dataclass(frozen=True)
class Neighbours:
    """Scores and codes of the images of neighbouring latents.

    Attributes:
        logits: of the images, (B, 1).
        near_logits: of those a perturbation away.
        codes: indices of the images' codes; None without a quantiser.
        near_codes: the same a perturbation away.
    """

    logits: Tensor
    near_logits: Tensor
    codes: Tensor | None
    near_codes: Tensor | None


def memory_figures(logits: Mapping[str, Tensor]) -> dict[str, float]:
    """Return how the discriminator scores real images, by where they come from ("train", "held_out")."""
    figures = {}
    for name, of_images in logits.items():
        figures[f"logit_{name}"] = float(of_images.mean())
        figures[f"accuracy_{name}"] = float((of_images > 0).float().mean())
    if "held_out" in logits:
        figures["accuracy_gap"] = figures["accuracy_train"] - figures["accuracy_held_out"]
    return figures


def neighbour_figures(batches: Sequence[Neighbours], codebook_size: int) -> dict[str, float]:
    """Return how the discriminator scores neighbouring latents, and how many codes differ between them."""
    figures = {
        "logit_generated": float(torch.cat([b.logits for b in batches]).mean()),
        "consistency_gap": float(torch.cat([(b.logits - b.near_logits).abs() for b in batches]).mean()),
    }
    coded = [(b.codes, b.near_codes) for b in batches if b.codes is not None and b.near_codes is not None]
    if coded:
        indices = torch.cat([own for own, _ in coded])
        kept = torch.cat([(own == near).flatten(1).float() for own, near in coded])
        counts = code_counts(indices, codebook_size)
        shares = counts / counts.sum()
        positions = indices.flatten(1).T
        figures["perplexity"] = float(torch.exp(-torch.xlogy(shares, shares).sum()))
        figures["codes_used"] = float((counts > 0).float().mean())
        figures["codes_per_position"] = sum(len(p.unique()) for p in positions) / len(positions)
        figures["changed_codes"] = float(1.0 - kept.mean())
        figures["unchanged_styles"] = float(kept.amin(1).mean())
    return figures


def code_counts(indices: Tensor, size: int) -> Tensor:
    """Return how often each code is chosen, int64 (size,)."""
    return torch.bincount(indices.flatten(), minlength=size)


def code_warnings(figures: Mapping[str, float], config: SqGanConfig) -> list[str]:
    """Return what the figures say of too few codes in use, or of codes that never change."""
    warnings = []
    if config.quantizer is not None and "perplexity" in figures:
        size = config.quantizer.codebook_size
        if figures["perplexity"] < 0.05 * size:
            warnings.append(
                f"Codebook collapse: perplexity {figures['perplexity']:.1f} of {size} codes. Raise "
                "model.quantizer.uniformity, set model.quantizer.restart_after, or lower "
                "model.quantizer.codebook_size."
            )
        if config.pairs.latent and figures["changed_codes"] < 0.005:
            warnings.append(
                f"The consistency term hardly acts: {100 * figures['changed_codes']:.1f} % of the codes "
                f"change under noise of {config.pairs.sigma:g}. Raise model.consistency_weights.sigma."
            )
    return warnings


def win_warnings(figures: Mapping[str, float], config: SqGanConfig) -> list[str]:
    """Return whether the discriminator tells real from generated images without effort."""
    real, generated, beyond = figures["logit_train"], figures["logit_generated"], WON[config.loss]
    if config.loss == "relativistic":  # knows differences alone
        won = real - generated > 2 * beyond
    else:
        won = real > beyond and generated < -beyond
    if not won:
        return []
    return [
        f"The discriminator wins: its mean logit is {real:.1f} for training images and {generated:.1f} for "
        "generated ones, so that the generator learns little from it. Lower model.discriminator_lr, or "
        "change more of what it sees, with model.adversarial_augment diffaugment and model.policy "
        '"color,translation,cutout".'
    ]


def spread_warnings(pairs: Sequence[tuple[Tensor, Tensor]]) -> list[str]:
    """Return whether the draws of classes vary much less than their real images.

    Args:
        pairs: for each class real images and draws, (N, C, H, W) each.
    """
    if not pairs:
        return []
    real, drawn = (
        torch.stack([images.flatten(1).var(0).mean() for images in side]).mean()
        for side in zip(*pairs, strict=True)
    )
    if float(drawn) >= LEAST_SPREAD * float(real):
        return []
    return [
        f"Mode collapse: images of one class hardly differ ({100 * float(drawn / real):.0f} % of the "
        "variance of real ones). Train longer, or lower model.lr and model.discriminator_lr."
    ]
