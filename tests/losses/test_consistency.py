import math

import pytest
import torch
from torch import nn

from fewgen.errors import ConfigError, ShapeError
from fewgen.losses.consistency import (
    CONSISTENCIES,
    Consistency,
    discriminator_terms,
    generator_term,
    squared_gap,
)
from fewgen.losses.terms import LossTerms


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def pair(n=6, seed=0):
    return torch.randn(n, generator=rng(seed)), torch.randn(n, generator=rng(seed + 1))


class Toy:
    """A generator with a style quantiser (steps of 1), noise inputs, and a discriminator."""

    def __init__(self):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.mapping, self.synthesis, self.discriminator = (
                nn.Linear(4, 4),
                nn.Linear(4, 8),
                nn.Linear(8, 1),
            )

    def generate(self, z, noise_seed):
        w = self.mapping(z)
        w = w + (w.round() - w).detach()
        return self.synthesis(w) + 0.1 * torch.randn(len(z), 8, generator=rng(noise_seed))

    def term(self, z, sigma, same_noise=True):
        near = z + sigma * torch.randn(z.shape, generator=rng(5))
        with torch.no_grad():
            fake, fake_near = self.generate(z, 1), self.generate(near, 1 if same_noise else 2)
        pair = self.discriminator(fake)[:, 0], self.discriminator(fake_near)[:, 0]
        return discriminator_terms(CONSISTENCIES["qcr"], latent=pair)["consistency_latent"]


def test_the_gap_equals_the_loop_over_pairs():
    a, b = pair()
    expected = sum((x - y) ** 2 for x, y in zip(a.tolist(), b.tolist(), strict=True)) / len(a)
    assert squared_gap(a, b).item() == pytest.approx(expected, rel=1e-6)
    assert squared_gap(a, a).item() == 0


def test_the_gap_has_gradients_to_both_members():
    a, b = (t.requires_grad_() for t in pair())
    squared_gap(a, b).backward()
    torch.testing.assert_close(a.grad, 2 * (a - b).detach() / len(a))
    torch.testing.assert_close(b.grad, -a.grad)


def test_a_column_against_a_row_is_an_error_and_not_every_pair():
    a, b = pair()
    with pytest.raises(ShapeError, match="must be equal"):
        squared_gap(a[:, None], b)
    with pytest.raises(ShapeError, match="no image"):
        squared_gap(a[:0], b[:0])


def test_published_weights():
    names = [f"consistency_{n}" for n in ("real", "fake", "latent", "diversity")]
    expected = {
        "none": (0, 0, 0, 0),
        "cr": (10, 0, 0, 0),
        "bcr": (10, 10, 0, 0),
        "zcr": (0, 0, 5, 0.5),
        "qcr": (0, 0, 0.01, 0),
    }
    assert {k: tuple(v.weights()[n] for n in names) for k, v in CONSISTENCIES.items()} == expected
    assert (CONSISTENCIES["zcr"].sigma, CONSISTENCIES["qcr"].sigma) == (0.07, 0.1)


def test_terms_are_those_with_a_weight_and_a_missing_pair_is_an_error():
    a, b = pair()
    assert discriminator_terms(CONSISTENCIES["none"], real=(a, b), fake=(a, b), latent=(a, b)) == {}
    bcr = discriminator_terms(CONSISTENCIES["bcr"], real=(a, b), fake=(b, a + 1), latent=(a, b))
    assert bcr.keys() == {"consistency_real", "consistency_fake"}
    assert bcr["consistency_real"].item() == pytest.approx(squared_gap(a, b).item())
    assert bcr["consistency_fake"].item() == pytest.approx(squared_gap(b, a + 1).item())
    assert discriminator_terms(CONSISTENCIES["zcr"], latent=(a, b)).keys() == {"consistency_latent"}
    with pytest.raises(ConfigError, match='"fake" has weight 10'):
        discriminator_terms(CONSISTENCIES["bcr"], real=(a, b))


def test_lazy_terms_weigh_as_much_over_an_interval():
    a, b = pair()
    weights = Consistency(real=3.0, latent=0.5, every=4)
    terms = LossTerms(discriminator_terms(weights, real=(a, b), latent=(b, a)), weights.weights())
    once = LossTerms(terms.values, Consistency(real=3.0, latent=0.5).weights())
    assert terms.total().item() == pytest.approx(4 * 3.5 * squared_gap(a, b).item(), rel=1e-6)
    assert terms.total().item() == pytest.approx(4 * once.total().item(), rel=1e-6)


def test_sigma_zero_gives_exactly_zero_with_shared_noise_only():
    toy, z = Toy(), torch.randn(32, 4, generator=rng(3))
    assert toy.term(z, sigma=0.0).item() == 0
    assert toy.term(z, sigma=0.0, same_noise=False).item() > 1e-4


def test_unchanged_codes_give_exactly_zero_and_changed_ones_a_gradient_to_the_discriminator_alone():
    toy, z = Toy(), torch.randn(32, 4, generator=rng(3))
    near = z + 1e-6 * torch.randn(z.shape, generator=rng(5))
    assert torch.equal(toy.mapping(z).round(), toy.mapping(near).round())
    unchanged = toy.term(z, sigma=1e-6)
    unchanged.backward()
    assert unchanged.item() == 0
    assert toy.discriminator.weight.grad.abs().max() == 0
    changed = toy.term(z, sigma=1.0)
    changed.backward()
    assert toy.discriminator.weight.grad.abs().max() > 0
    assert toy.mapping.weight.grad is None
    assert toy.synthesis.weight.grad is None


def test_diversity_rewards_images_that_differ():
    x = torch.randn(3, 1, 4, 4, generator=rng(), requires_grad=True)
    near = x.detach() + 0.5
    value = generator_term(x, near)
    assert value.item() == pytest.approx(-0.25)
    value.backward()
    # Descent moves x away from its neighbour, which lies above it.
    torch.testing.assert_close(x.grad, torch.full_like(x, 2 * 0.5 / x.numel()))
    big = torch.zeros(3, 1, 8, 8)
    assert generator_term(big, big + 0.5).item() == pytest.approx(-0.25)  # whatever the resolution
    with pytest.raises(ShapeError):
        generator_term(x, near[:1])
    with pytest.raises(ShapeError):
        generator_term(x[:0], near[:0])


@pytest.mark.parametrize("name", ["real", "fake", "latent", "diversity", "sigma"])
@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
def test_bad_numbers_are_named(name, value):
    with pytest.raises(ConfigError, match=f'"{name}"'):
        Consistency(**{name: value})


@pytest.mark.parametrize("every", [0, -1, 1.5])
def test_bad_intervals_are_named(every):
    with pytest.raises(ConfigError, match='"every"'):
        Consistency(real=1.0, every=every)


def test_the_gap_of_half_precision_logits_is_summed_in_float32():
    a, b = (t.to(torch.bfloat16) for t in pair(300))
    assert squared_gap(a, b).dtype == torch.float32
    torch.testing.assert_close(squared_gap(a, b), squared_gap(a.float(), b.float()))
    torch.testing.assert_close(generator_term(a, b), -squared_gap(a, b))
