import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.reference import naive_metrics as naive

from fewgen.errors import ConfigError, DataError, ShapeError
from fewgen.evaluation import distances
from fewgen.evaluation.distances import (
    _drawn,
    canonical_order,
    default_k,
    frechet_distance,
    frechet_distance_of_moments,
    kernel_distance,
    kernel_distance_blocks,
    kernel_distance_interval,
    kernel_test,
    mean_and_covariance,
    nearest_distances,
    neighbour_radii,
    neighbour_scores,
    per_class,
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


def test_frechet_equals_the_torchmetrics_metric():
    from torchmetrics.image.fid import FrechetInceptionDistance

    class Flat(torch.nn.Module):
        def __init__(self, n):
            super().__init__()
            self.num_features = n

        def forward(self, x):
            return x.flatten(1)

    for case in CASES:
        x, y = tensors(case)
        metric = FrechetInceptionDistance(feature=Flat(x.shape[1]), normalize=True).set_dtype(torch.float64)
        metric.update(x[:, :, None, None], real=True)
        metric.update(y[:, :, None, None], real=False)
        assert frechet_distance(x, y) == pytest.approx(float(metric.compute()), rel=1e-4)


@pytest.mark.parametrize("mistake", [naive.frechet_wrong, naive.frechet_population])
def test_mistakes_in_frechet_are_caught(mistake):
    for case in CASES:
        wrong = mistake(*naive.sample_case(case))
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


def test_order_and_blocks_change_nothing(monkeypatch):
    x, y = draws(301, 64, 0), draws(257, 64, 1, shift=0.1)
    i = torch.randperm(301, generator=torch.Generator().manual_seed(2))
    j = torch.randperm(257, generator=torch.Generator().manual_seed(3))
    assert frechet_distance(x, y) == pytest.approx(frechet_distance(x[i], y[j]), rel=1e-10)
    kernel, neighbours = kernel_distance(x, y), neighbour_scores(x, y)
    monkeypatch.setattr(distances, "BLOCK_ENTRIES", 1)
    for rows in (1, 7, 1000):
        monkeypatch.setattr(distances, "_LEAST_ROWS", rows)
        assert kernel == pytest.approx(kernel_distance(x[i], y[j]), rel=1e-9)
        assert neighbours == neighbour_scores(x[i], y[j])


# ------------------------------------------------------------------------------------------------- KID


@pytest.mark.parametrize("case", CASES)
def test_kernel_distance_equals_the_hand_formula(case):
    x, y = tensors(case)
    assert kernel_distance(x, y) == pytest.approx(STORED[case]["kernel_distance"], rel=1e-4)
    # The biased estimate differs by far more than the tolerance, so that one cannot pass for the other.
    biased = STORED[case]["kernel_distance_biased"]
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


def test_subset_draws_do_not_see_the_order():
    x, y = draws(60, 5, 0), draws(50, 5, 1)
    i, j = (torch.randperm(n, generator=torch.Generator().manual_seed(n)) for n in (60, 50))

    def blocks(a, b):
        return kernel_distance_blocks(a, b, block_size=20, n_blocks=5, rng=torch.Generator().manual_seed(4))

    assert torch.allclose(blocks(x, y), blocks(x[i], y[j]), rtol=1e-9)


@pytest.mark.parametrize(("n", "m"), [(60, 60), (30, 200)])
def test_interval_holds_the_true_distance(n, m):
    # From samples so large that their own error is a tenth of an interval.
    true = kernel_distance(draws(4000, 2, 900), draws(4000, 2, 901, shift=0.7))
    hits, values, halves = 0, [], []
    for s in range(60):
        rng = torch.Generator().manual_seed(s)
        x, y = draws(n, 2, 2 * s), draws(m, 2, 2 * s + 1, shift=0.7)
        found = kernel_distance_interval(x, y, rng, n_blocks=60)
        assert found.block_sizes == (n // 2, m // 2)
        assert found.low < found.mean < found.high
        hits += found.low <= true <= found.high
        values.append(kernel_distance(x, y))
        halves.append((found.high - found.low) / 2)
    assert hits >= 51  # 95 % of 60 is 57; fewer than 51 has probability below 0.5 %
    assert np.mean(halves) == pytest.approx(1.96 * np.std(values), rel=0.35)  # nor is it idly wide


def test_interval_shrinks_with_the_samples():
    def width(n, **settings):
        rng = torch.Generator().manual_seed(0)
        found = kernel_distance_interval(draws(n, 2, 0), draws(n, 2, 1, shift=1.0), rng, **settings)
        return found.high - found.low

    assert width(400) == pytest.approx(width(100) / 2, rel=0.5)
    # Small blocks are scaled to the whole set.
    assert width(1000, max_block=100) == pytest.approx(width(1000), rel=0.35)
    with pytest.raises(DataError, match="at least 4"):
        width(3)
    with pytest.raises(ConfigError, match="two blocks"):
        width(10, n_blocks=1)


# --------------------------------------------------------------------------------------------- KID test


def classes_of(n, k):
    return torch.arange(n) % k


@pytest.mark.parametrize("case", CASES)
def test_kernel_test_shows_the_kernel_distance(case):
    x, y = tensors(case)
    found = kernel_test(x, y, rng=torch.Generator().manual_seed(0), n_permutations=5)
    assert found.value == pytest.approx(STORED[case]["kernel_distance"], rel=1e-9)
    assert (found.n_x, found.n_y, found.n_permutations) == (len(x), len(y), 5)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("with_labels", [False, True])
def test_p_value_approaches_the_exact_one(seed, with_labels):
    x, y = draws(5, 3, seed), draws(4, 3, seed + 50, shift=0.6)
    labels_x, labels_y = torch.tensor([0, 0, 0, 1, 1]), torch.tensor([0, 0, 1, 1])
    labels = {"labels_x": labels_x, "labels_y": labels_y} if with_labels else {}
    found = kernel_test(x, y, rng=torch.Generator().manual_seed(0), n_permutations=4000, **labels)
    exact = naive.exact_kernel_p_value(
        x.numpy(), y.numpy(), *((labels_x.numpy(), labels_y.numpy()) if with_labels else ())
    )
    assert found.p_value == pytest.approx(exact, abs=0.03)  # four standard errors of 4,000 permutations


def test_p_values_are_uniform_where_nothing_differs():
    from scipy.stats import kstest

    for settings in ({}, {"labels_x": classes_of(20, 2), "labels_y": classes_of(30, 2)}):
        p = [
            kernel_test(
                draws(20, 4, s),
                draws(30, 4, s + 5000),
                rng=torch.Generator().manual_seed(s),
                n_permutations=99,
                **settings,
            ).p_value
            for s in range(200)
        ]
        # Steps of 0.01 move a uniform value by 0.005 on average.
        assert kstest(np.array(p) - 0.005, "uniform").pvalue > 0.005
        assert np.mean(np.array(p) <= 0.05) <= 0.05 + 3 * (0.05 * 0.95 / 200) ** 0.5


def test_p_value_is_tiny_under_a_shift_or_another_scale():
    rng = torch.Generator().manual_seed(0)
    assert kernel_test(draws(60, 8, 0), draws(60, 8, 1, shift=0.8), rng=rng).p_value == 1 / 201
    assert kernel_test(draws(60, 8, 0), 2 * draws(60, 8, 1), rng=rng).p_value == 1 / 201


def test_copies_are_more_alike_than_chance():
    x = draws(50, 6, 0)
    found = kernel_test(x, x, rng=torch.Generator().manual_seed(0))
    assert found.p_value == 1.0
    assert found.value < 0


def test_constant_samples_differ_by_nothing():
    found = kernel_test(torch.ones(5, 3), torch.ones(6, 3), rng=torch.Generator().manual_seed(0))
    assert (found.value, found.p_value) == (pytest.approx(0, abs=1e-12), 1.0)


@pytest.mark.parametrize("max_per_set", [1000, 40])
def test_kernel_test_sees_neither_order_nor_global_state(max_per_set):
    x, y = draws(90, 4, 0), draws(70, 4, 1, shift=0.2)
    x[7] = x[3]  # equal samples of different classes
    labels_x, labels_y = classes_of(90, 3), classes_of(70, 3)
    i, j = (torch.randperm(n, generator=torch.Generator().manual_seed(n)) for n in (90, 70))

    def test(a, labels_a, b, labels_b):
        return kernel_test(
            a,
            b,
            rng=torch.Generator().manual_seed(3),
            max_per_set=max_per_set,
            labels_x=labels_a,
            labels_y=labels_b,
        )

    first, second = test(x, labels_x, y, labels_y), test(x[i], labels_x[i], y[j], labels_y[j])
    assert first == second
    assert first.n_x == min(90, max_per_set)
    assert 0 < first.p_value < 1


def test_unequal_class_counts_are_no_difference_with_labels():
    # Two classes far apart; x holds more of the first, y more of the second.
    labels_x, labels_y = (torch.arange(60) >= 45).long(), (torch.arange(60) >= 15).long()
    x = draws(60, 4, 0) + 4.0 * labels_x[:, None]
    y = draws(60, 4, 1) + 4.0 * labels_y[:, None]
    rng = torch.Generator().manual_seed(0)
    assert kernel_test(x, y, rng=rng).p_value < 0.01
    assert kernel_test(x, y, rng=rng, labels_x=labels_x, labels_y=labels_y).p_value > 0.05


def test_subsets_keep_the_classes_in_proportion():
    labels = (torch.arange(400) >= 300).long()
    features, drawn = _drawn(draws(400, 2, 0), labels, 100, torch.Generator().manual_seed(0))
    assert drawn.bincount().tolist() == [75, 25]
    assert len(features.unique(dim=0)) == 100
    another, _ = _drawn(draws(400, 2, 0), labels, 100, torch.Generator().manual_seed(1))
    assert not torch.equal(features, another)


def test_kernel_test_refuses_what_it_cannot_test():
    x, rng = draws(6, 3, 0), torch.Generator()
    with pytest.raises(DataError, match="at least 2"):
        kernel_test(x, x[:1], rng=rng)
    with pytest.raises(DataError, match="share no class"):
        kernel_test(x, x, rng=rng, labels_x=torch.zeros(6), labels_y=torch.ones(6))
    with pytest.raises(ShapeError, match="labels_y"):
        kernel_test(x, x, rng=rng, labels_x=torch.zeros(6), labels_y=torch.zeros(5))
    with pytest.raises(ConfigError, match="together"):
        kernel_test(x, x, rng=rng, labels_x=torch.zeros(6))
    with pytest.raises(ConfigError, match="one permutation"):
        kernel_test(x, x, rng=rng, n_permutations=0)


@given(n=st.integers(1, 30), d=st.integers(1, 4), seed=st.integers(0, 99))
def test_canonical_order_sorts_rows_as_numbers(n, d, seed):
    rng = torch.Generator().manual_seed(seed)
    x = torch.randint(-2, 3, (n, d), generator=rng).double() * 0.7
    labels = torch.randint(0, 3, (n,), generator=rng)
    order = canonical_order(x, labels).tolist()
    assert sorted(order) == list(range(n))
    rows = [(int(labels[i]), *x[i].tolist()) for i in order]
    assert rows == sorted(rows)
    # Both zeros are one number.
    assert canonical_order(torch.tensor([[0.0, 1.0], [-0.0, 0.0]])).tolist() == [1, 0]


# ------------------------------------------------------------------------------------------ neighbours


@pytest.mark.parametrize("case", CASES)
def test_neighbour_scores_equal_loops(case):
    real, generated = tensors(case)
    found = neighbour_scores(real, generated, k=3)
    for name in ("precision", "recall", "density", "coverage"):
        assert getattr(found, name) == pytest.approx(STORED[case][name], abs=1e-12)


@pytest.mark.parametrize("wrong", [{"k": 2}, {"k": 4}, {"k": 3, "include_self": True}])
def test_another_neighbour_is_caught(wrong):
    differ = 0
    for case in CASES:
        values = naive.neighbours_by_loops(*naive.sample_case(case), **wrong)
        differ += any(abs(values[name] - STORED[case][name]) > 1e-3 for name in values)
    assert differ == len(CASES)


def test_nearest_distances_and_radii_equal_loops():
    x, y = tensors("unequal")
    nearest, index = nearest_distances(y, x)
    table = torch.cdist(y, x, compute_mode="donot_use_mm_for_euclid_dist")
    assert torch.allclose(nearest, table.min(dim=1).values, rtol=1e-9)
    assert torch.equal(index, table.argmin(dim=1))
    table = torch.cdist(y, y, compute_mode="donot_use_mm_for_euclid_dist")
    radii = neighbour_radii(y, 4).sqrt()
    assert torch.allclose(radii, table.sort(dim=1).values[:, 4], rtol=1e-9)  # the first is the point itself


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


# ----------------------------------------------------------------------------------------- class by class


def test_per_class_names_what_it_leaves_out():
    x, y = draws(12, 4, 0), draws(9, 4, 1)
    labels_x = torch.tensor([0] * 6 + [1] * 5 + [2])
    labels_y = torch.tensor([0] * 5 + [2] * 4)
    values, omitted = per_class(kernel_distance, x, labels_x, y, labels_y, ("cat", "dog", "eel"))
    assert values == {"cat": kernel_distance(x[:6], y[:5]), "dog": None, "eel": None}
    assert list(omitted) == ["dog", "eel"]
    assert "y holds 0 samples" in omitted["dog"]
    assert "x holds 1 samples" in omitted["eel"]
    with pytest.raises(DataError, match="number of class names"):
        per_class(kernel_distance, x, labels_x, y, labels_y, ("cat", "dog"))
    with pytest.raises(ShapeError, match="labels_y"):
        per_class(kernel_distance, x, labels_x, y, labels_y[1:], ("cat", "dog", "eel"))
    broken = x.clone()
    broken[0, 0] = math.inf
    with pytest.raises(DataError, match="1 of 12"):  # not an omission: the input is at fault
        per_class(kernel_distance, broken, labels_x, y, labels_y, ("cat", "dog", "eel"))


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


def test_samples_without_features_are_refused():
    with pytest.raises(ShapeError, match="no features"):
        kernel_distance(torch.ones(3, 0), torch.ones(3, 0))


def test_k_beyond_the_samples_is_refused():
    with pytest.raises(DataError, match="between 1 and 4"):
        neighbour_scores(draws(5, 3, 0), draws(9, 3, 1), k=5)


def test_moments_must_fit():
    mean, covariance = mean_and_covariance(draws(5, 4, 0))
    assert np.allclose(covariance, np.cov(draws(5, 4, 0).numpy(), rowvar=False))
    with pytest.raises(ShapeError):
        frechet_distance_of_moments(mean, covariance, mean[:2], covariance)


@pytest.mark.parametrize(("n", "m"), [(2, 3), (5, 30), (30, 5), (30, 30), (8, 8)])
def test_frechet_from_samples_equals_frechet_from_moments(n, m):
    """With fewer samples than features (8) no covariance matrix is made.

    Roots of its zero eigenvalues, which are rounded to 1e-16, are what the moments alone get wrong.
    """
    x, y = draws(n, 8, 0), draws(m, 8, 1) * 2 + 1
    expected = frechet_distance_of_moments(*mean_and_covariance(x), *mean_and_covariance(y))
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-9 if min(n, m) >= 8 else 1e-8)


def test_raw_pixels_of_a_few_images_cost_what_the_images_do():
    """A covariance of 60,000 features would take 29 GB."""
    x = draws(4, 60_000, 0)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-6)
    shifted = frechet_distance(x, x + 0.5)
    assert shifted == pytest.approx(60_000 * 0.25, rel=1e-6)
