import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fewgen.data.transforms import fit_image, from_pillow, resize, set_channels, to_pillow

RNG = torch.Generator().manual_seed(0)


def noise(n: int, channels: int, height: int, width: int) -> torch.Tensor:
    return torch.randint(0, 256, (n, channels, height, width), generator=RNG, dtype=torch.uint8)


@given(
    st.integers(1, 3),
    st.sampled_from([1, 3]),
    st.integers(4, 40),
    st.integers(4, 40),
    st.integers(4, 40),
    st.sampled_from(["crop", "pad", "stretch"]),
)
def test_shapes_and_constant_images(
    n: int, channels: int, height: int, width: int, size: int, fit: str
) -> None:
    flat = torch.full((n, channels, height, width), 77, dtype=torch.uint8)
    out = resize(flat, size, fit)
    assert out.shape == (n, channels, size, size)
    assert (out == 77).all(), "nothing is added, not even at the border"


def test_reduction_is_antialiased() -> None:
    stripes = (torch.arange(64) % 2 * 255).to(torch.uint8).expand(1, 1, 64, 64).contiguous()
    small = resize(stripes, 16).float()
    assert (small - 127.5).abs().max() < 20
    # Negative control: taking every fourth pixel turns the stripes into plain black.
    assert (stripes[..., ::4, ::4] == 0).all()


def test_crop_takes_the_centre_and_pad_repeats_the_border() -> None:
    wide = torch.zeros(1, 1, 8, 16, dtype=torch.uint8)
    wide[..., 4:12] = 200
    assert (resize(wide, 8, "crop") == 200).all()
    padded = resize(wide, 16, "pad")
    assert torch.equal(padded[0, 0, :4], padded[0, 0, 4:5].expand(4, -1))
    assert torch.equal(padded[0, 0, 4:12], wide[0, 0])


def test_right_size_is_left_alone() -> None:
    images = noise(3, 3, 12, 12)
    assert resize(images, 12) is images


def test_batch_equals_single_images_in_pillow() -> None:
    images = noise(600, 1, 28, 28)
    out = resize(images, 32)
    for i in (0, 299, 599):
        alone = Image.fromarray(images[i, 0].numpy()).resize((32, 32), Image.Resampling.BICUBIC)
        assert np.array_equal(out[i, 0].numpy(), np.asarray(alone))
        assert np.array_equal(from_pillow(fit_image(to_pillow(images[i]), 32)), out[i].numpy())


def test_grey_equals_pillow() -> None:
    images = noise(5, 3, 16, 16)
    grey = set_channels(images, 1)
    for image, value in zip(images, grey, strict=True):
        assert np.array_equal(value[0].numpy(), np.asarray(to_pillow(image).convert("L")))
    # Negative control: the plain mean is another grey.
    assert not torch.equal(images.float().mean(1, keepdim=True).to(torch.uint8), grey)


@pytest.mark.parametrize("channels", [1, 3])
def test_grey_to_colour_and_back(channels: int) -> None:
    images = noise(3, 1, 9, 9)
    assert torch.equal(set_channels(set_channels(images, 3), 1), images)
    assert set_channels(images, None) is images
    assert set_channels(images, channels).shape[1] == channels
