"""One random stream per image: known answers, statistics, and independence of the batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from fewgen.errors import ConfigError, DataError, ShapeError
from fewgen.generation import GeneratedImages, GenerationRequest, image_rngs, image_seeds, noise, uniform
from fewgen.generation.noise import philox


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_philox_gives_the_known_answers_of_random123(counter, key, expected):
    words = philox([np.uint64(c) for c in counter], [np.uint64(k) for k in key])
    assert words.tolist() == expected


def test_noise_does_not_depend_on_batch_order_or_neighbours():
    seeds = torch.randperm(10_000, generator=torch.Generator().manual_seed(0))[:500]
    together = noise(seeds, (7, 3))
    assert torch.equal(noise(seeds.flip(0), (7, 3)).flip(0), together)
    for i in (0, 1, 17, 499):
        assert torch.equal(noise([int(seeds[i])], (7, 3))[0], together[i])
        assert torch.equal(uniform([int(seeds[i])], (7,))[0], uniform(seeds, (7,))[i])
    assert torch.equal(noise(seeds, (4,)), noise(seeds, (9,))[:, :4])


def test_large_draws_are_computed_in_chunks_without_a_seam():
    seeds = torch.arange(70)
    whole = noise(seeds, (5000,))
    assert torch.equal(whole[[3, 52, 69]], noise([3, 52, 69], (5000,)))


def test_noise_is_standard_normal_and_uniform_is_uniform():
    z = noise(torch.arange(20_000), (20,)).double().numpy()
    assert abs(z.mean()) < 4 / np.sqrt(z.size)
    assert abs(z.std() - 1) < 4 / np.sqrt(2 * z.size)
    assert stats.kstest(z.ravel(), "norm").pvalue > 1e-3
    assert abs(stats.skew(z.ravel())) < 4 * np.sqrt(6 / z.size)
    assert abs(stats.kurtosis(z.ravel())) < 4 * np.sqrt(24 / z.size)
    u = uniform(torch.arange(20_000), (20,)).double().numpy()
    assert u.min() >= 0
    assert u.max() < 1
    assert stats.kstest(u.ravel(), "uniform").pvalue > 1e-3


def test_seeds_positions_and_streams_are_uncorrelated():
    n = 20_000
    z = noise(torch.arange(n), (20,)).double().numpy()
    between_positions = np.corrcoef(z, rowvar=False) - np.eye(20)
    assert np.abs(between_positions).max() < 5 / np.sqrt(n)
    neighbours = np.corrcoef(z[:-1, 0], z[1:, 0])[0, 1]
    assert abs(neighbours) < 4 / np.sqrt(n)
    other = noise(torch.arange(n), (20,), stream=1).double().numpy()
    assert abs(np.corrcoef(z.ravel(), other.ravel())[0, 1]) < 4 / np.sqrt(z.size)
    # The two numbers of one Box-Muller pair share a radius; their squares must be uncorrelated too.
    assert abs(np.corrcoef(z[:, 0] ** 2, z[:, 1] ** 2)[0, 1]) < 4 / np.sqrt(n)
    # Within one image a long draw is normal as well.
    assert stats.kstest(noise([5], (50_000,))[0].numpy(), "norm").pvalue > 1e-3


def test_every_seed_is_its_own_stream():
    seeds = torch.tensor([0, 1, -1, 2**32, 2**32 + 1, 2**63 - 1, -(2**63)])
    z = noise(seeds, (8,))
    assert len({tuple(row.tolist()) for row in z}) == len(seeds)
    assert torch.isfinite(z).all()


def test_image_rngs_are_independent_of_each_other_and_of_noise():
    first, second = (torch.rand(3, generator=rng) for rng in image_rngs([1, 2]))
    assert not torch.equal(first, second)
    assert torch.equal(torch.rand(3, generator=image_rngs([2])[0]), second)
    assert not torch.equal(torch.rand(3, generator=image_rngs([2], stream=1)[0]), second)


def test_empty_and_scalar_shapes():
    assert noise([], (3,)).shape == (0, 3)
    assert noise([4], ()).shape == (1,)
    assert noise([4, 5], (0,)).shape == (2, 0)


def test_image_seeds_of_two_run_seeds_never_meet():
    assert not set(image_seeds(0, 1000).tolist()) & set(image_seeds(1, 1000).tolist())
    with pytest.raises(ConfigError, match="one seed"):
        image_seeds(0, 1_000_001)
    with pytest.raises(ConfigError, match="between 0"):
        image_seeds(-1, 1)


def test_request_checks_what_it_is_given():
    request = GenerationRequest.per_class([0, 2], n=2, seed=1)
    assert request.labels.tolist() == [0, 0, 2, 2]
    assert len(request) == 4
    with pytest.raises(ConfigError, match="either labels or texts"):
        GenerationRequest(seeds=[1])
    with pytest.raises(ShapeError, match="one seed per image"):
        GenerationRequest(labels=torch.tensor([0, 1]), seeds=[1])
    with pytest.raises(ConfigError, match="temperature"):
        GenerationRequest(texts=["a"], seeds=[1], temperature=float("nan"))
    with pytest.raises(DataError, match="whole numbers"):
        GenerationRequest(texts=["a"], seeds=[0.5])


def test_free_texts_become_names_of_their_own():
    images = GeneratedImages(
        images=torch.zeros(3, 1, 4, 4, dtype=torch.uint8),
        labels=torch.tensor([-1, -1, -1]),
        class_names=("bag", "shirt"),
        seeds=torch.arange(3),
        texts=("red shirt", "red shirt", "bag"),
    )
    labels, names = images.named()
    assert names == ("red shirt", "bag")
    assert labels.tolist() == [0, 0, 1]
    with pytest.raises(ShapeError, match="uint8"):
        GeneratedImages(torch.zeros(1, 1, 2, 2), torch.tensor([0]), ("a",), torch.tensor([0]))
