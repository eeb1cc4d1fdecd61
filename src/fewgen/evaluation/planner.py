"""How many episodes, queries or draws a comparison needs before it is run.

An episode measures an accuracy on some queries; a draw measures the gain of one arm over another. Both
cost time, and too few of them decide nothing. Shares throughout: 0.01 is one point.
"""

from __future__ import annotations

import bisect
import functools
import math
import statistics
from collections.abc import Callable, Sequence

from fewgen.config.call import renamed
from fewgen.config.keywords import whole
from fewgen.errors import ConfigError, DataError
from fewgen.evaluation.statistics import check_confidence, student_factor

MOST = 10_000_000
"""Episodes or draws beyond which a plan counts as impossible."""


def _check_share(name: str, value: float, *, low: float = 0.0, high: float = 1.0) -> None:
    if not (math.isfinite(value) and low <= value <= high):
        raise ConfigError(
            f"{name} must be a share from {low:g} to {high:g} (0.01 is one point), got {value!r}."
        )


def _check_positive(name: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise ConfigError(f"{name} must be a number above 0, got {value!r}.")


def _check_accuracy(a: float, s: float) -> None:
    _check_share("the accuracy", a)
    _check_share("the standard deviation between episodes", s)
    if s * s > a * (1 - a) + 1e-12:
        raise ConfigError(
            f"accuracies between 0 and 1 with mean {a:g} cannot have a standard deviation of {s:g} between "
            f"episodes; the largest possible is {math.sqrt(a * (1 - a)):.4g}."
        )


def _check_target(var_target: float | None, half_width: float | None) -> None:
    if (var_target is None) == (half_width is None):
        raise ConfigError("give either var_target or half_width, the one that the plan must reach.")
    if var_target is not None:
        _check_positive("var_target", var_target)
    if half_width is not None:
        _check_positive("half_width", half_width)


# --------------------------------------------------------------------------------- episodes and queries


def variance_of_mean(a: float, s: float, episodes: int, queries: int) -> float:
    """Variance of the mean accuracy over episodes.

    Args:
        a: mean true accuracy of an episode, in [0, 1].
        s: standard deviation of the true accuracy between episodes.
        episodes: P, independent episodes.
        queries: Q, test queries in each episode, over all of its classes.

    Returns:
        (a (1 - a) / Q + (1 - 1 / Q) s^2) / P.

    Raises:
        ConfigError: values outside their ranges, or `s` larger than accuracies with mean `a` can have.

    Source: TINT, Theorem 1 (law of total variance of a binomial with random share).
    Differs: nothing. Queries are taken as independent; drawn without replacement and equally many per
    class they vary slightly less, and episodes that share classes slightly more.

    >>> f"{variance_of_mean(0.87, 0.05, episodes=600, queries=75):.2g}"
    '6.6e-06'
    """
    _check_accuracy(a, s)
    whole("episodes", episodes, 1)
    whole("queries", queries, 1)
    return (a * (1 - a) / queries + (1 - 1 / queries) * s * s) / episodes


def half_width(a: float, s: float, episodes: int, queries: int, *, confidence: float = 0.95) -> float:
    """Expected half width of the Student interval of the mean accuracy.

    Args:
        a: mean true accuracy, in [0, 1].
        s: standard deviation of the true accuracy between episodes.
        episodes: at least 2.
        queries: in each episode.
        confidence: of the interval.

    Returns:
        t(P - 1) times the root of `variance_of_mean`.

    Raises:
        ConfigError: as `variance_of_mean`, or fewer than two episodes.

    Source: TINT, Sec. 2.7 of the published plan; Student 1908, Biometrika 6(1).

    >>> round(half_width(0.87, 0.05, episodes=600, queries=75), 4)
    0.0051
    """
    whole("episodes", episodes, 2)
    check_confidence(confidence)
    return student_factor(confidence, episodes - 1) * math.sqrt(variance_of_mean(a, s, episodes, queries))


def _smallest(low: int, reached: Callable[[int], bool], what: str) -> int:
    """Return the smallest n >= low for which `reached(n)`, a monotone test, holds."""
    high = low
    while not reached(high):
        if high >= MOST:
            raise ConfigError(f"more than {MOST:,} {what} would be needed. Ask for less.")
        low, high = high + 1, min(2 * high, MOST)
    return low + bisect.bisect_left(range(low, high), True, key=reached)


def required_episodes(
    *,
    a: float,
    s: float,
    queries: int,
    var_target: float | None = None,
    half_width: float | None = None,
    confidence: float = 0.95,
) -> int:
    """Smallest number of episodes that reaches a variance, or a half width of the interval.

    Args:
        a: mean true accuracy, in [0, 1].
        s: standard deviation of the true accuracy between episodes.
        queries: in each episode.
        var_target: variance of the mean to reach; or else
        half_width: of the interval to reach, a share (0.01 is plus or minus one point).
        confidence: of the interval.

    Returns:
        P; at least 1 for a variance and 2 for an interval.

    Raises:
        ConfigError: values outside their ranges, not exactly one target, or more than `MOST` episodes.

    Source: TINT, Theorem 1, solved for P.
    Differs: for a half width the Student factor of the resulting P is used, not 1.96.

    >>> required_episodes(a=0.87, s=0.05, queries=75, half_width=0.01)
    156
    """
    _check_target(var_target, half_width)
    check_confidence(confidence)
    single = variance_of_mean(a, s, 1, queries)
    if var_target is not None:
        # One part in 10^12 is for the rounding of targets that were themselves computed from P.
        n = max(1, math.ceil(single / var_target * (1 - 1e-12)))
        if n > MOST:
            raise ConfigError(f"{n:,} episodes would be needed, more than {MOST:,}. Ask for less.")
        return n
    target: float = half_width  # type: ignore[assignment]
    return _smallest(
        2, lambda n: student_factor(confidence, n - 1) * math.sqrt(single / n) <= target, "episodes"
    )


def required_queries(
    *,
    a: float,
    s: float,
    episodes: int,
    var_target: float | None = None,
    half_width: float | None = None,
    confidence: float = 0.95,
) -> int | None:
    """Smallest number of queries in each episode that reaches a variance or a half width.

    Args:
        a: mean true accuracy, in [0, 1].
        s: standard deviation of the true accuracy between episodes.
        episodes: P; at least 2 for a half width.
        var_target: variance of the mean to reach; or else
        half_width: of the interval to reach, a share.
        confidence: of the interval.

    Returns:
        Q; None where no number of queries suffices, because the differences between episodes alone,
        s^2 / P, are as large as the target: then only more episodes help.

    Raises:
        ConfigError: values outside their ranges, or not exactly one target.

    Source: TINT, Theorem 1, solved for Q: (a (1 - a) - s^2) / (P V - s^2).

    >>> required_queries(a=0.87, s=0.05, episodes=600, var_target=6.63e-6)
    75
    >>> required_queries(a=0.87, s=0.05, episodes=100, var_target=2.5e-5) is None
    True
    """
    _check_target(var_target, half_width)
    _check_accuracy(a, s)
    check_confidence(confidence)
    whole("episodes", episodes, 1 if half_width is None else 2)
    if half_width is not None:
        var_target = (half_width / student_factor(confidence, episodes - 1)) ** 2
    assert var_target is not None
    within, left = a * (1 - a) - s * s, episodes * var_target - s * s
    if within <= 0:
        # Every episode is all right or all wrong: one query says which.
        return 1 if left >= -1e-12 * s * s else None
    if left <= 1e-12 * s * s:
        return None
    return max(1, math.ceil(within / left * (1 - 1e-12)))


def of_measured(accuracies: Sequence[float], queries: int) -> tuple[float, float]:
    """Return mean accuracy and its standard deviation between episodes, as measured episodes estimate them.

    Args:
        accuracies: of at least two episodes.
        queries: in each episode.

    Raises:
        DataError, ConfigError: as `between_episode_variance`.
    """
    between = math.sqrt(between_episode_variance(accuracies, queries))
    mean = math.fsum(accuracies) / len(accuracies)
    # Estimates may leave what two numbers of one distribution allow.
    return mean, min(between, math.sqrt(mean * (1 - mean)))


def between_episode_variance(accuracies: Sequence[float], queries: int) -> float:
    """Estimate the variance of the true accuracy between episodes from measured accuracies.

    Args:
        accuracies: of at least two episodes, each in [0, 1].
        queries: in each episode, at least 2.

    Returns:
        (V - m (1 - m) / Q) / (1 - 1 / Q) with mean m and sample variance V, made unbiased, and 0
        where that is negative (the queries alone explain the spread).

    Raises:
        DataError: fewer than two accuracies, or one outside [0, 1] or not finite.
        ConfigError: fewer than two queries.

    Source: TINT, Theorem 1, solved for s^2 with sample moments in place of E and Var. This step is an
        inference of ours, not in the paper.
    Differs: m (1 - m) underestimates a (1 - a) by the variance of m, V / P, which is added back; clipping
        at 0 gives up unbiasedness where the true value is near 0.

    >>> round(between_episode_variance([0.7, 0.8, 0.9], queries=100), 6)
    0.008451
    """
    whole("queries", queries, 2)
    values = [float(v) for v in accuracies]
    if len(values) < 2:
        raise DataError(f"the variance between episodes needs at least two accuracies, got {len(values)}.")
    for i, value in enumerate(values):
        if not (math.isfinite(value) and 0 <= value <= 1):
            raise DataError(
                f"accuracy {i + 1} of {len(values)} is {value!r}; accuracies are shares from 0 to 1 "
                "(divide percentages by 100)."
            )
    mean, variance = statistics.fmean(values), statistics.variance(values)
    # E[m (1 - m)] = a (1 - a) - Var[m], and Var[m] is estimated without bias by V / P.
    single = mean * (1 - mean) + variance / len(values)
    return max(0.0, (variance - single / queries) / (1 - 1 / queries))


# ------------------------------------------------------------------------------------------------ draws


def _tail(x: float, degrees: float, shift: float) -> float:
    """P(T > x) of the noncentral t."""
    from scipy.stats import nct, norm

    value = float(nct.sf(x, degrees, shift))
    # Far out the series gives up; there the normal form is exact to many digits.
    return value if math.isfinite(value) else float(norm.sf(x - shift))


@functools.lru_cache(maxsize=4096)
@renamed(alpha="level")
def power_of_draws(gain: float, n_draws: int, sd: float, *, level: float = 0.05) -> float:
    """Probability that the interval of a paired gain excludes 0, when the true gain is `gain`.

    Args:
        gain: true mean difference, a share.
        n_draws: paired draws, at least 2.
        sd: standard deviation of the paired differences.
        level: one minus the confidence of the two-sided interval.

    Returns:
        Power in [0, 1], of both sides together.

    Raises:
        ConfigError: values outside their ranges.

    Source: power of the one-sample t test through the noncentral t distribution, e.g. Cohen 1988,
        Statistical Power Analysis for the Behavioral Sciences, Ch. 2.
    """
    whole("the number of draws", n_draws, 2)
    _check_positive("the standard deviation of the gain", sd)
    if not 0 < level < 1:
        raise ConfigError(f"level must lie between 0 and 1, got {level!r}.")
    critical = student_factor(1 - level, n_draws - 1)
    shift = abs(gain) / sd * math.sqrt(n_draws)
    return _tail(critical, n_draws - 1, shift) + _tail(critical, n_draws - 1, -shift)


def _check_power(power: float, level: float) -> None:
    if not (0 < level < 1 and level < power < 1):
        raise ConfigError(
            f"power must lie between level and 1, and level between 0 and 1, got {power!r} and {level!r}."
        )


@renamed(alpha="level")
def required_draws(gain: float, sd: float, *, power: float = 0.8, level: float = 0.05) -> int:
    """Smallest number of paired draws whose interval excludes 0 with this probability.

    Args:
        gain: true mean difference to be seen, a share (0.01 is one point).
        sd: standard deviation of the paired differences.
        power: wanted probability.
        level: one minus the confidence of the two-sided interval.

    Returns:
        Number of draws, at least 2.

    Raises:
        ConfigError: values outside their ranges, or more than `MOST` draws.

    Source: as `power_of_draws`.

    >>> required_draws(0.01, 0.01)
    10
    """
    _check_positive("the gain", gain)
    _check_positive("the standard deviation of the gain", sd)
    _check_power(power, level)
    return _smallest(2, lambda n: power_of_draws(gain, n, sd, level=level) >= power, "draws")


@renamed(alpha="level")
def smallest_gain(n_draws: int, sd: float, *, power: float = 0.8, level: float = 0.05) -> float:
    """Smallest true gain that so many paired draws see with this probability.

    Args:
        n_draws: at least 2.
        sd: standard deviation of the paired differences; 0 gives 0.
        power: wanted probability.
        level: one minus the confidence of the two-sided interval.

    Returns:
        A share: 0.017 is 1.7 points.

    Raises:
        ConfigError: values outside their ranges.

    Source: as `power_of_draws`, solved by bisection.

    >>> round(smallest_gain(5, 0.01), 3)
    0.017
    """
    whole("the number of draws", n_draws, 2)
    _check_power(power, level)
    if sd == 0:
        return 0.0
    _check_positive("the standard deviation of the gain", sd)
    low, high = 0.0, 1.0
    while power_of_draws(high, n_draws, 1.0, level=level) < power:
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        if power_of_draws(middle, n_draws, 1.0, level=level) < power:
            low = middle
        else:
            high = middle
    return high * sd
