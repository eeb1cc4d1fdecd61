"""Encoders and decoders of vectors: sizes, bounds, errors."""

import pytest
import torch

from fewgen.errors import ConfigError, ShapeError
from fewgen.nn.vae import (
    LOGVAR_RANGE,
    GaussianHead,
    MLPImageDecoder,
    MLPImageEncoder,
    SemanticBody,
    SemanticDecoder,
    mlp,
)


def widths(module):
    return [(m.in_features, m.out_features) for m in module.modules() if isinstance(m, torch.nn.Linear)]


def test_the_published_sizes():
    encoder, decoder = MLPImageEncoder((1, 28, 28), 20), MLPImageDecoder((1, 28, 28), 20)
    assert widths(encoder) == [(784, 400), (400, 200), (200, 20), (200, 20)]
    assert widths(decoder) == [(20, 200), (200, 400), (400, 784)]
    assert widths(SemanticBody(100, 20)) == [(100, 200), (200, 20)]
    assert widths(SemanticDecoder(20, 100)) == [(20, 200), (200, 100)]


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (1, 9, 13)])
def test_shapes(shape):
    x = torch.rand(5, *shape)
    mu, logvar = MLPImageEncoder(shape, 6)(x)
    assert mu.shape == logvar.shape == (5, 6)
    assert MLPImageDecoder(shape, 6)(mu).shape == x.shape


def test_decoder_and_encoder_agree_on_the_order_of_pixels():
    shape = (2, 3, 4)
    decoder = MLPImageDecoder(shape, 2)
    with torch.no_grad():
        decoder.out.weight.zero_()
        decoder.out.bias.copy_(torch.arange(24.0))
    assert torch.equal(decoder(torch.zeros(1, 2)).flatten(), torch.arange(24.0))


def test_logvar_starts_low_and_stays_where_its_exponential_is_finite():
    torch.manual_seed(0)
    head = GaussianHead(8, 3)
    _, logvar = head(torch.zeros(1, 8))
    assert torch.equal(logvar, torch.full((1, 3), -2.0))
    _, extreme = head(torch.tensor([[1e6], [-1e6]]) * head.logvar.weight.sum(0))
    assert extreme.min() >= LOGVAR_RANGE[0]
    assert extreme.max() <= LOGVAR_RANGE[1]
    assert bool(torch.exp(extreme).isfinite().all())
    assert bool(torch.exp(-extreme).isfinite().all())


def test_dropout_stands_between_layers_only():
    assert [type(m).__name__ for m in mlp([4, 3, 2], dropout=0.5)] == [
        "Linear",
        "ELU",
        "Dropout",
        "Linear",
        "ELU",
    ]
    assert not any(isinstance(m, torch.nn.Dropout) for m in mlp([4, 3, 2]))


def test_a_linear_text_output_reaches_negative_numbers_and_the_published_sigmoid_does_not():
    torch.manual_seed(0)
    z = 10 * torch.randn(64, 4)
    assert SemanticDecoder(4, 7)(z).min() < 0
    published = SemanticDecoder(4, 7, output="sigmoid")(z)
    assert published.min() >= 0
    assert published.max() <= 1


def test_errors_say_what_was_needed():
    with pytest.raises(ShapeError, match=r"images must be \(B, 1, 28, 28\), got \(2, 1, 32, 32\)"):
        MLPImageEncoder((1, 28, 28), 4)(torch.zeros(2, 1, 32, 32))
    with pytest.raises(ShapeError, match=r"images must be \(B, 1, 28, 28\), got \(1, 28, 28\)"):
        MLPImageEncoder((1, 28, 28), 4)(torch.zeros(1, 28, 28))
    with pytest.raises(ShapeError, match=r"text vectors must be \(B, 10\), got \(2, 9\)"):
        SemanticBody(10, 4)(torch.zeros(2, 9))
    with pytest.raises(ShapeError, match="text vectors"):
        SemanticBody(10, 4)(torch.zeros(10))
    with pytest.raises(ConfigError, match="linear, sigmoid"):
        SemanticDecoder(4, 10, output="tanh")
