"""Images of failed generators: each is what it is called, and none depends on anything but images and seed."""

import pytest
import torch
from torch.nn import functional

from fewgen.data import load_images
from fewgen.data.imageset import ImageSet
from fewgen.evaluation.failed import (
    FAILED,
    averages,
    blurred,
    failed_images,
    noisy_mean,
    pixel_noise,
    scrambled,
)


@pytest.fixture(scope="module")
def digits():
    return load_images("digits").shots(12, 0)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def test_each_has_the_shape_and_the_labels_of_its_source(digits):
    made = failed_images(digits, 3)
    assert list(made) == list(FAILED)
    again, other = failed_images(digits, 3), failed_images(digits, 4)
    state = torch.get_rng_state()
    for name, images in made.items():
        assert images.images.shape == digits.images.shape
        assert torch.equal(images.labels, digits.labels)
        assert torch.equal(images.images, again[name].images), name
        assert torch.equal(images.images, other[name].images) == (name == "blurred"), name
        assert not bool((images.images == digits.images).flatten(1).all(dim=1).any()), name
        assert float(images.images.float().std()) > 1, name
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("shape", [(3, 9, 14), (1, 4, 4)])
@pytest.mark.parametrize("n", [1, 2, 5])
def test_small_and_few_images(shape, n):
    images = torch.randint(0, 256, (n, *shape), generator=rng()).to(torch.uint8)
    made = failed_images(ImageSet(images, torch.arange(n) % 2, ("a", "b")))
    assert all(own.images.shape == images.shape for own in made.values())


def test_statistics_of_noise():
    x = torch.rand(4000, 1, 4, 4, generator=rng()) * torch.linspace(0.1, 1, 16).view(1, 1, 4, 4)
    labels = torch.zeros(4000, dtype=torch.int64)
    noise = pixel_noise(x, labels, rng(1))
    assert torch.allclose(noise.mean(0), x.mean(0), atol=0.03)
    assert torch.allclose(noise.std(0), x.std(0), atol=0.03)
    fog = noisy_mean(x, labels, rng(1))
    assert torch.allclose(fog.mean(0), x.mean(0), atol=0.01)
    assert torch.allclose(fog.std(0), torch.full((1, 4, 4), 0.1), atol=0.01)


def test_blurred_images_keep_their_mean_and_lose_their_edges():
    x = torch.rand(5, 2, 24, 24, generator=rng())
    soft = blurred(x, torch.zeros(5, dtype=torch.int64), rng())
    assert soft.shape == x.shape
    assert float(soft[:, :, 8:-8, 8:-8].std()) < 0.2 * float(x.std())
    flat = torch.full((1, 1, 24, 24), 0.3)
    assert torch.allclose(blurred(flat, torch.zeros(1, dtype=torch.int64), rng()), flat, atol=1e-6)


def test_scrambled_images_keep_mean_and_power():
    x = torch.rand(5, 1, 16, 16, generator=rng())
    changed = scrambled(x, torch.zeros(5, dtype=torch.int64), rng())
    assert torch.allclose(changed.mean((2, 3)), x.mean((2, 3)), atol=1e-5)
    powers = [torch.fft.fft2(images).abs() for images in (x, changed)]
    assert torch.allclose(*powers, atol=1e-3)


@pytest.mark.parametrize("counts", [(4, 4), (3, 5, 4), (7, 0, 1), (6,)])
def test_averages_are_of_two_images_and_of_two_classes_where_they_can_be(counts):
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    n = len(labels)
    x = functional.one_hot(torch.arange(n), n).float().view(n, 1, 1, n)
    made = averages(x, labels, rng())[:, 0, 0]
    for i, row in enumerate(made):
        assert sorted(row[row > 0].tolist()) == [0.5, 0.5]
        assert row[i] == 0.5
        if max(counts) <= n / 2:
            partner = next(j for j in row.nonzero().flatten().tolist() if j != i)
            assert labels[partner] != labels[i]
