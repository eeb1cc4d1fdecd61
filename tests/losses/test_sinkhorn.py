import math

import numpy as np
import ot
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from tests.reference import naive_gan as naive

from fewgen.errors import ConfigError, ShapeError
from fewgen.losses.transport import cosine_cost, marginal_error, sinkhorn


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def random_cost(n=7, m=5, seed=0, dtype=torch.float64):
    return torch.rand(n, m, generator=rng(seed), dtype=dtype)


def vectors(n, dim=8, seed=0, dtype=torch.float64):
    return torch.randn(n, dim, generator=rng(seed), dtype=dtype)


def transport_loss(x, y, epsilon=0.05, n_iterations=100, center=True):
    """The cost of transport as training takes it: the plan is a constant of the step."""
    cost = cosine_cost(x, y, center)
    return (sinkhorn(cost.detach(), epsilon, n_iterations) * cost).sum()


@pytest.mark.parametrize("epsilon", [0.05, 0.2, 2.0])
def test_plan_equals_pot_and_the_kernel_scaling(epsilon):
    cost = random_cost()
    plan = sinkhorn(cost, epsilon, 3000)
    np.testing.assert_allclose(plan, naive.sinkhorn(cost.numpy(), epsilon), atol=1e-10)
    by_pot = ot.sinkhorn([], [], cost.numpy(), epsilon, numItermax=20_000, stopThr=1e-13)
    np.testing.assert_allclose(plan, by_pot, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sums_of_rows_and_columns_at_the_sizes_of_training(dtype):
    cost = cosine_cost(vectors(256, 32, 0, dtype), vectors(256, 32, 1, dtype))
    plan = sinkhorn(cost, 0.05)
    assert (plan >= 0).all()
    torch.testing.assert_close(plan.sum(1), torch.full((256,), 1 / 256, dtype=dtype), atol=1e-7, rtol=0)
    torch.testing.assert_close(plan.sum(0), torch.full((256,), 1 / 256, dtype=dtype), atol=1e-4, rtol=0)
    assert marginal_error(plan).item() < 1e-4
    assert plan.sum().item() == pytest.approx(1, abs=1e-5)


def test_the_plan_is_the_cheapest_of_the_regularised_ones():
    cost, epsilon = random_cost(), 0.1
    plan = sinkhorn(cost, epsilon, 3000)

    def objective(p):
        return float((p * cost).sum() + epsilon * torch.xlogy(p, p).sum())

    least = objective(plan)
    assert least == pytest.approx(naive.entropic_objective(cost.numpy(), epsilon), abs=1e-10)
    for seed in range(20):
        # A direction that keeps all sums: rows and columns of the change add up to zero.
        change = torch.randn(7, 5, generator=rng(seed), dtype=torch.float64)
        change = change - change.mean(0) - change.mean(1, keepdim=True) + change.mean()
        step = 0.1 * (plan / change.abs()).min()
        assert objective(plan + step * change) > least


@pytest.mark.parametrize("seed", range(5))
def test_a_small_epsilon_finds_the_assignment(seed):
    cost = random_cost(8, 8, seed)
    rows, columns = linear_sum_assignment(cost.numpy())
    expected = np.zeros((8, 8))
    expected[rows, columns] = 1 / 8
    # Two assignments may cost nearly the same, and an entropic plan is then a mixture; its cost is not far off.
    plan = sinkhorn(cost, 1e-3, 5000)
    assert (plan * cost).sum().item() == pytest.approx(
        (expected * cost.numpy()).sum(), abs=1e-3 * math.log(64)
    )
    # Cheaper where it is best already: every other assignment is dearer by 0.2 at least.
    plan = sinkhorn(cost - 0.8 * torch.from_numpy(expected), 0.005, 5000)
    np.testing.assert_allclose(plan, expected, atol=1e-4)
    # A large one spreads over all pairs.
    assert (sinkhorn(cost, 100.0) - 1 / 64).abs().max() < 1e-3


def test_transposing_the_cost_transposes_the_plan():
    cost = random_cost()
    torch.testing.assert_close(sinkhorn(cost.T, 0.05, 2000), sinkhorn(cost, 0.05, 2000).T)


def test_float32_is_stable_at_a_small_epsilon():
    x, y = vectors(64, 16, 0), vectors(64, 16, 1)
    cost = cosine_cost(x, y)
    exact = sinkhorn(cost, 0.01, 1000)
    plan = sinkhorn(cost.float(), 0.01, 1000)
    assert plan.dtype == torch.float32
    assert torch.isfinite(plan).all()
    assert marginal_error(plan).item() < 1e-4
    torch.testing.assert_close(plan.double(), exact, atol=1e-5, rtol=0)
    # The plain kernel is lost there: exp(-200) is 0 in float32.
    assert (torch.exp(-(cost.float() + 1) / 0.01) == 0).any()
    # Costs far from 0 change nothing.
    torch.testing.assert_close(sinkhorn(cost.float() + 5, 0.01, 1000), plan, atol=1e-4, rtol=0)


def test_half_precision_costs_are_lifted():
    plan = sinkhorn(random_cost().to(torch.bfloat16), 0.05)
    assert plan.dtype == torch.float32


def test_what_is_missing_to_convergence_shows():
    cost = random_cost(64, 64)
    early, late = sinkhorn(cost, 0.005, 1), sinkhorn(cost, 0.005, 5000)
    assert marginal_error(early).item() > 1e-3
    assert marginal_error(late).item() < 1e-4
    # Rows are right even then.
    torch.testing.assert_close(early.sum(1), torch.full((64,), 1 / 64, dtype=torch.float64))


def test_the_plan_is_the_gradient_of_the_objective_in_the_cost():
    cost, epsilon = random_cost(5, 4).numpy(), 0.1
    slopes = naive.finite_differences(lambda c: naive.entropic_objective(c, epsilon), cost, 1e-5)
    np.testing.assert_allclose(sinkhorn(torch.from_numpy(cost), epsilon, 3000), slopes, atol=1e-8)


@pytest.mark.parametrize("center", [True, False])
def test_gradient_in_the_vectors_equals_finite_differences_of_the_objective(center):
    x, y, epsilon = vectors(5, 3), vectors(4, 3, 1), 0.1

    def objective(v):
        return naive.entropic_objective(naive.cosine_cost(v, y.numpy(), center), epsilon)

    expected = naive.finite_differences(objective, x.numpy(), 1e-5)
    x.requires_grad_()
    transport_loss(x, y, epsilon, 3000, center).backward()
    np.testing.assert_allclose(x.grad, expected, atol=1e-7)
    assert np.abs(expected).max() > 1e-3


@pytest.mark.parametrize("center", [True, False])
def test_cost_and_loss_equal_the_naive_ones(center):
    x, y = vectors(6) + 1, vectors(5, seed=1) - 1
    cost = naive.cosine_cost(x.numpy(), y.numpy(), center)
    np.testing.assert_allclose(cosine_cost(x, y, center), cost, atol=1e-12)
    plan = ot.sinkhorn([], [], cost, 0.05, numItermax=20_000, stopThr=1e-13)
    assert transport_loss(x, y, 0.05, 3000, center).item() == pytest.approx((plan * cost).sum(), abs=1e-9)


def test_the_cost_ignores_lengths_and_order_and_centring_ignores_an_offset():
    x, y = vectors(12), vectors(9, seed=1)
    value = transport_loss(x, y, n_iterations=1000)
    lengths = torch.rand(12, 1, generator=rng(2), dtype=torch.float64) + 0.5
    torch.testing.assert_close(transport_loss(x * lengths, y.flip(0), n_iterations=1000), value)
    torch.testing.assert_close(transport_loss(y, x, n_iterations=1000), value)
    # Two cones, as the towers of CLIP: the same content about two axes.
    content = 0.1 * vectors(12, 8, seed=3)
    axes = torch.eye(8, dtype=torch.float64)[:2]
    a, b = content + axes[0], content + axes[1]
    assert transport_loss(a, b, 0.01, 1000, center=False).item() > 0.5
    assert transport_loss(a, b, 0.01, 1000).item() < 0.3


def test_identical_sets_cost_next_to_nothing():
    x = vectors(20, 16)
    assert abs(transport_loss(x, x[torch.randperm(20, generator=rng())], 0.01, 500).item()) < 1e-3
    assert transport_loss(x, vectors(20, 16, seed=1), 0.01, 500).item() > 0.3


def test_descent_moves_one_set_onto_the_other():
    x, y = vectors(16, 4, dtype=torch.float32).requires_grad_(), vectors(16, 4, seed=1, dtype=torch.float32)
    optimizer = torch.optim.Adam([x], lr=0.05)
    start = transport_loss(x, y).item()
    for _ in range(100):
        optimizer.zero_grad()
        transport_loss(x, y).backward()
        optimizer.step()
    assert transport_loss(x, y).item() < 0.3 * start


def test_the_plan_carries_no_gradient_and_vectors_without_direction_no_nan():
    x, y = vectors(6).requires_grad_(), vectors(5, seed=1)
    assert not sinkhorn(cosine_cost(x, y), 0.05).requires_grad
    for degenerate in (torch.zeros(6, 8), torch.ones(6, 8)):
        x = degenerate.requires_grad_()
        value = transport_loss(x, y.float())
        value.backward()
        assert value.item() == pytest.approx(1.0, abs=1e-5)
        assert torch.equal(x.grad, torch.zeros_like(x))


def test_bad_input_is_an_error():
    cost = random_cost()
    for bad in (cost[0], cost[:0], cost[None]):
        with pytest.raises(ShapeError, match="not empty"):
            sinkhorn(bad, 0.1)
    for epsilon in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ConfigError, match="epsilon"):
            sinkhorn(cost, epsilon)
    with pytest.raises(ConfigError, match="n_iterations"):
        sinkhorn(cost, 0.1, 0)
    x = vectors(6)
    for y, center in ((vectors(5, 3), True), (x[:1], True), (x[:0], False), (x[0], False)):
        with pytest.raises(ShapeError, match="transport needs"):
            transport_loss(x, y, center=center)
    assert transport_loss(x[:1], x[:1], center=False).item() == pytest.approx(0, abs=1e-12)


def test_mixed_precision_changes_nothing():
    x, y = vectors(20, dtype=torch.float32), vectors(20, seed=1, dtype=torch.float32)
    value = transport_loss(x, y, 0.01).item()
    with torch.autocast("cpu", torch.bfloat16):
        assert transport_loss(x, y, 0.01).item() == value
