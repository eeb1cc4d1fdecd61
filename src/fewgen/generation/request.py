"""A request for images, and the images that answer it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fewgen.errors import ConfigError, ShapeError
from fewgen.generation.noise import seed_tensor

if TYPE_CHECKING:
    from fewgen.data.imageset import ImageSet

SEEDS_PER_RUN = 1_000_000
"""Distance between the image seeds of two run seeds: `--seed 1` gives 1000000, 1000001, ..."""


@dataclass
class GenerationRequest:
    """Which images to make.

    Attributes:
        labels: class index of each image, int64 (N,), or None when `texts` is given.
        texts: a free text for each image, or None when `labels` is given.
        seeds: one seed per image, int64 (N,).
        temperature: scale of the noise; 0 gives each class's central image, 1 the learned spread.
        options: extra keywords of the method's `sample`.
    """

    labels: Tensor | None = None
    texts: list[str] | None = None
    seeds: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    temperature: float = 1.0
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.seeds = seed_tensor(self.seeds)
        if (self.labels is None) == (self.texts is None):
            raise ConfigError("A request needs either labels or texts, and not both.")
        if self.labels is not None:
            self.labels = torch.as_tensor(self.labels, dtype=torch.int64).reshape(-1)
        n_images = len(self.texts if self.labels is None else self.labels)  # type: ignore[arg-type]
        if len(self.seeds) != n_images:
            raise ShapeError(
                f"{len(self.seeds)} seeds for {n_images} images. Give one seed per image, "
                "for example seeds=image_seeds(0, n_images)."
            )
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ConfigError(
                f"temperature must be 0 or more, got {self.temperature}. 1 is the learned spread."
            )

    def __len__(self) -> int:
        return len(self.seeds)

    @classmethod
    def per_class(cls, classes: Sequence[int], n: int, seed: int = 0, **keywords: Any) -> GenerationRequest:
        """Return a request for `n` images of each class, class after class, seeded from `seed`.

        >>> GenerationRequest.per_class([0, 2], n=2, seed=1).labels.tolist()
        [0, 0, 2, 2]
        """
        labels = torch.tensor(list(classes), dtype=torch.int64).repeat_interleave(n)
        return cls(labels=labels, seeds=image_seeds(seed, len(labels)), **keywords)


@dataclass
class GeneratedImages:
    """Images with what is needed to make each of them again.

    Attributes:
        images: uint8 (N, C, H, W).
        labels: int64 (N,), an index into `class_names`, or -1 for an image made from a free text.
        class_names: the classes of the model.
        seeds: int64 (N,).
        provenance: method, run, temperature, versions, and `sharpened` if a filter was applied.
        texts: the text of each image, when the images were made from free texts.
        codes: int64 (N, E), the codes that each image was made of, for a method that has some.
    """

    images: Tensor
    labels: Tensor
    class_names: tuple[str, ...]
    seeds: Tensor
    provenance: dict[str, Any] = field(default_factory=dict)
    texts: tuple[str, ...] | None = None
    codes: Tensor | None = None

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.ndim != 4:
            raise ShapeError(
                f"images must be uint8 (N, C, H, W), got {self.images.dtype} {tuple(self.images.shape)}."
            )
        if not len(self.images) == len(self.labels) == len(self.seeds):
            raise ShapeError(
                f"{len(self.images)} images, {len(self.labels)} labels and {len(self.seeds)} seeds; "
                "the counts must be equal."
            )
        self.class_names = tuple(self.class_names)

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        channels, height, width = self.images.shape[1:]
        kind = "grey" if channels == 1 else "colour"
        n_names = len(set(self.named()[0].tolist()))
        return f"GeneratedImages({len(self)} {kind} images of {height}x{width}, {n_names} classes or texts)"

    def named(self) -> tuple[Tensor, tuple[str, ...]]:
        """Return (labels, names) in which free texts are names too, after the classes in use.

        Files and grids need a name for every image, so a text becomes a class of its own. Classes
        without an image are left out when there are texts.
        """
        if self.texts is None:
            return self.labels, self.class_names
        keys = [
            self.class_names[label] if label >= 0 else self.texts[i]
            for i, label in enumerate(self.labels.tolist())
        ]
        names = tuple(dict.fromkeys(keys))
        index = {name: i for i, name in enumerate(names)}
        return torch.tensor([index[key] for key in keys], dtype=torch.int64), names

    def to_image_set(self) -> ImageSet:
        """Return the images as an `ImageSet`, so that every function that takes images takes these."""
        from fewgen.data.imageset import ImageSet
        from fewgen.data.origin import drawn

        labels, names = self.named()
        return ImageSet(self.images, labels, names, name="generated images", origins=drawn(self.images))

    def save(self, path: Any, *, overwrite: bool = False) -> None:
        """Write an `.npz`, a folder with one subfolder per class, or a `.png` grid, by the suffix."""
        from fewgen.generation.writers import write_images

        write_images(self, path, overwrite=overwrite)


def image_seeds(seed: int, n: int) -> Tensor:
    """Return the seeds of `n` images: ``seed * 1000000 + 0 .. n - 1``, int64 (n,).

    Readable, and two run seeds share no image, which adding 1 to a plain start value would not give.

    >>> image_seeds(3, 2).tolist()
    [3000000, 3000001]
    """
    if n > SEEDS_PER_RUN:
        raise ConfigError(
            f"{n} images from one seed, but seed {seed + 1} begins after {SEEDS_PER_RUN}. "
            "Ask for fewer images, or give the seeds of the images yourself."
        )
    if not 0 <= seed < 2**63 // SEEDS_PER_RUN:
        raise ConfigError(f"seed must be between 0 and {2**63 // SEEDS_PER_RUN - 1}, got {seed}.")
    return torch.arange(n, dtype=torch.int64) + seed * SEEDS_PER_RUN
