"""Intervals and tests against SciPy, published examples and loops."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from fewgen.errors import ConfigError, DataError
from fewgen.evaluation.statistics import (
    holm,
    isotonic,
    mcnemar_p,
    mean_and_spread,
    paired_difference,
    share_difference,
    shares_by_class,
    student_interval,
    wilson_interval,
)


@pytest.mark.parametrize(("successes", "n"), [(0, 1), (1, 1), (0, 30), (30, 30), (7, 9), (2700, 3000)])
def test_wilson_equals_scipy(successes, n):
    for confidence in (0.9, 0.95, 0.99):
        share = wilson_interval(successes, n, confidence)
        theirs = stats.binomtest(successes, n).proportion_ci(confidence, method="wilson")
        assert (share.low, share.high) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def test_shares_by_class_leave_out_classes_without_images():
    labels, hits = torch.tensor([0, 0, 2]), torch.tensor([True, False, True])
    assert shares_by_class(hits, labels, ("a", "b", "c")) == {
        "a": wilson_interval(1, 2),
        "c": wilson_interval(1, 1),
    }


def test_student_interval_equals_scipy():
    values = [0.2, 0.5, 0.4, 0.9]
    found = student_interval(values, 0.9)
    theirs = stats.ttest_1samp(values, 0).confidence_interval(0.9)
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), rel=1e-12)
    assert (found.mean, found.spread) == pytest.approx((np.mean(values), np.std(values, ddof=1)))
    alone = student_interval([3.0])
    assert (alone.mean, alone.spread, alone.low, alone.high, alone.n) == (3.0, None, None, None, 1)
    assert mean_and_spread([1.0, 3.0]) == (2.0, math.sqrt(2))


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=8))
def test_isotonic_equals_the_max_min_formula(values):
    """Robertson, Wright & Dykstra 1988, Order Restricted Statistical Inference, Eq. 1.4.3."""
    n = len(values)
    theirs = [
        max(min(float(np.mean(values[a : b + 1])) for b in range(i, n)) for a in range(i + 1))
        for i in range(n)
    ]
    found = isotonic(torch.tensor([values, values[::-1]], dtype=torch.float64))
    assert found[0].tolist() == pytest.approx(theirs, abs=1e-9)
    assert (found.diff(dim=1) >= 0).all()


def naive_holm(p_values):
    """Step-down procedure as in the paper: for each test, the smallest level at which it is rejected."""
    found = []
    for i in range(len(p_values)):
        for level in sorted({0.0, 1.0, *(p * k for p in p_values for k in range(1, len(p_values) + 1))}):
            if level > 1:
                continue
            rejected = set()
            for k, j in enumerate(sorted(range(len(p_values)), key=lambda j: p_values[j])):
                if p_values[j] * (len(p_values) - k) > level:
                    break
                rejected.add(j)
            if i in rejected or level == 1.0:
                found.append(level)
                break
    return found


def test_holm_equals_the_step_down_procedure():
    rng = np.random.RandomState(0)
    for n in (1, 2, 5, 9):
        p_values = list(rng.uniform(0, 0.5, n) ** 3)
        assert holm(p_values) == pytest.approx(naive_holm(p_values), abs=1e-15)
    assert holm([]) == []
    assert holm([0.9, 0.8]) == [1.0, 1.0]


@pytest.mark.parametrize(
    ("a", "m", "b", "n", "low", "high"),
    [  # Newcombe 1998, table II, method 10
        (56, 70, 48, 80, 0.0524, 0.3339),
        (9, 10, 3, 10, 0.1705, 0.8090),
        (10, 10, 0, 20, 0.6791, 1.0),
        (0, 10, 0, 20, -0.1611, 0.2775),
        (10, 10, 0, 10, 0.6075, 1.0),
    ],
)
def test_difference_equals_published_examples(a, m, b, n, low, high):
    found = share_difference(a / m, m, b / n, n)
    assert (found.low, found.high) == pytest.approx((low, high), abs=6e-5)
    mirrored = share_difference(b / n, n, a / m, m)
    assert (mirrored.low, mirrored.high) == pytest.approx((-found.high, -found.low), abs=1e-12)


def test_difference_refuses_what_is_no_share():
    for bad in ((1.1, 5, 0.5, 5), (0.5, 0, 0.5, 5), (0.5, 5, -0.1, 5)):
        with pytest.raises(DataError, match="two shares"):
            share_difference(*bad)
    with pytest.raises(ConfigError, match="confidence"):
        share_difference(0.5, 5, 0.5, 5, confidence=1.0)


def test_mcnemar_equals_the_binomial_test():
    for lost in range(0, 12):
        for won in range(0, 12):
            expected = 1.0 if lost + won == 0 else stats.binomtest(lost, lost + won, 0.5).pvalue
            assert mcnemar_p(lost, won) == pytest.approx(expected, abs=1e-12)
    with pytest.raises(DataError, match="negative"):
        mcnemar_p(-1, 2)


@pytest.mark.parametrize(
    ("p_lost", "p_won"), [(0.02, 0.02), (0.1, 0.1), (0.2, 0.05), (0.5, 0.02), (0.3, 0.3)]
)
@pytest.mark.parametrize("n", [10, 30])
def test_paired_interval_covers(n, p_lost, p_won):
    """Exact coverage over every possible outcome; Wald's plain interval does not keep it."""
    covered = wald = 0.0
    for lost in range(n + 1):
        for won in range(n + 1 - lost):
            weight = stats.multinomial.pmf(
                [lost, won, n - lost - won], n, [p_lost, p_won, 1 - p_lost - p_won]
            )
            found = paired_difference(lost, won, n)
            covered += weight * (found.low <= p_won - p_lost <= found.high)
            half = 1.96 * math.sqrt(lost + won - (won - lost) ** 2 / n) / n
            wald += weight * (abs((won - lost) / n - (p_won - p_lost)) <= half)
    assert covered > 0.93
    if (p_lost, p_won, n) == (0.2, 0.05, 10):
        assert wald < 0.88


def test_paired_interval_refuses_what_cannot_be():
    with pytest.raises(DataError, match="cannot be"):
        paired_difference(3, 3, 5)
