"""Omniglot: handwritten characters of many alphabets, each drawn once by 20 people."""

from __future__ import annotations

import os

import numpy as np
import torch

from fewgen.data.imageset import ImageSet
from fewgen.data.npz_reader import NpzReader, read_images, to_labels, to_texts
from fewgen.errors import DataError

TRAIN_DRAWERS = 14
"""Drawers 1 to 14 are the training part, 15 to 20 the test part: test images come from other hands."""


def load_omniglot(path: str | os.PathLike[str], split: str = "train", small: bool = True) -> ImageSet:
    """Read Omniglot from an `.npz` with images, labels, drawer and class_names ("alphabet/character").

    Source: B. Lake, R. Salakhutdinov, J. Tenenbaum, "Human-level concept learning through probabilistic
    program induction", Science 350, 2015.

    Differs: the published split is by alphabet and needs all 1,623 characters. Here "train" and "test"
    divide the drawers, so that both have every class.

    Args:
        path: the file.
        split: "train" (drawers 1 to 14) or "test" (15 to 20).
        small: True takes the stored 28x28 reduction, False the original 105x105 pixels.

    Returns:
        Grey images, ink bright on dark as in MNIST.

    Raises:
        DataError: if the file is damaged or of another form.
    """
    with NpzReader(path) as reader:
        class_names = to_texts(reader.read("class_names"), "class_names")
        labels = to_labels(reader.read("labels"), len(class_names), f'"labels" in "{path}"')
        drawer = reader.read("drawer")
        key = "images_28" if small else "images"
        images = read_images(reader, key, ("labels", "drawer"))
    if drawer.dtype.kind not in "iu" or drawer.ndim != 1:
        raise DataError(f'"drawer" in "{path}" must be integers of shape (N,), got {drawer.dtype}.')
    if not small:
        images = 255 - images  # the originals are dark ink on white paper, the reduction is not
    in_train = np.asarray(drawer) <= TRAIN_DRAWERS
    keep = torch.from_numpy(in_train if split == "train" else ~in_train)
    name = f"omniglot ({split}: drawers {'1-14' if split == 'train' else '15-20'})"
    return ImageSet(images[keep], labels[keep], class_names, None, name)
