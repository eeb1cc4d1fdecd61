"""Which images are the same: content hashes of images and of sets."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fewgen.data import ImageSet


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
    array = data.images.numpy()
    twins: dict[bytes, list[int]] = {}
    for index in sorted([*train, *held_out]):
        pixels = array[index].tobytes()
        twins.setdefault(hashlib.blake2b(pixels, digest_size=16).digest(), []).append(index)
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


def fingerprint(images: ImageSet) -> str:
    """Return a digest of pixels and labels, so that a resumed run notices other images."""
    digest = hashlib.sha256(str(tuple(images.images.shape)).encode())
    digest.update(images.images.contiguous().numpy().tobytes())
    digest.update(images.labels.contiguous().numpy().tobytes())
    return digest.hexdigest()
