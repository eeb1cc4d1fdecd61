import pytest
from tests.encoders.tools import bars

from fewgen.encoders.pixels import PixelFeatures
from fewgen.errors import ShapeError


def test_pixel_distance_is_root_mean_square():
    images = bars(4, size=6)
    pixels = PixelFeatures(1, 6, 6)
    found = pixels.features(images)
    gap = images.floats()[0] - images.floats()[1]
    assert float((found[0] - found[1]).norm()) == pytest.approx(float(gap.square().mean().sqrt()), rel=1e-5)
    with pytest.raises(ShapeError, match="same size"):
        pixels.features(bars(4, size=8))
