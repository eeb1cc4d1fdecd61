"""The energy score against loops, and what makes it a score: the right distribution has the least."""

import math

import pytest
import torch

from fewgen.errors import ShapeError
from fewgen.losses.energy import energy_score_per_class


def by_loops(draws, real, labels):
    """Mean over rows of the mean distance to samples less half that to the other draws of the class."""
    total = 0.0
    for i in range(len(draws)):
        own = [j for j in range(len(draws)) if labels[j] == labels[i]]
        to_real = sum(float((draws[i] - real[j]).norm()) for j in own) / len(own)
        others = [j for j in own if j != i]
        to_draws = sum(float((draws[i] - draws[j]).norm()) for j in others) / max(1, len(others))
        total += to_real - 0.5 * to_draws
    return total / len(draws)


def rows(n, dim=5, seed=0, scale=1.0, shift=0.0):
    rng = torch.Generator().manual_seed(seed)
    return scale * torch.randn(n, dim, generator=rng, dtype=torch.float64) + shift


def test_it_equals_the_loops_also_for_unequal_classes_and_images():
    labels = torch.tensor([0, 1, 1, 2, 2, 2, 0, 1])
    draws, real = rows(8, 12, seed=1), rows(8, 12, seed=2)
    expected = by_loops(draws, real, labels)
    assert energy_score_per_class(draws, real, labels).item() == pytest.approx(expected, abs=1e-5)
    images = energy_score_per_class(draws.view(8, 3, 2, 2), real.view(8, 3, 2, 2), labels)
    assert images.item() == pytest.approx(expected, abs=1e-5)


def test_a_single_draw_is_scored_by_its_distance_alone():
    score = energy_score_per_class(torch.tensor([[3.0, 4.0]]), torch.zeros(1, 2), torch.tensor([0]))
    assert score.item() == pytest.approx(5.0, abs=1e-4)


@pytest.mark.parametrize(
    "wrong",
    [
        rows(400, seed=3, shift=0.5),  # beside the samples
        rows(400, seed=3, scale=0.2),  # collapsed onto their mean
        rows(400, seed=3, scale=2.0),  # too wide
    ],
    ids=["shifted", "collapsed", "wide"],
)
def test_the_right_distribution_has_the_least_score(wrong):
    labels = torch.zeros(400, dtype=torch.int64)
    real = rows(400, seed=4)
    right = energy_score_per_class(rows(400, seed=3), real, labels)
    assert right < energy_score_per_class(wrong, real, labels) - 0.01


def test_a_squared_error_would_prefer_the_collapsed_draws():
    # The negative control: what the score is for.
    real, right, collapsed = rows(400, seed=4), rows(400, seed=3), rows(400, seed=3, scale=0.2)
    assert (collapsed - real).square().sum(1).mean() < (right - real).square().sum(1).mean()


def test_classes_do_not_mix_and_order_does_not_matter():
    labels = torch.tensor([0] * 10 + [1] * 10)
    real = torch.cat([rows(10, seed=1), rows(10, seed=2, shift=50.0)])
    draws = torch.cat([rows(10, seed=3), rows(10, seed=4, shift=50.0)])
    score = energy_score_per_class(draws, real, labels)
    assert score < 10
    assert energy_score_per_class(draws, real, 1 - labels).item() == pytest.approx(score.item())
    swapped = energy_score_per_class(draws.flip(0), real, labels)
    assert swapped > 50
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    again = energy_score_per_class(draws[order], real[order], labels[order])
    assert again.item() == pytest.approx(score.item())


def test_gradients_are_finite_where_draws_coincide_with_samples():
    real = torch.zeros(4, 3)
    draws = real.clone().requires_grad_()
    energy_score_per_class(draws, real, torch.zeros(4, dtype=torch.int64)).backward()
    assert torch.isfinite(draws.grad).all()


def test_descent_spreads_collapsed_draws_until_they_fit():
    labels = torch.zeros(64, dtype=torch.int64)
    real = rows(64, 2, seed=5).float()
    draws = (0.01 * rows(64, 2, seed=6).float() + 3.0).requires_grad_()
    optimizer = torch.optim.Adam([draws], lr=0.05)
    for _ in range(300):
        optimizer.zero_grad()
        energy_score_per_class(draws, real, labels).backward()
        optimizer.step()
    assert draws.mean(0).sub(real.mean(0)).abs().max() < 0.15
    assert math.isclose(float(draws.detach().std()), float(real.std()), rel_tol=0.15)


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ShapeError, match="shapes"):
        energy_score_per_class(torch.zeros(3, 2), torch.zeros(2, 2), torch.zeros(3, dtype=torch.int64))
