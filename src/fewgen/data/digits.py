"""The handwritten digits bundled with scikit-learn: real data without a download."""

from __future__ import annotations

import numpy as np
import torch

from fewgen.data.imageset import ImageSet

CLASS_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TEST_SHARE = 0.2


def load_digits(split: str = "train") -> ImageSet:
    """Load the 1,797 digits at their own 8x8 pixels.

    Source: E. Alpaydin, C. Kaynak, "Optical recognition of handwritten digits", UCI, 1998 (its test part,
    which is what scikit-learn ships).

    Differs: scikit-learn gives no split. The last fifth of each class, in the order of the file, is the
    test part. Writers follow each other in the file, so test images come mostly from other writers than
    training images, which a random split would not give.

    Args:
        split: "train" (1,442 images) or "test" (355).

    Returns:
        Grey images of 8x8, ink bright, stretched from 0..16 to 0..255.
    """
    from sklearn.datasets import load_digits as bundled

    data = bundled()
    labels = np.asarray(data.target, dtype=np.int64)
    chosen = []
    for label in range(10):
        indices = np.flatnonzero(labels == label)
        n_test = int(len(indices) * TEST_SHARE)
        chosen.append(indices[-n_test:] if split == "test" else indices[:-n_test])
    keep = np.sort(np.concatenate(chosen))
    images = np.rint(np.asarray(data.images)[keep] * (255.0 / 16.0)).astype(np.uint8)
    return ImageSet(
        torch.from_numpy(images)[:, None],
        torch.from_numpy(labels[keep]),
        CLASS_NAMES,
        None,
        f"digits ({split})",
    )
