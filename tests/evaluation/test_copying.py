"""Nearest training images against a plain search; the tests for copies against enumeration and simulation."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from tests.reference import naive_copying as naive
from torch.nn import functional

from fewgen.data import load_images
from fewgen.errors import DataError, ShapeError
from fewgen.evaluation import copying
from fewgen.evaluation.copying import (
    MAX_SIDE,
    Aligner,
    Nearest,
    authenticity,
    c_t,
    clear_copies,
    feature_scores,
    reduced,
    tail_rank,
    tail_test,
    worst,
)


@pytest.fixture(scope="module")
def digits():
    """150 grey digits of 28 x 28 pixels, classes in turn."""
    return load_images("digits").shots(15, 0).images


def smooth(n, shape, seed):
    """Random images with large spots, so that a rotation by a few degrees is a small change."""
    channels, height, width = shape
    rng = torch.Generator().manual_seed(seed)
    coarse = torch.rand(n, channels, 4, 4, generator=rng)
    fine = functional.interpolate(coarse, (height, width), mode="bicubic", align_corners=False)
    return (fine * 255).clamp(0, 255).to(torch.uint8)


def noisy(n, shape, seed):
    return torch.randint(0, 256, (n, *shape), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)


def moved(images, down, right, seed=0):
    """Move images; what comes in at the border is noise."""
    height, width = images.shape[2:]
    out = noisy(len(images), tuple(images.shape[1:]), seed)
    rows = slice(max(0, down), height + min(0, down)), slice(max(0, -down), height - max(0, down))
    columns = slice(max(0, right), width + min(0, right)), slice(max(0, -right), width - max(0, right))
    out[:, :, rows[0], columns[0]] = images[:, :, rows[1], columns[1]]
    return out


def rotated(images, degrees):
    turned = [naive.turned(x, degrees) for x in images.double().numpy()]
    return torch.from_numpy(np.stack(turned)).round().clamp(0, 255).to(torch.uint8)


def words(aligner, found):
    return [aligner.transforms[i] for i in found.transform.tolist()]


# ------------------------------------------------------------------------------------- nearest images

CASES = {
    "grey noise, small": ((1, 9, 9), noisy),
    "colour noise, higher than wide": ((3, 12, 10), noisy),
    "colour spots, wide": ((3, 11, 18), smooth),
    "grey spots, margin 2": ((1, 17, 16), smooth),
    "colour spots, reduced": ((3, 40, 56), smooth),
    "grey noise, reduced to a strip": ((1, 90, 9), noisy),
}


@pytest.mark.parametrize("case", CASES)
def test_equals_the_plain_search(case):
    shape, make = CASES[case]
    train = make(14, shape, 1)
    queries = torch.cat([make(2, shape, 2), train[3:4].flip(3), rotated(train[5:6], 8.0)])
    agrees_with_the_plain_search(train, queries)


def test_equals_the_plain_search_on_real_images(digits):
    # 0, 15, 30 ...: one image of each class first, the queries from their middle.
    train = digits[torch.arange(0, 150, 11)]
    queries = torch.cat([digits[[1, 52, 97]], moved(train[4:5], 1, -2), rotated(train[6:7], -7.0)])
    agrees_with_the_plain_search(train, queries)


def agrees_with_the_plain_search(train, queries):
    aligner = Aligner(train, n_candidates=len(train))
    found = aligner.nearest(queries)
    expected = naive.nearest(train.numpy(), queries.numpy())
    assert found.index.tolist() == [one.index for one in expected]
    assert words(aligner, found) == [one.transform for one in expected]
    assert found.distance.tolist() == pytest.approx([one.distance for one in expected], abs=1e-4)
    assert found.others.tolist() == pytest.approx([one.others for one in expected], abs=1e-4)
    assert found.score.tolist() == pytest.approx([one.score for one in expected], abs=1e-4)
    assert found.distance.dtype == found.score.dtype == torch.float64
    assert bool((found.score >= 0).all())
    assert bool((found.score <= 1).all())


@pytest.mark.parametrize("n_train", [2, 3, 14])
def test_excluded_images_are_not_compared(n_train):
    train = smooth(n_train, (1, 9, 9), 1)
    own = torch.arange(n_train)
    found = Aligner(train).nearest(train, exclude=own)
    expected = naive.nearest(train.numpy(), train.numpy(), exclude=own.tolist())
    assert bool((found.index != own).all())
    assert found.index.tolist() == [one.index for one in expected]
    assert found.distance.tolist() == pytest.approx([one.distance for one in expected], abs=1e-4)
    assert found.score.tolist() == pytest.approx([one.score for one in expected], abs=1e-4)
    if n_train == 2:  # nothing is next, so nothing is nearer than the next ones
        assert found.score.tolist() == [1.0, 1.0]


def test_default_candidates_find_what_the_whole_search_finds_of_copies(digits):
    chosen = torch.arange(3, 150, 9)
    source = digits[chosen]
    copies = {
        "exact": source,
        "mirrored": source.flip(3),
        "moved": moved(source, 2, -2),
        "mirrored and moved": moved(source.flip(3), -1, 2),
        "turned": rotated(source, 10.0),
        "turned and moved": moved(rotated(source, -7.0), 1, 1),
        "darker": (source.double() * 0.6 + 20).round().to(torch.uint8),
    }
    quick, whole = Aligner(digits), Aligner(digits, n_candidates=len(digits))
    assert quick.n_candidates < whole.n_candidates
    for name, queries in copies.items():
        found, expected = quick.nearest(queries), whole.nearest(queries)
        assert found.index.tolist() == expected.index.tolist() == chosen.tolist(), name
        assert torch.allclose(found.distance, expected.distance, atol=1e-6), name
        assert words(quick, found) == words(whole, expected), name
        # The next ones may be others: the coarse search only has to be near.
        assert torch.allclose(found.score, expected.score, atol=0.05), name


@pytest.mark.parametrize("size", [8, 12, 16, 20])
def test_candidates_of_small_images_hold_copies_moved_to_a_corner(size):
    train = load_images("digits", size=size).shots(40, 0).images
    aligner, source = Aligner(train), train[::8]
    for down, right in ((1, 1), (-1, 1)):
        queries = moved(source, down * aligner.margin, right * aligner.margin)
        for asked in (queries, queries.flip(3)):
            found = aligner.nearest(asked)
            assert found.index.tolist() == list(range(0, 400, 8))
            assert found.distance.tolist() == [0.0] * 50


def test_copies_are_far_below_other_real_images(digits):
    train, others = digits[0::2], digits[1::2]
    aligner = Aligner(train)
    usual = aligner.nearest(others).score
    for queries in (rotated(train[:10], 7.0), moved(rotated(train[:10], -4.0), 2, 0)):
        assert float(aligner.nearest(queries).score.max()) < float(usual.min())


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 8, 14), (1, 28, 28), (3, 16, 32)])
@pytest.mark.parametrize("make", [smooth, noisy])
def test_exact_shifted_and_mirrored_copies_have_distance_zero(shape, make):
    train = make(40, shape, 1)
    aligner = Aligner(train)
    m = aligner.margin
    assert m == (2 if min(shape[1:]) >= 16 else 1)
    own = list(range(40))
    for queries, expected in (
        (train, "as it is"),
        (train.flip(3), "mirrored"),
        (moved(train, 1, 0), "shifted +1 down, +0 right"),
        (moved(train, 0, -m), f"shifted +0 down, {-m:+d} right"),
        (moved(train, -m, m), f"shifted {-m:+d} down, {m:+d} right"),
        (moved(train, 1, -1).flip(3), "mirrored, shifted +1 down, -1 right"),
    ):
        found = aligner.nearest(queries)
        assert found.index.tolist() == own, expected
        assert words(aligner, found) == [expected] * 40
        assert found.distance.tolist() == [0.0] * 40, expected
        assert found.score.tolist() == [0.0] * 40, expected
        assert bool((found.others > 0).all())
    # One pixel farther than is searched, or one grey value off: near, but no exact copy.
    assert float(aligner.nearest(moved(train, m + 1, 0)).distance.min()) > 0
    touched = train.clone()
    touched[:, :, shape[1] // 2, shape[2] // 2] ^= 1
    found = aligner.nearest(touched)
    assert found.index.tolist() == own
    assert float(found.distance.min()) > 0
    assert float(found.distance.max()) < 0.1


@pytest.mark.parametrize("shape", [(1, 64, 64), (3, 45, 70)])
def test_large_images_are_reduced(shape):
    train = noisy(12, shape, 1)
    aligner = Aligner(train)
    small = reduced(train)
    assert max(small.shape[2:]) == MAX_SIDE
    assert torch.allclose(small.double(), torch.from_numpy(naive.reduced(train.numpy())), atol=1e-6)
    assert aligner.window == (small.shape[2] - 4, small.shape[3] - 4)
    for queries, expected in ((train, "as it is"), (train.flip(3), "mirrored")):
        found = aligner.nearest(queries)
        assert found.index.tolist() == list(range(12))
        assert found.distance.tolist() == [0.0] * 12
        assert words(aligner, found) == [expected] * 12


def test_small_images_keep_their_size():
    images = noisy(2, (1, 31, 32), 0)
    assert torch.equal(reduced(images), images.float() / 255)


def test_flat_images_give_no_nan():
    flat = torch.tensor([0, 128, 255], dtype=torch.uint8)[:, None, None, None].expand(3, 1, 9, 9)
    train = torch.cat([smooth(12, (1, 9, 9), 1), flat])
    found = Aligner(train, n_candidates=15).nearest(torch.cat([flat, train]))
    for values in (found.distance, found.others, found.score):
        assert bool(torch.isfinite(values).all())
    # All flat images are one image, whatever their grey; they are copies of the flat training images only.
    assert found.score[:3].tolist() == [0.0] * 3
    assert bool((found.index[:3] >= 12).all())
    assert found.distance[3:].tolist() == [0.0] * 15
    # Beside training images that are not flat, a flat one is no copy.
    lone = Aligner(train[:12]).nearest(flat)
    expected = naive.nearest(train[:12].numpy(), flat.numpy())
    assert lone.distance.tolist() == pytest.approx([one.distance for one in expected], abs=1e-4)
    assert float(lone.score.min()) > 0.9


def test_training_images_without_any_contrast():
    train = torch.full((3, 1, 8, 8), 7, dtype=torch.uint8)
    aligner = Aligner(train)
    found = aligner.nearest(torch.cat([train, noisy(2, (1, 8, 8), 0)]))
    assert found.score[:3].tolist() == [0.0] * 3
    assert bool(torch.isfinite(found.score).all())
    assert found.score[3:].tolist() == pytest.approx([1.0, 1.0])


@pytest.mark.parametrize("exclude", [False, True])
def test_blocks_and_order_of_queries_change_nothing(digits, monkeypatch, exclude):
    train = digits[0::3]
    queries = train if exclude else digits[1::3]
    own = torch.arange(50) if exclude else None
    aligner = Aligner(train, n_candidates=20)
    found = aligner.nearest(queries, exclude=own)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(0))
    again = aligner.nearest(queries[order], exclude=None if own is None else own[order])
    same(found, again, order)
    for block in (1, 10**6, 10**9):
        monkeypatch.setattr(copying, "_BLOCK", block)
        same(found, aligner.nearest(queries, exclude=own), torch.arange(50))


def same(found, other, order, index=None):
    assert torch.equal(found.index[order], other.index if index is None else index)
    assert torch.equal(found.transform[order], other.transform)
    assert torch.allclose(found.distance[order], other.distance, rtol=0, atol=1e-9)
    assert torch.allclose(found.score[order], other.score, rtol=0, atol=1e-9)


def test_order_of_the_training_images_changes_the_index_alone(digits):
    train, queries = digits[0::2], digits[1::2]
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))
    found, other = Aligner(train).nearest(queries), Aligner(train[order]).nearest(queries)
    same(found, other, torch.arange(len(queries)), order[other.index])


def test_refused():
    train = noisy(3, (1, 8, 8), 0)
    with pytest.raises(DataError, match="1 training images"):
        Aligner(train[:1])
    with pytest.raises(ShapeError, match="too small"):
        Aligner(noisy(3, (1, 3, 9), 0))
    aligner = Aligner(train)
    for other in ((3, 8, 8), (1, 8, 9), (1, 16, 16)):
        with pytest.raises(ShapeError, match="shape"):
            aligner.nearest(noisy(2, other, 0))
    with pytest.raises(DataError, match="no images"):
        aligner.nearest(train[:0])


def test_one_transform_for_each_mirror_rotation_and_shift():
    for side, n in ((8, 9), (16, 25)):
        transforms = Aligner(noisy(2, (1, side, side), 0)).transforms
        assert len(transforms) == len(set(transforms)) == 2 * 12 * n


def test_turned_and_scaled_copies_are_found(digits):
    chosen = torch.arange(3, 150, 9)
    source, others = digits[chosen], digits[torch.arange(1, 150, 9)]
    train = digits[[i for i in range(150) if i % 9 != 1]]
    aligner = Aligner(train)
    usual = aligner.nearest(others).score
    for k, turn in ((1, "270"), (2, "180"), (3, "90")):
        for queries, mirror in ((source, ""), (source.flip(3), "mirrored, ")):
            found = aligner.nearest(queries.rot90(k, (2, 3)))
            assert found.distance.tolist() == [0.0] * len(chosen)
            assert words(aligner, found) == [
                f"{mirror}turned +{turn if not mirror or k == 2 else 360 - int(turn)} degrees"
            ] * len(chosen)
    for scale in (0.82, 0.87, 1.15, 1.2):
        size = round(28 * scale)
        resized = functional.interpolate(source.float(), (size, size), mode="bilinear", antialias=True)
        edge = abs(28 - size) // 2
        if size > 28:
            made = resized[:, :, edge : edge + 28, edge : edge + 28]
        else:
            made = functional.pad(resized, (edge, 28 - size - edge) * 2)
        found = aligner.nearest(made.round().to(torch.uint8))
        assert float((found.score < usual.min()).double().mean()) > 0.9, scale


# ------------------------------------------------------------------------------------------ tail test


def scores_with(count, n_generated, n_held_out):
    """Scores of which `count` generated ones lie below the threshold."""
    held_out = torch.arange(1.0, n_held_out + 1)
    generated = torch.full((n_generated,), float(n_held_out + 1))
    generated[:count] = 0.5
    return generated, held_out


@pytest.mark.parametrize(
    ("n", "rank"),
    [(1, 1), (10, 1), (39, 1), (40, 2), (59, 2), (60, 3), (80, 4), (100, 5), (599, 5), (600, 6), (1000, 10)],
)
def test_tail_rank(n, rank):
    assert tail_rank(n) == rank


@pytest.mark.parametrize(("n", "m"), [(1, 1), (4, 5), (6, 3), (2, 40), (3, 41), (2, 61)])
def test_p_value_equals_the_share_of_all_orders(n, m):
    for count in range(n + 1):
        found = tail_test(*scores_with(count, n, m))
        assert found.p_value == pytest.approx(naive.orders_at_least(count, found.rank, n, m), abs=1e-12)
        assert found.share == count / n


@pytest.mark.parametrize(("n", "m"), [(30, 20), (100, 100), (50, 200)])
def test_false_alarms_of_simulated_equal_scores(n, m):
    p_of_count = np.array([tail_test(*scores_with(count, n, m)).p_value for count in range(n + 1)])
    rng = np.random.default_rng(0)
    simulated = 20_000
    pooled = rng.random((simulated, n + m))
    threshold = np.sort(pooled[:, n:], axis=1)[:, tail_rank(m) - 1]
    counts = (pooled[:, :n] < threshold[:, None]).sum(axis=1)
    for k in range(1, n, 5):
        share, error = p_of_count[k], math.sqrt(p_of_count[k] * (1 - p_of_count[k]) / simulated)
        assert (counts >= k).mean() == pytest.approx(share, abs=4 * error + 1e-3)
    for alpha in (0.001, 0.005, 0.05, 0.3, 0.9):
        error = math.sqrt(alpha * (1 - alpha) / simulated)
        assert (p_of_count[counts] <= alpha).mean() <= alpha + 3 * error
    # The share that real images are expected to have.
    assert counts.mean() / n == pytest.approx(tail_test(*scores_with(0, n, m)).expected, rel=0.03)


def test_a_test_that_ignores_the_uncertain_threshold_would_fail_the_simulation():
    """Negative control of the simulation: the binomial law at the expected share alarms too often."""
    n, m = 100, 20
    rng = np.random.default_rng(0)
    pooled = rng.random((4_000, n + m))
    counts = (pooled[:, :n] < pooled[:, n:].min(axis=1)[:, None]).sum(axis=1)
    assert (stats.binom.sf(counts - 1, n, 1 / (m + 1)) <= 0.05).mean() > 0.1


@pytest.mark.parametrize(("n", "m"), [(1, 5), (10, 10), (60, 40), (200, 200)])
@pytest.mark.parametrize("alpha", [0.005, 0.05, 0.4])
def test_detectable_is_the_smallest_count(n, m, alpha):
    p_values = [tail_test(*scores_with(count, n, m)).p_value for count in range(n + 1)]
    assert p_values == sorted(p_values, reverse=True)
    enough = [count for count, p in enumerate(p_values) if p < alpha]
    found = tail_test(*scores_with(0, n, m), alpha=alpha).detectable
    assert found == (enough[0] / n if enough else None)


def test_equal_scores_are_no_copies():
    held_out = torch.ones(10)
    found = tail_test(torch.ones(50), held_out)
    assert (found.share, found.p_value) == (0.0, 1.0)
    found = tail_test(torch.zeros(50), held_out)
    assert found.share == 1.0
    assert found.p_value < 1e-6
    assert found.low < 1.0 == found.high
    assert (found.n_generated, found.n_held_out, found.threshold) == (50, 10, 1.0)


@pytest.mark.parametrize("test", [tail_test, clear_copies, c_t])
def test_scores_that_cannot_be_compared(test):
    good = torch.tensor([0.5, 0.7, 0.9])
    for bad, what in ((good[:0], "no"), (torch.tensor([0.5, math.nan]), "NaN"), (good * math.inf, "inf")):
        with pytest.raises(DataError, match=what):
            test(bad, good)
        with pytest.raises(DataError, match=what):
            test(good, bad)
    with pytest.raises(ShapeError):
        test(good[:, None], good)


# --------------------------------------------------------------------------------------- other tests


def test_clear_copies_lie_as_far_below_the_tail_as_the_tail_below_the_median():
    # 101 values: threshold 0.54 (5th smallest), median 1, smallest 0.5.
    held_out = torch.linspace(0.5, 1.5, 101, dtype=torch.float64)
    bound = 0.54 * 0.54
    generated = torch.tensor([0.0, bound - 1e-6, bound + 1e-6, 0.49, 0.9], dtype=torch.float64)
    found = clear_copies(generated, held_out)
    assert found.which.tolist() == [True, True, False, False, False]
    assert found.p_value == pytest.approx(1 - 0.99**5 - 5 * 0.01 * 0.99**4)
    # Never above the smallest held-out score, whatever the spread.
    flat = torch.full((101,), 0.8, dtype=torch.float64)
    flat[0] = 0.3
    assert clear_copies(torch.tensor([0.29, 0.31]), flat).which.tolist() == [True, False]
    # An exact copy is one among any held-out scores.
    assert clear_copies(torch.zeros(2), torch.zeros(3)).which.tolist() == [True, True]
    assert clear_copies(torch.ones(2), flat).p_value == 1.0


def test_clear_copies_are_rare_among_equal_scores():
    rng = torch.Generator().manual_seed(0)
    alarms = 0
    for _ in range(200):
        pooled = 0.6 + 0.1 * torch.randn(140, generator=rng, dtype=torch.float64)
        alarms += clear_copies(pooled[:100], pooled[100:]).p_value < 0.005
    assert alarms <= 4


@given(
    st.lists(st.integers(0, 6), min_size=1, max_size=30),
    st.lists(st.integers(0, 6), min_size=1, max_size=30),
)
def test_c_t_equals_mann_whitney_with_ties(generated, held_out):
    found = c_t(torch.tensor(generated, dtype=torch.float64), torch.tensor(held_out, dtype=torch.float64))
    if len({*generated, *held_out}) == 1:
        assert (found.z, found.p_value, found.area) == (0.0, 0.5, 0.5)
        return
    expected = stats.mannwhitneyu(
        generated, held_out, alternative="less", method="asymptotic", use_continuity=False
    )
    assert found.p_value == pytest.approx(float(expected.pvalue), abs=1e-12)
    assert found.area == pytest.approx(float(expected.statistic) / (len(generated) * len(held_out)))
    above = sum((g > h) + 0.5 * (g == h) for g in generated for h in held_out)
    assert found.area == pytest.approx(above / (len(generated) * len(held_out)))
    assert (found.z < 0) == (found.area < 0.5)


def test_authenticity_against_a_loop():
    rng = torch.Generator().manual_seed(0)
    usual = 0.5 + 0.5 * torch.rand(12, generator=rng, dtype=torch.float64)

    def some(n, scale):
        distance = scale * torch.rand(n, generator=rng, dtype=torch.float64)
        index = torch.randint(0, 12, (n,), generator=rng)
        return Nearest(distance, index, torch.ones(n), torch.zeros(n, dtype=torch.int64))

    near, real = some(40, 0.9), some(30, 2.0)
    found = authenticity(near, real, usual)
    share, null = (
        naive.authentic_share(one.distance.numpy(), one.index.numpy(), usual.numpy()) for one in (near, real)
    )
    assert (found.share, found.null) == (share, null)
    hits = round(40 * share + 30 * null)
    assert found.p_value == pytest.approx(stats.hypergeom.cdf(round(40 * share), 70, hits, 40))
    assert found.p_value < 0.005 < authenticity(real, real, usual).p_value
    for pair in ((near, some(0, 1.0)), (some(0, 1.0), real)):
        with pytest.raises(DataError, match="0 "):
            authenticity(*pair, usual)


@pytest.mark.parametrize("n_train", [2, 7, 11, 30])
def test_feature_scores_against_a_loop(n_train):
    stream = np.random.default_rng(n_train)
    train, queries = stream.normal(size=(n_train, 5)), stream.normal(size=(9, 5))
    queries[4] = train[1]
    found = feature_scores(torch.from_numpy(queries), torch.from_numpy(train))
    expected = [naive.feature_score(query, train) for query in queries]
    assert found.tolist() == pytest.approx(expected, abs=1e-9)
    assert float(found[4]) == 0.0
    order = torch.randperm(n_train, generator=torch.Generator().manual_seed(0))
    again = feature_scores(torch.from_numpy(queries).flip(0), torch.from_numpy(train)[order])
    assert torch.allclose(again.flip(0), found, atol=1e-12)


def test_feature_scores_of_repeated_training_images():
    train = torch.tensor([[1.0, 0.0]] * 12)
    # A copy of an image that is there twelve times is a copy; anything else has no single source.
    assert feature_scores(torch.tensor([[1.0, 0.0], [0.0, 0.0]]), train).tolist() == [0.0, 1.0]


def test_feature_scores_refused():
    with pytest.raises(DataError, match="at least 2"):
        feature_scores(torch.ones(3, 2), torch.ones(1, 2))
    with pytest.raises(DataError, match="NaN"):
        feature_scores(torch.full((3, 2), math.nan), torch.ones(4, 2))
    with pytest.raises(ShapeError):
        feature_scores(torch.ones(3, 2), torch.ones(4, 3))


def test_worst_are_the_lowest_in_their_order():
    scores = torch.tensor([0.4, 0.1, 0.4, 0.0, 0.1])
    assert worst(scores, 4) == [3, 1, 4, 0]
    assert worst(scores, 10) == [3, 1, 4, 0, 2]
