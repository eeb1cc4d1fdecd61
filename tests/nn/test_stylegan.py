"""Style-based networks: each layer against a slow one and cases by hand, whole networks, properties."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.reference import naive_stylegan as naive
from torch import nn

from fewgen.errors import ConfigError, ShapeError
from fewgen.nn import stylegan
from fewgen.nn.stylegan import (
    Discriminator,
    EqualConv,
    EqualLinear,
    MappingNetwork,
    ModulatedConv,
    StyleLayer,
    SynthesisNetwork,
    ToImage,
    blur,
    channels_per_map,
    minibatch_deviation,
    mix_styles,
    normalize_second_moment,
    start_size,
    upsample,
)
from fewgen.nn.stylegan_weights import convert_names


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def randomise(module: nn.Module) -> nn.Module:
    """Make every parameter random, so that biases and strengths of noise are seen; float64."""
    module = module.double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_()
    return module


def arrays(state, prefix=""):
    return {name.removeprefix(prefix): value.numpy() for name, value in state.items()}


def close(found, expected, tolerance=1e-9):
    np.testing.assert_allclose(found.detach().numpy(), expected, rtol=tolerance, atol=tolerance)


# --- Sizes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((8, 8), (4, 4, 1)),
        ((14, 14), (7, 7, 1)),
        ((28, 28), (7, 7, 2)),
        ((32, 32), (4, 4, 3)),
        ((64, 64), (4, 4, 4)),
        ((96, 96), (6, 6, 4)),
        ((128, 128), (4, 4, 5)),
        ((256, 256), (4, 4, 6)),
        ((1024, 1024), (4, 4, 8)),
        ((16, 24), (4, 6, 2)),
        ((64, 32), (8, 4, 3)),
    ],
)
def test_start_sizes(size, expected):
    assert start_size(*size) == expected


@pytest.mark.parametrize(
    "size", [(29, 29), (17, 28), (3, 3), (4, 4), (7, 7), (30, 28), (8, 128), (1, 64), (9, 9)]
)
def test_impossible_sizes_name_one_that_works(size):
    with pytest.raises(ConfigError, match=f"{size[0]} x {size[1]}") as caught:
        start_size(*size)
    suggested = int(str(caught.value).split("Use size ")[1].rstrip("."))
    assert start_size(suggested, suggested)[2] >= 1
    for build in (
        lambda: SynthesisNetwork((1, *size), 4, (4, 4)),
        lambda: Discriminator((1, *size), (4, 4)),
    ):
        with pytest.raises(ConfigError, match="Use size"):
            build()


@given(st.integers(1, 300), st.integers(1, 300))
def test_a_size_is_a_map_doubled_or_an_error(height, width):
    try:
        h, w, n = start_size(height, width)
    except ConfigError as error:
        suggested = int(str(error).split("Use size ")[1].rstrip("."))
        assert suggested << 0 != min(height, width) or height != width
        start_size(suggested, suggested)
    else:
        assert (h << n, w << n) == (height, width)
        assert n >= 1
        assert 4 <= min(h, w) <= 7


def test_channels_per_map():
    assert channels_per_map(6, 64, 512) == (512, 512, 512, 512, 256, 128, 64)
    assert channels_per_map(1, 16, 8) == (8, 8)


# --- Filters -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("padding", [0, 1, 2])
@pytest.mark.parametrize("gain", [1.0, 4.0])
@pytest.mark.parametrize("stride", [1, 2])
def test_blur_against_the_slow_one(padding, gain, stride):
    x = torch.randn(2, 3, 7, 10, dtype=torch.float64)
    found = blur(x, padding, gain=gain, stride=stride)
    expected = [
        [naive.filtered(c, padding, padding, gain)[::stride, ::stride] for c in image] for image in x.numpy()
    ]
    close(found, expected, 1e-12)


def test_blur_by_hand():
    """A pixel in the middle becomes the outer product of [1, 3, 3, 1] with itself over 64."""
    x = torch.zeros(1, 1, 4, 4)
    x[0, 0, 1, 1] = 64.0
    expected = torch.tensor([[9.0, 9.0, 3.0], [9.0, 9.0, 3.0], [3.0, 3.0, 1.0]])
    torch.testing.assert_close(blur(x, 1)[0, 0], expected)
    assert float(blur(torch.ones(1, 1, 8, 8), 0).sub(1).abs().max()) < 1e-6


def test_upsample_against_the_slow_one_and_by_hand():
    x = torch.randn(2, 3, 5, 4, dtype=torch.float64)
    close(upsample(x), [naive.doubled(image) for image in x.numpy()], 1e-12)
    # A row a, b becomes ..., (3a + b) / 4, (a + 3b) / 4, ...: halfway samples of the line between them.
    row = torch.tensor([4.0, 8.0, 12.0]).expand(1, 1, 3, 3)
    torch.testing.assert_close(upsample(row)[0, 0, 2, 1:5], torch.tensor([5.0, 7.0, 9.0, 11.0]))


def test_filters_have_second_derivatives():
    x = torch.randn(1, 2, 4, 5, dtype=torch.float64, requires_grad=True)
    for function in (
        lambda x: blur(x, 1, gain=4.0).square(),
        lambda x: blur(x, 2).square(),
        lambda x: blur(x, 1, stride=2).square(),
        lambda x: upsample(x).square(),
    ):
        assert torch.autograd.gradcheck(function, (x,))
        assert torch.autograd.gradgradcheck(function, (x,))


# --- Layers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lr", [1.0, 0.01])
@pytest.mark.parametrize("activation", [True, False])
def test_equal_linear(lr, activation):
    layer = randomise(EqualLinear(5, 3, activation=activation, lr_multiplier=lr))
    x = torch.randn(4, 5, dtype=torch.float64)
    weight, bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()
    close(layer(x), [naive.fully_connected(row, weight, bias, lr, activation) for row in x.numpy()], 1e-12)


def test_equal_linear_by_hand():
    layer = EqualLinear(4, 1, activation=True, lr_multiplier=0.5, bias=3.0)
    layer.weight.data = torch.tensor([[2.0, 2.0, 2.0, 2.0]])
    # weight 2 * 0.5 / sqrt(4) = 0.5; sum 0.5 * 4 = 2; bias 3 * 0.5 = 1.5; 3.5 * sqrt(2)
    torch.testing.assert_close(layer(torch.ones(1, 4)), torch.tensor([[3.5 * math.sqrt(2)]]))
    # -2 + 1.5 = -0.5, times 0.2 and sqrt(2)
    torch.testing.assert_close(layer(-torch.ones(1, 4)), torch.tensor([[-0.1 * math.sqrt(2)]]))
    assert EqualLinear(4, 2, bias=None).bias is None
    torch.testing.assert_close(EqualLinear(4, 2, bias=1.0)(torch.zeros(1, 4)), torch.ones(1, 2))


def test_second_moment():
    x = torch.randn(3, 6, dtype=torch.float64) * 5
    close(normalize_second_moment(x), [naive.unit_second_moment(row) for row in x.numpy()], 1e-12)
    torch.testing.assert_close(
        normalize_second_moment(x).square().mean(1), torch.ones(3, dtype=torch.float64)
    )
    assert normalize_second_moment(torch.zeros(1, 4)).equal(torch.zeros(1, 4))


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("down", [True, False])
@pytest.mark.parametrize(("activation", "bias", "gain"), [(True, True, 1.0), (False, False, math.sqrt(0.5))])
def test_equal_conv(kernel, down, activation, bias, gain):
    layer = randomise(EqualConv(3, 2, kernel, down=down, activation=activation, bias=bias, gain=gain))
    x = torch.randn(2, 3, 8, 10, dtype=torch.float64)
    found = layer(x)
    assert found.shape == ((2, 2, 4, 5) if down else (2, 2, 8, 10))
    weight = layer.weight.detach().numpy()
    values = layer.bias.detach().numpy() if bias else None
    close(
        found, [naive.conv_layer(image, weight, values, down, activation, gain) for image in x.numpy()], 1e-12
    )


@pytest.mark.parametrize(
    ("kernel", "up", "demodulate"), [(3, False, True), (3, True, True), (1, False, False)]
)
def test_modulated_conv(kernel, up, demodulate):
    layer = randomise(ModulatedConv(3, 4, kernel, 5, up=up, demodulate=demodulate))
    x = torch.randn(2, 3, 5, 6, dtype=torch.float64)
    w = torch.randn(2, 5, dtype=torch.float64)
    found = layer(x, w)
    assert found.shape == ((2, 4, 10, 12) if up else (2, 4, 5, 6))
    styles = layer.affine(w).detach().numpy()
    if not demodulate:
        styles = styles / math.sqrt(3 * kernel**2)
    weight = layer.weight.detach().numpy()
    pairs = zip(x.numpy(), styles, strict=True)
    close(found, [naive.modulated(image, weight, style, demodulate, up) for image, style in pairs])


def test_modulated_conv_by_hand():
    layer = ModulatedConv(2, 1, 1, 1)
    layer.weight.data = torch.tensor([3.0, 1.0]).reshape(1, 2, 1, 1)
    layer.affine.weight.data = torch.tensor([[0.0], [1.0]])  # styles 1 and 1 + w
    x = torch.tensor([5.0, 7.0]).reshape(1, 2, 1, 1)
    # w = 3: weights 3 * 1, 1 * 4 of norm 5: (15 + 28) / 5
    torch.testing.assert_close(layer(x, torch.tensor([[3.0]])), torch.tensor(8.6).reshape(1, 1, 1, 1))


def test_demodulation_makes_the_size_of_weights_and_styles_irrelevant():
    x, w = torch.randn(2, 3, 5, 5).double(), torch.randn(2, 4).double()
    for demodulate, same in ((True, True), (False, False)):
        layer = ModulatedConv(3, 2, 3, 4, demodulate=demodulate).double()
        before = layer(x, w)
        with torch.no_grad():
            layer.weight[1] *= 7.0
            for parameter in layer.affine.parameters():
                parameter.mul_(3.0)
        assert torch.allclose(layer(x, w), before, rtol=1e-6) is same


def test_style_layer_noise():
    layer = randomise(StyleLayer(3, 4, 5, (6, 8)))
    x, w = torch.randn(2, 3, 6, 8).double(), torch.randn(2, 5).double()
    noise = torch.randn(2, 1, 6, 8).double()
    state = {
        f"layer.{name.removeprefix('conv.')}": value.numpy() for name, value in layer.state_dict().items()
    }
    for given_noise in (None, noise):
        rows = [None, None] if given_noise is None else given_noise[:, 0].numpy()
        triples = zip(x.numpy(), w.numpy(), rows, strict=True)
        expected = [naive.style_layer(state, "layer", a, b, n, up=False) for a, b, n in triples]
        close(layer(x, w, given_noise), expected)
    torch.testing.assert_close(layer(x, w, noise[:1]), layer(x, w, noise[0, 0]))


def test_to_image():
    layer = randomise(ToImage(3, 2, 5))
    x, w = torch.randn(2, 3, 6, 8).double(), torch.randn(2, 5).double()
    state = {f"rgb.{name.removeprefix('conv.')}": value.numpy() for name, value in layer.state_dict().items()}
    pairs = zip(x.numpy(), w.numpy(), strict=True)
    close(layer(x, w), [naive.to_rgb(state, "rgb", a, b) for a, b in pairs])


# --- Minibatch standard deviation ------------------------------------------------------------------------------


@pytest.mark.parametrize(("batch", "group"), [(8, 4), (8, 2), (4, 4), (6, 3), (8, 8)])
def test_minibatch_deviation_against_the_slow_one(batch, group):
    x = torch.randn(batch, 3, 2, 3, dtype=torch.float64)
    close(minibatch_deviation(x, group), naive.deviation_map(x.numpy(), group), 1e-12)


@pytest.mark.parametrize(("batch", "asked", "used"), [(6, 4, 3), (3, 4, 3), (5, 4, 1), (1, 4, 1), (7, 32, 7)])
def test_other_batches_get_smaller_groups(batch, asked, used):
    x = torch.randn(batch, 2, 2, 2, dtype=torch.float64)
    close(minibatch_deviation(x, asked), naive.deviation_map(x.numpy(), used), 1e-12)


def test_minibatch_deviation_of_equal_images_is_zero_and_groups_do_not_mix():
    x = torch.randn(1, 4, 3, 3).expand(8, 4, 3, 3)
    assert float(minibatch_deviation(x, 4)[:, 4].max()) < 2e-4  # the square root of the 1e-8 inside
    # Images 0, 2, 4, 6 and 1, 3, 5, 7 are the groups: a change of image 6 is not seen by 1.
    changed = x.clone()
    changed[6] += 1.0
    channel = minibatch_deviation(changed, 4)[:, 4].mean((1, 2))
    assert torch.equal(channel > 0.1, torch.tensor([True, False] * 4))
    # Values 0, 0, 0, 1: mean 1/4, variance 3/16.
    torch.testing.assert_close(channel[0], torch.tensor(math.sqrt(3.0) / 4), rtol=1e-4, atol=0)


def test_several_channels_of_deviation_see_their_own_channels():
    x = torch.zeros(4, 6, 2, 2)
    x[0, :3] = 1.0
    found = minibatch_deviation(x, 4, n_channels=2)
    assert found.shape == (4, 8, 2, 2)
    assert float(found[:, 6].min()) > 0.4
    assert float(found[:, 7].max()) < 2e-4


# --- Mapping ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("z_dim", "c_dim"), [(5, 0), (5, 3), (0, 3)])
def test_mapping_against_the_slow_one(z_dim, c_dim):
    network = randomise(MappingNetwork(z_dim, 4, 3, c_dim))
    with torch.no_grad():
        for layer in network.layers:
            layer.weight.mul_(100.0)
    z = torch.randn(2, z_dim).double() if z_dim else None
    c = torch.randn(2, c_dim).double() if c_dim else None
    state = network.state_dict()
    names = {name: name.replace("layers.", "fc") for name in state}
    tensors = {f"mapping.{names[name]}": value.numpy() for name, value in state.items()}
    expected = naive.mapping(tensors, *(None if x is None else x.numpy() for x in (z, c)))
    close(network(z, c), expected)


def test_conditions_are_classes_or_vectors():
    network = MappingNetwork(4, 6, 2, c_dim=3)
    z = torch.randn(1, 4).expand(3, 4)
    styles = network(z, torch.eye(3))
    assert all(not torch.allclose(styles[i], styles[j]) for i, j in ((0, 1), (0, 2), (1, 2)))
    assert network(z, torch.randn(3, 3)).shape == (3, 6)
    for arguments in ((z, None), (None, torch.eye(3)), (z[:, :2], torch.eye(3)), (z, torch.eye(4)[:3])):
        with pytest.raises(ShapeError, match="takes"):
            network(*arguments)
    with pytest.raises(ShapeError, match="takes c of width 0, got 3"):
        MappingNetwork(4, 6, 2)(z, torch.eye(3))
    for sizes in ((0, 6, 2), (4, 0, 2), (4, 6, -1)):
        with pytest.raises(ConfigError, match="at least one"):
            MappingNetwork(*sizes)


def test_without_layers_a_style_is_the_latent_and_the_embedded_class():
    z, c = torch.randn(3, 4), torch.eye(3)
    styles = MappingNetwork(4, 6, 0, c_dim=3)(z, c)
    unit = z / z.square().mean(1, keepdim=True).sqrt()
    torch.testing.assert_close(styles[:, :4], unit)
    torch.testing.assert_close(styles[:, 4:].square().mean(1), torch.ones(3))
    torch.testing.assert_close(MappingNetwork(4, 4, 0)(z), unit)
    for sizes in ((4, 4, 0, 3), (4, 3, 0, 3)):
        with pytest.raises(ConfigError, match="fewer than w_dim"):
            MappingNetwork(*sizes)
    for sizes in ((4, 6, 0), (6, 4, 0)):
        with pytest.raises(ConfigError, match="as many as w_dim"):
            MappingNetwork(*sizes)


def test_the_size_of_z_is_irrelevant():
    network = MappingNetwork(4, 6, 2)
    z = torch.randn(3, 4)
    torch.testing.assert_close(network(3.0 * z), network(z))


# --- Synthesis -------------------------------------------------------------------------------------------------


def synthesis_tensors(network, start):
    state = {f"synthesis.{name}": value for name, value in network.state_dict().items()}
    return arrays(convert_names(state, to="stylegan2", start=start), "G_ema.")


@pytest.mark.parametrize(("shape", "width"), [((1, 28, 28), (4, 3, 2)), ((3, 16, 16), (3, 4, 3))])
@pytest.mark.parametrize("noise", ["fixed", "none", "drawn"])
def test_synthesis_against_the_slow_one(shape, width, noise):
    network = randomise(SynthesisNetwork(shape, 5, width))
    assert network.n_layers == 6
    assert len(network.noise_sizes) == 5
    styles = torch.randn(2, 6, 5, dtype=torch.float64)
    maps = [torch.randn(2, 1, *size).double() for size in network.noise_sizes] if noise == "drawn" else noise
    numbers = [m.numpy() for m in maps] if noise == "drawn" else noise
    tensors = synthesis_tensors(network, shape[1] >> 2)
    expected = naive.synthesis(tensors, styles.numpy(), numbers)
    close(network(styles, maps), expected)
    # Negative control: the reference tells styles, and the order of layers, apart.
    assert np.abs(naive.synthesis(tensors, styles.numpy()[:, ::-1], numbers) - expected).max() > 0.1


SHAPES = [
    ((1, 8, 8), (4, 4)),
    ((1, 28, 28), (8, 6, 4)),
    ((3, 32, 32), (8, 6, 4, 4)),
    ((3, 64, 64), (8, 6, 4, 4, 4)),
    ((3, 128, 128), (8, 6, 4, 4, 4, 2)),
    ((3, 256, 256), (8, 6, 4, 4, 4, 2, 2)),
    ((1, 16, 24), (4, 4, 4)),
]


@pytest.mark.parametrize(("shape", "width"), SHAPES)
@pytest.mark.parametrize("c_dim", [0, 3])
def test_shapes(shape, width, c_dim):
    mapping = MappingNetwork(6, 8, 2, c_dim)
    synthesis = SynthesisNetwork(shape, 8, width)
    c = torch.eye(3)[:2] if c_dim else None
    images = synthesis(mapping(torch.randn(2, 6), c))
    assert images.shape == (2, *shape)
    assert torch.isfinite(images).all()
    for architecture in ("residual", "plain"):
        discriminator = Discriminator(shape, width, c_dim, architecture=architecture, mapping_layers=2)
        assert discriminator(images, c).shape == (2,)
        h, w, _ = start_size(*shape[1:])
        assert discriminator.features(images).shape == (2, width[0], h, w)


def test_one_style_is_the_same_in_all_layers():
    network = SynthesisNetwork((1, 16, 16), 6, (4, 4, 4)).double()
    w = torch.randn(3, 6, dtype=torch.float64)
    layered = w[:, None].expand(3, 6, 6).contiguous()
    torch.testing.assert_close(network(w), network(layered), rtol=1e-12, atol=1e-12)


def test_the_smallest_map_from_the_style():
    network = SynthesisNetwork((1, 16, 24), 5, (4, 3, 2), start="style").double()
    assert "blocks.0.const" not in network.state_dict()
    styles = torch.randn(2, 6, 5, dtype=torch.float64)
    start = network.blocks[0].start
    weight, bias = start.linear.weight.detach().numpy(), start.linear.bias.detach().numpy()
    maps = [naive.fully_connected(row, weight, bias).reshape(4, 4, 6) for row in styles[:, 0].numpy()]
    close(start(styles[:, 0]), maps, 1e-12)
    # A network with a constant start that holds the map of one image makes that image.
    twin = SynthesisNetwork((1, 16, 24), 5, (4, 3, 2)).double()
    for i in range(2):
        state = {k: v for k, v in network.state_dict().items() if not k.startswith("blocks.0.start")}
        twin.load_state_dict({**state, "blocks.0.const": torch.from_numpy(maps[i])})
        torch.testing.assert_close(twin(styles)[i], network(styles)[i], rtol=1e-10, atol=1e-10)
    with pytest.raises(ConfigError, match='"zero"'):
        SynthesisNetwork((1, 16, 16), 5, (4, 3, 2), start="zero")


@torch.no_grad()
def test_each_row_of_a_layered_style_is_used():
    network = SynthesisNetwork((1, 16, 16), 6, (4, 4, 4))
    styles = torch.randn(2, 6, 6)
    before = network(styles)
    for row in range(6):
        changed = styles.clone()
        changed[:, row] += 1.0
        assert float((network(changed) - before).abs().max()) > 1e-3, row


def test_mix_styles():
    first, second = torch.zeros(4, 3), torch.ones(4, 3)
    mixed = mix_styles(first, second, torch.tensor([0, 2, 5, 6]), 6)
    assert mixed.shape == (4, 6, 3)
    assert torch.equal(mixed[:, :, 0].sum(1), torch.tensor([6.0, 4.0, 1.0, 0.0]))
    assert torch.equal(mixed[1, :, 0], torch.tensor([0.0, 0.0, 1.0, 1.0, 1.0, 1.0]))
    network = SynthesisNetwork((1, 16, 16), 3, (4, 4, 4))
    a, b = torch.randn(2, 3), torch.randn(2, 3)
    assert torch.equal(network(mix_styles(a, b, torch.tensor([0, 6]), 6))[0], network(b)[0])
    assert torch.equal(network(mix_styles(a, b, torch.tensor([0, 6]), 6))[1], network(a)[1])


def test_noise_sources():
    network = SynthesisNetwork((1, 16, 16), 6, (4, 4, 4))
    w = torch.randn(2, 6)
    drawn = [torch.randn(2, 1, *size) for size in network.noise_sizes]
    # Strengths start at 0: noise does nothing before training.
    assert torch.equal(network(w, "fixed"), network(w, "none"))
    assert torch.equal(network(w, drawn), network(w, "none"))
    with torch.no_grad():
        for block in network.blocks:
            for layer in block.layers():
                layer.noise_strength.fill_(0.5)
    fixed = network(w, "fixed")
    assert torch.equal(network(w, "fixed"), fixed)
    assert not torch.allclose(network(w, "none"), fixed)
    own = [
        layer.noise_const.expand(2, 1, *layer.size) for block in network.blocks for layer in block.layers()
    ]
    torch.testing.assert_close(network(w, own), fixed)
    for i in range(len(drawn)):
        other = [*drawn[:i], drawn[i] + 1.0, *drawn[i + 1 :]]
        assert not torch.allclose(network(w, other), network(w, drawn)), i
    with pytest.raises(ShapeError, match="5 maps of noise, got 4"):
        network(w, drawn[:4])
    with pytest.raises(ShapeError, match=r"Noise 1 must be \(8, 8\), got \(4, 4\)"):
        network(w, [drawn[0], drawn[0], *drawn[2:]])
    with pytest.raises(ConfigError, match='"random"'):
        network(w, "random")


def test_output_through_tanh():
    plain, bounded = (
        SynthesisNetwork((1, 8, 8), 6, (4, 4)),
        SynthesisNetwork((1, 8, 8), 6, (4, 4), output="tanh"),
    )
    bounded.load_state_dict(plain.state_dict())
    w = 5.0 * torch.randn(2, 6)
    assert float(plain(w).detach().abs().max()) > 1
    assert torch.equal(bounded(w), plain(w).tanh())
    with pytest.raises(ConfigError, match='"clamp"'):
        SynthesisNetwork((1, 8, 8), 6, (4, 4), output="clamp")


def test_synthesis_errors():
    with pytest.raises(ConfigError, match="pass 3 sizes of map, got channels for 2"):
        SynthesisNetwork((1, 16, 16), 6, (4, 4))
    network = SynthesisNetwork((1, 16, 16), 6, (4, 4, 4))
    for shape in ((2, 5), (2, 5, 6), (2, 6, 5), (6,)):
        with pytest.raises(ShapeError, match=r"takes styles \(B, 6\)"):
            network(torch.randn(shape))


def test_rows_are_independent():
    network = SynthesisNetwork((1, 28, 28), 6, (8, 6, 4)).double()
    mapping = MappingNetwork(4, 6, 2).double()
    z = torch.randn(5, 4, dtype=torch.float64)
    together = network(mapping(z))
    for i in range(5):
        torch.testing.assert_close(network(mapping(z[i : i + 1]))[0], together[i], rtol=1e-10, atol=1e-10)
    order = torch.tensor([3, 0, 4, 1, 2])
    torch.testing.assert_close(network(mapping(z[order])), together[order], rtol=1e-10, atol=1e-10)


# --- Discriminator -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "width", "c_dim", "architecture", "group"),
    [
        ((1, 28, 28), (4, 3, 2), 0, "residual", 4),
        ((3, 16, 16), (3, 4, 3), 3, "residual", 2),
        ((1, 16, 16), (3, 4, 3), 0, "plain", 0),
        ((1, 8, 8), (4, 3), 2, "plain", 4),
    ],
)
def test_discriminator_against_the_slow_one(shape, width, c_dim, architecture, group):
    network = randomise(Discriminator(shape, width, c_dim, group, architecture, mapping_layers=2))
    if c_dim:
        with torch.no_grad():
            for layer in network.mapping.layers:
                layer.weight.mul_(100.0)
    n = len(width) - 1
    state = {f"discriminator.{name}": value for name, value in network.state_dict().items()}
    tensors = arrays(convert_names(state, to="stylegan2", start=shape[1] >> n), "D.")
    images = torch.randn(4, *shape, dtype=torch.float64)
    c = torch.randn(4, c_dim, dtype=torch.float64) if c_dim else None
    found = network(images, c)
    numbers = None if c is None else c.numpy()
    close(found, naive.discriminator(tensors, images.numpy(), numbers, group), 1e-8)
    assert float(found.detach().std()) > 1e-3


def test_the_condition_is_projected():
    network = Discriminator((1, 8, 8), (6, 4), c_dim=3, mapping_layers=1, condition_dim=5)
    images = torch.randn(3, 1, 8, 8)
    assert network.out.weight.shape == (5, 6)
    logits = torch.stack([network(images, torch.eye(3)[[k] * 3]) for k in range(3)])
    assert float(logits.detach().std(0).min()) > 1e-4
    with pytest.raises(ShapeError, match="takes c of width 3, got 0"):
        network(images)


def test_discriminator_errors():
    network = Discriminator((1, 16, 16), (4, 4, 4))
    with pytest.raises(ShapeError, match=r"takes images \(1, 16, 16\), got \(3, 16, 16\)"):
        network(torch.randn(2, 3, 16, 16))
    with pytest.raises(ConfigError, match="pass 3 sizes of map, got channels for 4"):
        Discriminator((1, 16, 16), (4, 4, 4, 4))
    with pytest.raises(ConfigError, match='"skip"'):
        Discriminator((1, 16, 16), (4, 4, 4), architecture="skip")


def test_without_minibatch_deviation_images_are_independent():
    images = torch.randn(4, 1, 16, 16, dtype=torch.float64)
    for group, same in ((0, True), (1, True), (4, False)):
        network = Discriminator((1, 16, 16), (4, 4, 4), group_size=group).double()
        alone = torch.cat([network(images[i : i + 1]) for i in range(4)])
        assert torch.allclose(network(images), alone, rtol=1e-9) is same


# --- Gradients ---------------------------------------------------------------------------------------------------


def test_gradients_reach_every_parameter():
    mapping, synthesis = MappingNetwork(4, 6, 2, 3), SynthesisNetwork((1, 16, 16), 6, (4, 4, 4))
    discriminator = Discriminator((1, 16, 16), (4, 4, 4), 3, mapping_layers=2)
    c = torch.eye(3)
    noise = [torch.randn(3, 1, *size) for size in synthesis.noise_sizes]
    discriminator(synthesis(mapping(torch.randn(3, 4), c), noise), c).square().sum().backward()
    for network in (mapping, synthesis, discriminator):
        for name, parameter in network.named_parameters():
            assert parameter.grad is not None, name
            assert float(parameter.grad.abs().max()) > 0, name


def test_layers_have_second_derivatives():
    x = torch.randn(1, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    w = torch.randn(1, 3, dtype=torch.float64, requires_grad=True)
    layers = [
        (ModulatedConv(2, 2, 3, 3, up=True).double(), (x, w)),
        (ModulatedConv(2, 2, 3, 3).double(), (x, w)),
        (ModulatedConv(2, 1, 1, 3, demodulate=False).double(), (x, w)),
        (EqualConv(2, 2, 3, down=True, activation=False).double(), (x,)),
        (EqualConv(2, 2, 1, down=True, activation=False).double(), (x,)),
    ]
    for layer, inputs in layers:
        names, parameters = zip(*layer.named_parameters(), strict=True)

        def function(*arguments, layer=layer, names=names):
            n = len(arguments) - len(names)
            given_parameters = dict(zip(names, arguments[n:], strict=True))
            return torch.func.functional_call(layer, given_parameters, arguments[:n]).square()

        assert torch.autograd.gradgradcheck(function, (*inputs, *parameters), fast_mode=True)


def test_r1_has_a_gradient_that_finite_differences_confirm():
    network = Discriminator((1, 8, 8), (3, 2), group_size=2).double()
    images = torch.randn(2, 1, 8, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(network, (images,), fast_mode=True)

    def penalty():
        (slope,) = torch.autograd.grad(network(images).sum(), images, create_graph=True)
        return slope.square().sum((1, 2, 3)).mean()

    network.zero_grad()
    penalty().backward()
    step = 1e-6
    for name in ("from_image.weight", "blocks.0.conv1.weight", "blocks.0.skip.weight", "conv.weight"):
        parameter = dict(network.named_parameters())[name]
        flat, slope = parameter.data.view(-1), float(parameter.grad.reshape(-1)[0])
        kept = float(flat[0])
        values = []
        for sign in (1, -1):
            flat[0] = kept + sign * step
            values.append(float(penalty().detach()))
        flat[0] = kept
        assert (values[0] - values[1]) / (2 * step) == pytest.approx(slope, rel=1e-4, abs=1e-7), name


def test_path_length_has_a_gradient():
    network = SynthesisNetwork((1, 8, 8), 4, (3, 2)).double()
    w = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(
        (network(w) * torch.randn(2, 1, 8, 8).double()).sum(), w, create_graph=True
    )
    slope.square().sum().backward()
    weight = network.get_parameter("blocks.1.conv0.conv.weight")
    assert float(weight.grad.abs().max()) > 0


# --- Statistics at the start ---------------------------------------------------------------------------------------


def mean_square(x):
    return float(x.detach().square().mean())


def test_layers_keep_the_variance():
    """White noise in, about 1 out: a missing gain shows. Leaky ReLU and its gain make 2 (1 + 0.04) / 2 = 1.04."""
    rows = torch.randn(256, 128)
    x = torch.randn(4, 128, 12, 12)
    w = torch.randn(4, 16)
    inner = (..., slice(2, -2), slice(2, -2))
    for lr in (1.0, 0.01):
        assert mean_square(EqualLinear(128, 256, True, lr)(rows)) == pytest.approx(1.04, rel=0.1)
    assert mean_square(EqualLinear(128, 256)(rows)) == pytest.approx(1.0, rel=0.1)
    assert mean_square(EqualConv(128, 128, 3)(x)[inner]) == pytest.approx(1.04, rel=0.1)
    assert mean_square(ModulatedConv(128, 128, 3, 16)(x, w)[inner]) == pytest.approx(1.0, rel=0.1)
    assert mean_square(ModulatedConv(128, 128, 1, 16, demodulate=False)(x, w)) == pytest.approx(2.0, rel=0.3)
    assert mean_square(MappingNetwork(64, 128, 4)(torch.randn(256, 64))) == pytest.approx(1.04, rel=0.25)
    # A filter keeps what does not change over the map; white noise it rightly weakens.
    flat = torch.randn(16, 128, 1, 1).expand(16, 128, 12, 12)
    assert mean_square(EqualConv(128, 128, 3, down=True)(flat)[inner]) == pytest.approx(1.04, rel=0.15)
    assert mean_square(EqualConv(128, 128, 1, down=True)(flat)[inner]) == pytest.approx(1.04, rel=0.15)
    styles = torch.randn(16, 16)
    assert mean_square(ModulatedConv(128, 128, 3, 16, up=True)(flat, styles)[inner]) == pytest.approx(
        1.0, rel=0.15
    )
    # Negative control.
    wrong = EqualLinear(128, 256)
    wrong.weight_gain *= math.sqrt(2.0)
    assert mean_square(wrong(rows)) > 1.5


@torch.no_grad()
def test_networks_keep_the_variance():
    images = torch.randn(4, 3, 1, 1).expand(4, 3, 32, 32)
    for architecture in ("residual", "plain"):
        network = Discriminator((3, 32, 32), (64, 64, 64, 64), architecture=architecture)
        x = network.from_image(images)
        for block in network.blocks:
            x = block(x)
            assert 0.4 < mean_square(x) < 2.5
    synthesis = SynthesisNetwork((3, 32, 32), 32, (64, 64, 64, 64))
    sizes = []
    for block in synthesis.blocks:
        block.conv1.register_forward_hook(lambda module, given, out: sizes.append(mean_square(out)))
    synthesis(MappingNetwork(32, 32, 2)(torch.randn(8, 32)))
    assert len(sizes) == 4
    # Doubling takes a part of what changes from pixel to pixel; a missing gain would halve each layer.
    assert all(0.1 < size < 2.5 for size in sizes), sizes


# --- Memory layout, devices ------------------------------------------------------------------------------------------


def test_channels_last_gives_the_same():
    synthesis = SynthesisNetwork((3, 32, 32), 6, (8, 8, 4, 4)).double()
    discriminator = Discriminator((3, 32, 32), (8, 8, 4, 4)).double()
    w = torch.randn(4, 6, dtype=torch.float64)
    images = synthesis(w)
    logits = discriminator(images)
    synthesis.to(memory_format=torch.channels_last)
    discriminator.to(memory_format=torch.channels_last)
    again = synthesis(w)
    torch.testing.assert_close(again, images, rtol=1e-10, atol=1e-10)
    found = discriminator(images.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(found, logits, rtol=1e-10, atol=1e-10)


def test_networks_can_be_built_without_memory_and_keep_their_state():
    with torch.device("meta"):
        SynthesisNetwork((3, 1024, 1024), 512, channels_per_map(8, 32, 512))
        Discriminator((3, 1024, 1024), channels_per_map(8, 32, 512))
    first, second = (SynthesisNetwork((1, 16, 16), 6, (4, 4, 4)) for _ in range(2))
    w = torch.randn(2, 6)
    assert not torch.equal(first(w), second(w))
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(w), second(w))


def test_gain_of_the_module():
    assert pytest.approx(1 / math.sqrt(0.5)) == stylegan.GAIN
