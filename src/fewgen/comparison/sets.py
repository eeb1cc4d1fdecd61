"""The real images of a benchmark: what is learned from, what is held out, and what is left over."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fewgen.data.names import name_labels
from fewgen.errors import ConfigError, DataError

if TYPE_CHECKING:
    from fewgen.data.imageset import ImageSet
    from fewgen.data.registry import Reading


@dataclass(frozen=True)
class RealImages:
    """Real images of a benchmark, the same for all generators and seeds.

    Attributes:
        training: the training part, from which shots are drawn.
        held_out: never learned from, same classes and shape.
        how: where the held-out images came from, for the record.
    """

    training: ImageSet
    held_out: ImageSet
    how: str

    def draw(self, shots: int, seed: int) -> tuple[ImageSet, ImageSet | None]:
        """Return `training.shots(shots, seed)` and the rest of the training part, None if nothing is left.

        Raises:
            DataError: a class has fewer images.
        """
        import torch

        from fewgen.data.split import split_indices

        chosen, _ = split_indices(self.training, shots, 0, seed)
        left = torch.ones(len(self.training), dtype=torch.bool)
        left[chosen] = False
        rest = self.training.subset(left)
        return self.training.subset(chosen), rest if len(rest) else None


def load_real(
    data: str | os.PathLike[str], reading: Reading | None = None, holdout: int | str = "auto"
) -> RealImages:
    """Load training and held-out images.

    Args:
        data: name, folder or .npz, as for `load_images`.
        reading: how they are read; its split is not looked at.
        holdout: "auto": the test part where the data has one, else a fifth of each class; or a number of
            images per class that are set aside from the training part, the same ones for every seed.

    Raises:
        ConfigError: `holdout` has no meaning.
        DataError: the data cannot be read, has one class only, a class without images, or too few images to
            hold any out.
    """
    from fewgen.data.identity import identical_images
    from fewgen.data.registry import Reading
    from fewgen.data.split import split_indices

    if isinstance(holdout, bool) or not (holdout == "auto" or (isinstance(holdout, int) and holdout >= 1)):
        raise ConfigError(f'holdout must be "auto" or at least 1 image per class, got {holdout!r}.')
    reading = dataclasses.replace(reading or Reading(), split="train")
    training = reading.load(data, min_classes=2)
    if holdout == "auto" and (test := _test_part(data, reading)) is not None:
        return RealImages(training, _same_classes(test, training, str(data)), "test part")
    chosen, held = split_indices(training, None, holdout, 0)
    # A held-out image that also lies among the training images would be a copy that nobody made.
    chosen, held, _ = identical_images(training, chosen, held, move=True)
    held_out = training.subset(held)
    short = [name for name, n in zip(training.class_names, held_out.counts().tolist(), strict=True) if n == 0]
    if short:
        raise DataError(
            f'"{data}" has too few different images to hold any out of the class "{short[0]}"'
            f"{f' and {len(short) - 1} more' if len(short) > 1 else ''}. Add images, or set --holdout to a "
            "number that leaves enough to learn from."
        )
    return RealImages(training.subset(chosen), held_out, f"set aside: {holdout} per class")


def _test_part(data: str | os.PathLike[str], reading: Reading) -> ImageSet | None:
    """Return the test part; None where the data has none."""
    from fewgen.data.registry import is_named

    path = Path(data).expanduser()
    promised = is_named(data) or (path / "test").is_dir() or (path / "val").is_dir()
    try:
        return dataclasses.replace(reading, split="test").load(data)
    except DataError:
        if promised:
            raise
        return None


def _same_classes(test: ImageSet, training: ImageSet, source: str) -> ImageSet:
    """Return the test images with the labels of the training part."""
    if name_labels(test.class_names).keys() != name_labels(training.class_names).keys():
        raise DataError(
            f'The test part of "{source}" has {test.n_classes} classes and the training part '
            f"{training.n_classes}, or their names differ. Use the same classes in both, or --holdout N."
        )
    if test.images.shape[1:] != training.images.shape[1:]:
        raise DataError(
            f'The test part of "{source}" has images of {tuple(test.images.shape[1:])}, the training part of '
            f"{tuple(training.images.shape[1:])} (channels, height, width). Set --size and --channels."
        )
    return test.select_classes(training.class_names)
