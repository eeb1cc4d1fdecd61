"""Plans against simulation: the variance formula, the coverage of the interval, the power of paired draws."""

import math

import numpy as np
import pytest
from scipy.stats import ttest_1samp

from fewgen.comparison.planning import plan
from fewgen.errors import ConfigError, DataError
from fewgen.evaluation.planner import (
    between_episode_variance,
    half_width,
    power_of_draws,
    required_draws,
    required_episodes,
    required_queries,
    smallest_gain,
    variance_of_mean,
)


def episodes(a, s, n_episodes, queries, repeats, seed=0):
    """Measured accuracies (repeats, n_episodes); true ones are Beta with mean a and deviation s."""
    rng = np.random.default_rng(seed)
    total = a * (1 - a) / s**2 - 1
    true = rng.beta(a * total, (1 - a) * total, (repeats, n_episodes))
    return rng.binomial(queries, true) / queries


def test_variance_of_the_published_example():
    assert variance_of_mean(0.87, 0.05, 600, 75) == pytest.approx(6.6e-6, rel=0.01)
    assert variance_of_mean(0.87, 0.05, 600, 75) == pytest.approx(6.62e-6, rel=1e-3)
    assert variance_of_mean(0.87, 0.05, 600, 25) == pytest.approx(1.154e-5, rel=1e-3)
    # Without spread it is binomial; with endless queries only the spread is left.
    assert variance_of_mean(0.87, 0.0, 600, 25) == pytest.approx(0.87 * 0.13 / (600 * 25))
    assert variance_of_mean(0.87, 0.05, 600, 10**12) == pytest.approx(0.05**2 / 600)
    # One query tells nothing of the spread: the variance is that of a coin.
    assert variance_of_mean(0.7, 0.2, 10, 1) == pytest.approx(0.021)


@pytest.mark.parametrize(("a", "s", "queries"), [(0.87, 0.05, 75), (0.6, 0.15, 10), (0.5, 0.3, 2)])
def test_variance_against_monte_carlo(a, s, queries):
    means = episodes(a, s, 12, queries, repeats=20_000).mean(axis=1)
    # The relative error of a variance of 20,000 is about 1 %.
    assert means.var(ddof=1) == pytest.approx(variance_of_mean(a, s, 12, queries), rel=0.04)
    assert means.mean() == pytest.approx(a, abs=0.002)


def test_half_width_and_coverage_of_the_interval():
    a, s, n, queries = 0.8, 0.08, 20, 30
    measured = episodes(a, s, n, queries, repeats=10_000, seed=1)
    interval = ttest_1samp(measured, 0, axis=1).confidence_interval(0.95)
    covered = ((interval.low <= a) & (a <= interval.high)).mean()
    assert covered == pytest.approx(0.95, abs=0.01)
    half = (interval.high - interval.low) / 2
    assert math.sqrt((half**2).mean()) == pytest.approx(half_width(a, s, n, queries), rel=0.02)


def test_required_numbers_are_the_smallest():
    a, s = 0.87, 0.05
    for target in (0.003, 0.01, 0.05):
        n = required_episodes(a=a, s=s, queries=75, half_width=target)
        assert half_width(a, s, n, 75) <= target
        assert n == 2 or half_width(a, s, n - 1, 75) > target
        q = required_queries(a=a, s=s, episodes=2 * n, half_width=target)
        assert half_width(a, s, 2 * n, q) <= target * (1 + 1e-9)
        assert q == 1 or half_width(a, s, 2 * n, q - 1) > target
    for n in (1, 7, 600):
        assert required_episodes(a=a, s=s, queries=75, var_target=variance_of_mean(a, s, n, 75)) == n
    for q in (1, 2, 75, 3000):
        assert required_queries(a=a, s=s, episodes=50, var_target=variance_of_mean(a, s, 50, q)) == q


def test_no_number_of_queries_replaces_episodes():
    s, n = 0.05, 100
    alone = s * s / n
    assert required_queries(a=0.87, s=s, episodes=n, var_target=alone) is None
    assert required_queries(a=0.87, s=s, episodes=n, var_target=0.9 * alone) is None
    assert required_queries(a=0.87, s=s, episodes=n, var_target=1.01 * alone) > 1000
    # No spread between episodes: queries alone do it.
    assert required_queries(a=0.87, s=0, episodes=n, var_target=1e-9) == math.ceil(0.87 * 0.13 / n / 1e-9)


def test_between_episode_variance_is_unbiased():
    a, s, queries = 0.7, 0.15, 15
    measured = episodes(a, s, 60, queries, repeats=3000, seed=2)
    found = np.array([between_episode_variance(row, queries) for row in measured])
    assert (found > 0).all()
    error = found.std() / math.sqrt(len(found))
    assert abs(found.mean() - s * s) < 4 * error
    # The uncorrected variance would be far off.
    assert abs(measured.var(axis=1, ddof=1).mean() - s * s) > 40 * error


def test_between_episode_variance_of_few_episodes_is_unbiased_too():
    """With two episodes the mean is uncertain, and m (1 - m) too small by a share that can be seen."""
    a, s, queries = 0.5, 0.35, 2
    measured = episodes(a, s, 2, queries, repeats=40_000, seed=3)
    mean, spread = measured.mean(axis=1), measured.var(axis=1, ddof=1)
    plain = (spread - mean * (1 - mean) / queries) / (1 - 1 / queries)
    added = plain - spread / 2 / queries / (1 - 1 / queries)
    error = added.std() / math.sqrt(len(added))
    assert abs(added.mean() - s * s) < 4 * error
    assert abs(plain.mean() - s * s) > 8 * error  # the control: without what is added back
    for row, wanted in zip(measured[:200], added[:200], strict=True):
        assert between_episode_variance(row, queries) == pytest.approx(max(0.0, wanted))


def test_between_episode_variance_is_clipped_and_checked():
    assert between_episode_variance([0.5, 0.5, 0.5], 10) == 0.0
    for bad, message in (([0.5], "at least two"), ([0.5, 87.0], "entry|divide"), ([0.5, math.nan], "nan")):
        with pytest.raises(DataError, match=message):
            between_episode_variance(bad, 10)
    with pytest.raises(ConfigError, match="2 or more"):
        between_episode_variance([0.5, 0.6], 1)


def test_draws_for_a_gain_of_one_point():
    assert required_draws(0.01, 0.01) == 10
    assert smallest_gain(5, 0.01) == pytest.approx(0.017, abs=0.0005)
    assert smallest_gain(10, 0.01) < 0.01 < smallest_gain(9, 0.01)
    # Only the ratio counts, and the two functions are inverse.
    assert required_draws(1.0, 1.0) == 10
    for n in (2, 4, 30, 400):
        assert required_draws(smallest_gain(n, 0.02) * 1.0001, 0.02) == n
    assert smallest_gain(10, 0.0) == 0.0


@pytest.mark.parametrize(("n", "gain"), [(3, 0.02), (5, 0.017), (10, 0.01), (40, 0.0)])
def test_power_against_simulation(n, gain):
    rng = np.random.default_rng(n)
    seen = ttest_1samp(rng.normal(gain, 0.01, (20_000, n)), 0, axis=1).pvalue < 0.05
    assert seen.mean() == pytest.approx(power_of_draws(gain, n, 0.01), abs=0.012)


def test_power_far_out_is_a_number():
    for gain in (0.1, 1.0, 30.0):
        assert power_of_draws(gain, 10, 0.01) == pytest.approx(1.0)
    assert math.isfinite(smallest_gain(100_000, 0.01))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: variance_of_mean(87, 0.05, 10, 10), "share from 0 to 1"),
        (lambda: variance_of_mean(0.9, 0.4, 10, 10), "largest possible is 0.3"),
        (lambda: variance_of_mean(0.9, 0.1, 0, 10), "episodes must be a whole number of 1"),
        (lambda: variance_of_mean(0.9, 0.1, 10, 2.5), "queries must be a whole number"),
        (lambda: half_width(0.9, 0.1, 1, 10), "2 or more"),
        (lambda: half_width(0.9, 0.1, 5, 10, confidence=95), "between 0 and 1"),
        (lambda: required_episodes(a=0.9, s=0.1, queries=5), "either var_target or half_width"),
        (lambda: required_episodes(a=0.9, s=0.1, queries=5, half_width=0), "above 0"),
        (lambda: required_episodes(a=0.9, s=0.1, queries=5, half_width=1e-9), "more than 10,000,000"),
        (lambda: required_draws(0.01, 0.0), "above 0"),
        (lambda: required_draws(0.01, 0.01, power=0.01), "between level and 1"),
        (lambda: required_draws(1e-9, 1.0), "more than 10,000,000 draws"),
        (lambda: smallest_gain(1, 0.01), "2 or more"),
        (lambda: smallest_gain(5, math.nan), "above 0"),
    ],
)
def test_values_out_of_range_are_named(call, message):
    with pytest.raises(ConfigError, match=message):
        call()


# --------------------------------------------------------------------------------------- fewgen.plan


def test_plan_gives_what_the_planner_gives():
    base = {"accuracy": 0.87, "between_sd": 0.05}
    found = plan(**base, queries=75, half_width=0.01)
    assert found.answer == {"episodes": required_episodes(a=0.87, s=0.05, queries=75, half_width=0.01)}
    assert found.assumed["queries in each episode"] == 75
    found = plan(**base, episodes=200, half_width=0.01)
    assert found.answer == {
        "queries in each episode": required_queries(a=0.87, s=0.05, episodes=200, half_width=0.01)
    }
    assert plan(**base, episodes=600, queries=75).answer["half width"] == half_width(0.87, 0.05, 600, 75)
    assert plan(gain=0.01, sd=0.01).answer == {"draws": 10}
    assert plan(draws=5, sd=0.01).answer == {"smallest gain": smallest_gain(5, 0.01)}
    assert plan(draws=5, sd=0.01, gain=0.02).answer == {"power": power_of_draws(0.02, 5, 0.01)}
    assert plan(gain=0.01, sd=0.01, as_json=True)["answer"] == {"draws": 10}


def test_plan_from_measured_accuracies():
    measured = episodes(0.8, 0.1, 400, 50, repeats=1, seed=3)[0].tolist()
    found = plan(accuracies=measured, queries=50, half_width=0.01)
    assert found.answer["sd between episodes"] == pytest.approx(0.1, rel=0.1)
    assert found.answer["its half width"] == pytest.approx(half_width(0.8, 0.1, 400, 50), rel=0.1)
    assert found.answer["episodes"] == pytest.approx(
        required_episodes(a=0.8, s=0.1, queries=50, half_width=0.01), rel=0.2
    )
    assert "episodes" not in plan(accuracies=np.array(measured), queries=50).answer
    # Without any spread the plan rests on the queries alone, and is no error.
    assert plan(accuracies=[1.0, 1.0], queries=5, half_width=0.01).answer["episodes"] == 2


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "something to go by"),
        ({"gain": 0.01, "accuracy": 0.8}, "one question at a time"),
        ({"gain": 0.01}, "needs sd"),
        ({"accuracy": 0.8, "queries": 5, "half_width": 0.1}, "accuracy and between_sd"),
        ({"accuracy": 0.8, "between_sd": 0.1}, "give half_width"),
        ({"accuracy": 0.8, "between_sd": 0.1, "half_width": 0.1}, "give queries"),
        (
            {"accuracy": 0.8, "between_sd": 0.1, "half_width": 0.1, "queries": 5, "episodes": 5},
            "leave out one",
        ),
        ({"accuracies": [0.8, 0.9]}, "needs queries"),
        ({"accuracies": [0.8, 0.9], "accuracy": 0.8, "queries": 5}, "leave those two out"),
        (
            {"accuracy": 0.87, "between_sd": 0.05, "episodes": 50, "half_width": 0.01},
            "Take at least 99 episodes",
        ),
    ],
)
def test_plan_names_what_is_missing_or_out_of_reach(given, message):
    with pytest.raises(ConfigError, match=message):
        plan(**given)


def test_the_test_level_had_another_name():
    with pytest.warns(FutureWarning, match="alpha is called level now"):
        assert required_draws(0.01, 0.01, alpha=0.1) == required_draws(0.01, 0.01, level=0.1)
