"""Encoders from images to styles."""

import pytest
import torch
from torch.nn import functional

from fewgen.errors import ConfigError, ShapeError
from fewgen.nn.style_encoder import GradualStyleEncoder, PyramidStyleEncoder
from fewgen.nn.stylegan import SynthesisNetwork, channels_per_map, start_size

SMALL = {"width": (4, 4, 8, 8, 16), "units": (1, 1, 2, 1)}


@pytest.mark.parametrize(("size", "channels"), [(28, 1), (32, 3), (64, 3)])
def test_a_pyramid_gives_as_many_styles_as_the_generator_takes(size, channels):
    shape = (channels, size, size)
    encoder = PyramidStyleEncoder(shape, 6, width=4, max_width=8)
    synthesis = SynthesisNetwork(shape, 6, channels_per_map(start_size(size, size)[2], 4, 8))
    w = encoder(torch.zeros(2, *shape))
    assert w.shape == (2, synthesis.n_layers, 6) == (2, encoder.n_layers, 6)
    assert synthesis(w).shape == (2, *shape)


def test_each_style_of_a_pyramid_depends_on_the_image_and_reaches_every_parameter():
    torch.manual_seed(0)
    encoder = PyramidStyleEncoder((1, 28, 28), 6, width=4, max_width=8)
    x = torch.randn(3, 1, 28, 28)
    w = encoder(x)
    assert (w.std(0) > 1e-4).all()
    w.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in encoder.parameters())
    with pytest.raises(ShapeError, match=r"\(B, 1, 28, 28\)"):
        encoder(torch.zeros(1, 1, 32, 32))


def test_power_of_two_sizes_have_the_published_number_of_styles():
    sizes = (32, 256, 1024)
    assert [2 * start_size(s, s)[2] + 2 for s in sizes] == [8, 14, 18]


def test_the_published_encoder_has_its_published_sizes():
    with torch.device("meta"):
        encoder = GradualStyleEncoder(3, 18)
    shapes = {name: tuple(value.shape) for name, value in encoder.state_dict().items()}
    # Names and shapes of pSp's public checkpoints.
    assert len(encoder.body) == 24
    assert shapes["input_layer.0.weight"] == (64, 3, 3, 3)
    assert shapes["body.3.shortcut_layer.0.weight"] == (128, 64, 1, 1)
    assert shapes["body.23.res_layer.3.weight"] == (512, 512, 3, 3)
    assert shapes["body.0.res_layer.5.fc1.weight"] == (4, 64, 1, 1)
    assert shapes["latlayer1.weight"] == (512, 256, 1, 1)
    assert shapes["latlayer2.weight"] == (512, 128, 1, 1)
    # 16, 32 and 64 px become one place in 4, 5 and 6 halvings.
    halvings = [sum(f"styles.{j}.convs.{2 * k}.weight" in shapes for k in range(8)) for j in range(18)]
    assert halvings == [4] * 3 + [5] * 4 + [6] * 11
    assert shapes["styles.17.linear.weight"] == (512, 512)


def test_the_published_encoder_runs_on_grey_images_of_another_size():
    torch.manual_seed(0)
    encoder = GradualStyleEncoder(1, 10, 16, side=64, **SMALL).eval()
    x = torch.randn(2, 1, 48, 48)
    w = encoder(x)
    assert w.shape == (2, 10, 16)
    wide = functional.interpolate(x, size=(64, 64), mode="bilinear", antialias=True).expand(-1, 3, -1, -1)
    assert torch.allclose(encoder(wide), w, atol=1e-5)


def test_sizes_that_the_published_encoder_cannot_have_are_refused():
    with pytest.raises(ConfigError, match="side must be 32, 64"):
        GradualStyleEncoder(3, 8, 16, side=48, **SMALL)
    with pytest.raises(ConfigError, match="2 channels"):
        GradualStyleEncoder(2, 8, 16, side=32, **SMALL)
    with pytest.raises(ConfigError, match="four stages"):
        GradualStyleEncoder(3, 8, 16, side=32, units=(1, 1))
