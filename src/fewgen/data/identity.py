"""Which images are the same: digests of images and of sets, and the orders that follow from them.

Digests decide what is drawn, where files of a cache lie and whether a run is resumed, so their values never
change.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from fewgen.data import ImageSet


def image_digests(images: ImageSet) -> list[bytes]:
    """Return 16 bytes for each image; those of two images of one shape are equal if all pixels are."""
    rows = images.images.flatten(1).contiguous().numpy()
    return [hashlib.blake2b(row, digest_size=16).digest() for row in rows]


def content_order(images: ImageSet) -> Tensor:
    """Return the indices (N,) that sort images by class and content, whatever order they came in."""
    import torch

    keys = list(zip(images.labels.tolist(), image_digests(images), strict=True))
    return torch.tensor(sorted(range(len(keys)), key=keys.__getitem__), dtype=torch.int64)


def mixed_content_order(images: ImageSet) -> Tensor:
    """Return the indices (N,) that sort images by a digest of pixels and label: classes are mixed."""
    import torch

    rows = zip(images.images.contiguous().numpy(), images.labels.numpy(), strict=True)
    keys = [hashlib.sha256(image.tobytes() + label.tobytes()).digest() for image, label in rows]
    return torch.tensor(sorted(range(len(keys)), key=keys.__getitem__), dtype=torch.int64)


def without(images: ImageSet, *others: ImageSet | None) -> tuple[ImageSet, int]:
    """Return the images that are, pixel by pixel, in none of the other sets, and how many others there were.

    Args:
        images: to choose from.
        others: sets of the same image shape; None is an empty one.
    """
    known = {digest for other in others if other is not None for digest in image_digests(other)}
    kept = [index for index, digest in enumerate(image_digests(images)) if digest not in known]
    return (images, 0) if len(kept) == len(images) else (images.subset(kept), len(images) - len(kept))


NEAR = 0.02
"""Root mean squared difference of two images in [0, 1] below which they may be one, saved in two ways.

Between two photographs of CIFAR-10 it is 0.05 or more, between two digits of MNIST 0.024 or more."""

NEAR_CONTRAST = 0.15
"""The same as a share of the contrast of the image, so that dark and pale images are not all one."""

_NEAR_SIDE, _BLOCK = 16, 1024


def near_identical(images: ImageSet, others: ImageSet) -> Tensor:
    """Return which images are, but for how they were saved, among others of the same shape, bool (N,).

    Equal pixels are; so are files of the same image with other compression or of another size before both
    were read. Mirrored, moved and cropped ones are not. Compared at 16 pixels.
    """
    import torch

    if not len(images) or not len(others):
        return torch.zeros(len(images), dtype=torch.bool)
    x, y = _reduced(images), _reduced(others)
    contrast = x.std(dim=1, correction=0).clamp(min=0.02)
    found = []
    for rows, spread in zip(x.split(_BLOCK), contrast.split(_BLOCK), strict=True):
        nearest = torch.full((len(rows),), torch.inf)
        for block in y.split(_BLOCK):
            nearest = torch.minimum(nearest, torch.cdist(rows, block).amin(dim=1))
        difference = nearest / x.shape[1] ** 0.5
        found.append((difference < NEAR) & (difference < NEAR_CONTRAST * spread))
    return torch.cat(found)


def _reduced(images: ImageSet) -> Tensor:
    """Return images in [0, 1] at 16 pixels or less, (N, D)."""
    import torch
    from torch.nn import functional

    rows = []
    for block in images.images.split(_BLOCK):
        x = block.to(torch.float32) / 255
        if min(images.size) > _NEAR_SIDE:
            x = functional.interpolate(x, size=(_NEAR_SIDE, _NEAR_SIDE), mode="area")
        rows.append(x.flatten(1))
    return torch.cat(rows)


def same_images(images: ImageSet, other: ImageSet) -> bool:
    """Return whether two sets hold the same images, each equally often, in whatever order."""
    return sorted(image_digests(images)) == sorted(image_digests(other))


def identical_images(
    data: ImageSet, train: list[int], held_out: list[int], move: bool
) -> tuple[list[int], list[int], list[str]]:
    """Find images that are equal in every pixel.

    Args:
        data: all images at hand.
        train: indices of those to learn from.
        held_out: indices of those set aside.
        move: whether a held-out image that is also trained on joins the training images, so that held-out
            images stay unknown to the model.

    Returns:
        The indices, and notes on what was found.
    """
    chosen = sorted([*train, *held_out])
    twins: dict[bytes, list[int]] = {}
    for index, digest in zip(chosen, image_digests(data.subset(chosen)), strict=True):
        twins.setdefault(digest, []).append(index)
    groups = [group for group in twins.values() if len(group) > 1]
    if not groups:
        return train, held_out, []
    labels = data.labels.tolist()
    in_train = set(train)
    moved = (
        {i for group in groups if in_train & set(group) for i in group if i not in in_train}
        if move
        else set()
    )
    crossing = [group for group in groups if len({labels[i] for i in group}) > 1]

    def named(group: list[int]) -> str:
        other = next((i for i in group if labels[i] != labels[group[0]]), group[1])
        names = [data.class_names[labels[i]] for i in (group[0], other)]
        return f'both in "{names[0]}"' if names[0] == names[1] else f'in "{names[0]}" and in "{names[1]}"'

    n_more = sum(len(group) - 1 for group in groups)
    count = "1 image repeats" if n_more == 1 else f"{n_more} images repeat"
    note = f"{count} another one pixel by pixel; the first pair is {named(groups[0])}."
    if moved:
        note += f" {len(moved)} of the held-out images were learned from instead, as their twins are."
    notes = [note]
    if crossing:
        how_many = "1 image is" if len(crossing) == 1 else f"{len(crossing)} images are"
        notes.append(
            f"{how_many} under more than one class, the first {named(crossing[0])}: such classes cannot be "
            "told apart there. Keep each image in one class."
        )
    return [*train, *(i for i in held_out if i in moved)], [i for i in held_out if i not in moved], notes


def fingerprint(images: ImageSet, about: str = "") -> str:
    """Return a digest of pixels and labels, 64 hexadecimal digits, so that other images are noticed.

    Args:
        images: the set, in its order.
        about: a text that is part of what is told apart; the shape of the images if empty.
    """
    digest = hashlib.sha256((about or str(tuple(images.images.shape))).encode())
    _add(digest, images)
    return digest.hexdigest()


def short_fingerprint(images: ImageSet) -> str:
    """Return the number of images and a digest of pixels, labels and class names, as training states hold."""
    digest = hashlib.blake2b(digest_size=8)
    _add(digest, images)
    digest.update("\0".join(images.class_names).encode())
    return f"{len(images)} images, {digest.hexdigest()}"


def _add(digest: Any, images: ImageSet) -> None:
    digest.update(images.images.contiguous().numpy().data)
    digest.update(images.labels.contiguous().numpy().data)
