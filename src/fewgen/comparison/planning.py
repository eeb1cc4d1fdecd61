"""How many episodes, queries or draws a comparison needs, before it is run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, SupportsFloat, cast

from fewgen.config.call import accepts_config
from fewgen.config.keywords import refuse_ignored
from fewgen.errors import ConfigError, DataError

_UNLIMITED = 10**9


@dataclass(frozen=True)
class SamplePlan:
    """The answer to one question of planning.

    Attributes:
        question: what was asked, in words.
        answer: name -> number.
        assumed: name -> what the answer rests on.
        notes: what else to know.
    """

    question: str
    answer: dict[str, float]
    assumed: dict[str, float | str]
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON-ready values."""
        return {
            "question": self.question,
            "answer": dict(self.answer),
            "assumed": dict(self.assumed),
            "notes": list(self.notes),
        }

    def lines(self) -> list[str]:
        """Return the plan as a small table for a terminal."""
        width = max(len(name) for name in (*self.answer, *self.assumed)) + 2
        lines = [self.question, ""]
        lines += [f"  {name:<{width}}{_number(value)}" for name, value in self.answer.items()]
        lines += ["", "It assumes:"]
        lines += [f"  {name:<{width}}{_number(value)}" for name, value in self.assumed.items()]
        return [*lines, *(["", *self.notes] if self.notes else [])]


def _number(value: float | str) -> str:
    if isinstance(value, str):
        return value
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _points(share: float) -> str:
    number = f"{100 * share:.3g}"
    return f"{number} point" if number == "1" else f"{number} points"


@accepts_config
def plan(
    *,
    accuracy: float | None = None,
    between_sd: float | None = None,
    accuracies: str | Path | Sequence[float] | None = None,
    queries: int | None = None,
    episodes: int | None = None,
    half_width: float | None = None,
    gain: float | None = None,
    sd: float | None = None,
    draws: int | None = None,
    power: float = 0.8,
    confidence: float = 0.95,
    as_json: bool = False,
    config: str | Path | Mapping[str, Any] | None = None,
) -> SamplePlan | dict[str, Any]:
    """Say how many episodes, queries or draws a result needs before it can be trusted.

    Episodes: of accuracy, spread between episodes, queries, episodes and half width, leave out what is to
    be found. Draws: of gain, its standard deviation and draws, likewise. All are shares: 0.01 is one point.

    Args:
        accuracy: expected mean accuracy of an episode, a share such as 0.87.
        between_sd: standard deviation of the true accuracy between episodes, a share such as 0.05.
        accuracies: measured accuracies of episodes, in place of the two above, which are then estimated: a
            JSON file with a list of shares, or with such a list under "accuracies".
        queries: test queries in each episode, over all its classes.
        episodes: number of episodes.
        half_width: wanted half width of the interval of the mean accuracy, such as 0.01 for plus or minus
            one point.
        gain: true gain to be seen, such as 0.01 for one point.
        sd: standard deviation of the gain over paired draws, such as 0.01.
        draws: number of paired draws.
        power: wanted probability that the interval of a true gain excludes 0.
        confidence: of the intervals.
        as_json: print JSON for scripts; in Python, return a dictionary.
        config: YAML file (or dictionary) with any of these keywords; what is given directly wins.

    Returns:
        `SamplePlan`, or its dictionary.

    Raises:
        ConfigError: nothing to be found, too little given, values out of range, or a target out of reach.
        DataError: accuracies that cannot be read.

    Source: episodes: TINT, Theorem 1; draws: power of the paired t test.

    >>> plan(gain=0.01, sd=0.01).answer["draws"]
    10
    """
    of_episodes = {
        "accuracy": accuracy,
        "between_sd": between_sd,
        "accuracies": accuracies,
        "queries": queries,
        "episodes": episodes,
        "half_width": half_width,
    }
    of_draws = {"gain": gain, "sd": sd, "draws": draws}
    asked = [name for name, value in of_episodes.items() if value is not None]
    asked_draws = [name for name, value in of_draws.items() if value is not None]
    if asked and asked_draws:
        raise ConfigError(
            f"plan answers one question at a time: {', '.join(asked)} belong to episodes, "
            f"{', '.join(asked_draws)} to draws."
        )
    if asked:
        refuse_ignored("on episodes", {"power": power}, {"power": 0.8}, "power")
    elif gain is not None and draws is not None:
        refuse_ignored(
            "with --gain and --draws: it is what is found", {"power": power}, {"power": 0.8}, "power"
        )
    if asked_draws:
        found = _plan_draws(gain, sd, draws, power, confidence)
    elif asked:
        found = _plan_episodes(accuracy, between_sd, accuracies, queries, episodes, half_width, confidence)
    else:
        raise ConfigError(
            "plan needs something to go by: accuracy, between_sd, queries and half_width for episodes; "
            "or gain and sd for draws."
        )
    return found.to_dict() if as_json else found


def _plan_draws(
    gain: float | None, sd: float | None, draws: int | None, power: float, confidence: float
) -> SamplePlan:
    from fewgen.evaluation.planner import power_of_draws, required_draws, smallest_gain

    if sd is None or (gain is None and draws is None):
        raise ConfigError(
            "planning draws needs sd, the standard deviation of the gain over paired draws, and either gain "
            "or draws."
        )
    level = 1 - confidence
    assumed: dict[str, float | str] = {
        "sd of the gain": sd,
        "confidence": confidence,
        "test": "two-sided paired t",
    }
    if gain is not None and draws is not None:
        chance = power_of_draws(gain, draws, sd, level=level)
        return SamplePlan(
            f"How often {draws} paired draws see a gain of {_points(gain)}:", {"power": chance}, assumed
        )
    assumed["power"] = power
    if draws is not None:
        least = smallest_gain(draws, sd, power=power, level=level)
        question = f"The smallest gain that {draws} paired draws see ({_points(least)}):"
        return SamplePlan(question, {"smallest gain": least}, assumed)
    assert gain is not None
    needed = required_draws(gain, sd, power=power, level=level)
    half = max(2, needed // 2)
    notes = (
        (f"{half} draws would see only {_points(smallest_gain(half, sd, power=power, level=level))}.",)
        if half < needed
        else ()
    )
    return SamplePlan(
        f"To see a gain of {_points(gain)} over paired draws:", {"draws": needed}, assumed, notes
    )


def _plan_episodes(
    accuracy: float | None,
    between_sd: float | None,
    accuracies: str | Path | Sequence[float] | None,
    queries: int | None,
    episodes: int | None,
    half_width: float | None,
    confidence: float,
) -> SamplePlan:
    from fewgen.evaluation import planner
    from fewgen.evaluation.statistics import student_interval

    assumed: dict[str, float | str] = {}
    measured: dict[str, float] = {}
    if accuracies is not None:
        if accuracy is not None or between_sd is not None:
            raise ConfigError("accuracies gives accuracy and between_sd; leave those two out.")
        if queries is None:
            raise ConfigError(
                "accuracies needs queries, the number of test queries in each measured episode."
            )
        values = _read_accuracies(accuracies)
        accuracy, between_sd = planner.of_measured(values, queries)
        assumed["accuracies"] = f"{len(values)} measured, {queries} queries each"
        half = student_interval(values, confidence).half_width
        measured = {
            "mean accuracy": accuracy,
            "its half width": half or 0.0,
            "sd between episodes": between_sd,
        }
    if accuracy is None or between_sd is None:
        raise ConfigError(
            "planning episodes needs accuracy and between_sd, or accuracies of measured episodes to estimate "
            "them from."
        )
    source = " (estimated)" if accuracies is not None else ""
    assumed[f"accuracy{source}"] = accuracy
    assumed[f"sd between episodes{source}"] = between_sd
    assumed["confidence"] = confidence
    assumed["queries"] = "independent of each other (a little pessimistic without replacement)"
    assumed["episodes"] = "independent of each other (optimistic where they share few classes)"

    def with_unlimited(width: float) -> int:
        return planner.required_episodes(
            a=accuracy, s=between_sd, queries=_UNLIMITED, half_width=width, confidence=confidence
        )

    if half_width is None:
        if queries is not None and episodes is not None:
            reached = planner.half_width(accuracy, between_sd, episodes, queries, confidence=confidence)
            return SamplePlan(
                f"What {episodes:,} episodes of {queries:,} queries tell:",
                {**measured, "half width": reached},
                assumed,
            )
        if measured:
            return SamplePlan("What the measured episodes tell:", measured, assumed)
        raise ConfigError("give half_width, the interval to reach; or episodes and queries, to learn theirs.")
    question = f"To know a mean accuracy to plus or minus {_points(half_width)}:"
    if episodes is not None and (queries is None or measured):
        needed = planner.required_queries(
            a=accuracy, s=between_sd, episodes=episodes, half_width=half_width, confidence=confidence
        )
        if needed is None:
            alone = planner.half_width(accuracy, between_sd, episodes, _UNLIMITED, confidence=confidence)
            raise ConfigError(
                f"no number of queries reaches plus or minus {_points(half_width)} with {episodes:,} "
                f"episodes: the differences between episodes alone give {_points(alone)}. Take at least "
                f"{with_unlimited(half_width):,} episodes."
            )
        return SamplePlan(question, {**measured, "queries in each episode": needed}, assumed)
    if queries is None:
        raise ConfigError("give queries, to find the episodes needed; or episodes, to find the queries.")
    if episodes is not None:
        raise ConfigError("leave out one of episodes, queries and half_width: the one to be found.")
    needed = planner.required_episodes(
        a=accuracy, s=between_sd, queries=queries, half_width=half_width, confidence=confidence
    )
    notes = (f"However many queries: at least {with_unlimited(half_width):,} episodes.",)
    assumed["queries in each episode"] = queries
    return SamplePlan(question, {**measured, "episodes": needed}, assumed, notes)


def _read_accuracies(source: str | Path | Sequence[float]) -> list[float]:
    """Return accuracies from a JSON file or a sequence; what is wrong with their size is said later."""
    from fewgen.config.schema import shown
    from fewgen.files import read_json

    where, values = "accuracies", source
    if isinstance(source, (str, Path)):
        where, values = f'"{source}"', read_json(source)
        if isinstance(values, dict):
            if "accuracies" not in values:
                raise DataError(
                    f'{where} has no key "accuracies". It must hold a list of shares, or such a list under '
                    "that key."
                )
            values = values["accuracies"]
        if not isinstance(values, list):
            raise DataError(f"{where} must hold a list of accuracies, such as [0.81, 0.79].")
    numbers = []
    for i, value in enumerate(cast("Iterable[object]", values)):
        if isinstance(value, bool) or not isinstance(value, SupportsFloat):
            raise DataError(f"{where}: entry {i + 1} is {shown(value)}, not a number.")
        numbers.append(float(value))
    return numbers
