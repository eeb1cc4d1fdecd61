"""Convolutional halves: map sizes, round trips of shapes, errors that name a size that works."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fewgen.errors import ConfigError, ShapeError
from fewgen.nn.conv import (
    ConvDown,
    ConvImageDecoder,
    ConvImageEncoder,
    ConvUp,
    ResBlock,
    map_size,
    n_halvings,
    norm,
)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((28, 28), (7, 7)),
        ((32, 32), (8, 8)),
        ((64, 64), (8, 8)),
        ((16, 16), (8, 8)),
        ((8, 8), (4, 4)),
        ((28, 64), (7, 16)),
    ],
)
def test_map_sizes(size, expected):
    assert map_size(*size) == expected


@given(st.integers(1, 140), st.integers(1, 140))
def test_a_size_gives_a_map_or_an_error_that_names_a_size_that_works(height, width):
    factor = 2 ** n_halvings(height, width)
    try:
        h, w = map_size(height, width)
    except ConfigError as error:
        suggested = int(str(error).split("Use size ")[1].split(",")[0])
        assert min(map_size(suggested, suggested)) >= 4
        assert min(height, width) < 8 or height % factor or width % factor
    else:
        assert (h * factor, w * factor) == (height, width)


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (3, 64, 64), (1, 16, 24)])
@pytest.mark.parametrize("n_blocks", [0, 2])
def test_shapes_of_halves(shape, n_blocks):
    x = torch.rand(2, *shape)
    features = ConvDown(shape, 16, n_blocks)(x)
    assert features.shape == (2, 16, *map_size(*shape[1:]))
    image = ConvUp(shape, 16, n_blocks)(features)
    assert image.shape == x.shape
    assert image.is_contiguous()
    mu, logvar = ConvImageEncoder(shape, 5, 16, n_blocks, hidden=12)(x)
    assert mu.shape == logvar.shape == (2, 5)
    assert ConvImageDecoder(shape, 5, 16, n_blocks, hidden=12)(mu).shape == x.shape


def test_upsampling_reaches_every_pixel_and_downsampling_sees_every_pixel():
    torch.manual_seed(0)
    shape = (1, 28, 28)
    x = torch.rand(1, *shape, requires_grad=True)
    ConvDown(shape, 16)(x).square().sum().backward()
    assert bool((x.grad != 0).all())
    up = ConvUp(shape, 16)(torch.randn(1, 16, 7, 7, requires_grad=True))
    assert up.std() > 0
    assert len(up.unique()) > 700


def test_images_of_a_batch_do_not_see_each_other():
    torch.manual_seed(0)
    encoder = ConvImageEncoder((1, 16, 16), 4, 16).eval()
    x = torch.rand(4, 1, 16, 16)
    changed = x.clone()
    changed[1:] = 0
    torch.testing.assert_close(encoder(x)[0][0], encoder(changed)[0][0], atol=1e-6, rtol=1e-5)


def test_a_residual_block_starts_as_the_identity_up_to_a_number_per_channel():
    x = torch.randn(2, 8, 4, 4)
    block = ResBlock(8)
    torch.testing.assert_close(block(x), x + block.conv2.bias[:, None, None])


@pytest.mark.parametrize("channels", [2, 6, 16, 48])
def test_norm_takes_any_number_of_channels(channels):
    out = norm(channels)(torch.randn(3, channels, 5, 5) * 4 + 2)
    assert out.mean().abs() < 1e-5
    assert abs(out.std(correction=0).item() - 1) < 1e-3


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((30, 30), "30 x 30 .* divisible by 4. Use size 32"),
        ((6, 6), "6 x 6 .* 8 or more"),
        ((28, 29), "28 x 29"),
    ],
)
@pytest.mark.parametrize("build", [ConvDown, ConvUp])
def test_a_size_that_cannot_be_made_is_refused(build, size, message):
    with pytest.raises(ConfigError, match=message):
        build((1, *size), 16)


def test_other_images_than_those_of_training_are_refused():
    with pytest.raises(ShapeError, match=r"images must be \(B, 1, 16, 16\), got \(2, 3, 16, 16\)"):
        ConvImageEncoder((1, 16, 16), 4, 16)(torch.zeros(2, 3, 16, 16))
