"""Intervals over episodes, against scipy and by hand."""

import numpy as np
import pytest
from scipy import stats

from fewgen.distillation.summary import episodes_needed, interval, paired, time_report
from fewgen.errors import DataError

OURS = [0.61, 0.55, 0.72, 0.49, 0.66]
THEIRS = [0.52, 0.50, 0.70, 0.41, 0.55]


def test_the_interval_is_that_of_scipy():
    found = interval(OURS)
    low, high = stats.t.interval(0.95, 4, loc=np.mean(OURS), scale=stats.sem(OURS))
    assert (found["low"], found["high"]) == pytest.approx((low, high), abs=1e-12)
    assert found["half_width"] == pytest.approx((high - low) / 2, abs=1e-12)
    assert found["episodes"] == OURS


def test_paired_differences_reference_value():
    """By hand: differences 9, 5, 2, 8, 11 points have mean 7, sd sqrt(12.5), t(4) = 2.776445."""
    found = paired(OURS, THEIRS)
    assert found["mean"] == pytest.approx(0.07, abs=1e-12)
    assert found["half_width"] == pytest.approx(2.776445105 * 0.125**0.5 / 10 / 5**0.5, abs=1e-9)
    test = stats.ttest_rel(OURS, THEIRS).confidence_interval(0.95)
    assert (found["low"], found["high"]) == pytest.approx((test.low, test.high), abs=1e-12)
    # Negative control: what is paired differs little, what is not differs by chance.
    assert paired(OURS, THEIRS[::-1])["half_width"] > 1.5 * found["half_width"]


def test_one_episode_has_no_interval_and_wrong_values_are_refused():
    assert interval([0.5]) == {
        "mean": 0.5,
        "half_width": None,
        "low": None,
        "high": None,
        "sd": None,
        "episodes": [0.5],
    }
    for wrong in ([], [0.5, float("nan")]):
        with pytest.raises(DataError, match="needs finite values"):
            interval(wrong)
    with pytest.raises(DataError, match="5 and 4 episodes"):
        paired(OURS, THEIRS[:4])


def test_episodes_needed_is_theorem_1_for_many_queries():
    """With queries that say everything, the variance is s^2 / P alone."""
    sd = np.std(OURS, ddof=1)
    n = episodes_needed(OURS, 10**7, 0.02)
    assert stats.t.ppf(0.975, n - 1) * sd / n**0.5 <= 0.0201
    assert stats.t.ppf(0.975, n - 2) * sd / (n - 1) ** 0.5 >= 0.0199
    # Few queries explain this spread alone; then it is theirs that decides.
    assert episodes_needed(OURS, 20, 0.02) > n / 2


def test_times_are_divided_by_images_and_missing_parts_are_left_out():
    episodes = [
        {
            "specialised": {"textual inversion": 20.0, "DDIM inversion": 1.0, "null-text inversion": 9.0},
            "synthetic": {"tint": {"seconds": 30.0, "images": 10}},
            "distilled": {"tint": 4.0, "none": 2.0},
        },
        {
            "specialised": {"textual inversion": 10.0, "null-text inversion": 10.0},
            "synthetic": {
                "tint": {"seconds": 10.0, "images": 10},
                "da_fusion": {"seconds": 5.0, "images": 10},
            },
            "distilled": {"tint": 6.0},
        },
    ]
    found = time_report(episodes)
    assert found["per_image"] == {
        "textual inversion": 1.5,
        "null-text inversion": 1.0,
        "generation": 2.0,
        "total": 4.5,
    }
    assert found["generation_per_image"] == {"da_fusion": 0.5, "tint": 2.0}
    assert found["distillation"] == {"tint": 5.0, "none": 2.0}
    nothing = time_report([{"specialised": None, "synthetic": {}, "distilled": {"none": 2.0}}])
    assert nothing["per_image"] is None
