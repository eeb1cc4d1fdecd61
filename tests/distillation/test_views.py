"""Mixtures of images: shares, rectangles, balance, repetition."""

import pytest
import torch

from fewgen.data.imageset import ImageSet
from fewgen.distillation.views import mixed, mixtures, padding_for
from fewgen.errors import ConfigError


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def test_mixed_images_are_blends_and_rectangles_in_turn():
    x, y = torch.ones(400, 3, 12, 10), -torch.ones(400, 3, 12, 10)
    found = mixed(x, y, rng())
    blended, cut = found[0::2], found[1::2]
    assert torch.equal(blended, blended[:, :1, :1, :1].expand_as(blended))  # one share for a whole image
    shares = (blended[:, 0, 0, 0] + 1) / 2
    assert 0 <= float(shares.min()) < 0.05
    assert 0.95 < float(shares.max()) <= 1
    assert abs(float(shares.mean()) - 0.5) < 0.06
    other = cut[:, 0] < 0
    assert torch.equal(cut, torch.where(other[:, None], -1.0, 1.0).expand_as(cut))  # nothing between
    # What is taken from the other image is one rectangle: the product of its rows and its columns.
    assert torch.equal(other, other.any(dim=2, keepdim=True) & other.any(dim=1, keepdim=True))
    # Its area would be uniform with mean 1/2, if it did not reach over the edges.
    assert 0.2 < float(other.double().mean()) < 0.5


def test_mixing_an_image_with_itself_changes_nothing():
    x = torch.rand(8, 1, 6, 6, generator=rng()) * 2 - 1
    assert torch.allclose(mixed(x, x, rng(1)), x, atol=1e-6)


@pytest.fixture
def images():
    pixels = torch.randint(0, 256, (6, 3, 8, 8), generator=rng()).to(torch.uint8)
    return ImageSet(pixels, torch.tensor([0, 0, 0, 1, 1, 1]), ("a", "b"))


def test_a_third_of_the_mixtures_is_a_single_image_and_all_appear_equally_often(images):
    found = mixtures(images, 36, padding=0, jitter=0.0, flip=False)
    assert len(found) == 36
    assert found.shape == images.shape
    assert found.n_classes == 1
    equal = (found.images[:, None] == images.images[None]).flatten(2).all(dim=2)
    assert torch.equal(equal[0::3].sum(dim=1), torch.ones(12))
    singles = equal[0::3].nonzero()[:, 1]
    assert len(singles.unique()) > 3


def test_mixtures_repeat_with_their_seed_alone(images):
    one, two, other = (mixtures(images, 30, seed=seed).images for seed in (3, 3, 4))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


def test_mixtures_need_a_number(images):
    with pytest.raises(ConfigError, match="mixtures must be 1 or more, got 0"):
        mixtures(images, 0)


@pytest.mark.parametrize(("shape", "wanted"), [((3, 64, 80), 8), ((1, 63, 80), 4), ((1, 80, 28), 4)])
def test_padding_follows_the_smaller_side(shape, wanted):
    assert padding_for(shape, -1) == wanted
    assert padding_for(shape, 2) == 2
