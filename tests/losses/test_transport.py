import numpy as np
import ot
import pytest
import torch
from scipy.linalg import sqrtm

from fewgen.errors import ShapeError
from fewgen.losses.transport import w2_diagonal


def gaussians(n=4, dim=3, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return [torch.randn(n, dim, generator=rng, dtype=torch.float64) for _ in range(4)]


def test_equals_the_closed_form_for_full_covariances():
    mu_a, logvar_a, mu_b, logvar_b = gaussians()
    expected = []
    for i in range(len(mu_a)):
        cov_a, cov_b = np.diag(logvar_a[i].exp().numpy()), np.diag(logvar_b[i].exp().numpy())
        root = sqrtm(cov_a)
        cross = np.real(sqrtm(root @ cov_b @ root))
        squared = ((mu_a[i] - mu_b[i]) ** 2).sum().item() + np.trace(cov_a + cov_b - 2 * cross)
        expected.append(np.sqrt(squared))
        by_pot = ot.gaussian.bures_wasserstein_distance(mu_a[i].numpy(), mu_b[i].numpy(), cov_a, cov_b)
        assert expected[-1] == pytest.approx(float(by_pot), rel=1e-6)
    assert w2_diagonal(mu_a, logvar_a, mu_b, logvar_b).item() == pytest.approx(np.mean(expected), rel=1e-8)


def test_in_one_dimension_equals_transport_between_samples():
    rng = np.random.default_rng(0)
    a, b = rng.normal(0.5, 1.0, 200_000), rng.normal(-1.0, 2.0, 200_000)
    expected = np.sqrt(ot.wasserstein_1d(a, b, p=2))
    got = w2_diagonal(*(torch.tensor([[v]]) for v in (0.5, 0.0, -1.0, 2 * np.log(2.0))))
    assert got.item() == pytest.approx(float(expected), abs=0.02)


def test_gradient_is_right_and_zero_where_both_are_equal():
    parts = [t.requires_grad_() for t in gaussians()]
    assert torch.autograd.gradcheck(w2_diagonal, parts)
    mu, logvar = torch.ones(2, 3, requires_grad=True), torch.zeros(2, 3, requires_grad=True)
    value = w2_diagonal(mu, logvar, torch.ones(2, 3), torch.zeros(2, 3))
    value.backward()
    assert value == 0
    assert (mu.grad == 0).all()
    assert (logvar.grad == 0).all()


def test_is_symmetric_ignores_duplicates_and_checks_shapes():
    mu_a, logvar_a, mu_b, logvar_b = gaussians()
    value = w2_diagonal(mu_a, logvar_a, mu_b, logvar_b)
    torch.testing.assert_close(value, w2_diagonal(mu_b, logvar_b, mu_a, logvar_a))
    doubled = [t.repeat(2, 1) for t in (mu_a, logvar_a, mu_b, logvar_b)]
    torch.testing.assert_close(value, w2_diagonal(*doubled))
    with pytest.raises(ShapeError):
        w2_diagonal(mu_a, logvar_a, mu_b[:1], logvar_b)


def test_golden_value():
    # Means 3 apart, sigma 1 against 5: sqrt(9 + 16).
    value = w2_diagonal(
        torch.zeros(1, 1), torch.zeros(1, 1), torch.tensor([[3.0]]), torch.tensor([[2 * np.log(5.0)]])
    )
    assert value.item() == pytest.approx(5.0, abs=1e-5)
