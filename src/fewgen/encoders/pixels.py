"""Pixels as features."""

from __future__ import annotations

from torch import Tensor

from fewgen.data.imageset import ImageSet
from fewgen.encoders.base import Described, check_shape


class PixelFeatures:
    """Pixels in [-1, 1], flattened, divided by the root of their number.

    The distance of two images is then their root mean squared difference, whatever their size.

    Args:
        channels: 1 or 3.
        height: pixels.
        width: pixels.
    """

    name = "pixels"

    def __init__(self, channels: int, height: int, width: int) -> None:
        self.shape = (channels, height, width)

    @property
    def dim(self) -> int:
        """Number of values of an image."""
        return self.shape[0] * self.shape[1] * self.shape[2]

    def features(self, images: ImageSet) -> Tensor:
        """Return flattened pixels, (N, dim), float32. Raises ShapeError for another image shape."""
        check_shape(images, self.shape, "PixelFeatures")
        return images.floats().flatten(1) / self.dim**0.5

    def describe(self, images: ImageSet) -> Described:
        """Return features without predictions."""
        return Described(self.features(images), None)

    def record(self) -> dict[str, object]:
        """Return name and image shape."""
        return {"name": self.name, "dim": self.dim, "image_shape": list(self.shape), "resize": "none"}
