"""Control images made from the data at hand: what every test must pass and what it must catch.

A test that cannot tell these apart on this data cannot judge generated images on it either.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fewgen.data.augment import Augment, AugmentConfig
from fewgen.data.imageset import ImageSet, evenly, to_uint8

CONTROLS = ("held_out", "copies", "augmented_copies", "noise", "one_per_class", "shuffled_labels")
"""Names of the controls. The first four serve every question; the last two one question each."""

DESCRIPTIONS = {
    "held_out": "held-out real images: half of them, judged against the other half",
    "copies": "the training images themselves",
    "augmented_copies": "training images turned by up to 10 degrees, scaled by 10 %, shifted by 7 %; colour "
    "images mirrored",
    "noise": "uniform noise",
    "one_per_class": "one held-out image of each class, again and again",
    "shuffled_labels": "held-out real images under shuffled labels",
}
"""What each control is, in words."""


def spread_over_classes(labels: Tensor, n: int, rng: torch.Generator) -> Tensor:
    """Return at most n indices, drawn at random and as evenly over the classes as they allow, ascending."""
    if n >= len(labels):
        return torch.arange(len(labels))
    order = torch.randperm(len(labels), generator=rng)
    return order[evenly(labels[order].tolist(), n)].sort().values


def halves(images: ImageSet, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return the indices of two random halves with equal class counts (the first gets the odd ones)."""
    order = torch.randperm(len(images), generator=rng)
    order = order[images.labels[order].argsort(stable=True)]
    # Alternate over the whole sequence, so that classes with one image do not all fall into one half.
    return order[0::2].sort().values, order[1::2].sort().values


def _of_classes(source: ImageSet, labels: Tensor) -> Tensor:
    """Return an index into `source` for each label, in turn within its class."""
    chosen = torch.empty_like(labels)
    for c in labels.unique().tolist():
        members = (source.labels == c).nonzero().flatten()
        if len(members) == 0:
            members = torch.arange(len(source))
        wanted = (labels == c).nonzero().flatten()
        chosen[wanted] = members[torch.arange(len(wanted)) % len(members)]
    return chosen


def augmented_copies(images: ImageSet, rng: torch.Generator) -> ImageSet:
    """Return each image turned up to 10 degrees, scaled 10 %, shifted 7 %; colour images mirrored."""
    flip = 0.5 if images.channels == 3 else 0.0
    augment = Augment(AugmentConfig(rotate_degrees=10.0, scale=0.1, shift=0.07, flip=flip))
    changed = to_uint8(augment(images.floats(), rng))
    return ImageSet(changed, images.labels, images.class_names, name="augmented copies")


def make_controls(train: ImageSet, held_out: ImageSet, labels: Tensor, seed: int = 0) -> dict[str, ImageSet]:
    """Return the controls other than "held_out", with as many images of each class as `labels` asks for.

    Args:
        train: images the generator learned from.
        held_out: real images it has not seen.
        labels: int64 (N,), classes of the wanted images; -1 counts as any class in turn.
        seed: of augmentation, noise and shuffling.

    Returns:
        Control -> images. "shuffled_labels" holds the held-out images themselves.
    """
    rng = torch.Generator().manual_seed(seed)
    names = train.class_names
    labels = torch.where(labels < 0, torch.arange(len(labels)) % len(names), labels)
    copies = train.subset(_of_classes(train, labels))
    first = torch.stack([(held_out.labels == c).int().argmax() for c in range(len(names))])
    noise = torch.randint(0, 256, (len(labels), *train.images.shape[1:]), generator=rng).to(torch.uint8)
    shuffled = held_out.labels[torch.randperm(len(held_out), generator=rng)]
    return {
        "copies": copies,
        "augmented_copies": augmented_copies(copies, rng),
        "noise": ImageSet(noise, labels, names, name="noise"),
        "one_per_class": ImageSet(held_out.images[first[labels]], labels, names, name="one per class"),
        "shuffled_labels": ImageSet(held_out.images, shuffled, names, name="shuffled labels"),
    }
