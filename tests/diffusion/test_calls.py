"""Images into latents and back: sizes, ranges, batches, precision."""

import math

import pytest
import torch
from tests.diffusion.toy import SHAPE, Toy

from fewgen.diffusion.calls import check_batch, decode_latents, encode_images, place_of, predict, resize
from fewgen.errors import ConfigError, DataError, ShapeError


def images(n, size=4, seed=0):
    return torch.rand(n, 1, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_what_resizing_overshoots_is_cut_off():
    pipe = Toy()
    found = encode_images(pipe, images(2))
    assert torch.equal(decode_latents(pipe, 5 * found), pipe.decode(5 * found).float())
    slightly = images(2) * 1.2  # resized by something that overshoots
    assert torch.equal(encode_images(pipe, slightly), encode_images(pipe, slightly.clamp(-1, 1)))


@pytest.mark.parametrize("batch", [None, 1, 2, 50])
def test_images_of_any_size_are_fitted_in_batches(batch):
    pipe, sizes = Toy(), []

    class Counting(Toy):
        def encode(self, x):
            sizes.append(len(x))
            return super().encode(x)

    found = encode_images(Counting(), images(5, size=9), batch=batch)
    assert max(sizes) == min(batch or 5, 5)
    assert torch.allclose(found, pipe.encode(resize(images(5, size=9), SHAPE[1:]).double()), atol=1e-12)
    assert decode_latents(pipe, found, (6, 7)).shape == (5, 1, 6, 7)


def test_resizing_up_and_down_averages_what_it_covers():
    x = images(1, size=4)
    assert resize(x, (4, 4)) is x
    assert torch.allclose(resize(torch.full((1, 1, 4, 4), 0.3), (9, 2)), torch.tensor(0.3))
    checks = torch.ones(1, 1, 8, 8)
    checks[..., ::2] = -1
    assert resize(checks, (8, 2)).abs().max() < 0.3  # without antialiasing a stripe would win
    assert resize(checks, (8, 2)).shape == (1, 1, 8, 2)


def test_numbers_that_are_not_finite_never_become_images():
    class Overflowing(Toy):
        def decode(self, z0):
            return z0 * math.inf

    with pytest.raises(DataError, match="Use another precision"):
        decode_latents(Overflowing(), torch.ones(1, *SHAPE))


def test_what_is_no_image_is_refused():
    pipe = Toy()
    for wrong in (torch.zeros(1, 3, 4, 4), torch.zeros(0, 1, 4, 4), torch.zeros(4, 4)):
        with pytest.raises(ShapeError, match=r"Images must be \(K, 1, H, W\)"):
            encode_images(pipe, wrong)
    for wrong in (images(1) * math.nan, images(1) * math.inf, images(1) * 127 + 128, images(1).int()):
        with pytest.raises(DataError, match=r"\[-1, 1\]"):
            encode_images(pipe, wrong)
    for batch in (0, -1):
        with pytest.raises(ConfigError, match="batch must be 1 or more"):
            encode_images(pipe, images(2), batch=batch)
    check_batch(None)
    check_batch(1)


def test_a_model_of_16_bits_keeps_latents_and_noise_of_32():
    pipe = Toy(dtype=torch.bfloat16)
    assert place_of(pipe) == (torch.device("cpu"), torch.float32)
    assert place_of(Toy())[1] == torch.float64
    z = torch.ones(2, *SHAPE)
    assert predict(pipe, z, 500, pipe.embed(["a cat"] * 2)).dtype == torch.float32
    assert encode_images(pipe, images(1)).dtype == torch.float32
    assert decode_latents(pipe, z).dtype == torch.float32
