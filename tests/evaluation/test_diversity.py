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
from fewgen.evaluation.diversity import (
    collapse_share,
    nearest_within,
    vendi_ratio,
    vendi_score,
    within_class_distance,
)

STORED = json.loads((Path(naive.__file__).parent / "metrics.json").read_text())["values"]
CASES = sorted(naive.CASES)


def case_of(name):
    arrays = (*naive.sample_case(name), *naive.sample_labels(name))
    return tuple(torch.from_numpy(a) for a in arrays)


def draws(n, d, seed):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def permutation(n, seed):
    return torch.randperm(n, generator=rng(seed))


# ---------------------------------------------------------------------------------------- pair distances


@pytest.mark.parametrize("case", CASES)
def test_pair_distances_equal_loops(case):
    _, y, _, labels = case_of(case)
    assert within_class_distance(y, labels, 3).mean == pytest.approx(
        STORED[case]["within_class_distance_y"], rel=1e-9
    )
    nearest = nearest_within(y, labels)
    assert float(nearest.mean()) == pytest.approx(STORED[case]["nearest_within_mean_y"], rel=1e-9)
    loops = naive.nearest_within_by_loops(y.numpy(), labels.numpy())
    assert np.allclose(nearest.numpy(), loops, rtol=1e-9)


def test_within_class_distance_equals_loops():
    rng = torch.Generator().manual_seed(0)
    features = torch.randn(12, 5, generator=rng)
    labels = torch.tensor([0] * 5 + [1] * 6 + [2])
    found = within_class_distance(features, labels, 3)
    for c, n in ((0, 5), (1, 6)):
        rows = features[labels == c].double().numpy()
        pairs = [np.linalg.norm(rows[i] - rows[j]) for i in range(n) for j in range(i)]
        assert found.per_class[c] == pytest.approx(np.mean(pairs), rel=1e-9)
    assert found.per_class[2] is None
    assert found.mean == pytest.approx((found.per_class[0] + found.per_class[1]) / 2)
    assert within_class_distance(torch.ones(4, 2), torch.zeros(4, dtype=torch.int64), 1).mean == 0
    with pytest.raises(DataError, match="no class"):
        within_class_distance(features[:2], torch.tensor([0, 1]), 2)


def test_a_pair_is_two_samples_of_one_class():
    # Negative control: pairs with itself, or of other classes, would change both figures by far.
    features, labels = torch.tensor([[0.0], [1.0], [10.0], [13.0], [0.1]]), torch.tensor([0, 0, 1, 1, 2])
    found = within_class_distance(features, labels, 4)
    assert found.per_class == (1.0, 3.0, None, None)
    assert found.mean == 2.0
    assert nearest_within(features, labels).tolist() == [1.0, 1.0, 3.0, 3.0, math.inf]


def test_repeated_samples_have_distance_zero():
    x = draws(3, 5, 0).repeat_interleave(torch.tensor([2, 1, 3]), dim=0)
    labels = torch.tensor([0, 0, 1, 2, 2, 2])
    assert nearest_within(x, labels).tolist() == [0, 0, math.inf, 0, 0, 0]
    assert within_class_distance(x, labels, 3).per_class == (0.0, None, 0.0)


@given(
    n=st.integers(2, 25),
    d=st.integers(1, 9),
    seed=st.integers(0, 99),
    entries=st.sampled_from([1, 40, 2**19]),
)
def test_order_and_blocks_change_nothing(n, d, seed, entries):
    x, labels = draws(n, d, seed), torch.randint(0, 2, (n,), generator=rng(seed))
    labels[:2] = 0
    real, real_labels = draws(30, d, seed + 100), torch.arange(30) % 2
    i, j = permutation(n, seed), permutation(30, seed)

    def figures(x, labels, real, real_labels):
        return {
            "within": within_class_distance(x, labels, 2).mean,
            "vendi": vendi_score(x),
            "ratio": vendi_ratio(x, real, labels, real_labels, rng=rng(1), n_draws=2).mean,
            "collapse": collapse_share(x, labels, real, real_labels, quantile=0.05).share,
            "drawn": collapse_share(
                x, labels, real, real_labels, quantile=0.05, max_real_per_class=11
            ).thresholds,
        }

    usual = figures(x, labels, real, real_labels)
    nearest = nearest_within(x, labels)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distances, "BLOCK_ENTRIES", entries)
        patch.setattr(distances, "_LEAST_ROWS", 1)
        other = figures(x[i], labels[i], real[j], real_labels[j])
        assert torch.allclose(nearest[i], nearest_within(x[i], labels[i]), rtol=1e-9, atol=1e-9)
    for name, value in usual.items():
        assert other[name] == pytest.approx(value, rel=1e-9, abs=1e-9), name


# ------------------------------------------------------------------------------------------------ Vendi


@pytest.mark.parametrize("case", CASES)
def test_vendi_equals_the_kernel_matrix(case):
    x, y, _, _ = case_of(case)
    # "few" takes the side of the samples, the others that of the features.
    assert vendi_score(x) == pytest.approx(STORED[case]["vendi_x"], rel=1e-6)
    assert vendi_score(y) == pytest.approx(STORED[case]["vendi_y"], rel=1e-6)
    assert abs(naive.vendi_wrong(x.numpy()) - vendi_score(x)) > 0.1


def test_vendi_counts_what_differs():
    directions = torch.eye(6)
    assert vendi_score(directions) == pytest.approx(6)
    assert vendi_score(directions[:3].repeat(5, 1)) == pytest.approx(3)
    assert vendi_score(torch.ones(7, 4)) == pytest.approx(1)
    # The cosine does not see the length of a vector, and a vector of zeros is like its like only.
    assert vendi_score(directions * torch.arange(1.0, 7.0)[:, None]) == pytest.approx(6)
    assert vendi_score(torch.zeros(5, 3)) == pytest.approx(1)
    assert vendi_score(torch.cat([torch.zeros(2, 6), directions[:1].repeat(2, 1)])) == pytest.approx(2)


@given(n=st.integers(2, 30), d=st.integers(1, 30), seed=st.integers(0, 99))
def test_vendi_stays_between_one_and_the_count(n, d, seed):
    x = draws(n, d, seed)
    assert 1 - 1e-9 <= vendi_score(x) <= min(n, d + 1) * (1 + 1e-9)


def test_vendi_ratio_is_about_one_for_real_and_low_for_collapse():
    real, labels = draws(400, 16, 0), torch.arange(400) % 4
    fresh, fresh_labels = draws(120, 16, 1), torch.arange(120) % 4
    found = vendi_ratio(fresh, real, fresh_labels, labels, rng=rng())
    assert found.mean == pytest.approx(1, abs=0.05)
    assert found.counts == (30, 30, 30, 30)
    assert 0 < found.spread < 0.05
    # At unequal counts the real side, with more samples, would score higher.
    assert found.generated == pytest.approx(
        np.mean([vendi_score(fresh[fresh_labels == c]) for c in range(4)])
    )
    assert found.real < np.mean([vendi_score(real[labels == c]) for c in range(4)]) - 0.5
    collapsed = fresh.clone()
    collapsed[fresh_labels == 2] = fresh[2]
    low = vendi_ratio(collapsed, real, fresh_labels, labels, rng=rng())
    assert low.per_class[2] == pytest.approx(1 / 12, abs=0.03)
    assert low.mean < 0.8
    # The larger side is cut down, whichever it is.
    inverse = vendi_ratio(real, fresh, labels, fresh_labels, rng=rng())
    assert inverse.mean == pytest.approx(1 / found.mean, rel=0.02)


def test_vendi_ratio_without_anything_to_draw():
    x, y, labels = draws(12, 5, 0), draws(12, 5, 1), torch.arange(12) % 2
    found = vendi_ratio(x, y, labels, labels, rng=rng(), n_draws=3)
    assert (found.spread, found.n_draws) == (0, 3)
    expected = [vendi_score(x[c::2]) / vendi_score(y[c::2]) for c in (0, 1)]
    assert found.per_class == pytest.approx(expected)
    assert vendi_ratio(x, x, labels, labels, rng=rng()).mean == 1
    capped = vendi_ratio(x, y, labels, labels, rng=rng(), max_per_class=4)
    assert capped.counts == (4, 4)
    assert capped.spread > 0


def test_vendi_ratio_leaves_out_small_classes():
    x, labels = draws(7, 5, 0), torch.tensor([0, 0, 0, 1, 2, 2, 2])
    y, real_labels = draws(7, 5, 1), torch.tensor([0, 0, 0, 1, 1, 1, 2])
    found = vendi_ratio(x, y, labels, real_labels, rng=rng(), n_classes=4)
    assert found.counts == (3, 0, 0, 0)
    assert found.per_class[1:] == (None, None, None)
    with pytest.raises(DataError, match="two samples among both"):
        vendi_ratio(x[3:4], y, labels[3:4], real_labels, rng=rng())
    with pytest.raises(ConfigError, match="n_draws 0"):
        vendi_ratio(x, y, labels, real_labels, rng=rng(), n_draws=0)


# --------------------------------------------------------------------------------------------- collapse


@pytest.mark.parametrize("case", CASES)
def test_collapse_share_equals_loops(case):
    x, y, labels_x, labels_y = case_of(case)
    found = collapse_share(1.3 * x, labels_x, y, labels_y, quantile=0.35)
    assert found.share == pytest.approx(STORED[case]["collapse_share"], abs=1e-12)
    assert found.pooled == ()


def test_collapse_share_is_small_for_real_and_large_for_collapse():
    real, labels = draws(400, 8, 0), torch.arange(400) % 4
    fresh, fresh_labels = draws(240, 8, 1), torch.arange(240) % 4
    natural = collapse_share(fresh, fresh_labels, real, labels)
    assert natural.share < 0.02
    assert natural.n_pairs == 4 * 60 * 59 // 2
    assert collapse_share(real, labels, real, labels).share == pytest.approx(0.01, abs=0.001)
    collapsed = fresh.clone()
    collapsed[fresh_labels == 1] = fresh[1] + 0.01 * draws(60, 8, 2)
    found = collapse_share(collapsed, fresh_labels, real, labels)
    assert found.per_class[1] == 1.0
    assert found.share > 0.25


def test_few_real_images_pool_their_pairs():
    # 10 images of a class are 45 pairs; three classes of different scale are 135.
    scale = torch.tensor([1.0, 5.0, 25.0])
    labels, fresh_labels = torch.arange(30) % 3, torch.arange(300) % 3
    real, fresh = draws(30, 6, 0) * scale[labels][:, None], draws(300, 6, 1) * scale[fresh_labels][:, None]
    found = collapse_share(fresh, fresh_labels, real, labels)
    assert found.pooled == (0, 1, 2)
    pairs = [np.array(naive.pairs_by_loops(real.numpy(), labels.numpy(), c)) for c in range(3)]
    relative = np.quantile(np.concatenate([p / p.mean() for p in pairs]), 0.01, method="lower")
    assert found.thresholds == pytest.approx([relative * p.mean() for p in pairs], rel=1e-9)
    assert max(found.per_class) < 0.06  # in absolute distances class 0 would have collapsed entirely


def test_exact_repetitions_count_even_where_real_images_repeat():
    real = draws(2, 4, 0).repeat(10, 1)
    labels = torch.zeros(20)
    assert collapse_share(real[:1].repeat(5, 1), torch.zeros(5), real, labels).share == 1.0
    found = collapse_share(draws(5, 4, 1), torch.zeros(5), real, labels)
    assert found.thresholds == (0.0,)
    assert found.share == 0.0


def test_collapse_share_needs_enough_pairs():
    x, labels = draws(14, 4, 0), torch.zeros(14)
    with pytest.raises(DataError, match="91 pairs.*least 100.*15 images"):
        collapse_share(x, labels, x, labels)
    assert collapse_share(draws(15, 4, 0), torch.zeros(15), draws(15, 4, 0), torch.zeros(15)).share <= 0.01
    with pytest.raises(DataError, match="no pairs"):
        collapse_share(x, torch.arange(14), draws(15, 4, 0), torch.zeros(15))
    with pytest.raises(ConfigError, match="quantile"):
        collapse_share(x, labels, x, labels, quantile=1.0)


# -------------------------------------------------------------------------------------------- bad input


def test_bad_input_is_named():
    x, labels = draws(6, 4, 0), torch.arange(6) % 2
    broken = x.clone()
    broken[2, 1] = math.nan
    calls = {
        "within": lambda x, labels: within_class_distance(x, labels, 2),
        "nearest": nearest_within,
        "ratio": lambda x, labels: vendi_ratio(x, x, labels, labels, rng=rng()),
        "collapse": lambda x, labels: collapse_share(x, labels, x, labels, quantile=0.5),
    }
    for call in calls.values():
        call(x, labels)
        with pytest.raises(DataError, match="1 of 6"):
            call(broken, labels)
        with pytest.raises(ShapeError, match=r"\(6,\)"):
            call(x, labels[1:])
        with pytest.raises(DataError, match="negative"):
            call(x, labels - 1)
        with pytest.raises(ShapeError):
            call(x[0], labels)
    with pytest.raises(DataError, match="reach to 1"):
        within_class_distance(x, labels, 1)
    with pytest.raises(DataError, match="at least 2"):
        vendi_score(x[:1])
