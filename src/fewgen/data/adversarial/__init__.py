"""Augmentation of what a discriminator sees: real and generated images alike.

With few images a discriminator learns them by heart. Showing it nothing but changed images, real and
generated, delays that; and because the generator is judged after the same change, it still learns the
unchanged images as long as the change does not hide which of them it started from ("does not leak").
`fewgen.data.augment` is something else: it changes training images alone, so a generator learns its
changes.

All augmentations share one interface. `draw` makes the random decisions of a batch, `replay` carries them
out, so that the two images of a consistency pair can have the same change; calling does both. (The
second is not called `apply` because a torch module already has a method of that name.) Gradients
pass to the images, twice if need be (a gradient penalty differentiates through the augmentation). Values
are not clamped and may leave [-1, 1], since a clamp would stop gradients.
"""

from __future__ import annotations

import inspect
from typing import Any

from fewgen.config.checks import one_of
from fewgen.data.adversarial.ada import AdaptiveAugment
from fewgen.data.adversarial.base import AdversarialAugment
from fewgen.data.adversarial.diff_augment import DiffAugment
from fewgen.errors import ConfigError, suggest

AUGMENTATIONS: dict[str, type[AdversarialAugment]] = {
    "none": AdversarialAugment,
    "diffaugment": DiffAugment,
    "ada": AdaptiveAugment,
}


def make_adversarial_augment(name: str, channels: int, **options: Any) -> AdversarialAugment:
    """Return the augmentation called `name`.

    Args:
        name: "none", "diffaugment" or "ada".
        channels: of the images.
        options: arguments of `DiffAugment` or `AdaptiveAugment`; "none" has none.

    Raises:
        ConfigError: for an unknown name or option, or a value out of range.

    >>> make_adversarial_augment("diffaugment", channels=1, padding="edge")
    DiffAugment("color,translation,cutout", padding="edge")
    """
    one_of("augmentation", name, AUGMENTATIONS)
    kind = AUGMENTATIONS[name]
    names = [] if name == "none" else [key for key in inspect.signature(kind).parameters if key != "channels"]
    for option in options:
        if option not in names:
            raise ConfigError(
                f'Augmentation "{name}" has no option "{option}".{suggest(option, names)} '
                f"Options: {', '.join(names) or 'none'}."
            )
    if kind is AdaptiveAugment:
        options["channels"] = channels
    return kind(**options)
