"""What a user would take instead of fewgen: seven reference generators.

Each learns from the same few images in the same time and generates images for given labels. They are kept
plain on purpose (no search over settings), but sensible: augmentation for those that learn by gradient, a
learning rate that falls to zero by the end of the budget, averaged weights where that is customary.

    reference = make_reference("conditional_vae")
    reference.fit(train, Budget(minutes=6), seed=0)
    images = reference.sample(labels, seed=0)          # uint8 (N, C, H, W)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from fewgen.errors import ConfigError, suggest

if TYPE_CHECKING:
    from fewgen.comparison.budget import Reference

REFERENCES: dict[str, tuple[str, str]] = {
    "copies": ("copies", "Copies"),
    "augmented_copies": ("copies", "AugmentedCopies"),
    "pca_gaussian": ("gaussians", "PcaGaussian"),
    "class_pca_gaussian": ("gaussians", "ClassPcaGaussian"),
    "conditional_vae": ("conditional_vae", "ConditionalVae"),
    "diffusion": ("diffusion", "SmallDiffusion"),
    "spatial_codebook": ("spatial_codebook", "SpatialCodebook"),
}
"""Name -> (module of this package, class). Nothing is imported for the list."""

TAKES_TIME = ("conditional_vae", "diffusion", "spatial_codebook")
"""References that use the whole budget; the others are done at once."""


def make_reference(name: str, **settings: Any) -> Reference:
    """Return an untrained reference generator.

    Args:
        name: one of `REFERENCES`.
        settings: of its constructor.

    Raises:
        ConfigError: there is no such reference.
    """
    if name not in REFERENCES:
        raise ConfigError(
            f'There is no reference generator "{name}".{suggest(name, REFERENCES)} '
            f"Known: {', '.join(REFERENCES)}."
        )
    module, cls = REFERENCES[name]
    reference: Reference = getattr(importlib.import_module(f"{__name__}.{module}"), cls)(**settings)
    return reference
