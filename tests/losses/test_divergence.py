import numpy as np
import pytest
import torch
from torch.distributions import Independent, Normal, kl_divergence

from fewgen.errors import ShapeError
from fewgen.losses.divergence import ACTIVE, active_units, kl_diagonal, kl_standard_normal, reparameterize
from fewgen.losses.reconstruction import squared_error


@pytest.fixture
def rng():
    return torch.Generator().manual_seed(3)


def gaussian(rng, *shape):
    mu = torch.randn(*shape, generator=rng, dtype=torch.float64)
    return mu, torch.randn(*shape, generator=rng, dtype=torch.float64)


def as_distribution(mu, logvar):
    return Independent(Normal(mu, (0.5 * logvar).exp()), 1)


def test_kl_is_zero_at_the_prior_and_matches_torch_distributions(rng):
    zero = torch.zeros(4, 6)
    assert kl_standard_normal(zero, zero) == 0
    mu, logvar = gaussian(rng, 5, 7)
    prior = as_distribution(torch.zeros_like(mu), torch.zeros_like(mu))
    torch.testing.assert_close(
        kl_standard_normal(mu, logvar), kl_divergence(as_distribution(mu, logvar), prior).mean()
    )


def test_kl_between_gaussians_matches_torch_distributions(rng):
    q, p = gaussian(rng, 5, 7), gaussian(rng, 5, 7)
    torch.testing.assert_close(
        kl_diagonal(*q, *p), kl_divergence(as_distribution(*q), as_distribution(*p)).mean()
    )
    assert kl_diagonal(*q, *q) == 0
    zero = torch.zeros_like(q[0])
    torch.testing.assert_close(kl_diagonal(*q, zero, zero), kl_standard_normal(*q))


def test_kl_gradients_reach_both_sides(rng):
    parts = [t.requires_grad_() for t in (*gaussian(rng, 3, 4), *gaussian(rng, 3, 4))]
    assert torch.autograd.gradcheck(kl_diagonal, parts)


def moments_are_right(draws, mu, sigma):
    """Whether draws (N, D) have this mean and standard deviation, and uncorrelated dimensions."""
    n = len(draws)
    correlation = np.corrcoef(draws.T.numpy()) - np.eye(draws.shape[1])
    return bool(
        ((draws.mean(0) - mu).abs() < 5 * sigma / n**0.5).all()
        and ((draws.std(0) / sigma - 1).abs() < 5 / (2 * n) ** 0.5).all()
        and np.abs(correlation).max() < 5 / n**0.5
    )


def test_reparameterize_draws_the_gaussian_per_dimension(rng):
    mu, logvar = torch.tensor([-2.0, 0.0, 5.0]), torch.tensor([-1.0, 0.5, 2.0])
    rows = mu.expand(20_000, 3), logvar.expand(20_000, 3)
    sigma = (0.5 * logvar).exp()
    assert moments_are_right(reparameterize(*rows, rng), mu, sigma)


def test_the_moment_check_catches_one_noise_shared_by_all_dimensions_and_a_wrong_sigma(rng):
    mu, logvar = torch.tensor([-2.0, 0.0, 5.0]), torch.tensor([-1.0, 0.5, 2.0])
    shared = torch.randn(20_000, 1, generator=rng).expand(20_000, 3)
    assert not moments_are_right(mu + (0.5 * logvar).exp() * shared, mu, (0.5 * logvar).exp())
    own = torch.randn(20_000, 3, generator=rng)
    assert not moments_are_right(mu + logvar.exp() * own, mu, (0.5 * logvar).exp())


def test_reparameterize_repeats_from_a_seed():
    mu, logvar = torch.zeros(2, 3), torch.zeros(2, 3)
    first = reparameterize(mu, logvar, torch.Generator().manual_seed(1))
    assert torch.equal(first, reparameterize(mu, logvar, torch.Generator().manual_seed(1)))


def test_reconstruction_sums_features_and_averages_the_batch(rng):
    x_hat, x = torch.randn(3, 2, 4, 4, generator=rng), torch.randn(3, 2, 4, 4, generator=rng)
    difference = (x_hat - x).double().numpy().reshape(3, -1)
    expected = (difference**2).sum(1).mean()
    assert squared_error(x_hat, x).item() == pytest.approx(expected, rel=1e-5)
    assert squared_error(x, x) == 0
    with pytest.raises(ShapeError, match="must be equal"):
        squared_error(x_hat, x[:, :1])


def test_golden_values():
    mu, logvar = torch.tensor([[1.0, -1.0]]), torch.tensor([[0.0, 0.6931471805599453]])
    # 1/2 (1 + 0) + 1/2 (1 + 2 - 1 - log 2)
    assert kl_standard_normal(mu, logvar).item() == pytest.approx(1.1534264, abs=1e-6)
    assert squared_error(torch.tensor([[3.0, 1.0], [0.0, 0.0]]), torch.zeros(2, 2)).item() == 5.0


def test_active_units_carry_information_about_the_image_in_any_scale(rng):
    noise = torch.full((4000, 3), 0.25).log()
    signal = torch.randn(4000, 3, generator=rng) * torch.tensor([2.0, 0.5, 0.02])
    assert active_units(signal, noise).tolist() == [True, True, False]
    # Bits are those of a Gaussian channel: half a nat's logarithm of 1 + signal to noise, in no unit.
    assert active_units(1e-3 * signal, noise + 2 * np.log(1e-3)).tolist() == [True, True, False]
    edge = 0.25 * np.expm1(2 * ACTIVE)
    for factor, active in ((1.1, True), (0.9, False)):
        exact = (factor * edge) ** 0.5 * (signal[:, :1] / signal[:, :1].std(0))
        assert active_units(exact, noise[:, :1]).tolist() == [active]
