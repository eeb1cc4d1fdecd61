"""The light generator: its convolution, its statistics, and its gates."""

import pytest
import torch
from torch.nn import functional

from fewgen.errors import ConfigError, ShapeError
from fewgen.nn.ema import EMA
from fewgen.nn.light import DoublingConv, Excitation, LightSynthesis, StyleNorm, gated
from fewgen.nn.stylegan import channels_per_map, start_size


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make(size=16, **settings):
    n = start_size(size, size)[2]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LightSynthesis((3, size, size), 8, channels_per_map(n, 4, 8), **settings)


def test_the_convolution_is_that_of_the_doubled_map():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = DoublingConv(3, 5).double()
    x = draw(2, 3, 4, 6).double().requires_grad_()
    weight = made.weight
    doubled = functional.interpolate(x, scale_factor=2, mode="nearest")
    wanted = functional.conv2d(doubled, weight, padding=1)
    torch.testing.assert_close(made(x), wanted)
    inputs = (x, weight)
    expected = torch.autograd.grad(wanted.sin().sum(), inputs)
    torch.testing.assert_close(torch.autograd.grad(made(x).sin().sum(), inputs), expected)


def test_gates_scale_channels():
    torch.testing.assert_close(gated(draw(2, 6, 3, 3)), functional.glu(draw(2, 6, 3, 3), 1))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = Excitation(3, 5).requires_grad_(False)
    large = draw(2, 5, 8, 8, seed=1)
    scale = made(draw(2, 3, 4, 4), large) / large
    torch.testing.assert_close(scale, scale[:, :, :1, :1].expand_as(scale))
    assert ((scale > 0) & (scale < 1)).all()
    assert float((scale[0] - scale[1]).abs().max()) > 1e-3


def test_the_norm_takes_scale_and_shift_from_the_style():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = StyleNorm(4, 8).train()
    x, style = 3 + 2 * draw(5, 4, 3, 3), draw(5, 8, seed=1)
    scale, shift = made.affine(style).chunk(2, 1)
    plain = (x - x.mean((0, 2, 3), keepdim=True)) / x.var((0, 2, 3), keepdim=True, correction=0).sqrt()
    wanted = plain * (1 + scale[:, :, None, None]) + shift[:, :, None, None]
    torch.testing.assert_close(made(x, style), wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("size", [8, 28, 32, 64])
def test_images_of_every_size(size):
    made = make(size).train()
    n = start_size(size, size)[2]
    assert made.n_layers == n + 1
    assert len(made.excitations) == max(1, n + 1 - 4)
    out = made(draw(4, 8))
    assert out.shape == (4, 3, size, size)
    assert float(out.abs().max()) <= 1
    torch.testing.assert_close(made(draw(4, 8)[:, None].expand(-1, n + 1, -1)), out)
    out.square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in made.parameters())


def test_every_layer_follows_its_own_style():
    made, styles = make().train(), draw(4, 1, 8).repeat(1, 3, 1)
    before = made(styles)
    for layer in range(made.n_layers):
        other = styles.clone()
        other[:, layer] += 1
        assert not torch.allclose(made(other), before, atol=1e-4)


def test_in_evaluation_an_image_depends_on_its_own_style_alone():
    made, styles = make().eval(), draw(6, 8)
    with pytest.raises(AssertionError, match="settle"):
        made(styles)
    made.settle([draw(32, 8, seed=i) for i in range(4)])
    together = made(styles)
    for i in range(6):
        torch.testing.assert_close(made(styles[i : i + 1])[0], together[i], atol=1e-5, rtol=1e-4)
    assert not torch.allclose(made.train()(styles), together, atol=1e-3)
    # The statistics of one batch are what training uses on it.
    made.eval().settle([styles])
    torch.testing.assert_close(made(styles), made.train()(styles), atol=1e-4, rtol=1e-4)


def test_averaged_weights_have_statistics_of_their_own():
    made, styles = make().train().requires_grad_(False), draw(32, 8)
    ema = EMA(made, 0.9)
    for step in range(5):
        for parameter in made.parameters():
            parameter.data += 0.2 * draw(*parameter.shape, seed=step)
        ema.update(made)
    assert not list(made.buffers())
    made.eval().settle([styles])
    live = made(styles)
    with ema.applied_to(made):
        wrong = made(styles)
        made.settle([styles])
        own, in_training = made(styles), made.train()(styles)
    torch.testing.assert_close(own, in_training, atol=1e-4, rtol=1e-4)
    # With the statistics of the live weights it would be another generator.
    assert float((wrong - in_training).abs().mean()) > 0.05
    made.eval().settle([styles])
    assert torch.equal(made(styles), live)


def test_wrong_shapes_are_refused():
    for wrong in (draw(4, 7), draw(4, 2, 8)):
        with pytest.raises(ShapeError, match=r"styles \(B, 8\)"):
            make()(wrong)
    with pytest.raises(ConfigError, match="8, 10, 12"):
        LightSynthesis((3, 29, 29), 8, (4, 4))
