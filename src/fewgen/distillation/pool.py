"""Unlabelled images: read, kept apart from the queries, and mined for images of a class by its name."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import torch

from fewgen.data.foreign import load_foreign
from fewgen.data.identity import near_identical
from fewgen.data.imageset import ImageSet, to_floats
from fewgen.data.registry import Reading
from fewgen.encoders.base import JointEncoder
from fewgen.encoders.classifier import cache_folder
from fewgen.encoders.kept import kept_features
from fewgen.encoders.named import make_joint_encoder
from fewgen.errors import DataError


def read_like(given: Any, like: ImageSet, reading: Reading, flag: str, labelled: bool = False) -> ImageSet:
    """Return images in the form of others.

    Args:
        given: an `ImageSet`, or whatever `load_foreign` takes.
        like: images of the wanted shape.
        reading: how files are read; their size and channels come from `like`.
        flag: that the images were given with, for messages.
        labelled: whether every image must have a class.

    Raises:
        DataError: images that cannot be read, or of another shape.
    """
    if not isinstance(given, ImageSet):
        height, width = like.size
        size = height if height == width else None
        reading = dataclasses.replace(reading, size=size, channels=like.channels)
        given = load_foreign(given, reading, labels_required=labelled)
    if given.shape != like.shape:
        found, wanted = (" x ".join(map(str, images.shape)) for images in (given, like))
        raise DataError(
            f"The images of {flag} are of {found}, yours of {wanted} (channels x height x width). Set --size."
        )
    return given


def refuse_queries(images: ImageSet, queries: ImageSet | None, flag: str, advice: str) -> None:
    """Refuse images of which some also measure the accuracy, pixel by pixel or saved in another way.

    Args:
        images: to learn from.
        queries: that measure, of the same shape; None for none.
        flag: that `images` were given with, for the message.
        advice: what else can be done, after "or".

    Raises:
        DataError: names the first files.
    """
    if queries is None or not len(queries):
        return
    same = near_identical(images, queries).nonzero().flatten().tolist()
    if not same:
        return
    files = [f'"{images.origins[i].file}"' for i in same[:3] if images.origins and images.origins[i].file]
    shown = f" ({', '.join(files)}{', ...' if len(same) > len(files) else ''})" if files else ""
    raise DataError(
        f"{len(same)} of the {len(images)} images of {flag} also measure the accuracy{shown}, so they "
        f"cannot be learned from. Take them out of {flag}, or {advice}."
    )


def unlabelled(images: ImageSet) -> ImageSet:
    """Return the images of a pool without their classes."""
    return ImageSet(images.images, torch.zeros(len(images), dtype=torch.int64), ("pool",), name="pool")


def mined(pool: ImageSet, class_names: tuple[str, ...], encoder: JointEncoder, per_class: int) -> ImageSet:
    """Return the images of a pool that are nearest to the name of each class, labelled with that class.

    Args:
        pool: unlabelled images.
        class_names: of the task; of a name with commas the part before the first is looked for.
        encoder: of images and texts. What it makes of the pool is kept on the disk.
        per_class: images of each class, the nearest first; all of the pool if it has fewer.

    Returns:
        An image that is among the nearest of two classes comes twice. The labels are what was looked for:
        no one has seen whether the images show it.

    Source: LAION mining, the control of Landolsi & Kahl, "Tiny models from tiny data", Table 3.
    Differs: the nearest images instead of those beyond a cosine of 0.45, which belongs to CLIP.
    """
    features = kept_features(
        pool,
        encoder.record(),
        cache_folder(None) / "features",
        lambda pixels: encoder.image_features(to_floats(pixels)),
    )
    texts = encoder.encode_texts([name.split(",")[0] for name in class_names])
    nearest = (features @ texts.to(features).T).topk(min(per_class, len(pool)), dim=0).indices.T
    labels = torch.arange(len(class_names)).repeat_interleave(nearest.shape[1])
    return ImageSet(pool.images[nearest.flatten()], labels, class_names, name="retrieved")


joint_encoder = functools.lru_cache(maxsize=1)(make_joint_encoder)
"""A joint encoder by name; episodes of a process share the one that was made last."""
