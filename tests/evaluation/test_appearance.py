"""Numbers of appearance: what is visible moves them, what is not hardly does."""

import pytest
import torch

from fewgen.data import load_images
from fewgen.evaluation.appearance import VISIBLE, appearance


@pytest.fixture(scope="module")
def digits():
    return load_images("digits").shots(20, 0).images


def changed(images, function):
    return (function(images.float() / 255).clamp(0, 1) * 255).round().to(torch.uint8)


def rms(values):
    return float(values.mean(0).square().mean().sqrt())


def test_real_images_have_mean_nought_and_at_most_spread_one(digits):
    values = appearance(digits)(digits)
    assert values.dtype == torch.float64
    assert torch.allclose(values.mean(0), torch.zeros(values.shape[1], dtype=torch.float64), atol=1e-9)
    assert float(values.std(0, correction=0).max()) <= 1 + 1e-9


@pytest.mark.parametrize(
    ("least", "most", "function"),
    [
        (
            0.0,
            0.2,
            lambda x: x + 0.1 * VISIBLE * torch.randn(x.shape, generator=torch.Generator().manual_seed(0)),
        ),
        (
            2.0,
            99,
            lambda x: x + 5 * VISIBLE * torch.randn(x.shape, generator=torch.Generator().manual_seed(0)),
        ),
        (1.0, 99, lambda x: torch.nn.functional.avg_pool2d(x, 5, 1, 2)),
        (1.0, 99, lambda x: 0.3 * x),
        (0.0, 0.01, lambda x: x.flip(3)),
    ],
    ids=["invisible noise", "noise", "blur", "low contrast", "mirrored"],
)
def test_what_is_visible_counts(digits, least, most, function):
    numbers = appearance(digits)
    assert least <= rms(numbers(changed(digits, function)) - numbers(digits)) <= most


def test_colour_counts():
    rng = torch.Generator().manual_seed(0)
    grey = torch.randint(0, 256, (30, 1, 12, 9), generator=rng).expand(-1, 3, -1, -1).to(torch.uint8)
    numbers = appearance(grey)
    assert numbers(grey).shape[1] > appearance(grey[:, :1])(grey[:, :1]).shape[1]
    tinted = grey.clone()
    tinted[:, 0] = tinted[:, 0] // 2
    assert rms(numbers(tinted)) > 1


@pytest.mark.parametrize("shape", [(1, 4, 4), (3, 5, 8), (2, 40, 64)])
def test_any_shape_and_flat_images_give_numbers(shape):
    noise = torch.randint(0, 256, (300, *shape), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    for reference in (noise, torch.full_like(noise, 7)):
        values = appearance(reference)(torch.cat([noise, torch.zeros_like(noise[:2])]))
        assert values.shape[0] == 302
        assert bool(torch.isfinite(values).all())
    # Blocks do not enter.
    assert torch.equal(appearance(noise)(noise)[260:], appearance(noise)(noise[260:]))
