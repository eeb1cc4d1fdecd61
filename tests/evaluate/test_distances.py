import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.reference import naive_metrics as naive

from fewgen.errors import DataError, ShapeError
from fewgen.evaluate.distances import (
    default_k,
    frechet_distance,
    frechet_distance_of_moments,
    kernel_distance,
    kernel_distance_blocks,
    mean_and_covariance,
    nearest_distances,
    neighbour_scores,
)

STORED = json.loads((Path(naive.__file__).parent / "metrics.json").read_text())["values"]
CASES = sorted(naive.CASES)


def tensors(name):
    return tuple(torch.from_numpy(a) for a in naive.sample_case(name))


def draws(n, d, seed, shift=0.0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + shift


# --------------------------------------------------------------------------------------------- Frechet


@pytest.mark.parametrize("case", CASES)
def test_frechet_equals_stored_and_scipy_values(case):
    x, y = tensors(case)
    found = frechet_distance(x, y)
    assert found == pytest.approx(STORED[case]["frechet_by_eigenvalues"], rel=1e-4)
    if case == "many":  # SciPy's matrix root is exact only where the product is not singular
        assert found == pytest.approx(naive.frechet_by_matrix_root(*naive.sample_case(case)), rel=1e-4)


def test_frechet_equals_torchmetrics():
    from torchmetrics.image.fid import _compute_fid

    for case in CASES:
        x, y = tensors(case)
        theirs = _compute_fid(x.mean(0), x.T.cov(), y.mean(0), y.T.cov())
        assert frechet_distance(x, y) == pytest.approx(float(theirs), rel=1e-4)


def test_elementwise_root_is_caught():
    for case in CASES:
        wrong = naive.frechet_wrong(*naive.sample_case(case))
        assert abs(wrong - STORED[case]["frechet_by_eigenvalues"]) > 1e-3 * abs(wrong)


def test_frechet_of_known_gaussians():
    # Commuting covariances: |m|^2 + sum (s_x - s_y)^2.
    mean_x, mean_y = torch.zeros(3), torch.tensor([1.0, 2.0, 2.0])
    x, y = torch.diag(torch.tensor([1.0, 4.0, 9.0])), torch.diag(torch.tensor([4.0, 4.0, 0.0]))
    assert frechet_distance_of_moments(mean_x, x, mean_y, y) == pytest.approx(9 + 1 + 0 + 9)


@pytest.mark.parametrize("n", [2, 10, 500])
def test_distance_to_itself_is_zero(n):
    x = draws(n, 64, seed=n)
    assert frechet_distance(x, x.flip(0)) == pytest.approx(0, abs=1e-10)
    assert kernel_distance(x, x, unbiased=False) == pytest.approx(0, abs=1e-12)
    nearest, index = nearest_distances(x, x)
    assert nearest.max() == 0
    assert torch.equal(index, torch.arange(n))


def test_constant_features_have_a_distance():
    x, y = torch.ones(5, 8), 3 * torch.ones(7, 8)
    assert frechet_distance(x, y) == pytest.approx(8 * 4)


@given(n=st.integers(2, 12), m=st.integers(2, 12), d=st.integers(1, 24), seed=st.integers(0, 99))
def test_small_samples_give_finite_symmetric_distances(n, m, d, seed):
    x, y = draws(n, d, seed), draws(m, d, seed + 1000, shift=0.5)
    for distance in (frechet_distance, kernel_distance):
        assert math.isfinite(distance(x, y))
        assert distance(x, y) == pytest.approx(distance(y, x), rel=1e-9, abs=1e-9)
    assert frechet_distance(x, y) >= 0


def test_order_and_blocks_change_nothing():
    x, y = draws(301, 64, 0), draws(257, 64, 1, shift=0.1)
    i = torch.randperm(301, generator=torch.Generator().manual_seed(2))
    j = torch.randperm(257, generator=torch.Generator().manual_seed(3))
    assert frechet_distance(x, y) == pytest.approx(frechet_distance(x[i], y[j]), rel=1e-10)
    for rows in (1, 7, 1000):
        assert kernel_distance(x, y) == pytest.approx(kernel_distance(x[i], y[j], block_rows=rows), rel=1e-9)
        assert neighbour_scores(x, y) == neighbour_scores(x[i], y[j], block_rows=rows)


# ------------------------------------------------------------------------------------------------- KID


@pytest.mark.parametrize("case", CASES)
def test_kernel_distance_equals_both_hand_formulas(case):
    x, y = tensors(case)
    assert kernel_distance(x, y) == pytest.approx(STORED[case]["kernel_distance"], rel=1e-4)
    biased = kernel_distance(x, y, unbiased=False)
    assert biased == pytest.approx(STORED[case]["kernel_distance_biased"], rel=1e-4)
    # The two differ by far more than the tolerance, so that one cannot pass for the other.
    assert abs(biased - STORED[case]["kernel_distance"]) > 1e-2 * abs(biased)


def test_kernel_distance_equals_torchmetrics():
    from torchmetrics.image.kid import poly_mmd

    for case in CASES:
        x, y = tensors(case)
        n = min(len(x), len(y))  # theirs needs equal counts
        theirs = poly_mmd(x[:n], y[:n], degree=3, gamma=None, coef=1.0)
        assert kernel_distance(x[:n], y[:n]) == pytest.approx(float(theirs), rel=1e-4)


def test_unbiased_estimate_is_zero_on_average():
    values = torch.tensor([kernel_distance(draws(20, 4, s), draws(20, 4, s + 500)) for s in range(200)])
    error = values.std() / len(values) ** 0.5
    assert abs(values.mean()) < 3 * error
    assert (values < 0).any()


def test_blocks_average_to_the_whole():
    x, y = draws(200, 8, 0), draws(200, 8, 1, shift=0.3)
    blocks = kernel_distance_blocks(x, y, block_size=50, n_blocks=400, rng=torch.Generator().manual_seed(0))
    assert blocks.shape == (400,)
    error = float(blocks.std()) / 400**0.5
    assert error < 0.03 * kernel_distance(x, y)
    assert float(blocks.mean()) == pytest.approx(kernel_distance(x, y), abs=3 * error)
    with pytest.raises(DataError, match="at most 200"):
        kernel_distance_blocks(x, y, block_size=201, n_blocks=1, rng=torch.Generator())


# ------------------------------------------------------------------------------------------ neighbours


@pytest.mark.parametrize("case", CASES)
def test_neighbour_scores_equal_loops(case):
    real, generated = tensors(case)
    found = neighbour_scores(real, generated, k=3)
    for name in ("precision", "recall", "density", "coverage"):
        assert getattr(found, name) == pytest.approx(STORED[case][name], abs=1e-12)


def test_copies_cover_and_noise_does_not():
    real = draws(300, 8, 0)
    copies = neighbour_scores(real, real)
    assert (copies.precision, copies.coverage) == (1.0, 1.0)
    far = neighbour_scores(real, draws(300, 8, 1, shift=50.0))
    assert (far.precision, far.recall, far.density, far.coverage) == (0, 0, 0, 0)


def test_duplicated_images_still_count():
    real = draws(10, 4, 0).repeat_interleave(6, dim=0)
    found = neighbour_scores(real, real[::6].repeat(6, 1), k=5)
    assert (found.precision, found.recall, found.coverage) == (1.0, 1.0, 1.0)


def test_k_adapts_to_small_samples():
    assert [default_k(n) for n in (2, 3, 4, 30, 100, 10_000)] == [1, 2, 3, 3, 5, 5]
    assert neighbour_scores(draws(2, 3, 0), draws(2, 3, 1)).k == 1


# ------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize("figure", [frechet_distance, kernel_distance, neighbour_scores])
def test_bad_features_are_named(figure):
    good = draws(5, 4, 0)
    with pytest.raises(DataError, match="at least 2"):
        figure(good, good[:1])
    with pytest.raises(ShapeError, match="4 features"):
        figure(good, draws(5, 3, 0))
    broken = good.clone()
    broken[1, 2] = float("nan")
    with pytest.raises(DataError, match="1 of 5"):
        figure(broken, good)
    with pytest.raises(ShapeError):
        figure(good[0], good)


def test_k_beyond_the_samples_is_refused():
    with pytest.raises(DataError, match="between 1 and 4"):
        neighbour_scores(draws(5, 3, 0), draws(9, 3, 1), k=5)


def test_moments_must_fit():
    mean, covariance = mean_and_covariance(draws(5, 4, 0))
    assert np.allclose(covariance, np.cov(draws(5, 4, 0).numpy(), rowvar=False))
    with pytest.raises(ShapeError):
        frechet_distance_of_moments(mean, covariance, mean[:2], covariance)
